"""`user[:group]` against passwd and group files. Source: moby/sys user tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketchd.sandbox.failures import LaunchError
from ketchd.sandbox.users import resolve

# A busy machine is no reason to fail.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PASSWD = b"root:x:0:0:root:/root:/bin/bash\nadm:x:42:43:adm:/var/adm:/bin/false\n111:x:222:333::/h:/x\n# c:x:9:9::/:\nthis is rubbish\n"
GROUP = b"root:x:0:root\nadm:x:43:\ngrp:x:1234:root,adm,user1\n444:x:555:111\nothergrp:x:7:adm\n"


@pytest.mark.parametrize(
    ("user", "extra", "uid", "gid", "groups", "home"),
    [
        ("", (), 0, 0, [0, 1234], "/root"),
        ("adm", (), 42, 43, [43, 1234, 7], "/var/adm"),
        ("42", (), 42, 43, [43, 1234, 7], "/var/adm"),
        ("adm:grp", (), 42, 1234, [1234], "/var/adm"),
        ("adm:99", (), 42, 99, [99], "/var/adm"),
        ("777", (), 777, 0, [0], "/"),
        ("777:grp", (), 777, 1234, [1234], "/"),
        ("111", (), 222, 333, [333, 555], "/h"),
        (":grp", (), 0, 1234, [1234], "/root"),
        ("adm", ("othergrp", "5"), 42, 43, [43, 1234, 7, 5], "/var/adm"),
        ("root:444", (), 0, 555, [555], "/root"),
    ],
)  # fmt: skip
def test_found(user: str, extra: tuple[str, ...], uid: int, gid: int, groups: list[int], home: str) -> None:
    who = resolve(user, extra, PASSWD, GROUP)

    assert (who.uid, who.gid, who.groups, who.home) == (uid, gid, groups, home)


@pytest.mark.parametrize(
    ("user", "extra", "message"),
    [
        ("nobody", (), "unable to find user nobody: no matching entries in passwd file"),
        ("adm:nogroup", (), "unable to find group nogroup: no matching entries in group file"),
        ("-1", (), "uids and gids must be in range 0-2147483647"),
        ("-", (), "unable to find user -: no matching entries in passwd file"),
        (
            "9223372036854775808",
            (),
            "unable to find user 9223372036854775808: no matching entries in passwd file",
        ),
        ("2147483648", (), "uids and gids must be in range 0-2147483647"),
        ("1:2147483648", (), "uids and gids must be in range 0-2147483647"),
        ("adm", ("no",), "unable to find group no: no matching entries in group file"),
    ],
)
def test_refused(user: str, extra: tuple[str, ...], message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        resolve(user, extra, PASSWD, GROUP)

    assert (caught.value.message, caught.value.kind, caught.value.code) == (message, "plain", 128)


def test_without_files_numbers_count() -> None:
    who = resolve("5:6", ("7",), b"", b"")

    assert (who.uid, who.gid, who.groups, who.home) == (5, 6, [6, 7], "/")


@CALM
@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_rubbish_gives_an_answer_or_a_refusal(user: str, passwd: bytes, group: bytes) -> None:
    try:
        who = resolve(user, (), passwd, group)
    except LaunchError:
        return
    assert 0 <= who.uid < 1 << 31 and 0 <= who.gid < 1 << 31
