"""Faults as HTTP answers: the one place where a fault class meets a status code. Source: Engine API, ErrorResponse."""

from __future__ import annotations

import json

from aiohttp import web

from ketch_wire.faults import Fault, NotModified

JSON_TYPE = "application/json"
RAW_STREAM = "application/vnd.docker.raw-stream"


def fault_reply(fault: Fault, *, plain: bool = False) -> web.Response:
    """`{"message": …}` with the fault's status; 304 has no body. plain: see `error_reply`."""
    if isinstance(fault, NotModified):
        return web.Response(status=304)
    return error_reply(fault.status, fault.message, plain=plain)


def stream_refusal(fault: Fault) -> web.Response:
    """What a client of an attach sees, which may take any answer for the stream: the message alone, then the end.

    Source: moby api/server/router/container/container_routes.go, postContainersAttach.
    """
    text = fault.message.encode("utf-8", "surrogateescape") + b"\r\n"
    reply = web.Response(status=fault.status, body=text, headers={"Content-Type": RAW_STREAM})
    reply.force_close()
    return reply


def error_reply(status: int, message: str, *, plain: bool = False) -> web.Response:
    """An error answer. Clients compare the media type as a whole: it has no charset. plain: text, as before API 1.24."""
    if plain:
        text = message.encode("utf-8", "surrogateescape") + b"\n"
        return web.Response(status=status, body=text, headers={"Content-Type": "text/plain; charset=utf-8"})
    body = json.dumps({"message": message}, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
    return web.Response(status=status, body=body, headers={"Content-Type": JSON_TYPE})
