"""A Dockerfile's text as logical lines: directives, comments, continuations, heredocs. Pure.

Source: docs.docker.com Dockerfile reference, "Format", "Parser directives", "Here-Documents"; buildkit frontend/dockerfile/parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ketch_wire.faults import EngineFailure, Fault, InvalidInput

LINE_LIMIT = 65535
SIZE_LIMIT = 2 * 1024 * 1024
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_KNOWN = frozenset({"syntax", "escape", "check"})
_HEREDOC = re.compile(r"(\d*)<<(-?)\s*([^<]*)")
_TAKES_HEREDOC = frozenset({"run", "copy", "add"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: `file`, the 1-based line and that line's text, for faults that a user can act on."""

    file: str
    number: int
    text: str

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= 160 else self.text[:157] + "..."
        return f"{self.file}:{self.number}: {shown}"

    def fault(self, why: str) -> InvalidInput:
        """A parse error in dockerd's words, followed by the place."""
        return InvalidInput(f"dockerfile parse error line {self.number}: {why} ({self})")

    def bare(self, message: str) -> str:
        """A fault's message without the place, for one instruction that stands in no file."""
        return message.removeprefix(f"dockerfile parse error line {self.number}: ").removesuffix(f" ({self})")

    def located(self, fault: Fault, before: str = "") -> Fault:
        """The fault again, of the same class where that takes a message alone, with the place behind its message."""
        kind = type(fault) if type(fault).__init__ is Fault.__init__ else EngineFailure
        return fault if str(self) in fault.message else kind(self.locate(before + fault.message))

    def locate(self, message: str) -> str:
        """`message` with the place behind it."""
        return f"{message} ({self})"


@dataclass(frozen=True, slots=True)
class Heredoc:
    """One here-document. raw: the lines as written; content: without leading tabs when `<<-`. expand: the name was not quoted."""

    name: str
    raw: str
    content: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction's logical line: continuations joined, comments gone. end: its last physical line."""

    place: Place
    end: int
    text: str
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A whole Dockerfile. warnings: (line number, text)."""

    file: str
    lines: tuple[Line, ...]
    escape: str = "\\"
    syntax: str = ""
    warnings: tuple[tuple[int, str], ...] = ()


@dataclass(slots=True)
class _Reader:
    file: str
    physical: list[str]
    at: int = 0
    lines: list[Line] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)

    def place(self, index: int) -> Place:
        return Place(self.file, index + 1, self.physical[index].strip())


def read(text: str, file: str = "Dockerfile") -> Source:
    """The logical lines of `text`. Raises InvalidInput with file, line number and line."""
    if len(text) > SIZE_LIMIT:
        raise InvalidInput(f"{file} is larger than {SIZE_LIMIT} bytes")
    physical = [
        line[:-1] if line.endswith("\r") else line for line in text.removeprefix("\ufeff").split("\n")
    ]
    if not text:
        raise InvalidInput(f"the Dockerfile ({file}) cannot be empty")
    reader = _Reader(file, physical)
    for index, line in enumerate(physical):
        if len(line) > LINE_LIMIT:
            shown = Place(file, index + 1, line[:40])
            raise shown.fault(f"dockerfile line greater than max allowed size of {LINE_LIMIT}")
    if physical[0].startswith("#!"):
        reader.at = 1
    directives = _directives(reader)
    escape = directives.get("escape", "\\")
    ends_open = re.compile(rf"(?:^|[^{re.escape(escape)}]){re.escape(escape)}[ \t]*$")
    while reader.at < len(physical):
        _line(reader, escape, ends_open)
    if not reader.lines:
        raise InvalidInput(f"file with no instructions ({file})")
    return Source(file, tuple(reader.lines), escape, directives.get("syntax", ""), tuple(reader.warnings))


def _directives(reader: _Reader) -> dict[str, str]:
    found: dict[str, str] = {}
    while reader.at < len(reader.physical):
        match = _DIRECTIVE.fullmatch(reader.physical[reader.at])
        if match is None or match[1].lower() not in _KNOWN:
            break
        name, value, place = match[1].lower(), match[2], reader.place(reader.at)
        if name in found:
            raise place.fault(f"only one {name} parser directive can be used")
        if name == "escape" and value not in ("\\", "`"):
            raise place.fault(f"invalid escape token '{value}' does not match ` or \\")
        if name == "syntax" and not re.fullmatch(r"(?:docker\.io/)?docker/dockerfile(?:[:@].*)?", value):
            raise place.fault(
                f"syntax {value!r} names another frontend, and only docker/dockerfile is built in"
            )
        found[name] = value
        reader.at += 1
    return found


def _line(reader: _Reader, escape: str, ends_open: re.Pattern[str]) -> None:
    """Read one logical line, with its heredocs, if there is one before the end."""
    physical = reader.physical
    start, text = -1, ""
    while reader.at < len(physical):
        raw = physical[reader.at]
        stripped = raw.strip()
        reader.at += 1
        if stripped.startswith("#"):
            continue
        if not stripped:
            if start < 0:
                continue
            if any(rest.strip() and not rest.strip().startswith("#") for rest in physical[reader.at :]):
                reader.warnings.append((reader.at, "Empty continuation line"))
            continue
        if start < 0:
            start, raw = reader.at - 1, raw.lstrip()
        match = ends_open.search(raw)
        if match is None:
            text += raw
            break
        text += raw[: raw.rindex(escape)]
    text = text.strip()
    if start < 0 or not text:
        return
    place = reader.place(start)
    heredocs = _heredocs(reader, place, text, escape)
    reader.lines.append(Line(place, reader.at, text, heredocs))


def _heredocs(reader: _Reader, place: Place, text: str, escape: str) -> tuple[Heredoc, ...]:
    word, rest = split_word(text)
    if word.lower() == "onbuild":
        word, rest = split_word(rest)
    if word.lower() not in _TAKES_HEREDOC or "<<" not in rest:
        return ()
    found: list[Heredoc] = []
    for name, chomp, expand in heredoc_names(rest, escape):
        raw: list[str] = []
        while True:
            if reader.at >= len(reader.physical):
                raise place.fault("unterminated heredoc")
            line = reader.physical[reader.at]
            reader.at += 1
            if (line.lstrip("\t") if chomp else line) == name:
                break
            raw.append(line + "\n")
        content = "".join(line.lstrip("\t") for line in raw) if chomp else "".join(raw)
        found.append(Heredoc(name, "".join(raw), content, expand))
    return tuple(found)


def heredoc_names(text: str, escape: str) -> list[tuple[str, bool, bool]]:
    """(name, tabs are stripped, body is expanded) of each heredoc word in `text`, in order."""
    found = []
    for word in words(text, escape):
        match = _HEREDOC.fullmatch(word)
        if match is None or not match[3]:
            continue
        name = re.sub(r"['\"]", "", match[3]).replace(escape, "")
        if name:
            found.append((name, bool(match[2]), name == match[3]))
    return found


def split_word(text: str) -> tuple[str, str]:
    """The first word and the rest, both trimmed."""
    parts = text.strip().split(None, 1)
    return (parts[0] if parts else "", parts[1] if len(parts) > 1 else "")


def words(text: str, escape: str) -> list[str]:
    """`text` split at blanks outside quotes; quotes and escapes are kept. Never fails."""
    found: list[str] = []
    word, quote, position = "", "", 0
    while position < len(text):
        char = text[position]
        if char == escape and quote != "'" and position + 1 < len(text):
            word += text[position : position + 2]
            position += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in " \t":
            if word:
                found.append(word)
            word = ""
            position += 1
            continue
        word += char
        position += 1
    if word:
        found.append(word)
    return found
