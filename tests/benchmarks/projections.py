"""The rows about projections into SQLite, each event exactly once."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import anyio
import msgspec
from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import ApplicationRecorder, Tracking, TrackingRecorder
from eventsourcing.projection import Projection as TheirProjection
from eventsourcing.projection import ProjectionRunner as TheirRunner
from eventsourcing.sqlite import SQLiteTrackingRecorder

from papyra import ActorSystem
from papyra.persistence import Received
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.records import PersistedEvent
from papyra.projections import Projection, SQLiteView
from tests.benchmarks.table import Loop, Options, Result, Row, compare

__all__ = ("PROJECTION_ROWS",)

ACCOUNTS = 100
BATCH = Projection.batch_size

TABLE = "CREATE TABLE balances (account TEXT PRIMARY KEY, amount INTEGER NOT NULL)"
UPSERT = (
    "INSERT INTO balances VALUES (?, ?)"
    " ON CONFLICT (account) DO UPDATE SET amount = amount + excluded.amount"
)


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Balances(Projection):
    name = "balances"
    events = (Deposited,)

    def setup(self, tx: sqlite3.Connection) -> None:
        tx.execute(TABLE)

    def handle(self, received: Received, tx: sqlite3.Connection) -> None:
        tx.execute(UPSERT, (received.actor, received.event.amount))


class BatchedBalances(Balances):
    """As `bare` does: one call a batch."""

    def handle_batch(self, batch: Sequence[Received], tx: sqlite3.Connection) -> None:
        tx.executemany(UPSERT, [(each.actor, each.event.amount) for each in batch])


def deposits(count: int) -> Iterable[tuple[str, int]]:
    """Yield the address of an account, and an amount."""
    return ((f"bank/Account/{number % ACCOUNTS}", number) for number in range(count))


def bare(count: int) -> float:
    """Execute the same upserts in the same batches, and nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "view.db")
        with closing(sqlite3.connect(path, isolation_level=None)) as view:
            view.execute("PRAGMA journal_mode = WAL")
            view.execute("PRAGMA synchronous = NORMAL")
            view.execute(TABLE)
            rows = list(deposits(count))
            started = time.perf_counter()
            for start in range(0, count, BATCH):
                view.execute("BEGIN IMMEDIATE")
                view.executemany(UPSERT, rows[start : start + BATCH])
                view.execute("COMMIT")
            return time.perf_counter() - started


async def filled(count: int) -> InMemoryPersistence:
    """Return a store with these deposits."""
    store = InMemoryPersistence()
    async with store:
        for batch in range(0, count, 1_000):
            numbers = range(batch, min(batch + 1_000, count))
            await store.append(
                *(
                    PersistedEvent(
                        *("bank", f"bank/Account/{number % ACCOUNTS}", "Deposited"),
                        *(Deposited(number), 1.7e9),
                        revision=1 + number // ACCOUNTS,
                    )
                    for number in numbers
                )
            )
    return store


async def project(
    store: InMemoryPersistence, count: int, kind: type[Balances] = BatchedBalances
) -> float:
    """Build the view of a store from the first event on."""
    with tempfile.TemporaryDirectory() as directory:
        async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
            last = system.backend.last_seq
            started = time.perf_counter()
            runner = system.project(kind(SQLiteView(Path(directory, "view.db"))))
            await runner.wait_for(last)
            seconds = time.perf_counter() - started
            assert runner.status.handled == count
            return seconds


def against_bare(kind: type[Balances], loop: Loop, options: Options) -> Result:
    count = options.count(200_000)
    store = anyio.run(filled, count)
    return compare(
        options, count, lambda: bare(count), lambda: loop.run(project, store, count, kind)
    )


# The same with `eventsourcing`: an application in memory, whose events are there already


class Account(Aggregate):
    def __init__(self) -> None:
        self.amount = 0

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        self.amount += amount


class TheirBalances(SQLiteTrackingRecorder):
    def construct_create_table_statements(self) -> list[str]:
        return [*super().construct_create_table_statements(), TABLE]

    def add(self, account: str, amount: int, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(UPSERT, (account, amount))


class TheirHandler(TheirProjection[Any]):
    name = "balances"

    @singledispatchmethod
    def process_event(self, domain_event: object, tracking: Tracking) -> None:
        self.view.insert_tracking(tracking)

    @process_event.register
    def _(self, domain_event: Account.Deposited, tracking: Tracking) -> None:  # type: ignore[name-defined]
        self.view.add(str(domain_event.originator_id), domain_event.amount, tracking)


class Bank(Application[Any]):
    recorders: ClassVar[list[ApplicationRecorder]] = []

    def construct_recorder(self) -> ApplicationRecorder:
        if not self.recorders:
            self.recorders.append(super().construct_recorder())
        return self.recorders[0]


def their_bank(count: int) -> None:
    """Have an application with so many deposits."""
    Bank.recorders.clear()
    bank = Bank()
    accounts = [Account() for _ in range(ACCOUNTS)]
    for account, amount in zip(itertools.cycle(accounts), range(count), strict=False):
        account.deposit(amount)
    bank.save(*accounts)


def their_projection() -> float:
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        runner: TheirRunner[Any, TrackingRecorder] = TheirRunner(
            application_class=Bank,
            projection_class=TheirHandler,
            view_class=TheirBalances,
            env={
                "BALANCES_PERSISTENCE_MODULE": "eventsourcing.sqlite",
                "BALANCES_SQLITE_DBNAME": str(Path(directory, f"{uuid4()}.db")),
            },
        )
        with runner:
            runner.wait(runner.app.recorder.max_notification_id(), timeout=600)
            return time.perf_counter() - started


def against_eventsourcing(loop: Loop, options: Options) -> Result:
    """Fewer of theirs, and as many times as long."""
    count, fewer = options.count(200_000), options.count(5_000)
    store = anyio.run(filled, count)
    their_bank(fewer)
    return compare(
        options,
        count,
        lambda: their_projection() * count / (fewer + ACCOUNTS),
        lambda: loop.run(project, store, count, Balances),
    )


PROJECTION_ROWS = [
    Row(
        *("projection into SQLite, of batches", "the same upserts, executemany", 0.3, False),
        functools.partial(against_bare, BatchedBalances),
    ),
    Row(
        *("projection into SQLite, event by event", "the same upserts, executemany", 0.2, False),
        functools.partial(against_bare, Balances),
    ),
    Row("the same", "eventsourcing, SQLite", 5, False, against_eventsourcing),
]
