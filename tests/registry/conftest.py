"""Rooms with a registry client that does not wait long, hostile and honest registries, and pull and push as a test calls them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ketch_testing.certificates import Authority
from ketch_testing.hostile import HostileRegistry, hostile_registry
from ketch_testing.machine import registry
from ketch_testing.rooms import rooms_below
from ketch_testing.tokenserver import TokenServer, token_server
from ketchd.engine.pull import pull, pull_all_tags
from ketchd.engine.push import push
from ketchd.engine.rooms import Rooms
from ketchd.engine.transfers import Transfers
from ketchd.model.digest import Digest
from ketchd.model.platform import Platform
from ketchd.model.reference import Reference
from ketchd.registry.client import RegistryClient
from ketchd.registry.endpoints import Settings
from ketchd.registry.retries import Policy
from ketchd.registry.tokens import Credentials

Run = Callable[..., str]
QUICK = Policy(attempts=4, first_seconds=0.001, longest_seconds=0.01, patience_seconds=2.0)


class Engine:
    """Rooms, and the journeys in the form that a test reads best. said: the messages of the last journey."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self.said: list[dict[str, Any]] = []

    async def send(self, *messages: dict[str, Any]) -> None:
        """Takes progress messages."""
        self.said += messages

    async def pull(
        self, name: str, credentials: Credentials | None = None, *, platform: str = "", **asked: Any
    ) -> Digest:
        """Pull one name."""
        self.said = []
        wanted = Platform.parse(platform) if platform else None
        return await pull(
            self.rooms,
            Reference.parse(name),
            credentials or Credentials(),
            self.send,
            platform=wanted,
            **asked,
        )

    async def pull_all(self, name: str) -> None:
        """Pull every tag."""
        self.said = []
        await pull_all_tags(self.rooms, Reference.parse(name), Credentials(), self.send)

    async def push(self, name: str, credentials: Credentials | None = None, **asked: Any) -> None:
        """Push one name, or every tag."""
        self.said = []
        await push(self.rooms, Reference.parse(name), credentials or Credentials(), self.send, **asked)

    def tag(self, image_id: Digest, name: str) -> None:
        """Another name."""
        self.rooms.images.tag(Reference.parse(name), image_id)

    def statuses(self, id: str | None = None) -> list[str]:
        """What was said, of one layer or of the whole; a bar's moves count once."""
        found: list[str] = []
        for message in self.said:
            status = message.get("status")
            if status is not None and (id is None or message.get("id") == id) and found[-1:] != [status]:
                found.append(status)
        return found

    def partials(self) -> list[Path]:
        """Downloads that are not whole."""
        directory = self.rooms.data_root / "partial"
        return sorted(path for path in directory.iterdir()) if directory.exists() else []

    def staged(self) -> list[Path]:
        """What a failed journey must not leave."""
        return sorted((self.rooms.data_root / "stage").iterdir())


@contextlib.asynccontextmanager
async def engine_below(root: Path, settings: Settings | None = None) -> AsyncIterator[Engine]:
    """An engine whose data root is `root`, closed afterwards."""
    async with rooms_below(root) as rooms:
        rooms.registry = RegistryClient(settings or Settings(certificate_directories=()), policy=QUICK)
        rooms.transfers = Transfers(
            root, rooms.blobs, rooms.layers, rooms.registry.settings.downloads, rooms.trash
        )
        try:
            yield Engine(rooms)
        finally:
            await rooms.registry.close()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine on an empty data root."""
    async with engine_below(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def hostile() -> AsyncIterator[HostileRegistry]:
    """Our own registry, which has no tricks yet."""
    async with hostile_registry() as made:
        yield made


def need(*programs: str) -> None:
    """Skip unless the programs are installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry, empty and open: host:port."""
    need("docker-registry")
    with registry(tmp_path / "registry") as host:
        yield host


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that nobody trusts yet."""
    need("openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tokens(authority: Authority) -> Iterator[TokenServer]:
    """The token server: `me` may do everything, anybody pull `open/app`."""
    certificate, key = authority.issue("signer")
    with token_server({"me": "sesame"}, certificate, key, public=("open/app",)) as server:
        server.certificate = certificate
        yield server


@pytest.fixture
def tokened(tmp_path: Path, tokens: TokenServer, authority: Authority) -> Iterator[str]:
    """docker-registry that wants its tokens."""
    need("docker-registry")
    configuration = tokens.configuration().replace(str(tokens.certificate), str(authority.certificate))
    with registry(tmp_path / "registry", more=configuration) as host:
        yield host


async def until(is_true: Callable[[], object]) -> None:
    """Wait for a condition that nobody announces."""
    async with asyncio.timeout(30):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def noise(size: int) -> bytes:
    """Bytes that do not compress."""
    return os.urandom(size)
