"""A registry of our own that speaks the protocol and, on request, breaks it: every request passes a trick first.

Runs in the test's own loop. `seen` tells what was asked; a trick answers in the registry's place, or returns None.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_BEGIN = re.compile(r"/v2/(.+)/blobs/uploads/")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-f]{32})")
_REFERRERS = re.compile(r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})")
_TAGS = re.compile(r"/v2/(.+)/tags/list")

Trick = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]


def digest_of(content: bytes) -> str:
    """`sha256:HEX`."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass(slots=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body_size: int = 0


@dataclass(slots=True)
class Image:
    """What was put there. layers: compressed blobs, base first."""

    manifest: bytes
    digest: str
    config: bytes
    layers: list[bytes]
    layer_digests: list[str] = field(default_factory=list)


class HostileRegistry:
    """blobs: repository → digest → bytes. manifests: repository → tag or digest → (bytes, type). ranges: whether it honours
    Range. referrers: entries of a page of the referrers API; 0 for a registry without it. host: `127.0.0.1:PORT` while it runs."""

    def __init__(self) -> None:
        self.host = ""
        self.ranges = True
        self.referrers = 0
        self.seen: list[Seen] = []
        self.tricks: list[Trick] = []
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[bytes, str]]] = {}
        self.uploads: dict[str, bytearray] = {}

    # -- what is there

    def put_blob(self, repository: str, content: bytes) -> str:
        """Store a blob; returns its digest."""
        digest = digest_of(content)
        self.blobs.setdefault(repository, {})[digest] = content
        return digest

    def put_manifest(self, repository: str, tag: str, content: bytes, media_type: str) -> str:
        """Store a manifest under its tag and digest."""
        digest = digest_of(content)
        self.manifests.setdefault(repository, {}).update(
            {tag: (content, media_type), digest: (content, media_type)}
        )
        return digest

    def put_image(
        self,
        repository: str,
        tag: str,
        tars: Sequence[bytes],
        *,
        architecture: str = "amd64",
        os: str = "linux",
        **manifest: Any,
    ) -> Image:
        """Store an image of these layers (plain tars). manifest: keys to add to it or to replace."""
        layers = [gzip.compress(tar, mtime=0) for tar in tars]
        config = json.dumps(
            {
                "architecture": architecture, "os": os, "config": {"Labels": {"who": "hostile"}},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
            }
        ).encode()  # fmt: skip
        digests = [self.put_blob(repository, layer) for layer in layers]
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": DOCKER_CONFIG,
                "size": len(config),
                "digest": self.put_blob(repository, config),
            },
            "layers": [
                {"mediaType": DOCKER_LAYER, "size": len(layer), "digest": digest}
                for layer, digest in zip(layers, digests, strict=True)
            ],
            **manifest,
        }
        content = json.dumps(document).encode()
        digest = self.put_manifest(repository, tag, content, document["mediaType"])
        return Image(content, digest, config, layers, digests)

    def asked(self, method: str, part: str) -> list[Seen]:
        """The requests of a method whose path contains `part`."""
        return [seen for seen in self.seen if seen.method == method and part in seen.path]

    # -- serving

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        self.seen.append(
            Seen(request.method, request.path, request.rel_url.raw_query_string, {**request.headers})
        )
        for trick in list(self.tricks):
            answer = await trick(request)
            if answer is not None:
                return answer
        return await self._honest(request)

    async def _honest(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.path, request.method
        if path == "/v2/":
            return web.json_response({})
        if (match := _BEGIN.fullmatch(path)) and method == "POST":
            return self._begin(match[1], request)
        if match := _UPLOAD.fullmatch(path):
            return await self._upload(match[1], match[2], request)
        if match := _BLOB.fullmatch(path):
            return self._blob(request, self.blobs.get(match[1], {}).get(match[2]))
        if match := _MANIFEST.fullmatch(path):
            return await self._manifest(match[1], match[2], request)
        if (match := _REFERRERS.fullmatch(path)) and self.referrers:
            return self._referrers(match[1], match[2], request)
        if match := _TAGS.fullmatch(path):
            tags = [tag for tag in self.manifests.get(match[1], {}) if ":" not in tag]
            return web.json_response({"name": match[1], "tags": tags})
        return refuse(404, "NAME_UNKNOWN")

    def _blob(self, request: web.BaseRequest, content: bytes | None) -> web.StreamResponse:
        if content is None:
            return refuse(404, "BLOB_UNKNOWN")
        wanted = request.http_range if self.ranges and "Range" in request.headers else None
        if wanted is None or request.method == "HEAD":
            return web.Response(body=content)
        start, stop = wanted.start or 0, min(wanted.stop or len(content), len(content))
        if start >= len(content):
            return web.Response(status=416)
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return web.Response(status=206, body=content[start:stop], headers=headers)

    async def _manifest(
        self, repository: str, reference: str, request: web.BaseRequest
    ) -> web.StreamResponse:
        if request.method == "PUT":
            content = await request.content.read()  # of any size
            digest = self.put_manifest(repository, reference, content, request.content_type)
            headers = {"Docker-Content-Digest": digest}
            if (subject := subject_of(content)) and self.referrers:
                headers["OCI-Subject"] = subject
            return web.Response(status=201, headers=headers)
        found = self.manifests.get(repository, {}).get(reference)
        if found is None:
            return refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
        headers = {"Content-Type": found[1], "Docker-Content-Digest": digest_of(found[0])}
        return web.Response(body=found[0], headers=headers)

    def _referrers(self, repository: str, subject: str, request: web.BaseRequest) -> web.StreamResponse:
        found = {
            digest_of(content): (content, media_type)
            for content, media_type in self.manifests.get(repository, {}).values()
            if subject_of(content) == subject
        }
        start = int(request.query.get("from", 0))
        stop = start + self.referrers
        entries = [
            {"mediaType": found[digest][1], "digest": digest, "size": len(found[digest][0])}
            for digest in sorted(found)[start:stop]
        ]
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
        headers = {"Content-Type": OCI_INDEX}
        if stop < len(found):
            headers["Link"] = f'<{request.path}?from={stop}>; rel="next"'
        return web.Response(body=body, headers=headers)

    def _begin(self, repository: str, request: web.BaseRequest) -> web.StreamResponse:
        source, digest = request.query.get("from", ""), request.query.get("mount", "")
        if digest in self.blobs.get(source, {}):
            self.put_blob(repository, self.blobs[source][digest])
            return web.Response(status=201, headers={"Docker-Content-Digest": digest})
        number = uuid.uuid4().hex
        self.uploads[number] = bytearray()
        return web.Response(
            status=202, headers={"Location": f"/v2/{repository}/blobs/uploads/{number}?_state=x"}
        )

    async def _upload(self, repository: str, number: str, request: web.BaseRequest) -> web.StreamResponse:
        held = self.uploads.get(number)
        if held is None:
            return refuse(404, "BLOB_UPLOAD_UNKNOWN")
        location = {"Location": f"{request.path}?_state=x", "Range": f"0-{max(len(held) - 1, 0)}"}
        if request.method == "DELETE":
            del self.uploads[number]
            return web.Response(status=204)
        if request.method == "GET":
            return web.Response(status=204, headers=location)
        start = int(request.headers.get("Content-Range", f"{len(held)}-").partition("-")[0])
        if start != len(held):
            return web.Response(status=416, headers=location)
        with contextlib.suppress(ConnectionError):
            async for piece in request.content.iter_any():
                held += piece
                self.seen[-1].body_size += len(piece)
        if request.method == "PATCH":
            location["Range"] = f"0-{max(len(held) - 1, 0)}"
            return web.Response(status=202, headers=location)
        if digest_of(bytes(held)) != request.query.get("digest"):
            return refuse(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.put_blob(repository, bytes(held))
        del self.uploads[number]
        return web.Response(status=201)


def subject_of(manifest: bytes) -> str:
    """The digest of what a manifest says to be about; empty for nothing."""
    return str((json.loads(manifest).get("subject") or {}).get("digest", ""))


def refuse(status: int, code: str, message: str = "", **headers: str) -> web.Response:
    """An error as registries send them."""
    body = {"errors": [{"code": code, "message": message or code.lower().replace("_", " ")}]}
    return web.json_response(body, status=status, headers=headers)


@contextlib.asynccontextmanager
async def hostile_registry() -> AsyncIterator[HostileRegistry]:
    """A running registry on loopback."""
    registry = HostileRegistry()
    server = web.Server(registry.handle)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield registry
    finally:
        await runner.cleanup()


# -- tricks


def times(count: int, trick: Trick) -> Trick:
    """The trick, but only the first `count` times that it has something to say."""
    left = count

    async def limited(request: web.BaseRequest) -> web.StreamResponse | None:
        nonlocal left
        if left <= 0:
            return None
        answer = await trick(request)
        if answer is not None:
            left -= 1
        return answer

    return limited


def on(method: str, part: str, answer: Callable[[web.BaseRequest], web.StreamResponse]) -> Trick:
    """`answer` to requests of a method whose path contains `part`."""

    async def trick(request: web.BaseRequest) -> web.StreamResponse | None:
        return answer(request) if request.method == method and part in request.path else None

    return trick


def torn(part: str, content: bytes, after: int) -> Trick:
    """GETs of `part` break off: honest headers, honest bytes up to blob position `after`, then the connection is cut."""

    async def trick(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "GET" or part not in request.path:
            return None
        start = (request.http_range.start or 0) if "Range" in request.headers else 0
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response.content_length = len(content) - start
        await response.prepare(request)
        if after > start:
            await response.write(content[start:after])
        assert request.transport is not None
        await asyncio.sleep(0)
        request.transport.close()
        return response

    return trick


def endless(part: str) -> Trick:
    """GETs of `part` never end."""

    async def trick(request: web.BaseRequest) -> web.StreamResponse | None:
        if request.method != "GET" or part not in request.path:
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(65536))
        return response

    return trick
