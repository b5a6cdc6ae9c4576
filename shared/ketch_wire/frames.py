"""Length-prefixed msgpack frames: what ketchd, launcher, shims and layer workers say to each other.

A frame is a big-endian 32-bit length and that many bytes of one msgpack map. Sans-IO: feed bytes, take frames.
"""

from __future__ import annotations

import struct

import msgpack

TYPE_CHECKING = False  # not from typing: every shim would pay for that module
if TYPE_CHECKING:
    from typing import Any

_LENGTH = struct.Struct(">I")
FRAME_LIMIT = 64 * 1024 * 1024


class BadFrame(ValueError):
    """The peer sent what is no frame: close the connection."""


def pack(message: dict[str, Any]) -> bytes:
    """`message` as one frame."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > FRAME_LIMIT:
        raise BadFrame(f"frame of {len(body)} bytes is over the limit of {FRAME_LIMIT}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Turns received bytes into messages; keeps at most one unfinished frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, received: bytes) -> list[dict[str, Any]] | None:
        """`feed` for what a socket gave: None when the connection is over, since the peer closed it or sent what is no frame."""
        try:
            return self.feed(received) if received else None
        except BadFrame:
            return None

    def feed(self, received: bytes) -> list[dict[str, Any]]:
        """Messages completed by `received`. Raises BadFrame; never waits."""
        self._rest += received
        messages: list[dict[str, Any]] = []
        while len(self._rest) >= 4:
            (length,) = _LENGTH.unpack_from(self._rest)
            if length > FRAME_LIMIT:
                raise BadFrame(f"frame of {length} bytes is over the limit of {FRAME_LIMIT}")
            if len(self._rest) < 4 + length:
                break
            body = bytes(self._rest[4 : 4 + length])
            del self._rest[: 4 + length]
            try:
                message = msgpack.unpackb(body, raw=False, strict_map_key=False)
            except (ValueError, msgpack.UnpackException) as error:
                raise BadFrame(f"not msgpack: {error}") from error
            if not isinstance(message, dict):
                raise BadFrame("a frame holds one map")
            messages.append(message)
        return messages
