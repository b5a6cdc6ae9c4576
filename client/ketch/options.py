"""The command line: options described by the very text that `--help` prints, parsed as docker's pflag does. Pure.

A description has one option a line: names, kind, two spaces, text. Indented lines go on with the text; after `|` they
keep their own line. `--old = --new` is a hidden second name. `(default X)` at the end of a text is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from ketch.faults import UsageError

MANY_KINDS = frozenset({"list", "strings", "map", "filter", "ulimit", "mount", "network", "stringToString"})


# What one typed value becomes. Raises ValueError with docker's wording.
Check = Callable[[str], str]


class Flag(NamedTuple):
    """One option. `kind` is what help shows behind the name; empty for a switch."""

    name: str
    short: str
    kind: str
    text: str

    @property
    def shown(self) -> str:
        """As error messages name it."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"

    @property
    def default(self) -> Any:
        """The value when it is not given: that of `(default …)`, or the kind's zero."""
        if self.kind in MANY_KINDS:
            return []
        start = self.text.rfind("(default ")
        said = self.text[start + 9 : -1] if start >= 0 and self.text.endswith(")") else ""
        if not self.kind:
            return said == "true"
        if self.kind in ("int", "uint", "uint16"):
            return int(said or 0)
        if self.kind in ("bytes", "duration", "decimal"):
            return 0
        return said.strip('"')


class Command(NamedTuple):
    """How one command is typed. `arguments`: least and most (None: any). `interspersed`: options may follow arguments.

    `checks`: by option, what is asked of every value beyond its kind.
    """

    usage: str
    options: str = ""
    arguments: tuple[int, int | None] = (0, 0)
    interspersed: bool = True
    note: str = ""
    checks: Mapping[str, Check] = MappingProxyType({})

    def flags(self) -> tuple[list[Flag], dict[str, str]]:
        """The options in the order of the description, and hidden name -> name."""
        return read_options(self.options)


class Given:
    """What was typed: option values by name, and the arguments."""

    def __init__(
        self, flags: list[Flag], path: str, checks: Mapping[str, Check] = MappingProxyType({})
    ) -> None:
        self._checks = checks
        self._values: dict[str, Any] = {flag.name: flag.default for flag in flags}
        self._given: set[str] = set()
        self.arguments: list[str] = []
        self.path = path

    def put(self, flag: Flag, value: Any) -> None:
        """Keep one typed value; those of a list add up. Raises ValueError when a check refuses it."""
        check = self._checks.get(flag.name)
        if check is not None:
            value = [check(one) for one in value] if isinstance(value, list) else check(value)
        if flag.kind in MANY_KINDS:
            self._values[flag.name] = [*self._values[flag.name], *value]
        else:
            self._values[flag.name] = value
        self._given.add(flag.name)

    def has(self, name: str) -> bool:
        """Whether it was typed at all."""
        return name in self._given

    def knows(self, name: str) -> bool:
        """Whether the command has this option."""
        return name in self._values

    def on(self, name: str) -> bool:
        """The value of a switch."""
        return bool(self._values[name])

    def text(self, name: str) -> str:
        """The value of a string option."""
        return cast(str, self._values[name])

    def number(self, name: str) -> int:
        """The value of a number, a size in bytes, or a duration in nanoseconds."""
        return cast(int, self._values[name])

    def many(self, name: str) -> list[str]:
        """The values of an option that may be repeated."""
        return cast("list[str]", self._values[name])


def read_options(description: str) -> tuple[list[Flag], dict[str, str]]:
    """The options of `description`, and hidden name -> name."""
    flags: list[Flag] = []
    hidden: dict[str, str] = {}
    for line in description.splitlines():
        words = line.strip()
        if not words:
            continue
        if line.startswith(" "):
            last = flags.pop()
            joined = f"{last.text}\n{words[1:]}" if words.startswith("|") else f"{last.text} {words}".strip()
            flags.append(last._replace(text=joined))
        elif " = " in words:
            old, new = words.split(" = ")
            hidden[old.lstrip("-")] = new.lstrip("-")
        else:
            names, _, text = words.partition("  ")
            short = ""
            if names[1] != "-":
                short, names = names[1], names[4:]
            name, _, kind = names[2:].partition(" ")
            flags.append(Flag(name, short, kind, text.strip()))
    return flags, hidden


