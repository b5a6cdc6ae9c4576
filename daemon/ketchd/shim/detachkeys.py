"""Looking for the detach keys in what a client types. Pure. Source: moby pkg term EscapeProxy."""

from __future__ import annotations


class DetachKeys:
    """Feed typed bytes; a beginning of the sequence is held back until it is the whole or none."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """(bytes to deliver, whether the client detached). What follows the sequence is dropped."""
        keys = self._keys
        if not keys:
            return typed, False
        if not self._held and keys[0] not in typed:
            return typed, False
        out = bytearray()
        for byte in typed:
            if byte == keys[self._held]:
                self._held += 1
                if self._held == len(keys):
                    self._held = 0
                    return bytes(out), True
                continue
            out += keys[: self._held]
            self._held = 1 if byte == keys[0] else 0
            if not self._held:
                out.append(byte)
        return bytes(out), False
