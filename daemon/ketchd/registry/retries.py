"""When to ask a registry again, and after how long. Pure; time and chance are passed in.

Source: RFC 9110 section 10.2.3 (Retry-After); distribution-spec "Rate limits".
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Policy:
    """attempts: of one thing, the first included. Waits grow from first_seconds by doubling up to longest_seconds.

    patience_seconds: the longest wait that a server may ask for; beyond it the user is told instead.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    longest_seconds: float = 15.0
    patience_seconds: float = 60.0

    def wait(self, failures: int, chance: float, asked: float | None = None) -> float | None:
        """Seconds to wait after so many `failures` in a row (1 and more); None to give up.

        chance: 0 to 1, spreads clients over the second half of the wait. asked: what the server asked for.
        """
        if failures >= self.attempts:
            return None
        if asked is not None:
            # A little later than asked, so that not everybody comes back in the same moment.
            return None if asked > self.patience_seconds else asked + chance * min(1.0, 0.1 + asked / 10)
        whole = min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + chance / 2)


def retry_after(text: str | None, wall_seconds: float) -> float | None:
    """The Retry-After header as seconds from now; None when it is absent or nonsense."""
    if not text:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, moment.timestamp() - wall_seconds)


def seconds_words(seconds: float) -> str:
    """`1 second`, `5 seconds`: as dockerd shows a wait, rounded up."""
    whole = max(1, int(-(-seconds // 1)))
    return f"{whole} second{'' if whole == 1 else 's'}"


class Pace:
    """Watches that a body keeps coming: a peer that drips is as dead as one that is silent.

    A window counts from its first look; one that brought less than the least ends it.
    """

    def __init__(self, *, window_seconds: float = 60.0, least_bytes: int = 16 * 1024) -> None:
        self._window = window_seconds
        self._least = least_bytes
        self._since: float | None = None
        self._seen = 0

    def is_too_slow(self, now: float, received: int) -> bool:
        """Count `received` bytes at `now` (seconds)."""
        if self._since is None:
            self._since = now
        self._seen += received
        if now - self._since < self._window:
            return False
        slow = self._seen < self._least
        self._since, self._seen = now, 0
        return slow
