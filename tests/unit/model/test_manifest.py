"""Manifests: what is read, what is refused, and the bytes that are written for a push."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
)
from ketchd.model.platform import Platform

DIGEST = "sha256:" + "c" * 64
BLOB = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": 3}
IMAGE = {"schemaVersion": 2, "config": BLOB, "layers": [BLOB, BLOB]}
LIST = {"schemaVersion": 2, "manifests": [{**BLOB, "mediaType": OCI_MANIFEST}]}


def read(document: Any, content_type: str = "") -> Manifest | Index:
    return manifests.parse(json.dumps(document).encode(), content_type)


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_both_families_of_images_are_read(kind: str) -> None:
    """By the header's type, the document's own, or both; with parameters."""
    for document, declared in (
        (IMAGE, kind),
        ({**IMAGE, "mediaType": kind}, ""),
        ({**IMAGE, "mediaType": kind}, f"{kind}; charset=utf-8"),
        ({**IMAGE, "mediaType": kind}, "application/json"),
    ):
        found = read(document, declared)
        assert isinstance(found, Manifest) and found.media_type == kind
        assert [layer.size for layer in found.layers] == [3, 3] and found.config.digest == Digest(DIGEST)
        assert found.content == json.dumps(document).encode()


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_INDEX])
def test_both_families_of_indexes_are_read(kind: str) -> None:
    """Entries of unknown kinds are skipped, attestations are never candidates."""
    entry = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 1}
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "manifests": [
            {**entry, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {**entry, "mediaType": "application/vnd.unknown"},
            {**entry, "platform": {"os": "unknown", "architecture": "unknown"}},
            {**entry, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
            entry,
        ],
    }
    found = read(document, kind)

    assert isinstance(found, Index) and len(found.entries) == 4
    assert [offer.platform for offer in manifests.candidates(found)] == [
        Platform("linux", "arm64", "v8"),
        None,
    ]


def test_a_document_without_any_type_is_sniffed() -> None:
    """By its keys, as the specification allows for OCI."""
    assert isinstance(read(IMAGE), Manifest) and isinstance(read(LIST), Index)


@pytest.mark.parametrize(
    ("document", "declared"),
    [
        ({**IMAGE, **LIST}, ""),
        ({**LIST, "config": BLOB}, OCI_INDEX),
        ({**IMAGE, "manifests": []}, OCI_MANIFEST),
        (IMAGE, OCI_INDEX),
        (LIST, OCI_MANIFEST),
        ({**IMAGE, "mediaType": OCI_MANIFEST}, DOCKER_MANIFEST),
        ({**IMAGE, "mediaType": OCI_MANIFEST}, OCI_INDEX),
        ({**LIST, "Layers": []}, OCI_INDEX),
        ({**IMAGE, "MANIFESTS": []}, OCI_MANIFEST),
    ],
)
def test_cve_2021_41190_documents_that_read_as_two_things_are_refused(document: Any, declared: str) -> None:
    """CVE-2021-41190: what one reader takes for an image, another must not take for an index."""
    with pytest.raises(InvalidInput, match="media-type confusion"):
        read(document, declared)


def test_cve_2021_41190_a_key_twice_is_refused() -> None:
    """Two readers may take different ones."""
    text = json.dumps(IMAGE)[:-1] + ', "layers": []}'

    with pytest.raises(InvalidInput, match="key twice"):
        manifests.parse(text.encode(), OCI_MANIFEST)


@pytest.mark.parametrize(
    ("document", "declared"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, ""),
        ({"schemaVersion": 1, "name": "x"}, "application/json"),
        (IMAGE, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ({"schemaVersion": 2, "fsLayers": []}, DOCKER_MANIFEST),
    ],
)
def test_schema_1_is_refused_with_a_way_out(document: Any, declared: str) -> None:
    """However it is dressed."""
    with pytest.raises(InvalidInput, match="schema 1 manifests are not supported"):
        read(document, declared)


@pytest.mark.parametrize(
    "document",
    [
        [],
        3,
        {"schemaVersion": 2},
        {**IMAGE, "schemaVersion": 3},
        {**IMAGE, "layers": {}},
        {**IMAGE, "layers": [3]},
        {**IMAGE, "config": None},
        {**IMAGE, "config": {**BLOB, "digest": "md5:1"}},
        {**IMAGE, "config": {**BLOB, "size": -1}},
        {**IMAGE, "config": {**BLOB, "size": True}},
        {**IMAGE, "config": {**BLOB, "size": 1 << 70}},
        {**IMAGE, "layers": [BLOB] * 1001},
        {**IMAGE, "mediaType": 3},
        {**IMAGE, "mediaType": "application/vnd.unknown"},
        {**LIST, "manifests": 3},
        {**LIST, "manifests": [3]},
    ],
)
def test_what_is_no_manifest_is_refused(document: Any) -> None:
    """With a fault, not a traceback."""
    with pytest.raises(InvalidInput):
        read(document)


@given(st.binary(max_size=300), st.sampled_from(["", OCI_MANIFEST, DOCKER_INDEX, "x"]))
def test_any_bytes_are_read_or_refused(content: bytes, declared: str) -> None:
    """Nothing else is raised."""
    try:
        manifests.parse(content, declared)
    except InvalidInput:
        pass


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.fixed_dictionaries({}, optional={key: _JSON for key in (*IMAGE, *LIST, "mediaType")}))
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    """Wrong types at every key."""
    try:
        read(document)
    except InvalidInput:
        pass


def test_limits_hold() -> None:
    """Size, depth of nesting, and how many there are of anything."""
    with pytest.raises(InvalidInput, match="larger"):
        manifests.parse(b" " * (manifests.SIZE_LIMIT + 1))
    with pytest.raises(InvalidInput):
        manifests.parse(b"[" * 200_000)
    one = {"mediaType": manifests.DOCKER_LAYER, "digest": f"sha256:{'a' * 64}", "size": 1}
    for key, most, media_type in (
        ("layers", 1000, manifests.OCI_MANIFEST),
        ("manifests", 2000, manifests.OCI_INDEX),
    ):
        document = {"schemaVersion": 2, "mediaType": media_type, key: [one] * (most + 1)}
        with pytest.raises(InvalidInput, match=f"more than {most} "):
            manifests.parse(json.dumps(document).encode())


def test_a_manifest_is_written_as_dockerd_writes_it() -> None:
    """Byte for byte: this one was pushed by dockerd 20.10, and its digest is what that printed."""
    made = manifests.compose(
        Descriptor(
            manifests.DOCKER_CONFIG,
            Digest("sha256:3f069ebd85f5f1b483f9f81d964d2155c571ec1cb99a651a2df29ebb2d39730c"),
            895,
        ),
        [
            Descriptor(
                manifests.layer_type("gzip", oci=False),
                Digest("sha256:4582165870faa70f08932191c6f57c5bc95432b8a56126b1dde3125a28a7cb59"),
                1064323,
            )
        ],
    )

    assert (
        hashlib.sha256(made.content).hexdigest()
        == "76c49533d37317a3c65110f80bac90ad2ef41bdfacb9ed689c28c44ffb7428a5"
    )
    assert read(json.loads(made.content)) is not None


def test_media_types_say_the_compression() -> None:
    """In both families."""
    for oci in (False, True):
        for compression in ("", "gzip", "zstd"):
            assert manifests.compression_of(manifests.layer_type(compression, oci=oci)) == compression


def test_artifacts_are_no_images() -> None:
    """A helm chart or a plugin cannot be run: dockerd's words."""
    chart = read({**IMAGE, "config": {**BLOB, "mediaType": "application/vnd.cncf.helm.config.v1+json"}})
    assert isinstance(chart, Manifest)
    with pytest.raises(InvalidInput, match=r'Encountered remote ".*helm.*"\(unknown\) when fetching'):
        manifests.check_image(chart)
    plugin = read({**IMAGE, "config": {**BLOB, "mediaType": manifests.DOCKER_PLUGIN}})
    assert isinstance(plugin, Manifest)
    with pytest.raises(InvalidInput, match=r"\(plugin\) when fetching"):
        manifests.check_image(plugin)
