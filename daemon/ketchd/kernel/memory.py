"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

from ketchd.kernel.syscalls import libc

_trim = getattr(libc, "malloc_trim", None)  # a C library other than glibc has none


def give_back() -> None:
    """Return freed pages to the kernel. Takes milliseconds. Source: malloc_trim(3)."""
    if _trim is not None:
        _trim(0)
