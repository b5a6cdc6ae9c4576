"""The event journal: one sequence without gaps, a bound that is told, listeners that are places and no queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ketchd.catalogue.database import Catalogue
from ketchd.catalogue.events import EventJournal


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    made = Catalogue(tmp_path / "catalogue.sqlite")
    yield made
    made.close()


def fill(journal: EventJournal, count: int) -> None:
    for number in range(count):
        journal.append("container", "start", f"c{number}", {"name": str(number)})


async def test_a_subscription_replays_and_goes_on_without_a_gap(catalogue: Catalogue) -> None:
    journal = EventJournal(catalogue)
    fill(journal, 600)
    with journal.subscribe(0) as listening:
        seen = [await listening.get() for _ in range(600)]
        waiting = asyncio.ensure_future(listening.get())
        await asyncio.sleep(0)
        fill(journal, 1)
        seen.append(await waiting)
    assert [one.seq for one in seen if one] == list(range(1, 602))
    assert journal.listeners == 0


async def test_without_a_place_it_begins_now(catalogue: Catalogue) -> None:
    journal = EventJournal(catalogue)
    fill(journal, 3)
    with journal.subscribe() as listening:
        assert listening.ready() == []
        fill(journal, 1)
        assert [one.seq for one in await listening.batch()] == [4]


async def test_what_was_rolled_back_is_never_told(catalogue: Catalogue) -> None:
    journal = EventJournal(catalogue)
    with journal.subscribe() as listening:
        with pytest.raises(RuntimeError), catalogue.transaction():
            fill(journal, 1)
            raise RuntimeError("the change failed")
        journal.append("container", "die", "c")
        assert [(one.seq, one.action) for one in await listening.batch()] == [(1, "die")]


async def test_a_reader_that_was_overtaken_by_the_bound_is_ended(catalogue: Catalogue) -> None:
    """It must know that it has missed something."""
    journal = EventJournal(catalogue, kept=64)
    with journal.subscribe(0) as slow:
        fill(journal, 300)
        assert await slow.get() is None
    with journal.subscribe(journal.last() - 10) as fresh:
        assert len(await fresh.batch()) == 10


def test_the_bound_is_kept_and_told(catalogue: Catalogue) -> None:
    journal = EventJournal(catalogue, kept=64)
    fill(journal, 1000)

    kept = journal.since(0)
    assert 64 <= len(kept) <= 128 and kept[-1].seq == 1000
    assert journal.before(kept[0].time_ns - 1) == (kept[0].seq - 1, True)
    assert journal.before(kept[5].time_ns) == (kept[5].seq - 1, False)
    assert journal.before(kept[-1].time_ns + 1) == (1000, False)


def test_the_sequence_goes_on_in_another_life(tmp_path: Path) -> None:
    for life in (1, 2):
        catalogue = Catalogue(tmp_path / "again.sqlite")
        journal = EventJournal(catalogue)
        fill(journal, 10)
        assert journal.last() == 10 * life
        assert [one.seq for one in journal.since(0)] == list(range(1, 10 * life + 1))
        catalogue.close()


async def test_closing_lets_a_reader_finish_what_is_there(catalogue: Catalogue) -> None:
    journal = EventJournal(catalogue)
    listening = journal.subscribe()
    fill(journal, 2)
    journal.close()
    assert [one.seq async for one in listening] == [1, 2]