def parse(command: Command, path: str, typed: list[str]) -> Given:
    """Read `typed`, the words after the command's name. Raises UsageError (125: an option, 1: the number of arguments)."""
    flags, hidden = command.flags()
    known = {flag.name: flag for flag in flags}
    shorts = {flag.short: flag for flag in flags if flag.short}
    given = Given(flags, path, command.checks)
    words = list(typed)
    try:
        while words:
            word = words.pop(0)
            if word == "--":
                given.arguments += words
                break
            if word.startswith("--"):
                name, assigned, value = word[2:].partition("=")
                _long(given, known, hidden.get(name, name), name, value if assigned else None, words)
            elif word.startswith("-") and word != "-":
                _shorthands(given, shorts, word[1:], words)
            else:
                given.arguments.append(word)
                if not command.interspersed:
                    given.arguments += words
                    break
    except ValueError as error:
        raise _wrong(command, path, str(error)) from error
    _count(command, path, given.arguments)
    return given


def _long(
    given: Given, known: dict[str, Flag], name: str, typed: str, value: str | None, words: list[str]
) -> None:
    if name == "help" and name not in known:
        try:
            is_asked = value is None or convert("", value)
        except ValueError as error:
            raise ValueError(f'invalid argument "{value}" for "--help" flag: {error}') from error
        if is_asked:
            raise HelpAsked()
        return
    flag = known.get(name)
    if flag is None:
        raise ValueError(f"unknown flag: --{typed}")
    if value is None:
        if not flag.kind:
            value = "true"
        elif words:
            value = words.pop(0)
        else:
            raise ValueError(f"flag needs an argument: --{typed}")
    _put(given, flag, value)


def _shorthands(given: Given, shorts: dict[str, Flag], letters: str, words: list[str]) -> None:
    """`-it`, `-p80:80`, `-p=80`, `-p 80`."""
    whole = letters
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = shorts.get(letter)
        if flag is None:
            if letter == "h":
                raise HelpAsked()
            raise ValueError(f"unknown shorthand flag: '{letter}' in -{whole}")
        if letters.startswith("=") and len(letters) > 1:
            value, letters = letters[1:], ""
        elif not flag.kind:
            value = "true"
        elif letters:
            value, letters = letters, ""
        elif words:
            value = words.pop(0)
        else:
            raise ValueError(f"flag needs an argument: '{letter}' in -{whole}")
        _put(given, flag, value)


def _put(given: Given, flag: Flag, value: str) -> None:
    try:
        given.put(flag, convert(flag.kind, value))
    except ValueError as error:
        raise ValueError(f'invalid argument "{value}" for "{flag.shown}" flag: {error}') from error


def convert(kind: str, value: str) -> Any:
    """One typed value as its kind says. Raises ValueError with Go's wording."""
    if not kind:
        if value in ("1", "t", "T", "true", "TRUE", "True"):
            return True
        if value in ("0", "f", "F", "false", "FALSE", "False"):
            return False
        raise ValueError(f'strconv.ParseBool: parsing "{value}": invalid syntax')
    if kind == "int":
        return _integer(value, "ParseInt", signed=True)
    if kind in ("uint", "uint16"):
        number = _integer(value, "ParseUint", signed=False)
        if kind == "uint16" and number > 0xFFFF:
            raise ValueError(f'strconv.ParseUint: parsing "{value}": value out of range')
        return number
    if kind == "strings":
        return [part.strip('"') for part in value.split(",")]
    if kind == "stringToString":
        return _pairs(value)
    if kind == "filter" and "=" not in value:
        raise ValueError("bad format of filter (expected name=value)")
    if kind in ("bytes", "duration", "decimal"):
        from ketch import quantities

        return {
            "bytes": quantities.parse_size,
            "duration": quantities.parse_duration,
            "decimal": quantities.parse_nano_cpus,
        }[kind](value)
    if kind == "ulimit":
        from ketch.limits import parse_ulimit

        parse_ulimit(value)
    if kind == "mount":
        from ketch.mounts import parse_mount

        parse_mount(value)
    return [value] if kind in MANY_KINDS else value


