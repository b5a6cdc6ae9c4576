"""A classic BPF interpreter, as small as seccomp allows: it reads struct seccomp_data, jumps, and returns."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_DATA = struct.Struct("=iIQ6Q")


def run(program: bytes, *, number: int, architecture: int, arguments: Sequence[int] = ()) -> tuple[int, int]:
    """(the program's return value, instructions executed). Raises AssertionError on what the kernel's checker refuses."""
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    wide = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = _DATA.pack(number - (1 << 32) if number >= 1 << 31 else number, architecture, 0, *wide)
    accumulator, at, steps = 0, 0, 0
    while True:
        assert at < len(code), "ran off the end"
        opcode, if_true, if_false, operand = code[at]
        at, steps = at + 1, steps + 1
        if opcode == 0x20:
            assert operand % 4 == 0 and operand + 4 <= len(data)
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif opcode == 0x54:
            accumulator &= operand
        elif opcode == 0x05:
            at += operand
        elif opcode in (0x15, 0x25, 0x35):
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}[
                opcode
            ]
            at += if_true if holds else if_false
        elif opcode == 0x06:
            return operand, steps
        else:
            raise AssertionError(f"opcode {opcode:#x}")
