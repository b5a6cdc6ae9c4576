"""Repository: one repository as one journey sees it, through the endpoints that have answered so far.

Manifests and blobs are verified by whoever asked: what is returned here is what the registry sent, bounded in size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.model.digest import Digest
from ketchd.model.manifest import ACCEPTED, OCI_INDEX, SIZE_LIMIT, Descriptor
from ketchd.model.reference import Reference
from ketchd.registry import ranges, tokens
from ketchd.registry.endpoints import Endpoint
from ketchd.registry.errors import Refused
from ketchd.registry.exchange import Exchange, Request, Tell, read_bounded
from ketchd.registry.filebody import BytesBody
from ketchd.registry.pages import pages, read_tags
from ketchd.registry.sayings import said
from ketchd.registry.sending import Sending
from ketchd.registry.tokens import Credentials
from ketchd.registry.transport import Unreachable
from ketchd.registry.uploads import Upload

_ACCEPT = ", ".join((*ACCEPTED, "*/*"))
_TAGS_LIMIT = 100_000
_NO_API = (400, 404, 405, 406, 501)  # 404 by the specification; older registries have their own ways
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as a registry sent it. digest: of exactly these bytes."""

    content: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Put:
    """A manifest that a registry took. subject: whose list of referrers it is on now; None when the registry keeps none."""

    digest: Digest
    subject: Digest | None


@dataclass(frozen=True, slots=True)
class Body:
    """A blob's bytes as they come. ranged: they begin where was asked for, else at the blob's beginning."""

    content: aiohttp.StreamReader
    ranged: bool


