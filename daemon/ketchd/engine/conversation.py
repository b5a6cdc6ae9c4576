"""One client's pull or push: its progress on one side, the repository it is about on the other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ketchd.engine.progress import ProgressBoard, Send
from ketchd.engine.rooms import Rooms
from ketchd.model.reference import Reference
from ketchd.registry.repository import Repository
from ketchd.registry.tokens import Credentials


@dataclass(frozen=True, slots=True)
class Conversation:
    """board: what the client hears. Waits for the registry are told on it, under the tag's or the repository's name."""

    board: ProgressBoard
    _rooms: Rooms
    _reference: Reference
    _credentials: Credentials

    async def repository(self, *, push: bool = False) -> Repository:
        """The repository, with the client's credentials. Raises InvalidInput (a configuration file)."""
        return await self._rooms.registry.repository(
            self._reference, self._credentials, push=push, tell=self._tell
        )

    def _tell(self, text: str) -> None:
        self.board.say(text, self._reference.tag or self._reference.familiar_name())


@contextlib.asynccontextmanager
async def conversation(
    rooms: Rooms, reference: Reference, credentials: Credentials, send: Send
) -> AsyncIterator[Conversation]:
    """send: takes messages of Docker's progress stream while the body works; a client that is gone ends it."""
    board = ProgressBoard(send)
    async with board.pump():
        yield Conversation(board, rooms, reference, credentials)
