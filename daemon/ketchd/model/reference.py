"""Reference: the name of an image, with Docker's rules for what may be left out. Pure.

Source: distribution/reference (grammar) and its `normalize.go` (Docker Hub's defaults).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ketch_wire.faults import InvalidInput
from ketchd.model.digest import Digest

HUB = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_HUB = "index.docker.io"
_OFFICIAL = "library/"
_PATH_LIMIT = 255
_LENGTH_LIMIT = 4096

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_TAG = r"[\w][\w.-]{0,127}"
_REFERENCE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}}))?",
    re.ASCII,
)
_TAG_ONLY = re.compile(_TAG, re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """`domain/path[:tag][@digest]`, always whole: `busybox` is docker.io and library/busybox.

    A digest names content; beside it a tag is only a remark.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @staticmethod
    def parse(text: str) -> Reference:
        """Read the familiar (`busybox:1`) or the canonical form. Raises InvalidInput in dockerd's words."""
        if len(text) > _LENGTH_LIMIT:
            raise InvalidInput("invalid reference format")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidInput(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )
        domain, remainder = _split(text)
        name = remainder.partition(":")[0]
        if name.lower() != name:
            raise InvalidInput(f"invalid reference format: repository name ({name}) must be lowercase")
        match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
        if match is None:
            raise InvalidInput("invalid reference format")
        if len(match["path"]) > _PATH_LIMIT:
            raise InvalidInput(f"repository name must not be more than {_PATH_LIMIT} characters")
        return Reference(match["domain"], match["path"], match["tag"], _digest(match["digest"]))

    @property
    def repository(self) -> str:
        """`docker.io/library/busybox`: the name without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def is_name_only(self) -> bool:
        """Whether it has neither tag nor digest."""
        return self.tag is None and self.digest is None

    def familiar_name(self) -> str:
        """The name as users see it: `busybox`, `me/app`, `reg.io/x`."""
        if self.domain != HUB:
            return self.repository
        short = self.path.removeprefix(_OFFICIAL)
        if "/" not in short:
            return short
        # dockerd shortens docker.io/foo.bar/x to what it then reads as the host foo.bar: not here.
        first = self.path.partition("/")[0]
        return self.repository if "." in first or first == "localhost" else self.path

    def familiar(self) -> str:
        """As users see it: `busybox:latest`, `busybox@sha256:…`."""
        return self.familiar_name() + self._suffix()

    def canonical(self) -> str:
        """`docker.io/library/busybox:latest`: parses to the same reference again."""
        return self.repository + self._suffix()

    def with_default_tag(self) -> Reference:
        """With the tag `latest` if it has neither tag nor digest."""
        return replace(self, tag=DEFAULT_TAG) if self.is_name_only else self

    def with_tag(self, tag: str) -> Reference:
        """The same repository under `tag`. Raises InvalidInput."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidInput("invalid tag format")
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository at `digest`, without tag."""
        return Reference(self.domain, self.path, None, digest)

    def without_tag(self) -> Reference:
        """The repository, and the digest if there is one."""
        return replace(self, tag=None)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{tag}@{self.digest}" if self.digest is not None else tag

    def __str__(self) -> str:
        return self.canonical()


def _split(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first.lower() != first):
        domain, remainder = first, rest
    else:
        domain, remainder = HUB, text
    if domain == _LEGACY_HUB:
        domain = HUB
    if domain == HUB and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder


def _digest(text: str | None) -> Digest | None:
    if text is None:
        return None
    algorithm, _, encoded = text.partition(":")
    if algorithm != "sha256":
        raise InvalidInput("unsupported digest algorithm")
    if len(encoded) != 64:
        raise InvalidInput("invalid checksum digest length")
    try:
        return Digest(text)
    except InvalidInput:
        raise InvalidInput("invalid checksum digest format") from None


def familiar_text(canonical: str) -> str:
    """`Reference.parse(canonical).familiar()` without the parsing, for what `Reference.canonical` wrote."""
    if not canonical.startswith(f"{HUB}/"):
        return canonical
    path = canonical[len(HUB) + 1 :]
    short = path.removeprefix(_OFFICIAL)
    if "/" not in short:
        return short
    first = path.partition("/")[0]
    return canonical if "." in first or first == "localhost" else path
