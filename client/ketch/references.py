"""Image names as the client needs them: canonical for requests, familiar for people. Pure. Source: distribution/reference."""

from __future__ import annotations

import re
from typing import NamedTuple

from ketch.credentials import domain_of
from ketch.faults import CommandFailed

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DOMAIN = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_ID = re.compile("[a-f0-9]{64}")


class ImageName(NamedTuple):
    """`docker.io`, `library/busybox`, a tag and a digest, either of which may be empty."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """`docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_repository(self) -> str:
        """`busybox`."""
        if self.domain != "docker.io":
            return self.repository
        name = self.path.removeprefix("library/")
        return self.path if "/" in name else name

    @property
    def suffix(self) -> str:
        """`:latest`, `@sha256:…` or both."""
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def canonical(self) -> str:
        """`docker.io/library/busybox:latest`."""
        return self.repository + self.suffix

    @property
    def familiar(self) -> str:
        """`busybox:latest`."""
        return self.familiar_repository + self.suffix

    @property
    def tag_or_digest(self) -> str:
        """What requests carry beside the repository."""
        return self.digest or self.tag

    def with_default_tag(self) -> ImageName:
        """`latest` where there is neither tag nor digest."""
        return self if self.tag or self.digest else self._replace(tag="latest")


def parse_name(text: str) -> ImageName:
    """An image's name. Raises CommandFailed."""
    if _ID.fullmatch(text):
        raise CommandFailed(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    _refuse_capitals(text)
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise CommandFailed("invalid reference format")
    domain = domain_of(rest)
    head, slash, path = rest.partition("/")
    if not slash or (domain == "docker.io" and head not in ("docker.io", "index.docker.io")):
        path = rest
    path, colon, tag = path.partition(":")
    if domain == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if not _PATH.fullmatch(path) or not _DOMAIN.fullmatch(domain) or (colon and not _TAG.fullmatch(tag)):
        raise CommandFailed("invalid reference format")
    return ImageName(domain, path, tag, digest)


def _refuse_capitals(text: str) -> None:
    """Before all else, whatever stands behind the name's first colon. Source: distribution/reference, ParseNormalizedNamed."""
    domain = domain_of(text)
    head, slash, rest = text.partition("/")
    if not slash or (domain == "docker.io" and head not in ("docker.io", "index.docker.io")):
        rest = text
    path = rest.partition(":")[0]
    if path != path.lower():
        if domain == "docker.io" and "/" not in path:
            path = f"library/{path}"
        raise CommandFailed(f"invalid reference format: repository name ({path}) must be lowercase")


def is_id(text: str) -> bool:
    """Whether `text` is a whole image id, which names no repository."""
    return _ID.fullmatch(text.removeprefix("sha256:")) is not None
