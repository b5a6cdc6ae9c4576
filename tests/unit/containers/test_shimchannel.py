"""What a shim said before its end is heard, whatever was on its way to it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from ketch_wire.frames import pack
from ketchd.containers.shimchannel import Channel


async def test_the_last_words_of_a_peer_that_has_ended() -> None:
    """A start that fails at once: the failure is told and the connection closed, while `go` and descriptors are sent."""
    ours, theirs = socket.socketpair()
    told: list[dict[str, Any]] = []
    lost = asyncio.Event()
    channel = Channel(ours, told.append, lost.set)
    theirs.send(pack({"event": "failed", "failed": {"message": "no such file"}}))
    theirs.close()
    handed = os.open("/dev/null", os.O_RDONLY)
    channel.send({"op": "go"}, [handed])
    channel.send({"op": "go"})
    assert channel.is_open and told == []
    await asyncio.wait_for(lost.wait(), 60)
    assert told == [{"event": "failed", "failed": {"message": "no such file"}}]
    assert not channel.is_open
    assert not os.path.exists(f"/proc/self/fd/{handed}")


async def test_a_request_to_a_peer_that_has_ended() -> None:
    """It is refused, not waited for."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, lambda message: None, lambda: None)
    theirs.close()
    answer = await asyncio.wait_for(asyncio.gather(channel.ask({"op": "resize"}), return_exceptions=True), 60)
    assert [str(one) for one in answer] == ["the container is not running"]
