"""Positions in a table: for people to read, and set once, wherever a connection is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import psycopg
import pytest
from psycopg import sql

from papyra.exceptions import StoreFenced, StoreOutdated, StoreUnreachable, StoreWrongType
from papyra.persistence import MigrationReport
from papyra.persistence.backends._postgres import schema as postgres_schema
from papyra.persistence.positions import MAX_POSITION_NAME
from tests.actors import event
from tests.persistence.backends.postgres import test_cuts, test_tables
from tests.persistence.backends.postgres.proxy import Cut, Place, Proxy
from tests.persistence.backends.postgres.test_cuts import EVERY, PLACES, Guard
from tests.persistence.backends.postgres.test_tables import Make, Query

make = test_tables.make
query = test_tables.query
proxy = test_cuts.proxy
through = test_cuts.through


async def test_positions_are_rows_that_any_program_reads(make: Make, query: Query) -> None:
    async with make() as store:
        await store.save_position("balances", b'{"seq":7}', None)
        await store.save_position("\0\u2400", b"\xff", None)
        rows = query("SELECT * FROM @.papyra_positions ORDER BY name")
        (seq,) = query(
            "SELECT (convert_from(data, 'UTF8')::json->>'seq')::int FROM @.papyra_positions"
            " WHERE name = 'balances'"
        )
    assert rows == [
        ("papyra", "balances", b'{"seq":7}'),
        ("papyra", "\u24000\u2400\u2400", b"\xff"),
    ]
    assert seq == (7,)


async def test_the_longest_names_are_told_apart_and_given_back(make: Make) -> None:
    names = [char * MAX_POSITION_NAME for char in ("\0", "\u2400", "\U0001f600", "0", "\u2400\0")]
    names[-1] = names[-1][:MAX_POSITION_NAME]
    async with make() as store:
        for name in names:
            assert await store.save_position(name, name.encode(), None)
        assert sorted(await store.list_positions()) == sorted(names)
        for name in names:
            assert await store.load_position(name) == name.encode()


async def test_each_system_of_a_schema_has_positions_of_its_own(make: Make) -> None:
    async with make() as one, make(system_id="other") as other:
        assert await one.save_position("a", b"1", None)
        assert await other.load_position("a") is None
        assert await other.save_position("a", b"2", None)
        assert not await other.remove_position("a", b"1")
        assert await one.load_position("a") == b"1"


async def test_a_paused_writer_sets_no_position_though_its_successor_has_set_none(
    make: Make,
) -> None:
    async with make() as first, make() as second:
        assert await first.save_position("a", b"1", None)
        await second.append(event(1))
        with pytest.raises(StoreFenced):
            await first.save_position("a", b"2", b"1")
        assert await second.load_position("a") == b"1"


def _make_version_1(query: Query) -> None:
    """Leave the tables as an older program has made them."""
    query("DROP TABLE @.papyra_positions")
    query("UPDATE @.papyra_schema SET version = 1")


async def test_tables_without_positions_are_looked_at_and_migrated(
    make: Make, query: Query
) -> None:
    async with make() as store:
        await store.append(event(1))
    _make_version_1(query)
    async with make(read_only=True) as reader:
        assert await reader.load_position("a") is None
        assert await reader.list_positions() == []
        assert len(await reader.list_events()) == 1
    with pytest.raises(StoreOutdated, match="papyra migrate"):
        await make().append(event(2))
    report = await make().migrate()
    steps = ("add the table of positions, which is empty",)
    assert report == MigrationReport("postgres", True, 1, postgres_schema.VERSION, steps)
    async with make() as store:
        assert await store.save_position("a", b"1", None)
        assert len(await store.list_events()) == 1


async def test_tables_of_others_with_the_name_are_left_alone(make: Make, query: Query) -> None:
    async with make() as store:
        await store.append(event(1))
    _make_version_1(query)
    query("CREATE TABLE @.papyra_positions (mine text)")
    with pytest.raises(StoreWrongType, match="papyra_positions"):
        await make().migrate()
    assert query("SELECT * FROM @.papyra_positions") == []


def _set_in_the_table(database: str, schema: str, system_id: str) -> Sequence[bytes]:
    table = sql.Identifier(schema, "papyra_positions")
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            sql.SQL("SELECT data FROM {} WHERE system_id = %s").format(table), (system_id,)
        )
        return [bytes(data) for (data,) in rows]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_position_is_set_once_at_whichever_message_its_connection_is_cut(
    proxy: Proxy, database: str, schema: str, through: test_cuts.Make, place: Place
) -> None:
    for message in itertools.count(step=EVERY):
        async with through(message) as store:
            assert await store.save_position("a", b"1", None)
            proxy.arm(Cut(message, place))
            with Guard(proxy, database):
                # Whether it was done by a try that nobody was told about, or by a later one.
                assert await store.save_position("a", b"2", b"1"), (message, proxy.seen)
            is_cut = proxy.disarm()
            if proxy.is_late:
                proxy.release()
            assert await store.load_position("a") == b"2"
            assert not await store.save_position("a", b"2", b"1")
            assert await store.save_position("a", b"1", b"2")
            assert await store.remove_position("a", b"1")
        assert _set_in_the_table(database, schema, f"cut-{message}") == []
        if not is_cut:
            break
    assert message >= EVERY


@pytest.mark.timeout(600)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("place", ["after", "late"])
async def test_what_is_loaded_after_a_change_that_raised_is_what_stays(
    proxy: Proxy, database: str, schema: str, through: test_cuts.Make, place: Place
) -> None:
    raised = 0
    for message in itertools.count(step=EVERY):
        async with through(message, retry_for=0.0) as store:
            assert await store.save_position("a", b"1", None)
            proxy.arm(Cut(message, place))
            try:
                assert await store.save_position("a", b"2", b"1")
            except StoreUnreachable:
                raised += 1
            is_cut = proxy.disarm()
            with Guard(proxy, database):
                while True:
                    try:
                        found = await store.load_position("a")
                    except StoreUnreachable:  # of its connection, it hears only now
                        continue
                    break
            if proxy.is_late:
                proxy.release()
            assert found in (b"1", b"2")
            assert await store.load_position("a") == found, (message, proxy.seen)
            assert await store.save_position("a", b"3", found)
        assert _set_in_the_table(database, schema, f"cut-{message}") == [b"3"]
        if not is_cut:
            break
    assert raised
