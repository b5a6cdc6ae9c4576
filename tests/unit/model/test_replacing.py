"""An index with entries replaced: what changes, and that nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor, Index
from ketchd.model.replacing import with_replaced


def named(letter: str) -> str:
    return "sha256:" + letter * 64


def index_of(document: dict[str, Any], **style: Any) -> Index:
    found = manifests.parse(json.dumps(document, **style).encode())
    assert isinstance(found, Index)
    return found


NEW = Descriptor(OCI_MANIFEST, Digest(named("f")), 77)
AMD = {
    "digest": named("a"), "mediaType": DOCKER_MANIFEST, "size": 1, "x-unknown": {"kept": [1, 2.5, None]},
    "platform": {"os": "linux", "architecture": "amd64", "os.features": ["é"]}, "annotations": {"org.example": "kept"},
}  # fmt: skip
ARM = {**AMD, "digest": named("b"), "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
ATTESTATION = {
    "mediaType": OCI_MANIFEST, "digest": named("c"), "size": 3, "platform": {"os": "unknown", "architecture": "unknown"},
    "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": named("a"), "more": "x"},
}  # fmt: skip
STRANGER = {"mediaType": "application/vnd.stranger", "digest": named("d"), "size": 4}
WHOLE = {
    "schemaVersion": 2, "mediaType": OCI_INDEX, "x-before": True, "manifests": [AMD, ATTESTATION, ARM, STRANGER],
    "annotations": {"org.opencontainers.image.title": "a title"}, "x-after": "kept",
}  # fmt: skip


def test_only_the_entry_that_changed_changes() -> None:
    """Its media type, digest and size, and what is said to be about it; the rest is equal and in the same order."""
    made = json.loads(with_replaced(index_of(WHOLE), {Digest(named("a")): NEW}))

    expected = json.loads(json.dumps(WHOLE))
    expected["manifests"][0] |= {"mediaType": OCI_MANIFEST, "digest": named("f"), "size": 77}
    expected["manifests"][1]["annotations"]["vnd.docker.reference.digest"] = named("f")
    assert made == expected
    assert list(made) == list(WHOLE) and [list(one) for one in made["manifests"]] == [
        list(one) for one in (AMD, ATTESTATION, ARM, STRANGER)
    ]


@pytest.mark.parametrize("changes", [{}, {Digest(named("9")): NEW}])
def test_without_a_change_every_byte_stays(changes: dict[Digest, Descriptor]) -> None:
    """However it is written."""
    index = index_of(WHOLE, indent=5, ensure_ascii=False)
    assert with_replaced(index, changes) is index.content


def test_what_belonged_to_the_old_content_goes() -> None:
    """A copy of it within the entry, and where else it can be had, would be false."""
    index = index_of(
        {
            **WHOLE,
            "manifests": [{**AMD, "data": "e30=", "urls": ["http://example/x"]}, {**ARM, "data": "e30="}],
        }
    )
    changed, other = json.loads(with_replaced(index, {Digest(named("a")): NEW}))["manifests"]
    assert set(changed) == set(AMD) and other["data"] == "e30="


@pytest.mark.parametrize("style", [{"indent": 3}, {"indent": 2}, {"separators": (",", ":")}])
def test_it_is_written_like_the_old_one(style: dict[str, Any]) -> None:
    """Docker's lists are indented by three, buildx' by two, others not at all."""
    document = {**WHOLE, "mediaType": DOCKER_INDEX}
    made = with_replaced(index_of(document, **style), {Digest(named("b")): NEW})
    assert made == json.dumps(json.loads(made), **style).encode()
    assert json.loads(made)["manifests"][2]["digest"] == named("f")


def test_entries_that_nobody_can_read_are_kept() -> None:
    """Of other kinds than the known, an entry may be anything."""
    strange = [
        {"mediaType": "x/y", "digest": ["a"], "annotations": "none"},
        {"mediaType": "x/z", "annotations": {"a": 1}},
    ]
    index = index_of({**WHOLE, "manifests": [AMD, *strange]})
    assert json.loads(with_replaced(index, {Digest(named("a")): NEW}))["manifests"][1:] == strange


def test_what_json_cannot_write_is_refused() -> None:
    """Python reads 1e999 as infinity, which is none of JSON's numbers."""
    content = json.dumps({**WHOLE, "x": "HERE"}).replace('"HERE"', "1e999").encode()
    index = manifests.parse(content)
    assert isinstance(index, Index)
    with pytest.raises(InvalidInput, match="numbers beyond JSON's"):
        with_replaced(index, {Digest(named("a")): NEW})


@given(st.sets(st.sampled_from("abcd")), st.permutations([AMD, ARM, ATTESTATION, STRANGER]))
def test_changing_back_gives_what_was(changed: set[str], entries: list[dict[str, Any]]) -> None:
    """Whichever entries change, in whatever order they are; and what is made is an index that is read like any other."""
    document = {**WHOLE, "manifests": entries}
    olds = {
        letter: Descriptor(one["mediaType"], Digest(one["digest"]), one["size"])
        for one in entries
        for letter in one["digest"][-1]
        if letter in changed
    }
    news = {
        letter: Descriptor(OCI_MANIFEST, Digest(named(str(n))), 9) for n, letter in enumerate(sorted(changed))
    }
    made = manifests.parse(
        with_replaced(index_of(document), {olds[one].digest: news[one] for one in changed})
    )
    assert isinstance(made, Index)
    assert json.loads(with_replaced(made, {news[one].digest: olds[one] for one in changed})) == document
