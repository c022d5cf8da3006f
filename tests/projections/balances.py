"""The projection that the tests use, and ways to store events and to look at the view."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import msgspec

from papyra import ActorSystem
from papyra.persistence import PersistedEvent, ReadHistory
from papyra.projections import Projection, ProjectionRunner


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Balances(Projection):
    """The sum of each account, and every event that it was made of."""

    name = "balances"
    events: ClassVar[tuple[type, ...]] = (Deposited,)

    def setup(self, tx: Any) -> None:
        tx.execute("CREATE TABLE balances (account TEXT PRIMARY KEY, amount INTEGER NOT NULL)")
        tx.execute("CREATE TABLE seen (seq INTEGER PRIMARY KEY)")

    def handle(self, received: Any, tx: Any) -> None:
        tx.execute(
            "INSERT INTO balances VALUES (?, ?)"
            " ON CONFLICT (account) DO UPDATE SET amount = amount + excluded.amount",
            (received.actor, received.event.amount),
        )
        tx.execute("INSERT INTO seen VALUES (?)", (received.seq,))


class Deposits:
    """Stores deposits in a system's store, each with the revision that follows."""

    def __init__(self, system: ActorSystem) -> None:
        self._system = system
        self._revisions: Counter[str] = Counter()

    async def add(self, *amounts: int, account: str = "ann") -> int:
        """Store a deposit for each amount, as one commit; return the last position."""
        address = f"bank/Account/{account}"
        if not self._revisions[address]:
            more = True
            while more:
                read = ReadHistory(address, self._revisions[address])
                page = await self._system.backend.execute(read)
                self._revisions[address], more = page.next_after, page.more
        records = []
        for amount in amounts:
            self._revisions[address] += 1
            records.append(
                PersistedEvent(
                    *("bank", address, "Deposited", Deposited(amount), 1.0),
                    revision=self._revisions[address],
                )
            )
        stored = await self._system.backend.append(*records)
        return stored.last_seq


@contextlib.contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """Look at a view as any other program does."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def balances_in(path: Path) -> dict[str, int]:
    """Return the balances in a view, by the last part of the address."""
    with looking(path) as view:
        rows = view.execute("SELECT account, amount FROM balances").fetchall()
    return {account.rpartition("/")[2]: amount for account, amount in rows}


def row(path: Path, columns: str, build: int = 1) -> Any:
    """Return what is noted of a build of the projection."""
    with looking(path) as view:
        return view.execute(
            f"SELECT {columns} FROM papyra_projections WHERE name = 'balances' AND build = ?",
            (build,),
        ).fetchone()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(0.005)


async def in_state(runner: ProjectionRunner, *states: str) -> None:
    """Wait until a projection is in one of some states."""
    await until(lambda: runner.status.state in states)


def types_of(records: Any) -> list[str]:
    """Return the types of the facts that projections have stored."""
    return [r.event_type for r in records if "/$projections/" in r.actor_address]


async def store_something_else(system: ActorSystem) -> int:
    """Store an event that is not for the projection, and return its position."""
    stored = await system.backend.append(PersistedEvent("bank", "bank/x", "Other", {}, 1.0))
    return stored.last_seq


def let_the_lease_run_out(path: Path) -> None:
    """Have the time of a lease be over, in a view that nobody uses."""
    with looking(path) as view, view, contextlib.suppress(sqlite3.OperationalError):
        view.execute("UPDATE papyra_projections SET lease_until = 0.0")
