"""Descriptors that go with a message come out at the other end, each the same file."""

from __future__ import annotations

import os
import socket

import pytest

from ketchd.kernel import rights


@pytest.mark.parametrize("count", [0, 1, 5, 200])
def test_what_is_sent_arrives(count: int) -> None:
    ours, theirs = socket.socketpair()
    sent = [os.memfd_create(f"file-{number}") for number in range(count)]
    got: list[int] = []
    try:
        ours.sendmsg([b"x"], rights.packed(sent))
        data, ancillary, flags, _ = theirs.recvmsg(10, rights.room_for(max(count, 1)))
        got = rights.taken(ancillary)
        assert (data, flags & socket.MSG_CTRUNC) == (b"x", 0)
        assert [os.fstat(fd).st_ino for fd in got] == [os.fstat(fd).st_ino for fd in sent]
    finally:
        for fd in (*sent, *got):
            os.close(fd)
        ours.close()
        theirs.close()


def test_other_ancillary_data_is_none_of_them() -> None:
    assert rights.taken([(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12))]) == []
    assert rights.taken([]) == rights.packed([]) == []
