"""Digest: the name of content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from ketch_wire.faults import InvalidInput

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`sha256:` and 64 hex digits. Raises InvalidInput. Source: image-spec descriptor.md."""

    text: str

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.text):
            raise InvalidInput(f"not a digest: {self.text[:100]!r}")

    @staticmethod
    def of(content: bytes) -> Digest:
        """The digest of `content`."""
        return Digest("sha256:" + hashlib.sha256(content).hexdigest())

    @property
    def hex(self) -> str:
        """The 64 hex digits."""
        return self.text[7:]

    @property
    def short(self) -> str:
        """The first 12 hex digits, as Docker shows them."""
        return self.text[7:19]

    def __str__(self) -> str:
        return self.text


def chain_id(diff_ids: list[Digest] | tuple[Digest, ...]) -> Digest:
    """The ChainID of a non-empty list of diff IDs, base first. Source: image-spec config.md, "Layer ChainID"."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = Digest.of(f"{chain} {diff_id}".encode())
    return chain
