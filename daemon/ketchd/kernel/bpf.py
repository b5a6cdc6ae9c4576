"""bpf(2): device programs of version 2's cgroups."""

from __future__ import annotations

import ctypes
import os
import struct

from ketchd.kernel.syscalls import syscall

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI = 15, 6, 2


def _bpf(command: int, attributes: bytes, what: str) -> int:
    """The attribute union is as long as what we name; the kernel takes the rest as zero."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return syscall(_NUMBERS[os.uname().machine], command, buffer, len(attributes), what=what)


def load_device_program(instructions: bytes) -> int:
    """An fd of the loaded program, close-on-exec. Raises OSError (EPERM: not ours to do)."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags
    attributes = struct.pack(
        "=IIQQIIQII", _TYPE_CGROUP_DEVICE, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        0, 0, 0, 0, 0,
    )  # fmt: skip
    return _bpf(_PROG_LOAD, attributes, "bpf BPF_PROG_LOAD")


def attach_device_program(cgroup: str, instructions: bytes) -> None:
    """Load the program and attach it beside those of the ancestors. It lives as long as the cgroup. Raises OSError."""
    fd = load_device_program(instructions)
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attributes = struct.pack("=IIII", directory, fd, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI)
            _bpf(_PROG_ATTACH, attributes, f"bpf BPF_PROG_ATTACH {cgroup}")
        finally:
            os.close(directory)
    finally:
        os.close(fd)
