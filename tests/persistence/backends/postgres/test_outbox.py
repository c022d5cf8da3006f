"""The outbox in PostgreSQL: events that applications hand over in transactions of their own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import threading
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import msgspec
import psycopg
import pytest
from psycopg import sql

from papyra.exceptions import (
    BackendInUse,
    InvalidRequest,
    StoreError,
    StoreNotAcknowledged,
    StoreOutdated,
    StoreTooNew,
)
from papyra.persistence import MigrationReport, PersistedEvent, outbox
from papyra.persistence.backends._postgres import schema as postgres_schema
from papyra.persistence.backends._postgres.schema import VERSION
from papyra.persistence.backends._sql.migrations import Migration
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.backends.store import Batch
from papyra.system import ActorSystem
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import STEP, some
from tests.persistence.backends.postgres.proxy import PLACES, Cut, Place, Proxy

anyio_backend = event_loops("asyncio", "uvloop", "trio")

Make: TypeAlias = Callable[..., PostgresPersistence]


@pytest.fixture
def make(database: str, schema: str) -> Make:
    return functools.partial(PostgresPersistence, database, schema=schema, retry_for=5.0)


@pytest.fixture
def add(schema: str) -> Callable[..., None]:
    return functools.partial(outbox.add, schema=schema)


def put(connection: psycopg.Connection[Any], schema: str, record: str) -> None:
    """Put anything into the outbox, as another program does."""
    table = sql.Identifier(schema, "papyra_outbox")
    statement = sql.SQL("INSERT INTO {} (system_id, record) VALUES ('papyra', %s)").format(table)
    connection.execute(statement, (record,))
    connection.commit()


async def numbers(store: PostgresPersistence) -> list[int]:
    return [
        each.payload["order_id"]
        async for each in store.stream("event")
        if each.event_type == "OrderPlaced"
    ]


async def test_what_an_application_commits_is_appended_once_and_in_its_order(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    async with make() as store:
        await store.append(event(1))
        with psycopg.connect(database) as connection:
            add(connection, event(2), event(3))
            assert await store.take_outbox() == 0
            connection.commit()
            add(connection, event(9))
            connection.rollback()
            with connection.transaction():
                add(connection, event(4))
            connection.commit()
            assert await store.take_outbox() == 3
            assert await store.take_outbox() == 0
        found = await store.list_events()
        assert [each.payload["order_id"] for each in found] == [1, 2, 3, 4]
        assert msgspec.structs.replace(found[3], seq=None) == event(4)
        assert (await store.scan()).is_clean
        assert (store.metrics.outbox_taken, store.metrics.records_written) == (3, 4)


async def test_transactions_come_as_they_are_seen_committed(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    async with make() as store:
        with (
            psycopg.connect(database) as early,
            psycopg.connect(database) as late,
        ):
            add(early, event(1))
            add(late, event(2))
            add(early, event(3))
            late.commit()
            assert await store.take_outbox() == 1
            early.commit()
            assert await store.take_outbox() == 2
        assert await numbers(store) == [2, 1, 3]


async def test_a_system_takes_events_over_by_itself(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    arrived = anyio.Event()

    def look(batch: Batch) -> None:
        if event(9) in batch.records:
            arrived.set()

    async with ActorSystem("shop", persistence=make()) as system:
        system.backend.watch_commits(look)
        with psycopg.connect(database) as connection:
            add(connection, event(9))
        with anyio.fail_after(60):
            await arrived.wait()
        assert await numbers(system.backend) == [9]  # type: ignore[arg-type]


async def test_what_is_no_event_is_set_aside_and_blocks_nobody(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    good = msgspec.to_builtins(event(0))
    bad = [
        "[]",
        "17",
        json.dumps(good | {"event_type": "papyra.base"}),
        json.dumps(good | {"revision": 1}),
        json.dumps(good | {"event_type": "papyra.\0"}),
        json.dumps(good | {"payload": 0}).replace('"payload": 0', '"payload": 1e999'),
    ]
    async with make() as store:
        with psycopg.connect(database) as connection:
            for number, record in enumerate(bad):
                add(connection, event(number))
                put(connection, schema, record)
            # What is no JSON does not even get in.
            with pytest.raises(psycopg.errors.InvalidTextRepresentation):
                put(connection, schema, "{")
            connection.rollback()
            waiting = {each.location for each in (await store.scan()).anomalies}
            assert waiting == {"papyra_outbox"}
            assert await store.take_outbox() == len(bad)
        assert await numbers(store) == list(range(len(bad)))
        report = await store.scan()
        assert [each.location for each in report.anomalies] == ["papyra_outbox_refused"] * len(bad)
        summary = await store.summarize()
        assert (summary.outbox_waiting, summary.outbox_refused) == (0, len(bad))
        assert store.metrics.outbox_refused == len(bad)


async def test_a_large_outbox_is_taken_over_in_commits_of_a_bounded_size(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    async with make() as store:
        with psycopg.connect(database) as connection:
            for number in range(20):
                payload = [number, "x" * 1_000_000]
                add(connection, msgspec.structs.replace(event(number), payload=payload))
            connection.commit()
        assert 0 < len(await store.store.handed_over(None, 3_000_000)) < 4
        assert len(await store.store.handed_over(None, 1)) == 1
        assert await store.take_outbox() == 20
        assert [each.payload[0] for each in await store.list_events()] == list(range(20))


async def test_what_can_t_be_handed_over_is_named(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    with psycopg.connect(database) as connection:
        with pytest.raises(StoreError, match="no outbox in the schema"):
            add(connection, event(1))
        connection.rollback()
    async with make():
        pass
    with psycopg.connect(database) as connection:
        with pytest.raises(StoreError, match="no system 'other'"):
            add(connection, event(1), system_id="other")
        connection.rollback()
        connection.autocommit = True
        with pytest.raises(InvalidRequest, match="begin one"):
            add(connection, event(1))
        with connection.transaction():
            add(connection, event(1))
    async with make() as store:
        assert await store.take_outbox() == 1


async def test_a_commit_that_no_standby_confirms_leaves_the_outbox_as_it_was(
    make: Make,
    add: Callable[..., None],
    database: str,
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is taken back from the events is put back into the outbox."""
    async with make() as store:
        await store.append(event(1))
        with psycopg.connect(database) as connection:
            add(connection, event(2), event(3))
            connection.commit()
            blocking = store.store.blocking
            insert = blocking._insert
            with monkeypatch.context() as patched:

                def insert_in_doubt(system: Any, encoded: Any) -> None:
                    insert(system, encoded)
                    blocking._row.in_doubt = encoded.in_doubt
                    raise StoreNotAcknowledged("the commit is on the server's own disk")

                def settle(patience: Any) -> bool:
                    raise StoreNotAcknowledged("nobody confirms it")

                patched.setattr(blocking, "_insert", insert_in_doubt)
                patched.setattr(blocking, "_settle", settle)
                with pytest.raises(StoreNotAcknowledged):
                    await store.take_outbox()
            assert await numbers(store) == [1]
            summary = await store.summarize()
            assert summary.outbox_waiting == 2
            assert await store.take_outbox() == 2
        assert await numbers(store) == [1, 2, 3]


