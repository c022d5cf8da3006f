"""Histories that a database gives out as they are stored: the same as if they were decoded."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest

from papyra.persistence import HistoryPage, PersistedEvent, codec
from papyra.persistence.backends.paging import MAX_PAGE_BYTES, MAX_PAGE_RECORDS
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.messages import EncodedHistory, ReadEncodedHistory
from tests.actors import event
from tests.conftest import event_loops

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

decode_record = msgspec.json.Decoder(PersistedEvent).decode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def open_store(path: Path) -> SQLitePersistence:
    return SQLitePersistence(path, synchronous="off")


def a_step(revision: int, payload: object = None, actor: str = "shop/a") -> PersistedEvent:
    step = event(revision)
    payload = step.payload if payload is None else payload
    return msgspec.structs.replace(step, actor_address=actor, revision=revision, payload=payload)


def records_of(page: EncodedHistory) -> list[PersistedEvent]:
    """Return the records of a page, as whoever knows only JSON finds them."""
    found: list[PersistedEvent] = []
    for run in page.runs:
        lines = run.data.split(b"\n")
        assert len(lines) == run.count
        found += map(decode_record, lines)
    return found


async def read(
    store: SQLitePersistence, after: int = 0, limit: int | None = None
) -> EncodedHistory | HistoryPage:
    page = await store.execute(ReadEncodedHistory("shop/a", after, limit))
    assert isinstance(page, (EncodedHistory, HistoryPage))
    return page


@pytest.mark.parametrize("limit", [1, 2, 255, 256, 257, 600, 601, None])
async def test_pages_hold_what_decoded_ones_do_and_say_whether_there_is_more(
    path: Path, limit: int | None
) -> None:
    async with open_store(path) as store:
        await store.append(*[a_step(revision, actor="shop/b") for revision in range(1, 7)])
        await store.append(*map(a_step, range(1, 601)))
        for after in (0, 1, 256, 599, 600, 700):
            page, plain = (
                await read(store, after, limit),
                await store.read_history("shop/a", after_revision=after, limit=limit),
            )
            assert isinstance(page, EncodedHistory)
            expected = [msgspec.structs.replace(each, seq=None) for each in plain.events]
            assert records_of(page) == expected
            assert page.more == plain.more
            assert page.last_seq == (plain.events[-1].seq if plain.events else 0)


@pytest.mark.parametrize("others", [0, 1, 2, 9])
async def test_pages_follow_each_other_however_many_events_of_others_are_between(
    path: Path, others: int
) -> None:
    async with open_store(path) as store:
        for revision in range(1, 101):
            between = range((revision - 1) * others + 1, revision * others + 1)
            await store.append(
                *[a_step(number, actor="shop/b") for number in between],
                msgspec.structs.replace(a_step(revision), revision=None),
                a_step(revision),
            )
        for limit in (1, 7, 99, 100, 101):
            found = list[int]()
            while len(found) < 100:
                page = await read(store, len(found), limit)
                assert isinstance(page, EncodedHistory)
                found += [each.revision or 0 for each in records_of(page)]
                assert page.more == (len(found) < 100)
            assert found == [*range(1, 101)]


async def test_a_page_ends_with_the_record_that_fills_it(path: Path) -> None:
    size = MAX_PAGE_BYTES // 5
    payloads = ["x" * size] * 12 + ["x" * (MAX_PAGE_BYTES + 1)] * 2 + ["small"]
    async with open_store(path) as store:
        for revision, payload in enumerate(payloads, 1):
            await store.append(a_step(revision, payload))
        after, found = 0, list[int]()
        while True:
            page = await read(store, after)
            plain = await store.read_history("shop/a", after_revision=after)
            assert isinstance(page, EncodedHistory)
            assert [each.revision for each in records_of(page)] == [
                each.revision for each in plain.events
            ]
            found.append(sum(run.count for run in page.runs))
            assert page.more == plain.more
            if not page.more:
                break
            after += found[-1]
    assert found == [5, 5, 3, 1, 1]


async def test_a_page_has_so_many_records_at_most(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(*map(a_step, range(1, MAX_PAGE_RECORDS + 3)))
        page = await read(store)
        assert isinstance(page, EncodedHistory)
        assert sum(run.count for run in page.runs) == MAX_PAGE_RECORDS
        assert page.more


@pytest.mark.parametrize(
    "change",
    [
        "record = replace(record, '300', '301')",
        "record = '{'",
        "record = x'ff'",
        "record = 5",
        "crc = 'none'",
    ],
)
async def test_a_row_that_is_not_what_was_stored_is_not_given_out(path: Path, change: str) -> None:
    async with open_store(path) as store:
        await store.append(*map(a_step, range(1, 501)))
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(f"UPDATE events SET {change} WHERE revision = 300")
        page = await read(store)
        assert isinstance(page, HistoryPage)
        assert [each.revision for each in page.events] == [*range(1, 300), *range(301, 501)]
        assert isinstance(await read(store, 300), EncodedHistory)
        assert store.is_damaged


async def test_a_record_is_given_out_byte_for_byte(path: Path) -> None:
    records = [a_step(1, {"z": 2**80, "a": "nul \0, newline \n, \u2028 \U0001f600"}), a_step(2)]
    async with open_store(path) as store:
        await store.append(*records)
        page = await read(store)
    assert isinstance(page, EncodedHistory)
    assert [run.data for run in page.runs] == [b"\n".join(codec.encode(records))]
