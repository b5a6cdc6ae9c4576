"""The `--name=value` words behind an instruction's keyword, and RUN --mount's fields. Pure.

Source: Dockerfile reference, "RUN --mount"; buildkit frontend/dockerfile/instructions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches

from ketchd.build.lexer import Place

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_MOUNT_KEYS = {
    "bind": {"target", "source", "from", "rw"},
    "cache": {"target", "id", "ro", "sharing", "from", "source", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"target", "id", "source", "env", "required", "mode", "uid", "gid"},
    "ssh": {"target", "id", "required", "mode", "uid", "gid"},
}
_ALIASES = {"dst": "target", "destination": "target", "src": "source", "readonly": "ro", "readwrite": "rw"}
_BOOLEANS = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


@dataclass(frozen=True, slots=True)
class MountFlag:
    """RUN --mount as written. type: bind, cache, tmpfs, secret or ssh; values by their long names."""

    type: str
    values: tuple[tuple[str, str], ...]

    def get(self, key: str, default: str = "") -> str:
        """One value."""
        return dict(self.values).get(key, default)

    def flag(self, key: str, default: bool = False) -> bool:
        """One boolean value."""
        return _BOOLEANS[self.get(key, "true" if default else "false")]


@dataclass(slots=True)
class Flags:
    """The flags of one instruction by name."""

    place: Place
    values: dict[str, list[str]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A flag's value, "" when it was not given."""
        return self.values.get(name, [""])[-1]

    def many(self, name: str) -> list[str]:
        """Every value of a repeatable flag."""
        return self.values.get(name, [])

    def flag(self, name: str) -> bool | None:
        """A boolean flag, None when it was not given. Raises InvalidInput."""
        if name not in self.values:
            return None
        value = _BOOLEANS.get(self.text(name).lower())
        if value is None:
            raise self.place.fault(f"expecting boolean value for flag --{name}, not: {self.text(name)}")
        return value

    def duration_ns(self, name: str) -> int:
        """A Go duration; 0 when not given. Raises InvalidInput."""
        text = self.text(name)
        if not text:
            return 0
        parts = _DURATION.findall(text)
        if text == "0":
            return 0
        if not parts or "".join(number + unit for number, unit in parts) != text.lstrip("+-"):
            raise self.place.fault(f'time: invalid duration "{text}"')
        total = int(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))
        if total and (total < _UNITS_NS["ms"] or text.startswith("-")):
            raise self.place.fault(f'Interval "{name}" cannot be less than 1ms')
        return total

    def retries(self) -> int:
        """HEALTHCHECK's --retries; 0 when not given. Raises InvalidInput."""
        text = self.text("retries")
        if not text:
            return 0
        if not re.fullmatch(r"[+-]?\d{1,9}", text):
            raise self.place.fault(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        if int(text) < 0:
            raise self.place.fault(f"--retries cannot be negative ({int(text)})")
        return int(text)


def split_flags(place: Place, rest: str, escape: str) -> tuple[list[str], str]:
    """The leading `--x` words, quotes removed, and what follows them. Raises InvalidInput."""
    found: list[str] = []
    while rest.startswith("--"):
        word, position, quote = "", 0, ""
        while position < len(rest):
            char = rest[position]
            if char == escape and quote != "'" and position + 1 < len(rest):
                word += rest[position + 1]
                position += 2
                continue
            if quote:
                if char == quote:
                    quote = ""
                else:
                    word += char
            elif char in "'\"":
                quote = char
            elif char.isspace():
                break
            else:
                word += char
            position += 1
        if quote:
            raise place.fault(f"unterminated quote in flag {word!r}")
        rest = rest[position:].lstrip()
        if word == "--":
            break
        found.append(word)
    return found, rest


def parse_flags(place: Place, given: list[str], kinds: dict[str, str]) -> Flags:
    """kinds: name -> `text`, `many` or `bool`. Raises InvalidInput."""
    flags = Flags(place)
    for word in given:
        name, sign, value = word[2:].partition("=")
        kind = kinds.get(name)
        if kind is None:
            near = get_close_matches(name, kinds, 1, 0.6)
            raise place.fault(f"unknown flag: --{name}" + (f" (did you mean {near[0]}?)" if near else ""))
        if name in flags.values and kind != "many":
            raise place.fault(f"duplicate flag specified: --{name}")
        if not sign:
            if kind != "bool":
                raise place.fault(f"missing a value on flag: --{name}")
            value = "true"
        flags.values.setdefault(name, []).append(value)
    return flags


def parse_mount(place: Place, text: str) -> MountFlag:
    """The comma-separated fields of a --mount. Raises InvalidInput."""
    kind, values = "bind", {}
    fields: list[tuple[str, str, str]] = []
    for part in text.split(","):
        key, sign, value = part.partition("=")
        key = key.strip().lower()
        key = _ALIASES.get(key, key)
        if key == "type":
            kind = value.lower()
            continue
        if not sign:
            if key not in ("ro", "rw", "required"):
                raise place.fault(f"invalid field '{part}' must be a key=value pair")
            value = "true"
        fields.append((key, value, part))
    if kind not in _MOUNT_KEYS:
        raise place.fault(f'unsupported mount type "{kind}"')
    for key, value, part in fields:
        if key == "ro" and kind == "bind":
            key, value = "rw", "false" if _boolean(place, key, value) else "true"
        elif key == "rw" and kind == "cache":
            key, value = "ro", "false" if _boolean(place, key, value) else "true"
        if key not in _MOUNT_KEYS[kind]:
            if key in {name for names in _MOUNT_KEYS.values() for name in names}:
                raise place.fault(f"unexpected key '{key}' for mount type '{kind}'")
            raise place.fault(f"unexpected key '{key}' in '{part}'")
        if key in ("ro", "rw", "required"):
            value = "true" if _boolean(place, key, value) else "false"
        elif key == "mode" and not re.fullmatch(r"0?[0-7]{1,4}", value):
            raise place.fault(f"invalid value {value} for mode")
        elif key in ("uid", "gid") and not value.isdigit():
            raise place.fault(f"invalid value {value} for {key}")
        elif key == "sharing" and value not in ("shared", "private", "locked"):
            raise place.fault(f'unsupported sharing value "{value}"')
        elif key == "from" and "$" in value:
            raise place.fault("'from' doesn't support variable expansion, define alias stage instead")
        values[key] = value
    if kind in ("bind", "cache", "tmpfs"):
        if not values.get("target"):
            raise place.fault(f"invalid {kind} mount: target is required")
    elif kind == "secret":
        if "id" in values and "source" in values:
            raise place.fault("both source and id can't be set")
        if not (values.get("id") or values.get("source") or values.get("target")):
            raise place.fault("invalid secret mount. one of source, target required")
    if values.get("target") == "/":
        raise place.fault('invalid mount target "/"')
    return MountFlag(kind, tuple(values.items()))


def _boolean(place: Place, key: str, value: str) -> bool:
    found = _BOOLEANS.get(value.lower())
    if found is None:
        raise place.fault(f"invalid value for {key}: {value}")
    return found
