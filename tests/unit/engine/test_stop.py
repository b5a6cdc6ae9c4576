"""How long the end of ketchd may take."""

from __future__ import annotations

import pytest

from ketchd.engine.stop import seconds_for_all


@pytest.mark.parametrize(
    ("setting", "graces", "seconds"),
    [(15, [], 15), (15, [10, 3], 15), (15, [11], 16), (15, [60, 1], 65), (0, [0], 5), (-1, [10], None), (15, [10, -1], None)],
)  # fmt: skip
def test_the_longest_grace_counts(setting: int, graces: list[int], seconds: float | None) -> None:
    assert seconds_for_all(setting, graces) == seconds
