"""Platforms: normalisation, and the choice among what an index offers."""

from __future__ import annotations

import pytest

from ketch_wire.faults import InvalidInput
from ketchd.model.platform import Platform, choose

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/i386", "linux/386"),
        ("arm64", "linux/arm64"),
        ("s390x", "linux/s390x"),
        ("Linux/AMD64", "linux/amd64"),
        ("windows", "windows/arm64"),
        ("linux", "linux/arm64"),
    ],
)
def test_platforms_are_normalised(text: str, shown: str) -> None:
    """What is left out is the host's."""
    assert str(Platform.parse(text, ARM64)) == shown


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "linux/am d64", "nonsense", "linux//v7"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    """Before anything is asked."""
    with pytest.raises(InvalidInput):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("offers", "wanted", "chosen"),
    [
        (["linux/arm64/v8", "linux/amd64"], "linux/amd64", 1),
        (["linux/arm64/v8"], "linux/arm64", 0),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v7"], "linux/arm/v6", None),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64/v2", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["windows/amd64"], "linux/amd64", None),
        ([], "linux/amd64", None),
        ([None], "linux/amd64", 0),
        ([None, "linux/arm64"], "linux/amd64", None),
    ],
)
def test_the_best_offer_is_chosen(offers: list[str | None], wanted: str, chosen: int | None) -> None:
    """Itself, then older variants; the first among equals; an unknown one only alone."""
    written = [None if text is None else Platform(*text.split("/")) for text in offers]

    assert choose(written, Platform.parse(wanted)) == chosen
