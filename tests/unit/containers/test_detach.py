"""Detach keys as docker writes them."""

from __future__ import annotations

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.containers.detach import detach_keys


def test_words() -> None:
    """Letters, and the control characters that ASCII has; a control key is named in lower case."""
    assert detach_keys("") == b"\x10\x11"
    assert detach_keys("ctrl-a,A,ctrl-[") == b"\x01A\x1b"
    for wrong in ("ctrl-A,a", "ctrl-,a", "ab", "ctrl-1", "é"):
        with pytest.raises(InvalidInput, match=r"Invalid detach keys \(.*\) provided"):
            detach_keys(wrong)
