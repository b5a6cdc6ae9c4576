"""bpf(2): device programs of version 2's cgroups."""

from __future__ import annotations

import ctypes
import os
import struct

from ketchd.kernel.syscalls import syscall

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_QUERY = 5, 8, 9, 16
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


def replace_device_program(cgroup: str, instructions: bytes) -> None:
    """Attach the program, then detach those that were attached to this cgroup before. Raises OSError."""
    before = _attached(cgroup)
    attach_device_program(cgroup, instructions)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for program_id in before:
            # prog_id, next_id, open_flags
            fd = _bpf(13, struct.pack("=III", program_id, 0, 0), "bpf BPF_PROG_GET_FD_BY_ID")
            try:
                _bpf(
                    _PROG_DETACH,
                    struct.pack("=IIII", directory, fd, _ATTACH_CGROUP_DEVICE, 0),
                    f"bpf BPF_PROG_DETACH {cgroup}",
                )
            finally:
                os.close(fd)
    finally:
        os.close(directory)


def _attached(cgroup: str) -> list[int]:
    """Ids of the device programs attached to this cgroup itself."""
    ids = (ctypes.c_uint32 * 64)()
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
        attributes = struct.pack(
            "=IIIIQI", directory, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), len(ids)
        )
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        syscall(_NUMBERS[os.uname().machine], _PROG_QUERY, buffer, len(attributes), what="bpf BPF_PROG_QUERY")
        return list(ids[: struct.unpack_from("=I", buffer.raw, 24)[0]])
    finally:
        os.close(directory)
