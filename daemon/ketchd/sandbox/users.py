"""Docker's `user[:group]` looked up in the texts of a passwd and a group file. Pure.

Source: moby/sys user.GetExecUser and GetAdditionalGroups, whose messages these are.
"""

from __future__ import annotations

from ketchd.sandbox.failures import PLAIN, LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LIMIT = (1 << 31) - 1


class Identity:
    """uid, gid, supplementary groups (the primary first) and home directory."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def _rows(text: bytes, columns: int) -> Iterator[list[str]]:
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        row = line.strip()
        if row and not row.startswith("#"):
            fields = row.split(":")
            yield fields + [""] * (columns - len(fields))


def _number(text: str) -> int | None:
    """As Go's Atoi: a sign counts, what does not fit 64 bits is no number."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    return None


def _id(text: str) -> int:
    """A field of the files as their readers take it: rubbish is 0, as in Go."""
    return _number(text) or 0


def _checked(number: int) -> int:
    if not 0 <= number <= _LIMIT:
        raise LaunchError(f"uids and gids must be in range 0-{_LIMIT}", kind=PLAIN)
    return number


def resolve(user: str, extra_groups: Sequence[str], passwd: bytes, group: bytes) -> Identity:
    """The identity of `user`. extra_groups: names or numbers. Raises LaunchError."""
    wanted, _, wanted_group = user.partition(":")
    uid, gid, home, name = 0, 0, "/", ""
    for row in _rows(passwd, 7):
        found_uid = _id(row[2])
        if wanted in (row[0], str(found_uid)) if wanted else found_uid == 0:
            uid, gid, home, name = found_uid, _id(row[3]), row[5], row[0]
            break
    else:
        if wanted:
            number = _number(wanted)
            if number is None:
                raise LaunchError(
                    f"unable to find user {wanted}: no matching entries in passwd file", kind=PLAIN
                )
            uid = number
    groups: list[int] = []
    rows = list(_rows(group, 4))
    if wanted_group:
        gid = _group(wanted_group, rows)
    elif name:
        groups = [_id(row[2]) for row in rows if name in row[3].split(",")]
    _checked(uid)
    _checked(gid)
    every = [gid, *groups, *(_group(one, rows) for one in extra_groups)]
    return Identity(uid, gid, list(dict.fromkeys(every)), home)


def _group(wanted: str, rows: list[list[str]]) -> int:
    for row in rows:
        if wanted in (row[0], str(_id(row[2]))):
            return _id(row[2])
    number = _number(wanted)
    if number is None:
        raise LaunchError(f"unable to find group {wanted}: no matching entries in group file", kind=PLAIN)
    return _checked(number)
