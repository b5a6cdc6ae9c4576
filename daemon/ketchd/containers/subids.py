"""`--userns-remap`: whose subordinate ids become a container's ids. Pure: the files' texts and the looked-up names are passed in.

Source: dockerd reference "Isolate containers with a user namespace"; subuid(5), subgid(5), user_namespaces(7).
"""

from __future__ import annotations

from dataclasses import dataclass

from ketch_wire.faults import InvalidInput

Extents = tuple[tuple[int, int, int], ...]
DEFAULT_NAME = "dockremap"
_EXTENTS_LIMIT = 340  # of uid_map, since Linux 4.15


@dataclass(frozen=True, slots=True)
class IdMap:
    """uids, gids: (inside, outside, count) as uid_map(5) has them; inside they begin at 0 without a gap."""

    uids: Extents
    gids: Extents

    @property
    def root(self) -> tuple[int, int]:
        """The uid and gid outside of the container's root."""
        return self.uids[0][1], self.gids[0][1]


def split(setting: str) -> tuple[str, str]:
    """(user, group) of `default`, `USER` or `USER:GROUP`, names or numbers. Raises InvalidInput."""
    if setting == "default":
        return DEFAULT_NAME, DEFAULT_NAME
    user, sign, group = setting.partition(":")
    if not user or (sign and not group) or ":" in group:
        raise InvalidInput(f"invalid userns-remap {setting[:60]!r}: default, USER or USER:GROUP is expected")
    return user, group or user


def extents(text: str, file: str, name: str, number: int) -> Extents:
    """The ranges of `name` (or its number) in a subuid file's text, one behind the other. Raises InvalidInput when there is none."""
    found: list[tuple[int, int, int]] = []
    inside = 0
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if owner not in (name, str(number)) or not (first.isdigit() and count.isdigit()) or not int(count):
            continue
        if not int(first):
            raise InvalidInput(
                f"{file} gives {name} the range {rest}: the host's root cannot be a subordinate id"
            )
        found.append((inside, int(first), int(count)))
        inside += int(count)
    if not found:
        raise InvalidInput(f"no subordinate ids for {name} in {file}: add a line such as {name}:100000:65536")
    return tuple(found[:_EXTENTS_LIMIT])
