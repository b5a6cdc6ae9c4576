"""How a push compresses layers: the format, its level, and whether forms that exist already will do. Pure.

Names and ranges are those of podman's and skopeo's `--compression-format`, `--compression-level` and `--force-compression`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ketch_wire.faults import InvalidInput

GZIP, ZSTD, UNCOMPRESSED = "gzip", "zstd", "uncompressed"
LEVELS = {GZIP: (1, 9), ZSTD: (1, 20), UNCOMPRESSED: None}
_KEYS = ("compression-format", "compression-level", "force-compression")


@dataclass(frozen=True, slots=True)
class Compression:
    """format: of layers that are made here. level: None for the format's own. Raises InvalidInput.

    strict: forms of another format that are known do not count. anew: no known form counts, whatever its format: the level is
    wanted too. Without both, every known form goes as it is.
    """

    format: str = GZIP
    level: int | None = None
    strict: bool = False
    anew: bool = False

    def __post_init__(self) -> None:
        if self.format not in LEVELS:
            raise InvalidInput(
                f"unknown compression format {self.format[:40]!r}: gzip, zstd or uncompressed is expected"
            )
        if self.level is None:
            return
        bounds = LEVELS[self.format]
        if bounds is None:
            raise InvalidInput("a compression level means nothing for uncompressed layers")
        if not bounds[0] <= self.level <= bounds[1]:
            raise InvalidInput(
                f"invalid compression level {self.level} for {self.format}: {bounds[0]} to {bounds[1]} is expected"
            )

    @property
    def suffix(self) -> str:
        """As media types say it: `gzip`, `zstd` or nothing."""
        return "" if self.format == UNCOMPRESSED else self.format

    @property
    def is_slow(self) -> bool:
        """Whether it may take minutes, which a user wants to know of. gzip's own level takes less time than sending."""
        return self.level is not None

    def asked(self, format: str, level: int | None, force: bool | None) -> Compression:
        """This default with what one push asks for. A format that is asked for is meant for every layer, as podman has it,
        unless force is False. Raises InvalidInput."""
        if not format and level is None and force is None:
            return self
        kept = self.level if format in ("", self.format) else None
        strict = bool(format) or self.strict if force is None else force
        return replace(
            self,
            format=format or self.format,
            level=kept if level is None else level,
            strict=strict,
            anew=self.anew if force is None else force,
        )


def read_compression(sent: Mapping[str, Any]) -> Compression:
    """The `push` object of the configuration file. Raises InvalidInput by name."""
    if unknown := sorted(set(sent) - set(_KEYS)):
        raise InvalidInput(f"ketch.push has no setting {', '.join(unknown)}")
    format, level, force = (sent.get(key) for key in _KEYS)
    if format is not None and not isinstance(format, str):
        raise InvalidInput("ketch.push: compression-format is a string")
    if level is not None and (not isinstance(level, int) or isinstance(level, bool)):
        raise InvalidInput("ketch.push: compression-level is a whole number")
    if force is not None and not isinstance(force, bool):
        raise InvalidInput("ketch.push: force-compression is true or false")
    try:
        return Compression(format or GZIP, level, strict=bool(force))
    except InvalidInput as fault:
        raise InvalidInput(f"ketch.push: {fault.message}") from fault
