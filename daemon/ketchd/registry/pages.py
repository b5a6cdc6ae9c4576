"""Lists that a registry gives in pages: tags, referrers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator

from ketch_wire.faults import EngineFailure
from ketchd.model.manifest import SIZE_LIMIT
from ketchd.registry import endpoints
from ketchd.registry.exchange import Exchange, Request, read_bounded
from ketchd.registry.tokens import Credentials

_NEXT = re.compile(r'<([^<>]+)>[^,]*;\s*rel="?next"?', re.IGNORECASE)
_LIMIT = 1000


async def pages(
    exchange: Exchange, request: Request, credentials: Credentials, what: str
) -> AsyncIterator[tuple[str, bytes]]:
    """Media type and body of every page, of which `request` asks for the first. what: for messages.

    Raises Refused, Unreachable, EngineFailure (a page is too large, or at another host).
    """
    for _ in range(_LIMIT):
        async with exchange.send(request, credentials) as response:
            content = await read_bounded(response, SIZE_LIMIT, f"the {what}")
            media_type = response.content_type
            following = _NEXT.search(response.headers.get("Link", ""))
        yield media_type, content
        if following is None:
            return
        url = endpoints.follow(request.url, following[1])
        if not endpoints.same_origin(url, request.endpoint.base):
            raise EngineFailure(f"the registry's {what} goes on at another host: refused")
        request = dataclasses.replace(request, url=url)


def read_tags(content: bytes) -> list[str]:
    """The tags of one page. Raises EngineFailure."""
    try:
        tags = json.loads(content)["tags"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise EngineFailure("the registry's list of tags cannot be read") from error
    return [tag for tag in tags or () if isinstance(tag, str)]
