"""A projection alone: given events, look at its view, and leave nothing behind."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.schema import Schema
from papyra.eventsourcing.stored import schema_of
from papyra.exceptions import HandlerCommitted, InvalidProjection
from papyra.persistence import codec
from papyra.persistence.records import PersistedEvent, Record
from papyra.projections.builds import Builds
from papyra.projections.database import ViewDatabase
from papyra.projections.decoding import Decoder
from papyra.projections.projection import (
    Projection,
    checked,
    hand_over,
    table_name,
    writing,
)

__all__ = ("ProjectedView", "projected")

_ACTOR = "test/actor"


class ProjectedView:
    """The view of a projection in a transaction that is to be rolled back."""

    def __init__(self, projection: Projection, database: ViewDatabase[Any], tx: Any) -> None:
        self._projection = projection
        self._database = database
        self._decode = Decoder(checked(projection))
        self._schema = _schema_of(projection)
        self._revisions: Counter[str] = Counter()
        self._seq = 0
        #: the open transaction, for queries: a `sqlite3.Connection` or a `psycopg.Connection`
        self.tx = tx

    def given(self, *events: object, actor: str = _ACTOR) -> None:
        """Have the projection handle events of one actor, in order; raise what `handle` raises.

        They are stored and read back in between, as far as that changes them: objects of the
        classes that it declares, or records. Raises `HandlerCommitted` if the handler has ended the
        transaction, and `InvalidEvent` for an event that could not be stored.
        """
        for event in events:
            self._handle(self._record(event, actor))

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query, which has ``?`` for each parameter."""
        return self._database.rows(query, *parameters)

    def _handle(self, record: Record) -> None:
        is_open = self._database.transaction_check()
        self._database.in_handler = True
        try:
            hand_over(self._projection, self._decode(record), self.tx)
        finally:
            self._database.in_handler = False
        if not is_open():
            raise HandlerCommitted(f"{self._projection.name}: handle has ended the transaction")

    def _record(self, event: object, actor: str) -> Record:
        self._seq += 1
        if isinstance(event, Record):
            return msgspec.structs.replace(event, seq=self._seq)
        if self._schema is None:
            raise InvalidProjection(
                f"{self._projection.name} declares no events: give it records, as it gets them"
            )
        kind, payload = self._schema.encode(event)
        self._revisions[actor] += 1
        record = PersistedEvent("test", actor, kind.name, codec.plain(payload), time.time())
        return msgspec.structs.replace(
            record, seq=self._seq, revision=self._revisions[actor], event_version=kind.version
        )


@contextlib.contextmanager
def projected(projection: Projection) -> Iterator[ProjectedView]:
    """Yield the view of a projection, with its tables made and nothing in them.

    All of it is one transaction in the database of its view, which is rolled back in the end: no
    system, no store and no thread. Blocks. Raises `InvalidProjection`, also for a projection
    without a view, what `setup` raises, and `ViewUnavailable`.
    """
    checked(projection)
    if projection.view is None:
        raise InvalidProjection(
            f"{projection.name} has no view: await its handle() with what it is to get"
        )
    database = projection.view.database()
    database.open()
    try:
        with contextlib.suppress(_RolledBack), database.transaction() as tx, writing(0):
            projection.setup(tx)
            for table in projection.tables:
                Builds(database, projection.name).publish(table, table_name(table, 0))
            yield ProjectedView(projection, database, tx)
            raise _RolledBack
    finally:
        database.close()


class _RolledBack(Exception):
    """What is within is over, and is to leave nothing behind."""


def _schema_of(projection: Projection) -> Schema | None:
    entity = projection.entity
    if entity is not None and issubclass(entity, EventSourced):
        return schema_of(entity)
    return Schema(projection.name, projection.events, []) if projection.events else None
