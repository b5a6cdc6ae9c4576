"""Progress messages of the engine on the screen: a line per layer that is redrawn, plain lines where there is no terminal.

Source: docker/docker pkg/jsonmessage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TextIO

from ketch.faults import CommandFailed
from ketch.quantities import human_size

Message = dict[str, Any]


def show(
    messages: Iterable[Message], out: TextIO | None, on_aux: Callable[[Any], None] = lambda aux: None
) -> None:
    """Show messages until they end. `out` None: only listen for a fault. `on_aux`: gets what is not for the eye.

    Raises CommandFailed with the fault that a message tells; its code is the exit code of a failed build step.
    """
    view = View(columns_of(out)) if out is not None else None
    for message in messages:
        if message.get("aux") is not None:
            on_aux(message["aux"])
            continue
        text = view.line(message) if view is not None else ""
        if text and out is not None:
            out.write(text)
            out.flush()
        fault = message.get("errorDetail") or (
            {"message": message["error"]} if message.get("error") else None
        )
        if fault:
            code = int(fault.get("code") or 0)
            if code == 401:
                raise CommandFailed("authentication is required")
            raise CommandFailed(str(fault.get("message") or message.get("error", "")), code or 1)


def columns_of(out: TextIO | None) -> int:
    """The width of the terminal that `out` writes to; 0 when it is none."""
    from ketch.terminal import is_terminal, size

    try:
        handle = out.fileno() if out is not None else -1
    except (OSError, ValueError):
        return 0
    return (size(handle)[1] or 80) if is_terminal(handle) else 0


class View:
    """What is on the screen. Pure: messages in, text with cursor movements out. `columns`: 0 without a terminal."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: dict[str, int] = {}

    def line(self, message: Message) -> str:
        """What one message writes."""
        layer = str(message.get("id") or "")
        has_progress = message.get("progressDetail") is not None or bool(message.get("progress"))
        before, up = "", 0
        if layer and has_progress:
            if layer not in self._lines:
                self._lines[layer] = len(self._lines)
                before = "\n" if self._columns else ""
            up = len(self._lines) - self._lines[layer]
        else:
            # Lines above that are not of this group must not be written over.
            self._lines = {}
        text = self._text(message, layer)
        if not self._columns:
            return text
        moved = before + (f"\x1b[{up}A" if up else "") + text
        return moved + (f"\x1b[{up}B" if layer and up else "")

    def _text(self, message: Message, layer: str) -> str:
        if message.get("errorDetail") or message.get("error"):
            return ""
        status, stream = str(message.get("status") or ""), str(message.get("stream") or "")
        detail = message.get("progressDetail")
        bar = (
            progress_bar(detail, self._columns or 200)
            if detail is not None
            else str(message.get("progress") or "")
        )
        name = f"{layer}: " if layer else ""
        if detail is not None and self._columns and not stream:
            return f"\x1b[2K\r{name}{status} {bar}\r"
        if bar:
            return ""
        if stream:
            return name + stream
        return f"{name}{status}\n" if status or layer else ""


def progress_bar(detail: dict[str, Any], columns: int) -> str:
    """`[====>   ]  1.2MB/5.3MB`, empty without numbers."""
    current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
    units = str(detail.get("units") or "")
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{current} {units}" if units else f"{human_size(current):>8}"
    filled = min(50, int(current / total * 100) // 2)
    bar = f"[{'=' * filled}>{' ' * (50 - filled)}] " if columns > 110 else ""
    if detail.get("hidecounts"):
        return bar
    if units:
        return bar + (f"{current} {units}" if current > total else f"{current}/{total} {units}")
    counts = f"{human_size(current):>8}"
    return bar + (counts if current > total else f"{counts}/{human_size(total)}")
