"""Sending a blob to a registry until it has it: the requests that an `Upload` asks for, and what to do when one fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.registry import tokens
from ketchd.registry.endpoints import Endpoint
from ketchd.registry.errors import Refused
from ketchd.registry.exchange import Exchange, Request, Tell, told_when
from ketchd.registry.tokens import Credentials
from ketchd.registry.transport import Unreachable
from ketchd.registry.uploads import Send, Step, Upload


@dataclass(frozen=True, slots=True)
class Sending:
    """One `upload` to `endpoint`. scopes: what a token must allow. mount_from: a repository's path to take it from, or empty."""

    exchange: Exchange
    credentials: Credentials
    endpoint: Endpoint
    scopes: Sequence[str]
    upload: Upload
    mount_from: str
    tell: Tell | None

    async def run(self, body: Callable[[int, int], Any], *, only_mount: bool) -> None:
        """Until the registry has the blob. body: makes a request body of bytes [start, stop).

        Failures count in a row, and one that brought more bytes to the registry than any before begins a new row.
        only_mount: returns without a blob when there is no mount. Raises Refused, Unreachable, EngineFailure.
        Cancelled or failed: the upload is given up at the registry.
        """
        upload, failures, most = self.upload, 0, -1
        try:
            while not upload.is_done:
                send = upload.next()
                try:
                    await self._advance(send, body)
                except (Refused, Unreachable) as fault:
                    failures = failures + 1 if upload.sent <= most else 1
                    most = max(most, upload.sent)
                    await self._after(fault, failures, send)
                if only_mount and not upload.mounted:
                    break
        finally:
            if not upload.is_done:
                await self._abandon()

    async def _advance(self, send: Send, body: Callable[[int, int], Any]) -> None:
        scopes = list(self.scopes)
        if send.step is Step.BEGIN and "?mount=" in send.url:
            scopes.append(tokens.scope(self.mount_from, "pull"))
        has_body = send.step in (Step.PATCH, Step.PUT)
        request = Request(
            self.endpoint, send.method, send.url, scopes, send.headers,
            (lambda: body(send.start, send.stop)) if has_body else None,
        )  # fmt: skip
        try:
            async with self.exchange.send(request, self.credentials) as response:
                moved = self.upload.answer(send, response.status, response.headers)
                status = response.status
        except Refused as fault:
            if not self.upload.answer(send, fault.http_status, {}, fault.code_name):
                raise
            return
        if not moved:
            raise EngineFailure(f"the registry answers an upload with status {status}")

    async def _after(self, fault: Refused | Unreachable, failures: int, send: Send) -> None:
        """Prepare the next attempt, or raise what stands in its way."""
        upload, remedy = self.upload, None
        if isinstance(fault, Refused):
            if fault.is_denied and self.mount_from and not upload.location:
                upload.restart()  # not allowed to mount from there: no reason not to upload
                return
            remedy = upload.remedy(send, fault.http_status, fault.code_name)
        wait = self.exchange.wait_after(fault, failures, will_pass=remedy is not None)
        if wait is None:
            raise told_when(fault) from fault.__cause__
        await self.exchange.pause(wait, self.tell)
        if remedy is Step.BEGIN:
            await self._abandon()
            upload.restart()
        else:
            upload.broken()

    async def _abandon(self) -> None:
        """Tell the registry that nobody will go on with what it has; it need not answer."""
        if not self.upload.location:
            return
        request = Request(self.endpoint, "DELETE", self.upload.location, self.scopes, answer_seconds=5)
        with contextlib.suppress(Refused, EngineFailure):
            async with self.exchange.send(request, self.credentials):
                pass
