"""How a push's options and the daemon's settings become one decision."""

from __future__ import annotations

from typing import Any

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.model.compression import Compression, read_compression


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (("", None, None), Compression()),
        (("zstd", None, None), Compression("zstd", strict=True)),
        (("zstd", 19, None), Compression("zstd", 19, strict=True)),
        (("zstd", None, False), Compression("zstd")),
        (("", 9, None), Compression("gzip", 9)),
        (("", 9, True), Compression("gzip", 9, strict=True, anew=True)),
        (("uncompressed", None, None), Compression("uncompressed", strict=True)),
    ],
)
def test_what_a_push_asks_for(asked: tuple[str, int | None, bool | None], wanted: Compression) -> None:
    """A format is meant for every layer unless force is off; a level alone for those that are made; force makes all anew."""
    assert Compression().asked(*asked) == wanted


def test_the_daemons_settings_are_the_default() -> None:
    """A push's own go before them; the level belongs to its format."""
    daemon = read_compression({"compression-format": "zstd", "compression-level": 7})
    assert daemon == Compression("zstd", 7)
    assert daemon.asked("", None, True) == Compression("zstd", 7, strict=True, anew=True)
    assert daemon.asked("gzip", None, None) == Compression("gzip", strict=True)
    assert read_compression({"force-compression": True}) == Compression(strict=True)
    assert read_compression({}) == Compression()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ("brotli", None, None),
            "unknown compression format 'brotli': gzip, zstd or uncompressed is expected",
        ),
        (("gzip", 10, None), "invalid compression level 10 for gzip: 1 to 9 is expected"),
        (("zstd", 21, None), "invalid compression level 21 for zstd: 1 to 20 is expected"),
        (("", 0, None), "invalid compression level 0 for gzip: 1 to 9 is expected"),
        (("uncompressed", 1, None), "a compression level means nothing for uncompressed layers"),
    ],
)
def test_wrong_values(asked: tuple[str, int | None, bool | None], message: str) -> None:
    """One line that says what would be right."""
    with pytest.raises(InvalidInput) as caught:
        Compression().asked(*asked)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"level": 3}, "ketch.push has no setting level"),
        ({"compression-format": 1}, "ketch.push: compression-format is a string"),
        ({"compression-level": "9"}, "ketch.push: compression-level is a whole number"),
        ({"force-compression": "yes"}, "ketch.push: force-compression is true or false"),
        ({"compression-level": 99}, "ketch.push: invalid compression level 99 for gzip: 1 to 9 is expected"),
    ],
)
def test_wrong_settings(sent: dict[str, Any], message: str) -> None:
    """By the name that stands in the file."""
    with pytest.raises(InvalidInput) as caught:
        read_compression(sent)
    assert caught.value.message == message
