"""Progress: what steps say, in Dockerfile order although they run side by side.

Each step speaks into a channel of its own. The channel whose turn it is goes straight out; later ones wait, and a step that
says very much waits with them. What is said within one round of the event loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Message = dict[str, Any]
_WAITING_LIMIT = 4 << 20  # bytes that a step may say before its turn
_OUTBOX_LIMIT = 1 << 20  # bytes that may wait for a slow client


class Progress:
    """Use `channel` for every step, in order, before any of them speaks; run `pump` beside; `drain` at the end."""

    def __init__(self, send: Callable[..., Awaitable[None]]) -> None:
        self._send = send
        self._channels: list[Channel] = []
        self._turn = 0
        self._outbox: list[Message] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._gone: BaseException | None = None

    def channel(self) -> Channel:
        """The next step's channel."""
        made = Channel(self, len(self._channels))
        self._channels.append(made)
        return made

    async def pump(self) -> None:
        """Send until cancelled. Raises what sending raises: the client is gone."""
        while True:
            await self._wake.wait()
            await self._flush()

    async def _flush(self) -> None:
        while self._outbox:
            batch, self._outbox, self._size = self._outbox, [], 0
            await self._send(*batch)
            self._room.set()
        self._wake.clear()

    async def drain(self, upto: int | None = None) -> None:
        """Send what has been said so far: by channels whose turn it is or was, and up to the channel `upto` (a failed step)."""
        if upto is not None:
            for channel in self._channels[self._turn : upto + 1]:
                channel.closed = True
                channel.release()
            self._turn = max(self._turn, upto + 1)
        await self._flush()

    def put(self, message: Message, size: int) -> None:
        """Into the outbox."""
        self._outbox.append(message)
        self._size += size
        if self._size > _OUTBOX_LIMIT:
            self._room.clear()
        self._wake.set()

    async def room(self) -> None:
        """Wait while the client does not read."""
        await self._room.wait()

    def is_turn_of(self, index: int) -> bool:
        """Whether the channel may go straight out."""
        return index <= self._turn

    def advance(self) -> None:
        """Pass the turn on behind every channel that is closed."""
        while self._turn < len(self._channels):
            channel = self._channels[self._turn]
            channel.release()
            if not channel.closed:
                return
            self._turn += 1


class Channel:
    """What one step says. After `close` it says nothing more."""

    def __init__(self, progress: Progress, index: int) -> None:
        self._progress = progress
        self.index = index
        self.closed = False
        self._waiting: list[tuple[Message, int]] = []
        self._size = 0
        self._turn_came = asyncio.Event()
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def say(self, *texts: str) -> None:
        """`stream` messages. Never waits."""
        for text in texts:
            self.message({"stream": text}, len(text))

    def message(self, message: Message, size: int = 64) -> None:
        """Any message. Never waits."""
        if self._progress.is_turn_of(self.index):
            self._progress.put(message, size)
        else:
            self._waiting.append((message, size))
            self._size += size

    async def output(self, stream: int, content: bytes) -> None:
        """What a step's process writes: 1 stdout, 2 stderr (red, as dockerd shows it). Waits while it is too much to keep."""
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(content)
        if text:
            self.say(text if stream == 1 else f"\x1b[91m{text}\x1b[0m")
        if self._progress.is_turn_of(self.index):
            await self._progress.room()
        elif self._size > _WAITING_LIMIT:
            await self._turn_came.wait()

    def close(self) -> None:
        """Nothing more comes; the turn passes on. May be called twice."""
        self.closed = True
        self._progress.advance()

    def release(self) -> None:
        """The turn came: what waited goes out. Called by Progress."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        for message, size in waiting:
            self._progress.put(message, size)
        self._turn_came.set()


def texts(messages: Sequence[Message]) -> str:
    """What a client would print of these messages."""
    return "".join(str(message.get("stream", "")) for message in messages)
