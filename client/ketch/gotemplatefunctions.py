"""The functions that templates call: Go's and docker's, on plain JSON values. Pure.

Raise TemplateError, ValueError and TypeError for arguments that do not fit. Source: text/template funcs.go, docker/cli templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ketch.gotemplate import TemplateError
from ketch.gotemplatevalues import Nil, inner, printed, to_json, truth

# What nothing of a type is when it is looked into.
EMPTY: dict[str, Any] = {"map[]": {}, "[]": ()}


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Nil):
            value = EMPTY.get(value.shown)
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list | tuple | str):
            if not isinstance(key, int):
                raise ValueError(f"cannot index slice/array with type {type(key).__name__}")
            if not 0 <= key < len(value):
                raise ValueError(f"index out of range: {key}")
            value = value[key]
        elif value is None:
            raise ValueError("index of untyped nil")
        else:
            raise ValueError(f"can't index item of type {type(value).__name__}")
    return value


def _slice(value: Any, *ends: Any) -> Any:
    for end in ends:
        if not 0 <= end <= len(value):
            raise ValueError(f"index out of range: {end}")
    if len(ends) > 1 and ends[0] > ends[1]:
        raise ValueError(f"invalid slice index: {ends[0]} > {ends[1]}")
    return value[slice(*[*ends, None, None][:2])]


def _print(*values: Any) -> str:
    """Two neighbours of which neither is a string have a space between them. Source: fmt.Sprint."""
    out = ""
    for at, value in enumerate(values):
        is_apart = at > 0 and not isinstance(value, str) and not isinstance(values[at - 1], str)
        out += (" " if is_apart else "") + inner(value)
    return out


def _printf(form: str, *values: Any) -> str:
    """The verbs that templates use, with flags and widths; what is wrong is in the text. Source: fmt.Sprintf."""
    out, at, used = "", 0, 0
    while at < len(form):
        if form[at] != "%":
            out += form[at]
            at += 1
            continue
        end = at + 1
        while end < len(form) and form[end] in "+-# 0123456789.":
            end += 1
        verb = form[end : end + 1]
        if verb == "%":
            out += "%"
        else:
            if used >= len(values):
                out += f"%!{verb}(MISSING)"
            else:
                out += _verb(form[at + 1 : end], verb, values[used])
            used += 1
        at = end + 1
    if used < len(values):
        out += f"%!(EXTRA {', '.join(_typed(value) for value in values[used:])})"
    return out


def _verb(flags: str, verb: str, value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (verb in "feg" or (verb in "dxXobcU" and value == int(value))):
        if verb in "bcU":
            shown = {"b": f"{int(value):b}", "c": chr(int(value)), "U": f"U+{int(value):04X}"}[verb]
            return f"%{flags}s" % shown
        formatted: str = f"%{flags}{verb}" % value
        return formatted
    if isinstance(value, list | tuple) and verb in "sqd":
        return "[" + " ".join(_verb(flags, verb, item) for item in value) + "]"
    if verb == "T":
        return f"%{flags}s" % _type(value)
    if verb in "xX" and isinstance(value, str):
        return f"%{flags}s" % value.encode("utf-8", "surrogateescape").hex()
    if verb == "q" and isinstance(value, str):
        return f"%{flags}s" % json.dumps(value, ensure_ascii=False)
    if (
        verb == "v"
        or (verb == "s" and isinstance(value, str | dict))
        or (verb == "t" and isinstance(value, bool))
    ):
        return f"%{flags}s" % inner(value)
    return f"%!{verb}({_typed(value)})"


def _type(value: Any) -> str:
    if value is None or isinstance(value, Nil):
        return "<nil>"
    if isinstance(value, list | tuple):
        return "[]interface {}"
    if isinstance(value, dict):
        return "map[string]interface {}"
    return {str: "string", bool: "bool", int: "int", float: "float64"}.get(type(value), "func")


def _typed(value: Any) -> str:
    return "<nil>" if _type(value) == "<nil>" else f"{_type(value)}={inner(value)}"


def _compare(function: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    """The first against each of the others: whether any is so."""

    def compared(first: Any, *others: Any) -> bool:
        for other in others:
            for kind in (str, bool):
                if isinstance(first, kind) != isinstance(other, kind) and None not in (first, other):
                    raise ValueError("incompatible types for comparison")
        return any(function(first, other) for other in others)

    return compared


def _join(items: Any, separator: str) -> str:
    if isinstance(items, str):
        raise TemplateError("wrong type for value; expected []string; got string")
    return separator.join(printed(item) for item in items or ())


def _html(*values: Any) -> str:
    escapes = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}
    return "".join(escapes.get(one, one) for one in _print(*values))


def _js(*values: Any) -> str:
    escapes = {
        "\\": "\\\\",
        "'": "\\'",
        '"': '\\"',
        "<": "\\u003C",
        ">": "\\u003E",
        "&": "\\u0026",
        "=": "\\u003D",
    }
    return "".join(
        escapes.get(one, one if one.isprintable() else f"\\u{ord(one):04X}") for one in _print(*values)
    )


def _urlquery(*values: Any) -> str:
    from urllib.parse import quote_plus

    return quote_plus(_print(*values))


def _title(text: str) -> str:
    """The first letter of every word. Source: strings.Title."""
    return re.sub(r"(?<!\w)\w", lambda found: found[0].upper(), text)


def _truncate(text: str, length: int) -> str:
    return text[:length]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "split": lambda text, separator: text.split(separator) if separator else list(text),
    "join": _join,
    "title": _title,
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "truncate": _truncate,
    "println": lambda *values: " ".join(inner(value) for value in values) + "\n",
    "print": _print,
    "printf": _printf,
    "len": lambda value: len(value),
    "index": _index,
    "slice": _slice,
    "not": lambda value: not truth(value),
    "eq": _compare(lambda left, right: left == right),
    "ne": _compare(lambda left, right: left != right),
    "lt": _compare(lambda left, right: left < right),
    "le": _compare(lambda left, right: left <= right),
    "gt": _compare(lambda left, right: left > right),
    "ge": _compare(lambda left, right: left >= right),
    "html": _html,
    "js": _js,
    "urlquery": _urlquery,
}

# In a table's title these would change the title.
UNTITLED = frozenset(
    ("json", "split", "join", "title", "lower", "upper", "pad", "truncate", "slice", "index", "html")
)
