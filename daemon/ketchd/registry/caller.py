"""For whom a registry is asked: the API client that a request of ours is made for, named in its User-Agent as dockerd does."""

from __future__ import annotations

from contextvars import ContextVar

USER_AGENT = "docker/28.2.2 ketch"
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "();\\"})
_upstream: ContextVar[str] = ContextVar("ketchd_upstream", default="")


def ask_for(client: str) -> None:
    """From here on, in this task and those that it makes, requests are made for the client with this User-Agent; empty for none."""
    _upstream.set(client)


def user_agent() -> str:
    """The header's value: `OURS UpstreamClient(THEIRS)`. Source: moby's dockerversion/useragent.go."""
    return described(_upstream.get())


def described(client: str) -> str:
    """Ours, and the client's with what would end the comment escaped. What no header may hold is left out or U+FFFD, as in Go."""
    text = client.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    clean = "".join(character for character in text if character.isprintable() or character == "\t")
    return f"{USER_AGENT} UpstreamClient({clean.translate(_ESCAPED)})" if clean else USER_AGENT
