"""Manifests and indexes of Docker's schema 2 and OCI, read from untrusted bytes and made for a push. Pure.

The exact bytes are what a digest names: they are kept, never written again.
Source: image-spec manifest.md, image-index.md, descriptor.md; distribution's manifest-v2-2.md.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform

SIZE_LIMIT = 4 * 1024 * 1024
_LAYERS_LIMIT = 1000
_ENTRIES_LIMIT = 2000

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_PLUGIN = "application/vnd.docker.plugin.v1+json"
INDEXES = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
ACCEPTED = (*INDEXES, *MANIFESTS)
_SCHEMA1 = ("application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws")  # fmt: skip
_GENERIC = ("", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream")
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_DECISIVE = {
    key.lower(): key
    for key in ("mediaType", "schemaVersion", "manifests", "layers", "config", "fsLayers", "digest", "size")
}
# Of the compressed bytes themselves: where a table of contents lies in them, what they hash to.
_OF_ONE_FORM = ("io.github.containers.zstd-chunked.", "containerd.io/snapshot/", "io.containers.estargz.")
_ATTESTATION = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content. size: bytes. platform: of an index' entries, as written there; None where it does not say."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()

    @property
    def is_foreign(self) -> bool:
        """Whether its content may not lie in a registry (Windows base layers)."""
        return self.media_type.startswith((_OCI_FOREIGN, _DOCKER_FOREIGN))

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {"mediaType": self.media_type, "size": self.size, "digest": str(self.digest)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers, base first; or an artifact: whatever it consists of. content: the exact bytes.

    artifact_type: what it says itself to be; most say it by the config's type. subject: what it is about, a signature's image.
    """

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    content: bytes = field(repr=False)
    artifact_type: str = ""
    subject: Descriptor | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """Several images under one name. entries: those of known kinds, in order; others: the rest. content: the exact bytes.

    artifact_type, subject: as a manifest's.
    """

    media_type: str
    entries: tuple[Descriptor, ...]
    content: bytes = field(repr=False)
    others: tuple[Descriptor, ...] = ()
    artifact_type: str = ""
    subject: Descriptor | None = None


def parse(content: bytes, content_type: str = "") -> Manifest | Index:
    """Read what a registry calls `content_type`.

    Raises InvalidInput: schema 1, what is no manifest, and what could be read as two different things (a type that is
    not the document's own, or keys of both kinds: CVE-2021-41190).
    """
    declared = content_type.partition(";")[0].strip().lower()
    if declared in _SCHEMA1:
        raise _schema1()
    if len(content) > SIZE_LIMIT:
        raise InvalidInput(f"manifest is larger than {SIZE_LIMIT} bytes")
    document = _load(content)
    own = document.get("mediaType")
    if own is not None and not isinstance(own, str):
        raise InvalidInput("manifest has the wrong type at 'mediaType'")
    if document.get("schemaVersion") == 1 or "fsLayers" in document or own in _SCHEMA1:
        raise _schema1()
    if document.get("schemaVersion", 2) != 2:
        raise InvalidInput(f"unsupported manifest schema version {document['schemaVersion']!r}")
    is_index, is_image = "manifests" in document, bool({"config", "layers"} & document.keys())
    if is_index and is_image:
        raise InvalidInput("media-type confusion: the manifest has both 'manifests' and 'layers' or 'config'")
    if own and declared not in _GENERIC and declared != own:
        raise InvalidInput(
            f"media-type confusion: the registry calls the manifest {declared[:100]}, it calls itself {own[:100]}"
        )
    media_type = own or (declared if declared not in _GENERIC else "")
    if not media_type:
        media_type = OCI_INDEX if is_index else OCI_MANIFEST
    if media_type in INDEXES:
        if is_image:
            raise InvalidInput("media-type confusion: an index has 'layers' or 'config'")
        return _index(media_type, document, content)
    if media_type in MANIFESTS:
        if is_index:
            raise InvalidInput("media-type confusion: an image manifest has 'manifests'")
        return _manifest(media_type, document, content)
    raise InvalidInput(f"unsupported manifest media type {media_type[:100]!r}")


