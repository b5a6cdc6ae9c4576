"""Catalogue: the connection to the one database, and its transactions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ketch_wire.faults import EngineFailure
from ketchd.catalogue.schema import migrate

_LOG_BYTES = 5 * 1024 * 1024  # a checkpoint comes after 1,000 pages of 4 KiB, each with a header

Parameters = Sequence[Any] | Mapping[str, Any]


class Catalogue:
    """SQLite in WAL mode, synchronous, used on one thread only (the event loop's).

    A transaction survives the end of the process at any instruction as soon as it is committed.
    `durable=True` means that it survives a power cut too: the log is synced at the commit, and with it every
    commit before. So what is acknowledged to a user ends with a durable one. Nothing may be awaited inside a
    transaction: the loop's other journeys would join it.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the database and bring its schema up to date. Raises EngineFailure."""
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        except sqlite3.Error as error:
            raise EngineFailure(f"cannot open the catalogue {path}: {error}") from error
        self._durable = False
        try:
            self._connection.row_factory = sqlite3.Row
            for pragma in (
                "journal_mode = WAL",
                "synchronous = NORMAL",
                "foreign_keys = ON",
                "trusted_schema = OFF",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            migrate(self._connection)
            _reserve(path.with_name(path.name + "-wal"))
        except sqlite3.Error as error:
            self._connection.close()
            raise EngineFailure(f"cannot open the catalogue {path}: {_reason(error)}") from error
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE … COMMIT; ROLLBACK when the body raises. A nested one joins the outer one.

        Raises EngineFailure when the disk is full or the file is damaged; sqlite3.IntegrityError passes
        through.
        """
        connection = self._connection
        if connection.in_transaction:
            if durable and not self._durable:
                raise EngineFailure("a durable transaction cannot join one that is not")
            yield connection
            return
        try:
            if durable != self._durable:
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise EngineFailure(f"catalogue: {_reason(error)}") from error

    def query(self, sql: str, params: Parameters = ()) -> list[sqlite3.Row]:
        """Every row of a SELECT. Raises EngineFailure."""
        try:
            return self._connection.execute(sql, params).fetchall()
        except sqlite3.DatabaseError as error:
            raise EngineFailure(f"catalogue: {_reason(error)}") from error

    def close(self) -> None:
        """Write the log back into the database and let go of it. May be called twice."""
        self._connection.close()


def _reserve(log: Path) -> None:
    """Give the write-ahead log its full size now, so that an end or a removal can be recorded on a full disk.

    SQLite writes the log from its beginning again after each checkpoint and never shortens it; what lies behind the last
    commit is no valid frame. Where there is no room for it, there is none to keep either.
    """
    try:
        with log.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, _LOG_BYTES)
    except OSError:
        return


def _reason(error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return "no space left on device"
    return str(error)
