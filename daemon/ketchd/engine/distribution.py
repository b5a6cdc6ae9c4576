"""Inspection at a distance: what a name means at its registry, without pulling it."""

from __future__ import annotations

from typing import Any

from ketch_wire.faults import EngineFailure, Fault, Forbidden, NotFound, Unauthorized
from ketchd.engine.rooms import Rooms
from ketchd.model import manifest as manifests
from ketchd.model.imageconfig import SIZE_LIMIT, ImageConfig
from ketchd.model.manifest import Index
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.errors import Refused
from ketchd.registry.repository import Repository
from ketchd.registry.tokens import Credentials


async def inspect_remote(rooms: Rooms, reference: Reference, credentials: Credentials) -> dict[str, Any]:
    """Descriptor and platforms, as the API shows them. Nothing is stored.

    Raises NotFound, Unauthorized, Forbidden, InvalidInput, EngineFailure. Source: Engine API, DistributionInspect.
    """
    reference = reference.with_default_tag()
    try:
        repository = await rooms.registry.repository(reference, credentials)
        return await _inspect(repository, reference)
    except Refused as fault:
        raise _fault(fault) from fault


async def _inspect(repository: Repository, reference: Reference) -> dict[str, Any]:
    fetched = await repository.manifest(reference.digest or reference.tag or "")
    document = manifests.parse(fetched.content, fetched.media_type)
    platforms: list[Platform] = []
    if isinstance(document, Index):
        platforms = [entry.platform for entry in manifests.candidates(document) if entry.platform]
    elif document.config.media_type in manifests.CONFIGS:
        config = ImageConfig.parse(await repository.small_blob(document.config, SIZE_LIMIT))
        platforms = [Platform(config.os, config.architecture, config.variant)]
    return {
        "Descriptor": {
            "mediaType": document.media_type, "digest": str(fetched.digest), "size": len(fetched.content),
        },
        "Platforms": [_shown(platform) for platform in platforms],
    }  # fmt: skip


def _shown(platform: Platform) -> dict[str, str]:
    shown = {"architecture": platform.architecture, "os": platform.os}
    return {**shown, "variant": platform.variant} if platform.variant else shown


def _fault(fault: Refused) -> Fault:
    if fault.http_status == 401:
        return Unauthorized(fault.message)
    if fault.http_status == 403 or fault.code_name == "DENIED":
        return Forbidden(fault.message)
    if fault.http_status == 404:
        return NotFound(fault.message)
    return EngineFailure(fault.message)
