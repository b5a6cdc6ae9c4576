"""For whom a registry is asked: the API client that a request of ours is made for, named in its User-Agent as dockerd does, and the
`X-Meta-` headers that it sent along for the registry (`HttpHeaders` in docker's config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

USER_AGENT = "docker/28.2.2 ketch"
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "();\\"})
META = "x-meta-"
_upstream: ContextVar[str] = ContextVar("ketchd_upstream", default="")
_meta: ContextVar[Mapping[str, str] | None] = ContextVar("ketchd_meta", default=None)


def ask_for(headers: Mapping[str, str]) -> None:
    """From here on, in this task and those that it makes, requests are made for the client that sent these headers."""
    _upstream.set(headers.get("User-Agent", ""))
    _meta.set({name: value for name, value in headers.items() if name.lower().startswith(META)})


def meta_headers() -> Mapping[str, str]:
    """What the client sent along for the registry. Source: moby's api/server/router/image, postImagesCreate."""
    return _meta.get() or {}


def user_agent() -> str:
    """The header's value: `OURS UpstreamClient(THEIRS)`. Source: moby's dockerversion/useragent.go."""
    return described(_upstream.get())


def described(client: str) -> str:
    """Ours, and the client's with what would end the comment escaped. What no header may hold is left out or U+FFFD, as in Go."""
    text = client.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    clean = "".join(character for character in text if character.isprintable() or character == "\t")
    return f"{USER_AGENT} UpstreamClient({clean.translate(_ESCAPED)})" if clean else USER_AGENT
