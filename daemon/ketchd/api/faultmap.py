"""Faults as HTTP answers: the one place where a fault class meets a status code. Source: Engine API, ErrorResponse."""

from __future__ import annotations

import json

from aiohttp import web

from ketch_wire.faults import Fault, NotModified

JSON_TYPE = "application/json"


def fault_reply(fault: Fault, *, plain: bool = False) -> web.Response:
    """`{"message": …}` with the fault's status; 304 has no body. plain: see `error_reply`."""
    if isinstance(fault, NotModified):
        return web.Response(status=304)
    return error_reply(fault.status, fault.message, plain=plain)


def error_reply(status: int, message: str, *, plain: bool = False) -> web.Response:
    """An error answer. Clients compare the media type as a whole: it has no charset. plain: text, as before API 1.24."""
    if plain:
        text = message.encode("utf-8", "surrogateescape") + b"\n"
        return web.Response(status=status, body=text, headers={"Content-Type": "text/plain; charset=utf-8"})
    body = json.dumps({"message": message}, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
    return web.Response(status=status, body=body, headers={"Content-Type": JSON_TYPE})
