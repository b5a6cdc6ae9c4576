"""The C library's heap. What is not glibc's is left alone."""

from __future__ import annotations

from ketchd.kernel.syscalls import libc

_trim = getattr(libc, "malloc_trim", None)


def trim() -> None:
    """Give whole free pages back to the kernel. Source: malloc_trim(3)."""
    if _trim is not None:
        _trim(0)
