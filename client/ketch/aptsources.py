"""What the host's apt knows: mirrors, keyrings, and how to reach them. Pure: texts in, values out.

Source: sources.list(5), apt.conf(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# How apt reaches its mirrors here: proxies, certificates, patience. What else is set concerns the host alone.
_REACHING = re.compile(
    r"Acquire::(?:(?:http|https|ftp)::(?:Proxy(?:-Auto-Detect)?|CaInfo|CaPath|CAInfo|CAPath|Verify-Peer|Verify-Host"
    r"|SslCert|SslKey|Timeout|User-Agent|ForceIPv4)(?:::[\w.:-]+)?|Retries|ForceIPv[46]|Check-Valid-Until)"
)


class Source(NamedTuple):
    """One repository of packages: `deb ADDRESS SUITE…`. keyring: the file that signs it, if one is named."""

    address: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: str = ""


def parse_list(text: str) -> list[Source]:
    """A one-line-style file (`*.list`)."""
    found = []
    for line in text.splitlines():
        matched = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if matched is None:
            continue
        options, address, suite, components = matched.groups()
        keyring = dict(pair.partition("=")[::2] for pair in (options or "").split() if "=" in pair).get(
            "signed-by", ""
        )
        found.append(Source(address, (suite,), tuple(components.split()), keyring))
    return found


def parse_deb822(text: str) -> list[Source]:
    """A deb822-style file (`*.sources`)."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed = fields.get("signed-by", "")
        keyring = signed if signed.startswith("/") else ""
        suites, components = (
            tuple(fields.get("suites", "").split()),
            tuple(fields.get("components", "").split()),
        )
        found += [Source(address, suites, components, keyring) for address in fields.get("uris", "").split()]
    return found


def choose(sources: Iterable[Source], suite: str, distribution: str) -> Source | None:
    """The repository that holds `suite`; else the archive of the distribution, which holds its other suites too."""
    usable = [one for one in sources if "main" in one.components and one.address.startswith(("http", "file"))]
    for one in usable:
        if suite in one.suites:
            return one
    for one in usable:
        path = one.address.rstrip("/").rpartition("/")[2]
        if path in (distribution, f"{distribution}-ports"):
            return one
    return None


def without_password(address: str) -> str:
    """An address as it may be kept in an image: credentials in it would be anybody's."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


def reaching(dump: str) -> list[str]:
    """Of `apt-config dump`, the lines that say how mirrors are reached."""
    found = []
    for line in dump.splitlines():
        name, _, value = line.partition(" ")
        if _REACHING.fullmatch(name) and value not in ('"";', ""):
            found.append(line.strip())
    return found