def candidates(index: Index) -> list[Descriptor]:
    """The entries a pull may choose from: no attestations, nothing for an unknown platform."""
    return [entry for entry in index.entries if not is_aside(entry)]


def is_aside(entry: Descriptor) -> bool:
    """Whether an index' entry goes beside its images: an attestation, or something for no platform."""
    platform = entry.platform
    return _ATTESTATION in entry.annotations or (
        platform is not None and (platform.os, platform.architecture) == ("unknown", "unknown")
    )


def attested(entry: Descriptor) -> str:
    """The digest of what an index' entry attests, "" when it is no attestation."""
    if entry.annotations.get(_ATTESTATION) != "attestation-manifest":
        return ""
    return entry.annotations.get("vnd.docker.reference.digest", "")


def artifact_type(manifest: Manifest) -> str | None:
    """What the manifest is when it is no container image (a chart, a model, a signature); None for an image.

    Signatures and attestations have an image's config and layers that are no file systems.
    """
    kind = manifest.config.media_type
    if kind not in CONFIGS and kind not in _GENERIC:
        return manifest.artifact_type or kind
    for layer in manifest.layers:
        if not any(mark in layer.media_type for mark in (".tar", "/tar", "-tar", "gtar")) and (
            layer.media_type not in _GENERIC
        ):
            return manifest.artifact_type or layer.media_type
    return None


def compose(
    config: Descriptor, layers: Sequence[Descriptor], *, oci: bool = False, like: Manifest | None = None
) -> Manifest:
    """A manifest in the very bytes that dockerd would write, so that equal images have equal digests.

    like: of the same layers in other forms: what it says of itself and of them is kept, where the new one is OCI's too; Docker's
    schema has no place for it. Source: image-spec manifest.md, descriptor.md.
    """
    media_type = OCI_MANIFEST if oci else DOCKER_MANIFEST
    known = json.loads(like.content) if like is not None and oci else {}
    rows = known.get("layers") or []
    if len(rows) != len(layers):
        rows = [{}] * len(layers)
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _like(config, known.get("config") or {}),
        "layers": [_like(layer, row) for layer, row in zip(layers, rows, strict=True)],
    }
    document |= {key: known[key] for key in ("artifactType", "subject", "annotations") if known.get(key)}
    made = tuple(_descriptor(row, "layers") for row in document["layers"])
    return Manifest(media_type, config, made, json.dumps(document, indent=3).encode(), *_about(document))


def _like(descriptor: Descriptor, row: Mapping[str, Any]) -> dict[str, Any]:
    """The descriptor in a manifest, with what `row` says of the same content in maybe another form besides."""
    shown = descriptor.to_json()
    if row.get("digest") == shown["digest"]:
        return {**shown, **{key: value for key, value in row.items() if key not in shown}}
    annotations = row.get("annotations")
    kept = annotations.items() if isinstance(annotations, dict) else ()
    if said := {key: value for key, value in kept if not key.startswith(_OF_ONE_FORM)}:
        shown["annotations"] = said
    return shown


def annotations_of(document: Manifest | Index) -> dict[str, Any]:
    """What the manifest says of itself as a whole."""
    found = json.loads(document.content).get("annotations")
    return found if isinstance(found, dict) else {}


def layer_type(compression: str, *, oci: bool) -> str:
    """The media type of a layer. compression: `gzip`, `zstd` or `` for a plain tar."""
    if oci:
        return OCI_LAYER + (f"+{compression}" if compression else "")
    return DOCKER_LAYER + (f".{compression}" if compression else "")


def compression_of(media_type: str) -> str:
    """`gzip`, `zstd` or `` as a layer's media type says. The content's own magic decides."""
    for compression in ("gzip", "zstd"):
        if media_type.endswith((f"+{compression}", f".{compression}")):
            return compression
    return ""