class Repository:
    """Made by `RegistryClient.repository`. Its endpoints are tried in order; one that answered is kept."""

    def __init__(
        self,
        exchange: Exchange,
        reference: Reference,
        credentials: Credentials,
        found: list[Endpoint],
        *,
        push: bool,
        tell: Tell | None,
    ) -> None:
        self._exchange = exchange
        self._credentials = credentials
        self._path = reference.path
        self._endpoints = found
        self._scopes = [tokens.scope(self._path, *(("pull", "push") if push else ("pull",)))]
        self._served: dict[Digest, Endpoint] = {}
        self.name = reference.repository
        self.listing = exchange.listing
        self.tell = tell

    # -- reading

    async def head(self, tag: str) -> Digest | None:
        """What the tag means, cheaply (it does not count as a pull); None when the registry does not say."""

        async def ask(endpoint: Endpoint) -> Digest | None:
            request = self._request(endpoint, "HEAD", f"manifests/{tag}", {"Accept": _ACCEPT})
            try:
                async with self._exchange.send(request, self._credentials) as response:
                    return _named(response.headers.get("Docker-Content-Digest"))
            except Refused as fault:
                if fault.http_status == 401:
                    raise
                return None  # a GET has the words that a HEAD cannot have

        return await self._walk(ask, by_tag=True)

    async def manifest(self, tag_or_digest: str | Digest) -> Fetched:
        """Raises Refused, Unreachable, EngineFailure (the bytes are not what the digest says), InvalidInput (too large)."""
        wanted = tag_or_digest if isinstance(tag_or_digest, Digest) else None

        async def ask(endpoint: Endpoint) -> Fetched:
            request = self._request(endpoint, "GET", f"manifests/{tag_or_digest}", {"Accept": _ACCEPT})
            async with self._exchange.send(request, self._credentials) as response:
                length = response.content_length
                if length is not None and length > SIZE_LIMIT:
                    raise InvalidInput(f"manifest is larger than {SIZE_LIMIT} bytes")
                content = await read_bounded(response, SIZE_LIMIT, "the manifest")
                fetched = Fetched(content, response.headers.get("Content-Type", ""), Digest.of(content))
            if wanted is not None and fetched.digest != wanted:
                raise EngineFailure(f"manifest verification failed for digest {wanted}")
            if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(
                b"{"
            ):  # a page of a proxy, or of a login
                raise EngineFailure(f'{endpoint.host} answered with what is no manifest: "{said(content)}"')
            return fetched

        return await self._walk(ask, by_tag=wanted is None)

    async def small_blob(self, descriptor: Descriptor, limit: int, what: str = "filesystem layer") -> bytes:
        """A blob of at most `limit` bytes, verified; what it is, for messages. Raises as `manifest` does."""
        if descriptor.size > limit:
            raise InvalidInput(
                f"{descriptor.media_type[:80]} of {descriptor.size} bytes is larger than {limit}"
            )

        async def ask(endpoint: Endpoint) -> bytes:
            request = self._request(endpoint, "GET", f"blobs/{descriptor.digest}")
            async with self._exchange.send(request, self._credentials) as response:
                content = await read_bounded(response, descriptor.size, f"blob {descriptor.digest}")
            if len(content) != descriptor.size or Digest.of(content) != descriptor.digest:
                raise EngineFailure(f"{what} verification failed for digest {descriptor.digest}")
            return content

        return await self._walk(ask)

    @contextlib.asynccontextmanager
    async def blob(self, digest: Digest, size: int, start: int, stop: int | None) -> AsyncIterator[Body]:
        """Bytes of a blob from `start` on, up to `stop` or its end.

        The registry may ignore the range. The body may be longer or shorter than asked for: the caller counts.
        Raises Refused, Unreachable, EngineFailure. No retries: the caller knows what has arrived.
        """
        wanted = {"Range": ranges.header(start, stop)} if start or stop is not None else {}
        last: Exception | None = None
        for endpoint in list(self._endpoints):
            request = self._request(endpoint, "GET", f"blobs/{digest}", wanted)
            async with contextlib.AsyncExitStack() as stack:
                try:
                    response = await stack.enter_async_context(
                        self._exchange.send(request, self._credentials)
                    )
                    told = response.headers.get("Content-Range")
                    ranged = ranges.is_ranged(response.status, told, start, size)
                except (Refused, Unreachable, EngineFailure) as fault:
                    last = fault
                    if not self._give_up_on(endpoint, fault):
                        raise
                    continue
                self._served[digest] = endpoint
                yield Body(response.content, ranged)
                return
        raise last if last is not None else self._nowhere()

    def blame(self, digest: Digest) -> bool:
        """The blob turned out to be false: a mirror that served it is asked no more. Whether there was one."""
        endpoint = self._served.pop(digest, None)
        if endpoint is None or endpoint.own:
            return False
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
        return True

    def wait_after(self, fault: Refused | Unreachable, failures: int) -> float | None:
        """Seconds until the next attempt of a transfer, or None when there should be none."""
        return self._exchange.wait_after(fault, failures)

    async def pause(self, seconds: float, tell: Tell | None) -> None:
        """Wait before the next attempt, and say so."""
        await self._exchange.pause(seconds, tell)

    async def tags(self) -> list[str]:
        """Every tag of the repository, as the registry lists them. Raises Refused, Unreachable, EngineFailure."""

        async def ask(endpoint: Endpoint) -> list[str]:
            found: list[str] = []
            request = self._request(endpoint, "GET", "tags/list")
            async for _, content in pages(self._exchange, request, self._credentials, "list of tags"):
                found += read_tags(content)
                if len(found) > _TAGS_LIMIT:
                    break
            return found

        return await self._walk(ask, by_tag=True)

    async def referrers(self, subject: Digest) -> list[bytes] | None:
        """The pages of the registry's list of what refers to `subject`: an index each; None without the referrers API.

        Raises Refused, Unreachable, EngineFailure.
        """

        async def ask(endpoint: Endpoint) -> list[bytes] | None:
            found: list[bytes] = []
            try:
                request = self._request(endpoint, "GET", f"referrers/{subject}", {"Accept": OCI_INDEX})
                listed = pages(self._exchange, request, self._credentials, "list of referrers")
                async for media_type, content in listed:
                    if media_type != OCI_INDEX:
                        return None
                    found.append(content)
            except Refused as fault:
                if fault.http_status in _NO_API:
                    return None
                raise
            return found

        return await self._walk(ask, by_tag=True)

    # -- writing

    async def settle(self) -> None:
        """Find the endpoint that answers and what it asks for, before many requests at once would each find out."""

        async def ask(endpoint: Endpoint) -> None:
            request = Request(endpoint, "GET", f"{endpoint.base}/", self._scopes)
            async with self._exchange.send(request, self._credentials):
                pass

        await self._walk(ask)

    async def has_blob(self, digest: Digest, size: int) -> bool:
        """Whether the registry has the blob in this repository."""

        async def ask(endpoint: Endpoint) -> bool:
            request = self._request(endpoint, "HEAD", f"blobs/{digest}")
            try:
                async with self._exchange.send(request, self._credentials) as response:
                    length = response.headers.get("Content-Length", "")
                    return not length.isdigit() or int(length) == size
            except Refused as fault:
                if fault.http_status == 404:
                    return False
                raise

        return await self._walk(ask)

    async def upload(
        self,
        digest: Digest,
        size: int,
        body: Callable[[int, int], Any],
        *,
        mount_from: str = "",
        only_mount: bool = False,
    ) -> bool:
        """Give the registry the blob; says whether it took it from the repository `mount_from` (a path) by itself.

        body: makes a request body of bytes [start, stop). only_mount: without a mount nothing is uploaded, returns False.
        Raises Refused, Unreachable, EngineFailure. Cancelled or failed: the upload is given up at the registry.
        """
        endpoint = self._writable()
        upload = Upload(endpoint.base, self._path, digest, size, source=mount_from)
        sending = Sending(
            self._exchange, self._credentials, endpoint, self._scopes, upload, mount_from, self.tell
        )
        await sending.run(body, only_mount=only_mount)
        return upload.mounted

    async def put_manifest(self, tag_or_digest: str | Digest, content: bytes, media_type: str) -> Put:
        """Publish a manifest. Raises Refused, Unreachable, EngineFailure (the registry understood other bytes)."""

        async def ask(endpoint: Endpoint) -> Put:
            request = self._request(
                endpoint,
                "PUT",
                f"manifests/{tag_or_digest}",
                {"Content-Type": media_type},
                lambda: BytesBody(content),
            )
            async with self._exchange.send(request, self._credentials) as response:
                told = _named(response.headers.get("Docker-Content-Digest"))
                subject = _named(response.headers.get("OCI-Subject"))
            digest = Digest.of(content)
            if told is not None and told != digest:
                raise EngineFailure(f"the registry stored manifest {digest} as {told}")
            return Put(digest, subject)

        return await self._walk(ask)

    def _writable(self) -> Endpoint:
        """The endpoint that takes uploads: the one that the existence check has left first."""
        if not self._endpoints:
            raise self._nowhere()
        return self._endpoints[0]

    # -- endpoints

    async def _walk(self, ask: Callable[[Endpoint], Awaitable[_Result]], *, by_tag: bool = False) -> _Result:
        """Ask one endpoint after the other until one answers. Only trusted ones are asked what a tag means."""
        last: Exception | None = None
        for endpoint in list(self._endpoints):
            if by_tag and not endpoint.resolves:
                continue
            try:
                return await self._exchange.persist(
                    functools.partial(ask, endpoint), tell=self.tell, first_contact=True
                )
            except (Refused, Unreachable, EngineFailure, InvalidInput) as fault:
                if not self._give_up_on(endpoint, fault):
                    raise
                last = fault
        raise last if last is not None else self._nowhere()

    def _give_up_on(self, endpoint: Endpoint, fault: Exception) -> bool:
        """Whether the next endpoint should be asked: after any fault of a mirror, and where nobody speaks the protocol."""
        if endpoint is self._endpoints[-1]:
            return False
        if endpoint.own and (not isinstance(fault, Unreachable) or self._exchange.has_spoken(endpoint)):
            return False
        if isinstance(fault, Unreachable) and endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
        return True

    def _nowhere(self) -> EngineFailure:
        return EngineFailure(f"no endpoint is configured that may be asked for {self.name}")

    def _url(self, endpoint: Endpoint, rest: str) -> str:
        namespace = f"?ns={quote(endpoint.namespace, safe='')}" if endpoint.namespace else ""
        return f"{endpoint.base}/{self._path}/{rest}{namespace}"

    def _request(
        self,
        endpoint: Endpoint,
        method: str,
        rest: str,
        headers: dict[str, str] | None = None,
        body: Callable[[], Any] | None = None,
    ) -> Request:
        return Request(endpoint, method, self._url(endpoint, rest), self._scopes, headers or {}, body)


def _named(text: str | None) -> Digest | None:
    try:
        return Digest(text) if text else None
    except InvalidInput:
        return None
