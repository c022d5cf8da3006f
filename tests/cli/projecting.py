"""A system that runs projections: ``python -m tests.cli.projecting URL VIEW``.

Each line of its input is stored as an event, whose payload it is; the position is its answer. The
projections can't handle ``bad``, as long as there is no file ``VIEW.mended``.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from typing import Any, ClassVar

import anyio

from papyra import ActorSystem
from papyra.conf import backend_from_url
from papyra.persistence import PersistedEvent
from papyra.projections import (
    DeadLetter,
    OnError,
    Pause,
    PostgresView,
    Projection,
    SQLiteView,
    View,
)


def check(record: PersistedEvent, view: str) -> None:
    if record.payload == "bad" and not Path(f"{view}.mended").exists():
        raise ValueError("\x1b[31mthis is bad")


class Lines(Projection):
    """Into a view, paused at what is bad."""

    name = "lines"
    types = ("Line",)
    tables = ("lines",)
    on_error: ClassVar[OnError] = Pause()
    path = ""

    def setup(self, tx: Any) -> None:
        tx.execute(f"CREATE TABLE {self.table('lines')} (seq INTEGER, line TEXT)")

    def handle(self, record: Any, tx: Any) -> None:
        check(record, self.path)
        mark = "?" if isinstance(tx, sqlite3.Connection) else "%s"
        tx.execute(
            f"INSERT INTO {self.table('lines')} VALUES ({mark}, {mark})",
            (record.seq, record.payload),
        )


class Parking(Lines):
    """Into a view, with what is bad parked."""

    name = "parking"
    tables = ("parked_lines",)
    on_error = DeadLetter()

    def setup(self, tx: Any) -> None:
        tx.execute(f"CREATE TABLE {self.table('parked_lines')} (seq INTEGER)")

    def handle(self, record: Any, tx: Any) -> None:
        check(record, self.path)
        tx.execute(f"INSERT INTO {self.table('parked_lines')} VALUES ({record.seq})")


class Mails(Projection):
    """Into nothing, with its position in the store."""

    name = "mails"
    types = ("Line",)
    on_error = Pause()
    path = ""

    async def handle(self, record: Any) -> None:
        check(record, self.path)


def view_at(place: str) -> View[Any]:
    return PostgresView(place) if place.startswith("postgresql:") else SQLiteView(place)


async def main(url: str, view: str) -> None:
    Lines.path = Mails.path = view
    async with ActorSystem(
        "bank", persistence=backend_from_url(url), audit_interval=None
    ) as system:
        for projection in (Lines(view_at(view)), Parking(view_at(view)), Mails()):
            system.project(projection)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            record = PersistedEvent("bank", f"bank/{line[0]}", "Line", line.strip(), 1.0)
            stored = await system.backend.append(record)
            os.write(1, b"%d\n" % stored.last_seq)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
