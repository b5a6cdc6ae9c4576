"""Pushing a document as it came: an index with everything in it, or an artifact. Every byte is sent as it was received."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ketch_wire.faults import NotFound
from ketchd.content.blobs import BlobStore
from ketchd.content.documents import Document
from ketchd.engine.progress import ProgressBoard
from ketchd.model import manifest as manifests
from ketchd.model.digest import Digest
from ketchd.model.manifest import Descriptor, Index
from ketchd.registry.referrers import fallback_tag, publish
from ketchd.registry.repository import Repository
from ketchd.registry.together import together

GiveBlob = Callable[[Descriptor], Awaitable[bool]]


@dataclass(slots=True)
class Parts:
    """What a document consists of. manifests: (digest, media type, bytes), inner before outer, itself last. blobs: the leaves.

    absent: what is not here, a line for each.
    """

    manifests: list[tuple[Digest, str, bytes]] = field(default_factory=list)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def gather(blobs: BlobStore, document: Document) -> Parts:
    """Everything that the document refers to, followed through. Raises EngineFailure (damaged), InvalidInput."""
    parts = Parts()
    add(blobs, document.digest, document.media_type, "", parts)
    return parts


def add(blobs: BlobStore, digest: Digest, media_type: str, about: str, parts: Parts) -> None:
    """Gather one more. about: to say in the lines of what is absent, ` of PLATFORM`. Raises as `gather` does."""
    if any(known[0] == digest for known in parts.manifests):
        return
    if not blobs.has(digest):
        parts.absent.append(f"manifest {digest}{about}")
        return
    content = blobs.read(digest)
    found = manifests.parse(content, media_type)
    if isinstance(found, Index):
        for entry in found.entries:
            add(blobs, entry.digest, entry.media_type, about_entry(entry), parts)
        add_leaves(blobs, found.others, about, parts)
    else:
        add_leaves(blobs, (found.config, *found.layers), about, parts)
    parts.manifests.append((digest, found.media_type, content))


def about_entry(entry: Descriptor) -> str:
    """Which entry of an index, in a line of what is absent."""
    return "" if entry.platform is None else f" of {entry.platform}"


def add_leaves(blobs: BlobStore, found: tuple[Descriptor, ...], about: str, parts: Parts) -> None:
    """Gather what is no manifest."""
    for leaf in found:
        if leaf.digest not in parts.blobs and not blobs.has(leaf.digest):
            parts.absent.append(f"blob {leaf.digest}{about}")
        parts.blobs[leaf.digest] = leaf


async def send_parts(
    repository: Repository, parts: Parts, limit: int, give: GiveBlob, board: ProgressBoard
) -> None:
    """Have the registry hold everything but the document itself, the last of the manifests. give: hands over one blob, False
    when it is not here.

    Raises NotFound with what is neither here nor there; Refused, Unreachable.
    """
    await send_blobs(repository, parts, limit, give)
    for part in parts.manifests[:-1]:
        await publish_told(repository, part[0], part, board)


async def send_blobs(repository: Repository, parts: Parts, limit: int, give: GiveBlob) -> None:
    """Have the registry hold every blob of the parts. Raises as `send_parts` does."""
    slots = asyncio.Semaphore(limit)

    async def one(leaf: Descriptor) -> None:
        async with slots:
            if not await give(leaf):
                raise absent_fault([f"blob {leaf.digest}"])

    for line in parts.absent:
        if line.startswith("manifest "):
            raise absent_fault(parts.absent)
    await together(one(leaf) for leaf in parts.blobs.values())


async def publish_told(
    repository: Repository,
    tag_or_digest: str | Digest,
    part: tuple[Digest, str, bytes],
    board: ProgressBoard,
) -> Digest:
    """Publish a manifest, and tell the client of the tag that its subject's referrers have when the registry keeps no list."""
    _, media_type, content = part
    document = manifests.parse(content, media_type)
    digest, is_listed = await publish(repository, tag_or_digest, document)
    if is_listed and document.subject is not None:
        tag = fallback_tag(document.subject.digest)
        board.say(f"{digest.short}: listed under the tag {tag}, the registry has no referrers API")
    return digest


def absent_fault(lines: list[str]) -> NotFound:
    """What to raise when a whole document is wanted and these parts of it are not here."""
    shown = ", ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
    return NotFound(
        f"not all of it is here ({shown}): pull it with --all-platforms first, or take one platform"
    )
