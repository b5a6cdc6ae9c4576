"""From a filter over system calls to an assembled classic BPF program. Pure.

The program looks at the architecture, then walks a balanced tree over ranges of call numbers (about eight comparisons),
then looks at arguments where a rule asks for it. Numbers newer than every rule get ENOSYS, so that a C library falls
back instead of giving up; so do x32 calls, which share x86_64's architecture value. Another architecture is killed.
A program that reads only number and architecture for a call is cached by the kernel (5.11) as always allowed.
Source: linux/filter.h, seccomp(2); the ENOSYS rule is runc's.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ketchd.sandbox.syscalls import AUDIT_ARCH, numbers

KILL_PROCESS, KILL_THREAD, TRAP, ERRNO = 0x80000000, 0x00000000, 0x00030000, 0x00050000
TRACE, LOG, ALLOW = 0x7FF00000, 0x7FFC0000, 0x7FFF0000
NO_SUCH_CALL = ERRNO | errno.ENOSYS

_LD_WORD, _AND, _RETURN, _JUMP = 0x20, 0x54, 0x06, 0x05
_EQUAL, _GREATER, _AT_LEAST = 0x15, 0x25, 0x35
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_PERMISSIVE = (ALLOW, LOG, TRACE)
_X32_BIT, _PRIVATE = 0x40000000, 0xF0000  # 0xF0000: ARM's own calls, no part of the common count
_LIMIT = 4096  # BPF_MAXINSNS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
Code = list[Instruction]


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument `index` compared with `value` as 64-bit unsigned numbers.

    operator: `NE LT LE EQ GE GT`, or `MASKED_EQ`: argument & value == masked."""

    index: int
    operator: str
    value: int
    masked: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """What happens when every condition holds. action: a SECCOMP_RET value with its data."""

    action: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """default: for calls without a rule, and when no check holds. calls: name -> checks, the first that holds decides.
    architectures: names of `syscalls.AUDIT_ARCH`, the native one first."""

    default: int
    calls: Mapping[str, tuple[Check, ...]]
    architectures: tuple[str, ...]


def assemble(wanted: Filter) -> bytes:
    """The program as an array of struct sock_filter. Raises ValueError when it is longer than the kernel takes."""
    code: Code = [_ret(KILL_PROCESS)]
    for architecture in reversed(wanted.architectures):
        section = [(_LD_WORD, 0, 0, _NUMBER_AT), *_tree(_ranges(wanted, architecture))]
        code = _branch(_EQUAL, AUDIT_ARCH[architecture], section, code)
    code = [(_LD_WORD, 0, 0, _ARCH_AT), *code]
    if len(code) > _LIMIT:
        raise ValueError(f"the seccomp filter has {len(code)} instructions, the kernel takes {_LIMIT}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


Leaf = tuple[Check, ...]  # ends with an unconditional check
Range = tuple[int, Leaf]  # from this number on


def _ranges(wanted: Filter, architecture: str) -> list[Range]:
    table = numbers(architecture)
    default = Check(wanted.default)
    leaves = {
        table[name]: _reduced(checks, default) for name, checks in wanted.calls.items() if name in table
    }
    newest = max((number for number in leaves if number < _PRIVATE), default=-1)
    beyond = default if wanted.default & 0xFFFF0000 in _PERMISSIVE else Check(NO_SUCH_CALL)
    borders: dict[int, Leaf] = {0: (default,), newest + 1: (beyond,)}
    for number in sorted(leaves):
        borders[number] = leaves[number]
        if number + 1 not in leaves:
            borders[number + 1] = (beyond,) if number >= newest else (default,)
    if architecture == "x86_64":
        borders[_X32_BIT] = (Check(NO_SUCH_CALL),)
    merged: list[Range] = []
    for number in sorted(borders):
        if not merged or merged[-1][1] != borders[number]:
            merged.append((number, borders[number]))
    return merged


def _reduced(checks: Sequence[Check], default: Check) -> Leaf:
    """Checks up to the first unconditional one."""
    kept: list[Check] = []
    for check in checks:
        kept.append(check)
        if not check.conditions:
            return tuple(kept)
    return (*kept, default)


def _tree(ranges: Sequence[Range]) -> Code:
    if len(ranges) == 1:
        return _leaf(ranges[0][1])
    middle = len(ranges) // 2
    return _branch(_AT_LEAST, ranges[middle][0], _tree(ranges[middle:]), _tree(ranges[:middle]))


def _branch(test: int, operand: int, if_true: Code, if_false: Code) -> Code:
    """`if_false` lies first; both end with a return. A far jump goes over a JA: conditional ones reach 255."""
    if len(if_false) <= 255:
        return [(test, len(if_false), 0, operand), *if_false, *if_true]
    return [(test, 0, 1, operand), (_JUMP, 0, 0, len(if_false)), *if_false, *if_true]


def _leaf(checks: Leaf) -> Code:
    code: Code = []
    for check in reversed(checks):
        tail: Code = [_ret(check.action)]
        for condition in reversed(check.conditions):
            tail = [*_compare(condition, len(tail)), *tail]
        code = [*tail, *code]
    return code


def _compare(condition: Condition, miss: int) -> Code:
    """Falls through when the condition holds, else jumps over the `miss` instructions that follow."""
    low_at = _ARGUMENTS_AT + 8 * condition.index  # little endian, as every architecture we have a table for
    high, low = condition.value >> 32, condition.value & 0xFFFFFFFF
    load_high: Instruction = (_LD_WORD, 0, 0, low_at + 4)
    load_low: Instruction = (_LD_WORD, 0, 0, low_at)
    match condition.operator:
        case "MASKED_EQ":
            wanted_high, wanted_low = condition.masked >> 32, condition.masked & 0xFFFFFFFF
            return [
                load_high, (_AND, 0, 0, high), (_EQUAL, 0, miss + 3, wanted_high),
                load_low, (_AND, 0, 0, low), (_EQUAL, 0, miss, wanted_low),
            ]  # fmt: skip
        case "EQ":
            return [load_high, (_EQUAL, 0, miss + 2, high), load_low, (_EQUAL, 0, miss, low)]
        case "NE":
            return [load_high, (_EQUAL, 0, 2, high), load_low, (_EQUAL, miss, 0, low)]
        case "GT" | "GE":
            last = _GREATER if condition.operator == "GT" else _AT_LEAST
            return [
                load_high, (_GREATER, 3, 0, high), (_EQUAL, 0, miss + 2, high), load_low, (last, 0, miss, low),
            ]  # fmt: skip
        case "LT" | "LE":
            last = _AT_LEAST if condition.operator == "LT" else _GREATER
            return [
                load_high, (_GREATER, miss + 3, 0, high), (_EQUAL, 0, 2, high), load_low, (last, miss, 0, low),
            ]  # fmt: skip
    raise ValueError(f"unknown comparison {condition.operator}")


def _ret(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)
