"""Logical lines as typed instructions: flags, JSON forms, arity. Pure: nothing is expanded yet.

Source: Dockerfile reference; the wordings are dockerd's (builder/dockerfile/instructions) and buildkit's for what only it knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from ketchd.build import flags, lexer
from ketchd.build.flags import MountFlag
from ketchd.build.lexer import Heredoc, Line, Place, Source

_RUN_NETWORKS = frozenset({"", "default", "bridge", "none", "host"})
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has. text: the line as `Step n/m : …` prints it."""

    place: Place
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """FROM base [AS name]. name: lower-case, "" for none."""

    base: str
    name: str = ""
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Instruction):
    """CMD, ENTRYPOINT: argv of the JSON form, or the text of the shell form."""

    keyword: str
    argv: tuple[str, ...] = ()
    is_shell: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """RUN. script: a heredoc that is the whole command."""

    argv: tuple[str, ...] = ()
    is_shell: bool = False
    script: Heredoc | None = None
    mounts: tuple[MountFlag, ...] = ()
    network: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs(Instruction):
    """ENV, LABEL: name and value as written."""

    keyword: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """ARG: names with default, None for none."""

    items: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    """COPY, ADD. heredocs stand among the sources by their words, in order."""

    keyword: str
    sources: tuple[str, ...]
    destination: str
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    checksum: str = ""
    exclude: tuple[str, ...] = ()
    link: bool = False
    unpack: bool | None = None
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Words(Instruction):
    """EXPOSE, VOLUME, SHELL: several words. USER, WORKDIR, STOPSIGNAL, MAINTAINER: one."""

    keyword: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """HEALTHCHECK: test as the image stores it; durations in ns."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBuild(Instruction):
    """ONBUILD: the trigger's text, heredocs included."""

    trigger: str


def parse(source: Source) -> list[Instruction]:
    """Every line as an instruction. Raises InvalidInput with the place."""
    return [parse_line(line, source.escape) for line in source.lines]


def parse_line(line: Line, escape: str) -> Instruction:
    """One line. Raises InvalidInput with the place."""
    word, rest = lexer.split_word(line.text)
    keyword = word.upper()
    parser = _PARSERS.get(keyword)
    if parser is None:
        near = get_close_matches(keyword, _PARSERS, 1, 0.65)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise line.place.fault(f"unknown instruction: {keyword}{hint}")
    given, rest = flags.split_flags(line.place, rest, escape)
    return parser(_Parts(line, keyword, given, rest, escape))


@dataclass(frozen=True, slots=True)
class _Parts:
    line: Line
    keyword: str
    given: list[str]
    rest: str
    escape: str

    @property
    def place(self) -> Place:
        return self.line.place

    def flags(self, **kinds: str) -> flags.Flags:
        return flags.parse_flags(self.place, self.given, kinds)

    def json(self) -> tuple[str, ...] | None:
        """The JSON form, None when it is not one. Raises InvalidInput."""
        if not self.rest.startswith("["):
            return None
        try:
            value = json.loads(self.rest)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, list):
            return None
        if not all(isinstance(item, str) for item in value):
            raise self.place.fault("when using JSON array syntax, arrays must be comprised of strings only")
        return tuple(value)

    def at_least_one(self) -> None:
        if not self.rest:
            raise self.place.fault(f"{self.keyword} requires at least one argument")