@pytest.mark.parametrize("place", some(PLACES, every=2))
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_events_are_there_once_wherever_the_connection_is_cut(
    make: Make, add: Callable[..., None], database: str, schema: str, place: Place
) -> None:
    with Proxy(urlsplit(database).port or 5432) as proxy:
        async with PostgresPersistence(proxy.url(database), schema=schema, retry_for=5.0) as store:
            await store.append(event(-1))
            expected = [-1]
            with psycopg.connect(database) as connection:
                for number in itertools.count():
                    message = number * max(1, STEP // 4)
                    add(connection, event(2 * number), event(2 * number + 1))
                    connection.commit()
                    expected += [2 * number, 2 * number + 1]
                    proxy.arm(Cut(message, place))
                    with contextlib.suppress(StoreError):
                        await store.take_outbox()
                    was_cut = proxy.disarm()
                    if proxy.is_late:
                        proxy.release()
                    await store.take_outbox()
                    assert await numbers(store) == expected, (message, place)
                    if not was_cut:
                        break
            assert (await store.scan()).is_clean
            assert (await store.summarize()).outbox_waiting == 0


async def test_applications_that_contend_and_roll_back_have_delivered_what_they_committed(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    committed: list[list[str]] = []
    rolled_back = []

    def work(name: str) -> None:
        chance = random.Random(name)
        with psycopg.connect(database) as connection:
            for number in range(40):
                names = [f"{name}-{number}-{part}" for part in range(chance.randint(1, 4))]
                for each in names:
                    add(connection, event(0, event_type="Ordered", payload=each))
                    # So many transactions are open at once, and end in another order.
                    connection.execute("SELECT pg_sleep(%s)", (chance.random() * 0.004,))
                if chance.random() < 0.3:
                    connection.rollback()
                    rolled_back.append(names)
                else:
                    connection.commit()
                    committed.append(names)

    async with ActorSystem("shop", persistence=make()) as system:
        threads = [threading.Thread(target=work, args=(f"app{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            # Its own appends go on meanwhile.
            await system.backend.append(event(-1))
            await system.backend.take_outbox()
        await system.backend.take_outbox()
        found: list[PersistedEvent] = [
            each async for each in system.backend.stream("event", event_type="Ordered")
        ]
    delivered = [each.payload for each in found]
    assert sorted(delivered) == sorted(name for names in committed for name in names)
    assert rolled_back
    places = {name: place for place, name in enumerate(delivered)}
    for names in committed:
        assert names == sorted(names, key=places.__getitem__)


async def test_a_program_needs_no_more_rights_than_the_guide_says(
    make: Make, add: Callable[..., None], database: str, schema: str
) -> None:
    async with make() as store:
        role = schema.replace("test", "program")
        names = {"role": sql.Identifier(role), "schema": sql.Identifier(schema)}
        with psycopg.connect(database, autocommit=True) as owner:
            for statement in (
                "CREATE ROLE {role}",
                "GRANT USAGE ON SCHEMA {schema} TO {role}",
                "GRANT INSERT ON {schema}.papyra_outbox TO {role}",
                "GRANT SELECT (system_id) ON {schema}.systems TO {role}",
            ):
                owner.execute(sql.SQL(statement).format(**names))
            with psycopg.connect(database) as connection:
                connection.execute(sql.SQL("SET ROLE {role}").format(**names))
                add(connection, event(1))
            assert await store.take_outbox() == 1
            owner.execute(sql.SQL("DROP OWNED BY {role}").format(**names))
            owner.execute(sql.SQL("DROP ROLE {role}").format(**names))


# Versions


async def test_the_tables_are_made_by_a_migration_where_there_are_none(
    make: Make, database: str, schema: str, add: Callable[..., None]
) -> None:
    plan = await make().migrate(dry_run=True)
    assert (plan.version_before, plan.version_after, len(plan.steps)) == (0, VERSION, VERSION)
    assert await make().migrate() == plan
    assert await make().migrate() == MigrationReport("postgres", True, VERSION, VERSION)
    with psycopg.connect(database) as connection:
        add(connection, event(1))
    async with make() as store:
        assert await store.take_outbox() == 1
        assert (await store.migrate()).steps == ()


async def test_tables_of_a_newer_version_are_refused_by_name(
    make: Make, database: str, schema: str
) -> None:
    async with make() as store:
        await store.append(event(1))
    table = sql.Identifier(schema, "papyra_schema")
    with psycopg.connect(database) as connection:
        connection.execute(sql.SQL("UPDATE {} SET version = %s").format(table), (99,))
    for refused in (make().append(event(2)), make(read_only=True).read("event"), make().migrate()):
        with pytest.raises(StoreTooNew, match="of version 99"):
            await refused


async def test_tables_are_changed_by_one_call_and_not_while_a_system_writes_them(
    make: Make, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make() as store:
        await store.append(event(1))
        # As if the next version were this program's.
        newer = Migration(3, "change nothing", frozenset(), ("SELECT 1",))
        monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*postgres_schema.MIGRATIONS, newer))
        monkeypatch.setattr(postgres_schema, "VERSION", 3)
        with pytest.raises(BackendInUse, match="writes 'papyra'"):
            await make(system_id="other").migrate()
    with pytest.raises(StoreOutdated, match="papyra migrate"):
        await make().append(event(2))
    async with make(read_only=True) as reader:
        assert await numbers(reader) == [1]
    report = await make().migrate()
    assert report == MigrationReport("postgres", True, 2, 3, ("change nothing",))
    async with make() as store:
        await store.append(event(2))
        assert await numbers(store) == [1, 2]
