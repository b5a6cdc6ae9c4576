"""What ADD fetches and unpacks, whole or not at all: write(2) tells by its count alone that the disk took a part."""

from __future__ import annotations

import gzip
import io
import os
import resource
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ketch_wire.faults import EngineFailure
from ketchd.build import copybytes
from ketchd.build.downloads import fetched


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file grows beyond `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("missing", [0, 1, 100_000])
async def test_a_file_that_has_no_room_is_no_file(tmp_path: Path, missing: int) -> None:
    """The disk takes the beginning of the last piece and no more."""
    content = b"x" * 3_000_000

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=content)

    application = web.Application()
    application.router.add_get("/file", serve)
    async with TestServer(application) as server:
        try:
            with room(len(content) - missing):
                async with fetched(str(server.make_url("/file")), tmp_path) as got:
                    assert got.path.stat().st_size == got.size == len(content)
                    assert missing == 0
        except EngineFailure as fault:
            assert missing and "cannot store" in fault.message
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_has_no_room_is_not_unpacked(tmp_path: Path) -> None:
    """Its last bytes are as good as the first: what was short would be read where there is no file any more."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 3_000_000
        tar.addfile(member, io.BytesIO(b"x" * member.size))
    archive = tmp_path / "archive.gz"
    archive.write_bytes(gzip.compress(plain.getvalue()))
    length = archive.stat().st_size
    source = os.open(archive, os.O_RDONLY)
    try:
        for missing in (0, 1, 100_000):
            with room(len(plain.getvalue()) - missing):
                if missing:
                    with pytest.raises(OSError, match="File too large"):
                        copybytes._inflated(source, 0, length, str(tmp_path / "beside"))
                else:
                    unpacked = copybytes._inflated(source, 0, length, str(tmp_path / "beside"))
                    assert os.fstat(unpacked).st_size == len(plain.getvalue())
                    os.close(unpacked)
    finally:
        os.close(source)
