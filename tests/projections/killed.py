"""A program that is killed: it stores deposits and projects them, and says how far the view is.

``python -m tests.projections.killed STORE VIEW``: STORE is a JSON file, an SQLite database or the
URL of a store in PostgreSQL; VIEW an SQLite database, or the URL of one in PostgreSQL. A line is
written for each commit of the view.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import anyio

from papyra import ActorSystem
from papyra.persistence.backends import postgres
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import PostgresView, Projection, SQLiteView, View
from tests.projections.balances import Deposited, Deposits


class Sums(Projection):
    """The sum of each account, and every event that it was made of, which is there once."""

    name = "sums"
    events = (Deposited,)
    batch_size = 20

    def setup(self, tx: Any) -> None:
        tx.execute("CREATE TABLE sums (account TEXT PRIMARY KEY, amount BIGINT NOT NULL)")
        tx.execute("CREATE TABLE seen (seq BIGINT PRIMARY KEY)")

    def handle(self, received: Any, tx: Any) -> None:
        sign = "?" if isinstance(self.view, SQLiteView) else "%s"
        tx.execute(
            f"INSERT INTO sums AS s VALUES ({sign}, {sign})"
            " ON CONFLICT (account) DO UPDATE SET amount = s.amount + excluded.amount",
            (received.actor.rpartition("/")[2], received.event.amount),
        )
        tx.execute(f"INSERT INTO seen VALUES ({sign})", (received.seq,))


def store_at(place: str) -> PersistenceBackend:
    """Return the store of the events."""
    if place.startswith("postgresql:"):
        return postgres.from_url(place, read_only=False)
    return SQLitePersistence(place) if place.endswith(".db") else JsonFilePersistence(place)


def view_at(place: str) -> View[Any]:
    """Return the view. Its lease is short, as who had it last is dead."""
    if place.startswith("postgresql:"):
        return PostgresView(place, lease=0.2)
    return SQLiteView(Path(place), lease=0.2)


async def main(store: str, view: str) -> None:
    """Store and project until this is killed."""
    async with ActorSystem("bank", persistence=store_at(store), audit_interval=None) as system:
        runner = system.project(Sums(view_at(view)))
        deposits = Deposits(system)
        while True:
            amounts = [random.randint(1, 9) for _ in range(random.randint(1, 50))]
            account = f"account-{random.randint(1, 5)}"
            last = await deposits.add(*amounts, account=account)
            await runner.wait_for(last - random.randint(0, 60) if last > 60 else 0)
            os.write(1, b"%d\n" % runner.status.position)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
