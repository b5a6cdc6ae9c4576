"""ADD's URLs and remote contexts: fetched over HTTP into the stage, hashed meanwhile, gone after the step."""

from __future__ import annotations

import hashlib
import posixpath
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from ketch_wire.faults import EngineFailure, InvalidInput
from ketchd.dialling import reason

_PIECE = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)


@dataclass(frozen=True, slots=True)
class Download:
    """One fetched file. name: what its URL or server calls it, "" for nothing. mtime: seconds, 0 when the server does not say."""

    url: str
    path: Path
    name: str
    mtime: int
    sha256: str
    size: int
    media_type: str


@asynccontextmanager
async def fetched(url: str, stage: Path, checksum: str = "") -> AsyncIterator[Download]:
    """The file for the body's time. checksum: `sha256:HEX` that it must have. Raises InvalidInput, EngineFailure."""
    path = stage / uuid.uuid4().hex
    hasher = hashlib.sha256()
    size = 0
    try:
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=False) as session,
                session.get(url, headers={"Accept-Encoding": "identity"}) as answer,
            ):
                if answer.status >= 400:
                    raise InvalidInput(
                        f"failed to GET {url} with status {answer.status} {answer.reason}: error"
                    )
                with path.open("xb") as file:
                    async for piece in answer.content.iter_chunked(_PIECE):
                        hasher.update(piece)
                        file.write(piece)
                        size += len(piece)
                headers = answer.headers.copy()
        except aiohttp.ServerTimeoutError as error:
            raise EngineFailure(
                f'Get "{url}": the server was silent for {_TIMEOUT.sock_read} seconds'
            ) from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineFailure(f'Get "{url}": {reason(error)}') from error
        except OSError as error:
            raise EngineFailure(f"cannot store {url}: {(error.strerror or str(error)).lower()}") from error
        found = hasher.hexdigest()
        if checksum and checksum != f"sha256:{found}":
            raise InvalidInput(f"digest mismatch sha256:{found}: {checksum}")
        yield Download(
            url, path, _name(url, headers.get("Content-Disposition", "")), _seconds(headers.get("Last-Modified", "")), found,
            size, headers.get("Content-Type", "").partition(";")[0].strip().lower(),
        )  # fmt: skip
    finally:
        path.unlink(missing_ok=True)


def _name(url: str, disposition: str) -> str:
    path = unquote(urlsplit(url).path)
    if path and not path.endswith("/"):
        return posixpath.basename(path)
    header = Message()
    header["Content-Disposition"] = disposition
    return posixpath.basename(header.get_filename("") or "")


def _seconds(text: str) -> int:
    try:
        return max(0, int(parsedate_to_datetime(text).timestamp()))
    except (ValueError, TypeError):
        return 0
