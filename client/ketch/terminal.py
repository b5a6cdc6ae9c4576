"""The user's terminal: its size, raw mode that always ends, prompts. Acting."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def is_terminal(handle: int) -> bool:
    """Whether a file descriptor is a terminal."""
    try:
        return os.isatty(handle)
    except OSError:
        return False


def size(handle: int = 1) -> tuple[int, int]:
    """(rows, columns) of the terminal on `handle`; zeros without one."""
    try:
        columns, rows = os.get_terminal_size(handle)
    except OSError:
        return 0, 0
    return rows, columns


@contextlib.contextmanager
def raw(handle: int) -> Iterator[None]:
    """Every key goes through as it is; what was set before is set again at the end, however it comes."""
    if not is_terminal(handle):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(handle)
    tty.setraw(handle, termios.TCSANOW)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSADRAIN, before)


def ask(question: str) -> str:
    """A line from standard input, the question on standard output."""
    sys.stdout.write(question)
    sys.stdout.flush()
    try:
        return sys.stdin.readline().rstrip("\r\n")
    except KeyboardInterrupt:
        sys.stdout.write("\n")  # the user's shell begins a line of its own
        sys.stdout.flush()
        raise


def ask_secret(question: str) -> str:
    """A line that is not shown while it is typed."""
    import termios

    sys.stdout.write(question)
    sys.stdout.flush()
    before = termios.tcgetattr(0)
    quiet = termios.tcgetattr(0)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSADRAIN, quiet)
    try:
        return sys.stdin.readline().rstrip("\r\n")
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        sys.stdout.write("\n")
        sys.stdout.flush()


def confirm(question: str) -> bool:
    """Whether the answer is yes; nothing typed is no. Source: docker/cli, PromptForConfirmation."""
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