def _from(parts: _Parts) -> Instruction:
    given = parts.flags(platform="text")
    found = parts.rest.split()
    name = ""
    if len(found) == 3 and found[1].lower() == "as":
        name = found[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            raise parts.place.fault(
                f'invalid name for build stage: "{found[2]}", name can\'t start with a number or contain symbols'
            )
    elif len(found) != 1:
        raise parts.place.fault("FROM requires either one or three arguments")
    return From(
        place=parts.place, text=parts.line.text, base=found[0], name=name, platform=given.text("platform")
    )


def _run(parts: _Parts) -> Instruction:
    given = parts.flags(mount="many", network="text", security="text")
    if given.text("security") not in ("", "sandbox"):
        raise parts.place.fault(f'security mode "{given.text("security")}" is not allowed for a build')
    mounts = tuple(flags.parse_mount(parts.place, text) for text in given.many("mount"))
    network = given.text("network")
    if network not in _RUN_NETWORKS:  # more than these only who starts the build may choose
        raise parts.place.fault(f"unsupported network mode {network!r}")
    parts.at_least_one()
    common = {"place": parts.place, "text": parts.line.text}
    heredocs = parts.line.heredocs
    if len(heredocs) == 1 and len(lexer.words(parts.rest, parts.escape)) == 1 and parts.rest.startswith("<<"):
        return Run(**common, script=heredocs[0], mounts=mounts, network=network, is_shell=True)  # type: ignore[arg-type]
    if (argv := parts.json()) is not None and not heredocs:
        return Run(**common, argv=argv, mounts=mounts, network=network)  # type: ignore[arg-type]
    text = parts.rest
    for heredoc in heredocs:
        text += f"\n{heredoc.raw}{heredoc.name}"
    return Run(**common, argv=(text,), is_shell=True, mounts=mounts, network=network)  # type: ignore[arg-type]


def _command(parts: _Parts) -> Instruction:
    parts.flags()
    argv = parts.json()
    return Command(
        place=parts.place,
        text=parts.line.text,
        keyword=parts.keyword,
        argv=argv if argv is not None else ((parts.rest,) if parts.rest else ()),
        is_shell=argv is None and bool(parts.rest),
    )


def _pairs(parts: _Parts) -> Instruction:
    parts.flags()
    parts.at_least_one()
    found = lexer.words(parts.rest, parts.escape)
    pairs: list[tuple[str, str]] = []
    if "=" not in found[0]:
        name, value = lexer.split_word(parts.rest)
        if not value:
            raise parts.place.fault(f"{parts.keyword} must have two arguments")
        pairs.append((name, value))
    else:
        for word in found:
            name, sign, value = word.partition("=")
            if not sign:
                raise parts.place.fault(
                    f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value'
                )
            pairs.append((name, value))
    if any(not name for name, _ in pairs):
        raise parts.place.fault(f"{parts.keyword} names can not be blank")
    return Pairs(place=parts.place, text=parts.line.text, keyword=parts.keyword, pairs=tuple(pairs))


def _arg(parts: _Parts) -> Instruction:
    parts.flags()
    parts.at_least_one()
    items: list[tuple[str, str | None]] = []
    for word in lexer.words(parts.rest, parts.escape):
        name, sign, value = word.partition("=")
        if not name:
            raise parts.place.fault("ARG names can not be blank")
        items.append((name, value if sign else None))
    return Arg(place=parts.place, text=parts.line.text, items=tuple(items))


def _copy(parts: _Parts) -> Instruction:
    kinds = {"chown": "text", "chmod": "text", "exclude": "many", "link": "bool"}
    kinds |= {"from": "text"} if parts.keyword == "COPY" else {
        "checksum": "text", "unpack": "bool", "keep-git-dir": "bool",
    }  # fmt: skip
    given = flags.parse_flags(parts.place, parts.given, kinds)
    found = parts.json()
    listed = found if found is not None else tuple(parts.rest.split())
    if not listed:
        raise parts.place.fault(
            f"{parts.keyword} requires at least two arguments, but no arguments were provided"
        )
    if len(listed) == 1:
        raise parts.place.fault(
            f"{parts.keyword} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    heredoc_words = [word for word in listed[:-1] if lexer.heredoc_names(word, parts.escape)]
    if "$" in given.text("from"):
        raise parts.place.fault(
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global "
            "scope as a workaround"
        )
    return Copy(
        place=parts.place,
        text=parts.line.text,
        keyword=parts.keyword,
        sources=tuple(word for word in listed[:-1] if word not in heredoc_words),
        destination=listed[-1],
        from_=given.text("from"),
        chown=given.text("chown"),
        chmod=given.text("chmod"),
        checksum=given.text("checksum"),
        exclude=tuple(given.many("exclude")),
        link=given.flag("link") or False,
        unpack=given.flag("unpack"),
        heredocs=parts.line.heredocs if found is None else (),
    )


def _one(parts: _Parts) -> Instruction:
    parts.flags()
    if not parts.rest:
        raise parts.place.fault(f"{parts.keyword} requires exactly one argument")
    return Words(place=parts.place, text=parts.line.text, keyword=parts.keyword, words=(parts.rest,))


def _several(parts: _Parts) -> Instruction:
    parts.flags()
    parts.at_least_one()
    found = parts.json() if parts.keyword != "EXPOSE" else None
    if found is None:
        if parts.keyword == "SHELL":
            raise parts.place.fault("SHELL requires the arguments to be in JSON form")
        found = tuple(parts.rest.split())
    if not found:
        raise parts.place.fault(f"{parts.keyword} requires at least one argument")
    if parts.keyword == "VOLUME" and any(not word.strip() for word in found):
        raise parts.place.fault("VOLUME specified can not be an empty string")
    return Words(place=parts.place, text=parts.line.text, keyword=parts.keyword, words=found)


def _healthcheck(parts: _Parts) -> Instruction:
    parts.at_least_one()
    kind, rest = lexer.split_word(parts.rest)
    kind = kind.upper()
    common = {"place": parts.place, "text": parts.line.text}
    if kind == "NONE":
        if rest:
            raise parts.place.fault("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(**common, test=("NONE",))  # type: ignore[arg-type]
    given = flags.parse_flags(
        parts.place, parts.given,
        {"interval": "text", "timeout": "text", "start-period": "text", "start-interval": "text", "retries": "text"},
    )  # fmt: skip
    if kind != "CMD":
        raise parts.place.fault(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    argv = _Parts(parts.line, kind, [], rest, parts.escape).json()
    if not rest or argv == ():
        raise parts.place.fault("Missing command after HEALTHCHECK CMD")
    return Healthcheck(
        **common,  # type: ignore[arg-type]
        test=("CMD", *argv) if argv is not None else ("CMD-SHELL", rest),
        interval_ns=given.duration_ns("interval"),
        timeout_ns=given.duration_ns("timeout"),
        start_period_ns=given.duration_ns("start-period"),
        start_interval_ns=given.duration_ns("start-interval"),
        retries=given.retries(),
    )


def _onbuild(parts: _Parts) -> Instruction:
    parts.flags()
    parts.at_least_one()
    inner = lexer.split_word(parts.rest)[0].upper()
    if inner == "ONBUILD":
        raise parts.place.fault("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if inner in ("FROM", "MAINTAINER"):
        raise parts.place.fault(f"{inner} isn't allowed as an ONBUILD trigger")
    if inner in _PARSERS:  # what is no instruction is found out when the trigger is used, as in dockerd
        parse_line(Line(parts.place, parts.line.end, parts.rest, parts.line.heredocs), parts.escape)
    trigger = parts.rest + "".join(f"\n{heredoc.raw}{heredoc.name}" for heredoc in parts.line.heredocs)
    return OnBuild(place=parts.place, text=parts.line.text, trigger=trigger)


_PARSERS: dict[str, Callable[[_Parts], Instruction]] = {
    "FROM": _from,
    "RUN": _run,
    "CMD": _command,
    "ENTRYPOINT": _command,
    "ENV": _pairs,
    "LABEL": _pairs,
    "ARG": _arg,
    "COPY": _copy,
    "ADD": _copy,
    "EXPOSE": _several,
    "VOLUME": _several,
    "SHELL": _several,
    "USER": _one,
    "WORKDIR": _one,
    "STOPSIGNAL": _one,
    "MAINTAINER": _one,
    "HEALTHCHECK": _healthcheck,
    "ONBUILD": _onbuild,
}