def _pairs(value: str) -> list[str]:
    """`a=b,c=d` as two words; with one `=`, commas belong to its value. Source: pflag, stringToString."""
    words = [value] if value.count("=") < 2 else [part.strip('"') for part in value.split(",")]
    for word in words:
        if "=" not in word:
            raise ValueError(f"{word} must be formatted as key=value")
    return words


def _integer(value: str, function: str, *, signed: bool) -> int:
    digits = value[1:] if signed and value[:1] in ("-", "+") else value
    try:
        if not digits.isascii() or digits[:1] in ("-", "+", "_", " ") or digits.endswith((" ", "\n")):
            raise ValueError
        octal = digits.isdigit() and len(digits) > 1 and digits[0] == "0"
        number = int(digits, 8 if octal else 0)
    except ValueError:
        raise ValueError(f'strconv.{function}: parsing "{value}": invalid syntax') from None
    if number >= (1 << 63 if signed else 1 << 64):
        raise ValueError(f'strconv.{function}: parsing "{value}": value out of range')
    return -number if value.startswith("-") else number


class HelpAsked(Exception):
    """`--help` was typed."""


def _count(command: Command, path: str, arguments: list[str]) -> None:
    least, most = command.arguments
    count = len(arguments)
    if least <= count and (most is None or count <= most):
        return

    def plural(number: int) -> str:
        return f"{number} argument" + ("s" if number != 1 else "")

    if least == most == 0:
        wants = "accepts no arguments"
    elif least == most:
        wants = f"requires {plural(least)}"
    elif most is None:
        wants = f"requires at least {plural(least)}"
    elif least == 0:
        wants = f"requires at most {plural(most)}"
    else:
        wants = f"requires at least {least} and at most {plural(most)}"
    program = path.split(" ")[0]
    raise UsageError(
        f"{program}: '{path}' {wants}\n\nUsage:  {path} {command.usage}".rstrip()
        + f"\n\n{'See' if most is None else 'Run'} '{path} --help' for more information"
    )


def _wrong(command: Command, path: str, message: str) -> UsageError:
    usage = f"{path} {command.usage}".rstrip()
    return UsageError(f"{message}\n\nUsage:  {usage}\n\nRun '{path} --help' for more information", 125)


def render_options(flags: list[Flag], columns: int) -> str:
    """The options as a help page shows them, wrapped for a terminal of `columns`. Source: pflag, FlagUsagesWrapped."""
    heads = []
    for flag in flags:
        head = f"  -{flag.short}, --{flag.name}" if flag.short else f"      --{flag.name}"
        heads.append(head + (f" {flag.kind}" if flag.kind else ""))
    width = max(map(len, heads), default=0) + 3
    lines = [
        head.ljust(width) + _wrap(flag.text, width, columns - 1)
        for head, flag in zip(heads, flags, strict=True)
    ]
    return "\n".join(lines)


def _wrap(text: str, indent: int, columns: int) -> str:
    """pflag's wrapping: a few columns of slop let a short rest stay on its line."""
    slop = 5
    wide = columns - indent
    lead = ""
    if wide < 24:
        indent, wide = 16, columns - 16
        lead = "\n" + " " * indent
    if wide < 24:
        return text.replace("\n", lead)
    wide -= slop
    line, text = _cut(text, wide, slop)
    lines = [line]
    while text:
        line, text = _cut(text, wide, slop)
        lines.append(line)
    return lead + "\n".join(lines).replace("\n", "\n" + " " * indent)


def _cut(text: str, wide: int, slop: int) -> tuple[str, str]:
    if wide + slop > len(text):
        return text, ""
    head = text[:wide]
    at = max(head.rfind(" "), head.rfind("\t"), head.rfind("\n"))
    if at <= 0:
        return text, ""
    newline = head.rfind("\n")
    if 0 < newline < at:
        at = newline
    return text[:at], text[at + 1 :]
