"""Referrers: what at a registry says to be about a manifest (signatures, SBOMs), by the API or by the tag that stands in for it.

A registry without the referrers API has the list of a manifest's referrers under the tag `sha256-HEX`, and whoever pushes a
referrer keeps it up. Source: distribution-spec 1.1, "Listing Referrers", "Pushing Manifests with Subject", "Referrers Tag Schema".
"""

from __future__ import annotations

import json
import re
from typing import Any

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Index, Manifest
from ketchd.registry.errors import Refused
from ketchd.registry.repository import Repository

_FALLBACK = re.compile(r"sha256-[0-9a-f]{64}")


def fallback_tag(subject: Digest) -> str:
    """The tag whose index lists the referrers of `subject`."""
    return f"sha256-{subject.hex}"


def is_fallback_tag(tag: str) -> bool:
    """Whether the tag is such a list, and not a name that somebody gave."""
    return _FALLBACK.fullmatch(tag) is not None


def entry_of(document: Manifest | Index) -> dict[str, Any]:
    """How a list of referrers shows the document."""
    entry: dict[str, Any] = {
        "mediaType": document.media_type,
        "digest": str(Digest.of(document.content)),
        "size": len(document.content),
    }
    kind = document.artifact_type
    if not kind and isinstance(document, Manifest):
        kind = document.config.media_type
    if kind:
        entry["artifactType"] = kind
    if annotations := manifests.annotations_of(document):
        entry["annotations"] = annotations
    return entry


def with_entry(content: bytes | None, entry: dict[str, Any]) -> bytes | None:
    """The list with the entry in it; None when it is there already. content: the list so far, None for none.

    Raises InvalidInput: the tag holds something else, which is not ours to replace.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": []}
    if content is not None:
        if not isinstance(manifests.parse(content), Index):
            raise InvalidInput("the tag for its subject's referrers holds no index")
        document = json.loads(content)
    if any(
        isinstance(known, dict) and known.get("digest") == entry["digest"] for known in document["manifests"]
    ):
        return None
    document["manifests"].append(entry)
    return json.dumps(document).encode()


async def publish(
    repository: Repository, tag_or_digest: str | Digest, document: Manifest | Index
) -> tuple[Digest, bool]:
    """Publish the manifest, and see to it that it is found by its subject, if it has one.

    Returns its digest, and whether the list under the subject's tag was needed. Two lists are never written at once, or one
    entry would be lost; another engine's may be. Raises Refused, Unreachable, EngineFailure.
    """
    put = await repository.put_manifest(tag_or_digest, document.content, document.media_type)
    if document.subject is None or put.subject is not None:
        return put.digest, False
    tag = fallback_tag(document.subject.digest)
    async with repository.listing:
        try:
            known = (await repository.manifest(tag)).content
        except Refused as fault:
            if fault.http_status != 404:
                raise
            known = None
        try:
            content = with_entry(known, entry_of(document))
        except InvalidInput as fault:
            raise EngineFailure(f"cannot list {put.digest.short} under {tag}: {fault.message}") from fault
        if content is not None:
            await repository.put_manifest(tag, content, manifests.OCI_INDEX)
    return put.digest, True


async def referrers(repository: Repository, subject: Digest) -> list[Descriptor]:
    """What refers to `subject`, by the API, else by the tag; each once. Raises Refused, Unreachable, EngineFailure, InvalidInput."""
    pages = await repository.referrers(subject)
    if pages is None:
        try:
            pages = [(await repository.manifest(fallback_tag(subject))).content]
        except Refused as fault:
            if fault.http_status == 404:
                return []
            raise
    found: dict[Digest, Descriptor] = {}
    for content in pages:
        index = manifests.parse(content)
        if not isinstance(index, Index):
            raise EngineFailure(f"the registry's list of referrers of {subject} is no index")
        found |= {entry.digest: entry for entry in index.entries}
    return list(found.values())
