"""Platform: which machines an image is for, and which of several fits best. Pure.

Source: containerd/platforms (normalisation and matching); image-spec image-index.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ketch_wire.faults import InvalidInput

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_OTHER_NAMES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
}
_SYSTEMS = ("linux", "windows", "darwin", "freebsd", "openbsd", "netbsd", "solaris", "aix", "plan9", "wasip1")


@dataclass(frozen=True, slots=True)
class Platform:
    """os/architecture[/variant] in Go's words, normalised: the variant is empty where it says nothing."""

    os: str
    architecture: str
    variant: str = ""

    @staticmethod
    def of(os: str, architecture: str, variant: str = "") -> Platform:
        """Normalised: x86_64 is amd64, arm64/v8 is arm64, arm is arm/v7."""
        architecture, implied = _OTHER_NAMES.get(
            architecture.lower(), (architecture.lower(), variant.lower())
        )
        variant = implied or variant.lower()
        if variant.isdigit():
            variant = f"v{variant}"
        if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = ""
        if (architecture, variant) == ("arm", ""):
            variant = "v7"
        return Platform(os.lower() or "linux", architecture, variant)

    @staticmethod
    def parse(text: str, host: Platform | None = None) -> Platform:
        """`linux`, `arm64`, `linux/arm/v7`. What is left out is the host's. Raises InvalidInput in dockerd's words."""
        parts = text.split("/")
        if len(parts) > 3:
            raise InvalidInput(
                f'"{text[:80]}": cannot parse platform specifier: invalid argument: '
                "must be of the form <os>[/<arch>[/<variant>]]"
            )
        for part in parts:
            if not _WORD.fullmatch(part):
                raise InvalidInput(
                    f'"{part[:80]}" is an invalid component of "{text[:80]}": '
                    'platform specifier component must match "^[A-Za-z0-9_-]+$": invalid argument'
                )
        if len(parts) > 1:
            return Platform.of(*parts)
        if parts[0].lower() in _SYSTEMS:
            return Platform.of(parts[0], host.architecture if host else "amd64")
        known = Platform.of("linux", parts[0])
        if known.architecture not in _ARCHITECTURES:
            raise InvalidInput(f'"{text[:80]}": unknown operating system or architecture: invalid argument')
        return known

    @staticmethod
    def host(machine: str) -> Platform:
        """The platform of a Linux host whose `uname -m` says `machine`."""
        return Platform.of("linux", machine)

    def accepts(self) -> list[Platform]:
        """What runs here, best first: itself, then older variants, as containerd orders them."""
        found = [self]
        if self.architecture == "arm":
            level = _level(self.variant, 7)
            found += [Platform(self.os, "arm", f"v{older}") for older in range(level - 1, 4, -1)]
        elif self.architecture in ("arm64", "amd64"):
            base = 8 if self.architecture == "arm64" else 1
            level = _level(self.variant, base)
            found += [
                Platform(self.os, self.architecture, f"v{older}" if older > base else "")
                for older in range(level - 1, base - 1, -1)
            ]
        return found

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


_ARCHITECTURES = frozenset(
    [
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mipsle",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    ]
)


def _level(variant: str, otherwise: int) -> int:
    digits = variant.removeprefix("v")
    return int(digits) if digits.isdigit() and len(digits) < 3 else otherwise


def choose(offers: Sequence[Platform | None], wanted: Platform) -> int | None:
    """The position of the best offer for `wanted`, the first among equals; None when nothing fits.

    An offer of None says nothing about its platform: it is taken only when it is the only one.
    """
    normal = [
        None if offer is None else Platform.of(offer.os, offer.architecture, offer.variant)
        for offer in offers
    ]
    for accepted in wanted.accepts():
        if accepted in normal:
            return normal.index(accepted)
    return 0 if len(offers) == 1 and offers[0] is None else None
