"""A projection alone, in a transaction that is rolled back."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra.eventsourcing import event
from papyra.exceptions import HandlerCommitted, InvalidEvent, InvalidProjection
from papyra.persistence import PersistedEvent
from papyra.projections import Projection, SQLiteView
from papyra.testing import projected


@event("deposited", version=3)
class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Balances(Projection):
    name = "balances"
    events = (Deposited,)
    tables = ("balances",)

    def setup(self, tx: sqlite3.Connection) -> None:
        tx.execute(f"CREATE TABLE {self.table('balances')} (actor, amount, seq)")

    def handle(self, received: Any, tx: sqlite3.Connection) -> None:
        if received.event.amount < 0:
            raise ValueError("less than nothing")
        if received.event.amount == 0:
            tx.commit()
        tx.execute(
            f"INSERT INTO {self.table('balances')} VALUES (?, ?, ?)",
            (received.actor, received.event.amount, received.seq),
        )


@pytest.fixture
def view(tmp_path: Path) -> SQLiteView:
    return SQLiteView(tmp_path / "views.db")


def test_events_are_in_the_view_and_nothing_is_left(view: SQLiteView) -> None:
    for _ in range(2):
        with projected(Balances(view)) as balances:
            balances.given(Deposited(30), Deposited(12), actor="bank/Account/ann")
            balances.given(Deposited(5))
            assert balances.rows("SELECT actor, amount, seq FROM balances ORDER BY seq") == [
                ("bank/Account/ann", 30, 1),
                ("bank/Account/ann", 12, 2),
                ("test/actor", 5, 3),
            ]
    with contextlib.closing(sqlite3.connect(view.location)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_what_the_handler_raises_is_raised(view: SQLiteView) -> None:
    with (
        pytest.raises(ValueError, match="less than nothing"),
        projected(Balances(view)) as balances,
    ):
        balances.given(Deposited(-1))


def test_a_handler_that_commits_is_refused(view: SQLiteView) -> None:
    with projected(Balances(view)) as balances:
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            balances.given(Deposited(0))
        balances.tx.execute("COMMIT")
        with pytest.raises(HandlerCommitted):
            balances.given(Deposited(1))


def test_an_event_that_is_none_of_its_own_is_refused(view: SQLiteView) -> None:
    with projected(Balances(view)) as balances, pytest.raises(InvalidEvent):
        balances.given(object())


def test_records_are_handed_over_as_they_are(view: SQLiteView) -> None:
    class Names(Projection):
        name = "names"

        def setup(self, tx: sqlite3.Connection) -> None:
            tx.execute("CREATE TABLE names (name, seq)")

        def handle(self, record: PersistedEvent, tx: sqlite3.Connection) -> None:
            tx.execute("INSERT INTO names VALUES (?, ?)", (record.event_type, record.seq))

    with projected(Names(view)) as names:
        names.given(PersistedEvent("shop", "shop/a", "Sold", {}, 1.0))
        assert names.rows("SELECT * FROM names WHERE seq = ?", 1) == [("Sold", 1)]
        with pytest.raises(InvalidProjection, match="declares no events: give it records"):
            names.given(Deposited(1))


def test_a_projection_without_a_view_is_called_by_the_test_itself() -> None:
    class Mails(Projection):
        name = "mails"
        events = (Deposited,)

        async def handle(self, received: Any) -> None:
            """Does nothing."""

    with pytest.raises(InvalidProjection, match="has no view"), projected(Mails()):
        pass
