"""Positions in a table: for people to read, for the writer alone to set, and out of damage."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from papyra.exceptions import StoreFenced, StoreMoved
from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import event_loops

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def open_store(path: Path, **options: Any) -> SQLitePersistence:
    return SQLitePersistence(path, **({"synchronous": "off"} | options))


async def test_positions_are_rows_that_any_program_reads(path: Path) -> None:
    async with open_store(path) as store:
        await store.save_position("balances", b'{"seq":7}', None)
        await store.save_position("nul\0", b"\xff", None)
        with contextlib.closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT * FROM papyra_positions ORDER BY name").fetchall()
            (seq,) = database.execute(
                "SELECT json_extract(CAST(data AS TEXT), '$.seq') FROM papyra_positions"
                " WHERE name = 'balances'"
            ).fetchone()
    assert rows == [("papyra", "balances", b'{"seq":7}'), ("papyra", "nul\0", b"\xff")]
    assert seq == 7


async def test_each_system_of_a_database_has_positions_of_its_own(path: Path) -> None:
    async with open_store(path) as one, open_store(path, system_id="other") as other:
        assert await one.save_position("a", b"1", None)
        assert await other.load_position("a") is None
        assert await other.save_position("a", b"2", None)
        assert not await other.remove_position("a", b"1")
        assert await one.load_position("a") == b"1"


async def test_a_writer_that_is_not_the_one_of_its_row_sets_no_position(path: Path) -> None:
    async with open_store(path) as store:
        await store.save_position("a", b"1", None)
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE systems SET epoch = epoch + 1")
        with pytest.raises(StoreFenced):
            await store.save_position("a", b"2", b"1")
        with pytest.raises(StoreFenced):
            await store.append(event(1))
        assert await store.load_position("a") == b"1"


async def test_a_database_that_was_moved_has_no_position_set(path: Path) -> None:
    async with open_store(path) as store:
        await store.save_position("a", b"1", None)
        path.rename(path.with_name("moved"))
        with pytest.raises(StoreMoved):
            await store.save_position("a", b"2", b"1")
        path.with_name("moved").rename(path)
        assert await store.load_position("a") == b"1"
