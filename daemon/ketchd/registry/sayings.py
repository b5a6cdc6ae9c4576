"""What a server said in an answer that is no error of the protocol, as a few words for a line of ours. Pure."""

from __future__ import annotations

import html
import json
import re
from http import HTTPStatus

_SHOWN = 200
_LOOKS_LIKE_HTML = re.compile(r"\s*(<!doctype\s+html|<html|<head|<body|<\?xml)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_UNREAD = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_WORDS = ("error", "code", "error_description", "message", "details", "detail")


def one_line(text: str, limit: int) -> str:
    """Without control characters and runs of white space, at most `limit` characters."""
    clean = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def said(body: bytes) -> str:
    """The gist of a body on one line: a page's title, else its text; what JSON says of an error. Empty for nothing."""
    text = body.decode(errors="replace")
    if _LOOKS_LIKE_HTML.match(text):
        title = _TITLE.search(text)
        shown = title[1] if title and title[1].strip() else _TAG.sub(" ", _UNREAD.sub(" ", text))
        return one_line(html.unescape(shown), _SHOWN)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        words = [document[key] for key in _WORDS if isinstance(document.get(key), str) and document[key]]
        if words:
            return one_line(": ".join(words), _SHOWN)
    return one_line(text, _SHOWN)


def answered(status: int, body: bytes) -> str:
    """`403 Forbidden: "no such user"`, for a sentence that names the server."""
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    words = said(body)
    return f'{phrase}: "{words}"' if words else phrase