def check_image(manifest: Manifest) -> None:
    """Refuse what is no container image. Raises InvalidInput in dockerd's words."""
    kind = manifest.config.media_type
    if kind in CONFIGS or kind in _GENERIC:
        return
    what = "plugin" if kind == DOCKER_PLUGIN else "unknown"
    raise InvalidInput(f'Encountered remote "{kind[:100]}"({what}) when fetching')


def _load(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("manifest is not JSON") from error
    if not isinstance(document, dict):
        raise InvalidInput("manifest is not a JSON object")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Go matches keys without regard to case and takes the last: what decides must be there once, spelled right.
    found = dict(pairs)
    for key in found:
        if (spelled := _DECISIVE.get(key.lower())) is not None and spelled != key:
            raise InvalidInput(f"media-type confusion: the manifest has {key!r} in place of {spelled!r}")
    if len(found) != len(pairs):
        raise InvalidInput("media-type confusion: the manifest has a key twice")
    return found


def _schema1() -> InvalidInput:
    return InvalidInput(
        "schema 1 manifests are not supported: ask the image's publisher for one of schema 2 or OCI "
        "(pulling and pushing it again with a newer engine converts it)"
    )


def _manifest(media_type: str, document: dict[str, Any], content: bytes) -> Manifest:
    layers = document.get("layers")
    if layers is not None and not isinstance(layers, list):
        raise InvalidInput("manifest has the wrong type at 'layers'")
    if len(layers or ()) > _LAYERS_LIMIT:
        raise InvalidInput(f"manifest has more than {_LAYERS_LIMIT} layers")
    return Manifest(
        media_type, _descriptor(document.get("config"), "config"),
        tuple(_descriptor(layer, "layers") for layer in layers or ()), content,
        *_about(document),
    )  # fmt: skip


def _about(document: dict[str, Any]) -> tuple[str, Descriptor | None]:
    """artifactType and subject."""
    subject = document.get("subject")
    return str(document.get("artifactType") or ""), _descriptor(subject, "subject") if subject else None


def _index(media_type: str, document: dict[str, Any], content: bytes) -> Index:
    entries = document.get("manifests", "")
    if entries is None:  # Go's for an empty list
        entries = []
    if not isinstance(entries, list):
        raise InvalidInput("manifest list has the wrong type at 'manifests'")
    if len(entries) > _ENTRIES_LIMIT:
        raise InvalidInput(f"manifest list has more than {_ENTRIES_LIMIT} entries")
    known = [entry for entry in entries if not isinstance(entry, dict) or _is_known(entry)]
    others = []
    for entry in entries:
        if isinstance(entry, dict) and not _is_known(entry):
            with contextlib.suppress(InvalidInput):  # it need not even have a digest that we know
                others.append(_descriptor(entry, "manifests"))
    return Index(
        media_type,
        tuple(_descriptor(entry, "manifests") for entry in known),
        content,
        tuple(others),
        *_about(document),
    )


def _is_known(entry: dict[str, Any]) -> bool:
    """Entries of other kinds are skipped, as the specification asks."""
    return entry.get("mediaType") in ACCEPTED


def _descriptor(raw: Any, where: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise InvalidInput(f"manifest has the wrong type at {where!r}")
    media_type, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise InvalidInput(f"manifest has an incomplete descriptor at {where!r}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise InvalidInput(f"manifest has an invalid size at {where!r}")
    annotations, urls = raw.get("annotations"), raw.get("urls")
    return Descriptor(
        media_type, Digest(digest), size, _platform(raw.get("platform")),
        {str(key): str(value) for key, value in annotations.items()} if isinstance(annotations, dict) else {},
        tuple(url for url in urls if isinstance(url, str)) if isinstance(urls, list) else (),
    )  # fmt: skip


def _platform(raw: Any) -> Platform | None:
    if not isinstance(raw, dict):
        return None
    words = [raw.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(word, str) for word in words) or not words[1]:
        return None
    return Platform(*words)
