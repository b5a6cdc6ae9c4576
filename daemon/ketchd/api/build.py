"""The build endpoints: parse, call the build journey, render. Source: Engine API 1.50, ImageBuild and BuildPrune."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ketch_wire.faults import InvalidInput, Unsupported
from ketchd.api.routing import Call, Route, json_reply
from ketchd.api.streams import JsonStream
from ketchd.build.performing import Limits
from ketchd.build.stages import Options
from ketchd.engine.build import Builder, BuildRequest
from ketchd.engine.buildcache import PruneLimits, prune_cache
from ketchd.engine.networks import HOST_GATEWAY, host_gateways
from ketchd.engine.rooms import Rooms
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference

_PRUNE_SIZES = (("reserved-space", "keep-storage"), ("max-used-space",), ("min-free-space",))


class BuildApi:
    """Handlers over the build journey."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._builder = Builder(rooms)

    def routes(self) -> list[Route]:
        """Every route of this module."""
        return [
            Route("POST", "/build", self.build, cancellable=True),
            Route("POST", "/build/prune", self.prune),
        ]

    async def build(self, call: Call) -> web.StreamResponse:
        """POST /build: nothing is answered before the body is read whole; a client that leaves cancels its build."""
        body = _whole(call)
        try:
            request = self._request(call)
        except BaseException:
            async for _ in body:  # a client that is not heard out loses the answer
                pass
            raise
        async with JsonStream(call) as stream:
            await self._builder.build(request, body, stream.send)
        return stream.response

    def _request(self, call: Call) -> BuildRequest:
        _refuse(call)
        build_args = _map(call, "buildargs", allow_null=True)
        return BuildRequest(
            tags=_tags(call.query_list("t")),
            dockerfile=call.query("dockerfile"),
            remote=call.query("remote"),
            options=self._options(call, build_args),
            limits=_limits(call),
            cache_from=_list(call, "cachefrom"),
            registries=call.registry_config(),
            epoch=_epoch(build_args.get("SOURCE_DATE_EPOCH")),
            no_cache=call.query_bool("nocache"),
            pull=call.query_bool("pull"),
            remove=call.query_bool("rm", True),
            quiet=call.query_bool("q"),
        )

    def _options(self, call: Call, build_args: dict[str, Any]) -> Options:
        host = Platform.host(os.uname().machine)
        platform = call.query("platform").lower()
        return Options(
            build_args=build_args,
            labels=_map(call, "labels"),
            target=call.query("target"),
            platform=str(Platform.parse(platform, host)) if platform else "",
            host_platform=str(host),
            network=call.query("networkmode") or "default",
            extra_hosts=tuple(host for text in call.query_list("extrahosts") for host in self._hosts(text)),
        )

    def _hosts(self, text: str) -> list[str]:
        """`name:address`; for `host-gateway` one for each of its addresses."""
        name, sign, address = text.partition(":")
        if not name or not sign or not address:
            raise InvalidInput(f'bad format for add-host: "{text}"')
        found = host_gateways(self._rooms) if address == HOST_GATEWAY else [address]
        return [f"{name}:{one}" for one in found]

    async def prune(self, call: Call) -> web.StreamResponse:
        """POST /build/prune"""
        sizes = [
            next((_bytes(call, name) for name in names if call.query(name)), 0) for names in _PRUNE_SIZES
        ]
        gone, reclaimed = await prune_cache(
            self._rooms,
            self._builder.cache,
            call.filters(),
            PruneLimits(*sizes),
            everything=call.query_bool("all"),
        )
        return json_reply({"CachesDeleted": gone or None, "SpaceReclaimed": reclaimed})


async def _whole(call: Call) -> AsyncIterator[bytes]:
    async for chunk in call.request.content.iter_any():
        yield chunk


def _refuse(call: Call) -> None:
    """What this builder does not do, each by its name."""
    if call.query("version") not in ("", "1"):
        raise Unsupported("BuildKit is not supported by this daemon: build with DOCKER_BUILDKIT=0")
    if call.query_bool("squash"):
        raise InvalidInput("squash is only supported with experimental mode")
    if call.query("isolation") not in ("", "default"):
        raise InvalidInput(f"isolation {call.query('isolation')!r} is not supported")
    if call.query("outputs") not in ("", "[]", "null"):
        raise Unsupported("build outputs are only supported with BuildKit")
    if call.query("remote") == "client-session":
        raise Unsupported("contexts of a client session are only supported with BuildKit")


def _tags(names: list[str]) -> tuple[Reference, ...]:
    """Each once, with a tag. Raises InvalidInput."""
    found: dict[Reference, None] = {}
    for name in names:
        if not name:
            continue
        reference = Reference.parse(name)
        if reference.digest is not None:
            raise InvalidInput("build tag cannot contain a digest")
        found[reference.with_default_tag()] = None
    return tuple(found)


def _json(call: Call, name: str) -> Any:
    text = call.query(name)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"error reading {name}: {error}") from None


def _map(call: Call, name: str, *, allow_null: bool = False) -> dict[str, Any]:
    value = _json(call, name) or {}
    if not isinstance(value, dict) or not all(
        isinstance(item, str) or (allow_null and item is None) for item in value.values()
    ):
        raise InvalidInput(f"error reading {name}: a map of strings is expected")
    return value


def _list(call: Call, name: str) -> tuple[str, ...]:
    value = _json(call, name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"error reading {name}: a list of strings is expected")
    return tuple(value)


def _limits(call: Call) -> Limits:
    resources: dict[str, Any] = {}
    for name, key in (
        ("memory", "Memory"), ("memswap", "MemorySwap"), ("cpushares", "CpuShares"), ("cpuperiod", "CpuPeriod"),
        ("cpuquota", "CpuQuota"),
    ):  # fmt: skip
        if value := call.query_int(name, 0):
            resources[key] = value
    for name, key in (
        ("cpusetcpus", "CpusetCpus"),
        ("cpusetmems", "CpusetMems"),
        ("cgroupparent", "CgroupParent"),
    ):
        if text := call.query(name):
            resources[key] = text
    ulimits: dict[str, tuple[int, int]] = {}
    for item in _json(call, "ulimits") or ():
        try:
            ulimits[str(item["Name"])] = (int(item["Soft"]), int(item["Hard"]))
        except (KeyError, TypeError, ValueError):
            raise InvalidInput("error reading ulimit settings: Name, Soft and Hard are expected") from None
    return Limits(resources, ulimits, call.query_int("shmsize", 0))


def _epoch(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdigit() or len(text) > 11:
        raise InvalidInput(f"invalid SOURCE_DATE_EPOCH: {text}")
    return int(text)


def _bytes(call: Call, name: str) -> int:
    text = call.query(name)
    if not text.isdigit():
        raise InvalidInput(f"{name} is in bytes and expects an integer, got {text}")
    return int(text)
