"""The import journey: a tar of a root, however compressed, becomes an image of one layer, byte for byte.

Source: Engine API 1.50, ImageCreate with fromSrc; moby's ImageService.ImportImage.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd import tracepoint
from ketchd.dialling import reason
from ketchd.engine.imagechanges import apply_changes, history_entry, image_document
from ketchd.engine.images import announce
from ketchd.engine.rooms import Rooms
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference

tracepoint.declare("import.layer-made", "import.registered", "import.tagged")

Send = Callable[[dict[str, Any]], Awaitable[None]]
_PIECE = 1 << 20


async def import_image(
    rooms: Rooms,
    chunks: AsyncIterable[bytes],
    *,
    source: str = "-",
    target: Reference | None = None,
    message: str = "",
    changes: Sequence[str] = (),
    platform: str = "",
) -> Digest:
    """The new image's ID. source: for its history. changes: Dockerfile instructions.

    Raises InvalidInput (no tar, a bad change, another system), EngineFailure. Failed or cancelled: nothing stays.
    """
    host = Platform.host(os.uname().machine)
    wanted = Platform.parse(platform, host) if platform else host
    if wanted.os != "linux":
        raise InvalidInput("operating system is not supported")
    config = apply_changes({}, changes)
    comment = message or f"Imported from {source}"
    async with rooms.leases.hold() as lease:
        async with rooms.layers.ingest(keep=partial(lease.add, "layer")) as ingest:
            async for chunk in chunks:
                await ingest.feed(chunk)
            layer = await ingest.finish()
        tracepoint.reach("import.layer-made")
        now = time.time_ns()
        document = image_document(
            config=config,
            layers=[layer.diff_id],
            history=[history_entry(now, comment=comment)],
            created_ns=now,
            architecture=wanted.architecture,
            os=wanted.os,
            variant=wanted.variant,
            comment=comment,
        )
        image_id = Digest.of(document)
        lease.add("blob", image_id)
        ready = await rooms.images.prepare(document)
        with rooms.catalogue.transaction(durable=True):
            rooms.images.record(ready)
            tracepoint.reach("import.registered")
            if target is not None:
                rooms.images.tag(target, image_id)
        tracepoint.reach("import.tagged")
    if target is not None:
        announce(rooms, image_id, "tag", target.familiar())
    announce(rooms, image_id, "import")
    return image_id


@asynccontextmanager
async def download(url: str, send: Send) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes behind an http or https URL, for `docker import URL`. Raises InvalidInput, EngineFailure."""
    if not url.startswith(("http://", "https://")):
        url = f"http://{url}"  # as dockerd takes a source without scheme
    await send({"status": f"Downloading from {url}"})
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url) as reply,
        ):
            if reply.status >= 400:
                raise InvalidInput(f"failed to GET {url} with status {reply.status} {reply.reason}")
            yield reply.content.iter_chunked(_PIECE)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineFailure(f'Get "{url}": {reason(error)}') from error
