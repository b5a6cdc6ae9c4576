"""The ring for slow clients: first in, first out, wherever it wraps."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketchd.shim.spill import Spill

# A busy machine is no reason to fail.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@CALM
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=40))
def test_bytes_come_out_as_they_went_in(chunks: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    spill = Spill(-1, limit=100)
    taken = b""
    with ours, theirs:
        for chunk in chunks:
            while spill.room < len(chunk):
                spill.send(ours.fileno())
                taken += theirs.recv(1000)
            spill.put(chunk)
        while spill.size:
            spill.send(ours.fileno())
            taken += theirs.recv(1000)
    spill.close()
    spill.close()

    assert taken == b"".join(chunks)


def test_it_has_no_name(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    spill = Spill(directory)
    spill.put(b"x")

    assert os.listdir(tmp_path) == []

    spill.close()
    os.close(directory)
