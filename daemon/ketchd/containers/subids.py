"""`--userns-remap`: whose subordinate ids become a container's ids. Pure: the files' texts and the looked-up names are passed in.

Source: dockerd reference "Isolate containers with a user namespace"; subuid(5), subgid(5), user_namespaces(7).
"""

from __future__ import annotations

from dataclasses import dataclass

from ketch_wire.faults import InvalidInput

Extents = tuple[tuple[int, int, int], ...]
DEFAULT_NAME = "dockremap"
DEFAULT_START, DEFAULT_COUNT = 100_000, 65_536
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


def has_range(text: str, name: str, number: int) -> bool:
    """Whether a subuid file's text gives `name` (or its number) a range."""
    return any(owner in (name, str(number)) and count for owner, _, count in _ranges(text))


def free_start(text: str) -> int:
    """Where DEFAULT_COUNT ids begin that no line of a subuid file's text has. Source: moby idtools, findNextRangeStart."""
    start = DEFAULT_START
    for _, first, count in sorted(_ranges(text), key=lambda one: one[1]):
        if first < start + DEFAULT_COUNT and start < first + count:
            start = first + count
    return start


def _ranges(text: str) -> list[tuple[str, int, int]]:
    """(owner, first, count) of each line that is one."""
    found = []
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if first.isdigit() and count.isdigit():
            found.append((owner, int(first), int(count)))
    return found


def extents(text: str, file: str, name: str, number: int) -> Extents:
    """The ranges of `name` (or its number) in a subuid file's text, one behind the other. Raises InvalidInput when there is none."""
    found: list[tuple[int, int, int]] = []
    inside = 0
    for owner, first, count in _ranges(text):
        if owner not in (name, str(number)) or not count:
            continue
        if not first:
            raise InvalidInput(
                f"{file} gives {name} the range {first}:{count}: the host's root cannot be a subordinate id"
            )
        if any(first < start + length and start < first + count for _, start, length in found):
            raise InvalidInput(f"{file} gives {name} the same ids twice: {first}:{count}")
        found.append((inside, first, count))
        inside += count
    if not found:
        raise InvalidInput(f"no subordinate ids for {name} in {file}: add a line such as {name}:100000:65536")
    return tuple(found[:_EXTENTS_LIMIT])
