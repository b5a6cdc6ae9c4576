"""Docker's multiplexed stream: several byte streams over one connection, in frames. Sans-IO.

A frame is eight bytes (stream number, three zeros, big-endian payload length) and the payload.
Source: Engine API, ContainerAttach, "Stream format".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

STDIN, STDOUT, STDERR, SYSTEM_ERROR = 0, 1, 2, 3
HEADER_SIZE = 8

_HEADER = struct.Struct(">B3xI")


class BadStream(ValueError):
    """The bytes are no multiplexed stream: close the connection."""


class Frame(NamedTuple):
    """A part of one frame's payload; not a line, and not always the whole frame."""

    stream: int
    payload: bytes


def header(stream: int, length: int) -> bytes:
    """The eight bytes that stand before `length` bytes of `stream`."""
    return _HEADER.pack(stream, length)


def frame(stream: int, payload: bytes) -> bytes:
    """`payload` as one frame."""
    return _HEADER.pack(stream, len(payload)) + payload


class StreamReader:
    """Splits a multiplexed stream. Payload is handed on as it arrives: at most one header is kept."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = STDOUT
        self._left = 0

    def feed(self, received: bytes) -> list[Frame]:
        """The payload parts in `received`. Raises BadStream; never waits."""
        frames: list[Frame] = []
        at, end = 0, len(received)
        while at < end:
            if self._left:
                part = received[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                frames.append(Frame(self._stream, part))
                continue
            taken = received[at : at + HEADER_SIZE - len(self._header)]
            at += len(taken)
            self._header += taken
            if len(self._header) < HEADER_SIZE:
                break
            self._stream, self._left = _HEADER.unpack(self._header)
            if self._stream > SYSTEM_ERROR:
                raise BadStream(f"unrecognized stream {self._stream}")
            self._header = b""
        return frames
