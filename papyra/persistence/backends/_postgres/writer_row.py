"""The row of a system: the id of the store, and who writes it.

Every append locks this row, in its own transaction, and only where the epoch and the writer are its
own. So a writer that another one has taken over from stores nothing more, whatever it has missed;
and whoever takes over waits for the last append of the one before. The name of the writer is there
for a failover that has lost the last claims: then two may have had the same epoch.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import uuid

import msgspec

from papyra.exceptions import StoreError, StoreFenced
from papyra.persistence.backends._postgres.blocks import unseal
from papyra.persistence.backends._postgres.outbox import put_back
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._sql.tables import TABLES
from papyra.persistence.outbox import HandedOver
from papyra.persistence.records import Kind

__all__ = ("InDoubt", "WriterRow")

logger = logging.getLogger("papyra")

_HEAD = "greatest(last_seq, {})".format(
    ", ".join(
        f"(SELECT max(seq) FROM {{schema}}.{table.name} WHERE system_id = %(system)s)"  # noqa: S608
        for table in TABLES.values()
    )
)


class InDoubt(msgspec.Struct, frozen=True):
    """A batch that may have been stored, though its commit was not confirmed."""

    id: str
    first_seq: int
    last_seq: int
    #: of its first record
    kind: Kind
    #: whether its positions may be given again
    restored: bool
    #: what it was made of, which is put back into the outbox if the batch is taken back
    handed: tuple[HandedOver, ...] = ()


class WriterRow:
    """The row of one system, as one writer sees it."""

    def __init__(self) -> None:
        self.writer = ""
        #: of this writer, greater than any that it had
        self.epoch = 0
        #: whether it has claimed the store
        self.is_claimed = False
        #: the last position given, and the first block whose totals are not stored
        self.last_seq = self.sealed = 0
        #: what may have been stored
        self.in_doubt: InDoubt | None = None

    def forget(self) -> None:
        """Be another writer: have the next `claim` take over from whoever writes by then."""
        host, random = re.sub("[^!-~]", "?", socket.gethostname())[:20], uuid.uuid4().hex[:20]
        self.writer, self.epoch = f"{host}:{os.getpid()}:{random}", 0
        self.is_claimed, self.in_doubt = False, None

    def ensure(self, system: System) -> None:
        """Make the row if there is none. In a copy of a store, it gets an id of its own."""
        place = place_of(system)
        rows = system.rows("SELECT place FROM {schema}.systems WHERE system_id = %(system)s")
        if rows == [(place,)]:
            return
        system.run(
            "INSERT INTO {schema}.systems VALUES"
            " (%(system)s, %(store_id)s, %(place)s, 0, '', 0, 0)"
            " ON CONFLICT (system_id) DO UPDATE"
            " SET store_id = excluded.store_id, place = excluded.place"
            " WHERE systems.place <> excluded.place",
            store_id=uuid.uuid4().hex,
            place=place,
        )

    def claim(self, system: System) -> int:
        """Begin an epoch, settle what is in doubt, and return the last position given.

        Within a transaction. Raises `StoreFenced` for a writer that another one has taken over
        from: then what is in doubt belongs to that one's store, if it was stored.
        """
        self._begin_epoch(system)
        if self.in_doubt is not None:
            self._take_back(system, self.in_doubt)
        return self._look(system)

    def settle(self, system: System, in_doubt: InDoubt) -> bool:
        """Begin an epoch, and return whether a batch was stored whose append goes on.

        Within a transaction. If another one has taken over, and the batch was not stored, this
        raises `StoreFenced`.
        """
        try:
            self._begin_epoch(system)
        except StoreFenced:
            if self._is_stored(system, in_doubt):
                return True
            raise
        is_stored = self._is_stored(system, in_doubt)
        self._look(system)
        return is_stored

    def _begin_epoch(self, system: System) -> None:
        # Waits for the append that is under way, and for those of whoever writes.
        rows = system.rows(
            "SELECT epoch, writer FROM {schema}.systems WHERE system_id = %(system)s FOR UPDATE"
        )
        if not rows:
            raise StoreError(f"{system.settings.location}: the row of this system was removed")
        epoch, writer = rows[0]
        if self.is_claimed and writer != self.writer:
            raise self.fenced(system, "another one has taken over")
        # A failover may have lost the last ones.
        self.epoch = max(int(epoch), self.epoch) + 1
        system.run(
            "UPDATE {schema}.systems SET epoch = %(epoch)s, writer = %(writer)s"
            " WHERE system_id = %(system)s",
            epoch=self.epoch,
            writer=self.writer,
        )

    def _is_stored(self, system: System, in_doubt: InDoubt) -> bool:
        return bool(
            system.rows(
                f"SELECT 1 FROM {{schema}}.{TABLES[in_doubt.kind].name}"  # noqa: S608 - a constant
                " WHERE system_id = %(system)s AND seq = %(seq)s AND batch = %(batch)s",
                seq=in_doubt.first_seq,
                batch=in_doubt.id,
            )
        )

    def _take_back(self, system: System, in_doubt: InDoubt) -> None:
        """Remove a batch whose append has raised. Nobody gets its positions again."""
        if not self._is_stored(system, in_doubt):
            return
        for table in TABLES.values():
            system.run(
                f"DELETE FROM {{schema}}.{table.name} WHERE system_id = %(system)s"  # noqa: S608
                " AND seq BETWEEN %(first)s AND %(last)s",
                first=in_doubt.first_seq,
                last=in_doubt.last_seq,
            )
        unseal(system, in_doubt.first_seq)
        put_back(system, in_doubt.handed)
        if not in_doubt.restored:
            self.note_last(system, in_doubt.last_seq)
        logger.warning(
            "%s: the records %d to %d, whose append had failed, were stored after all, and are "
            "taken back",
            system.settings.location,
            in_doubt.first_seq,
            in_doubt.last_seq,
        )

    def _look(self, system: System) -> int:
        """Find out where the store ends, once the epoch has begun."""
        self.last_seq = self.greatest_seq(system)
        (self.sealed,) = system.row(
            "SELECT sealed FROM {schema}.systems WHERE system_id = %(system)s"
        )
        return self.last_seq

    def note_last(self, system: System, last_seq: int) -> None:
        """Note the last position given, before its record goes."""
        system.run(
            "UPDATE {schema}.systems SET last_seq = greatest(last_seq, %(last)s)"
            " WHERE system_id = %(system)s",
            last=last_seq,
        )

    def lock(self, system: System) -> None:
        """Let nobody append until the transaction ends. Raises `StoreFenced`."""
        rows = system.rows(
            "SELECT writer FROM {schema}.systems WHERE system_id = %(system)s FOR UPDATE"
        )
        if self.is_claimed and rows != [(self.writer,)]:
            raise self.fenced(system, "another one has taken over")

    def greatest_seq(self, system: System) -> int:
        """Return the last position given."""
        rows = system.rows(
            f"SELECT {_HEAD} FROM {{schema}}.systems WHERE system_id = %(system)s"  # noqa: S608
        )
        if not rows:
            raise self._missing(system)
        return int(rows[0][0])

    def store_id(self, system: System) -> str:
        """Return the id of the store; the empty string in a copy that no writer has opened yet."""
        rows = system.rows(
            "SELECT store_id, place FROM {schema}.systems WHERE system_id = %(system)s"
        )
        if not rows:
            raise self._missing(system)
        store_id, place = rows[0]
        return str(store_id) if place == place_of(system) else ""

    def fenced(self, system: System, why: str) -> StoreFenced:
        """Return the error of a writer that must not write any more."""
        return StoreFenced(
            f"{system.settings.location}: this writer must not write any more: {why}"
        )

    def _missing(self, system: System) -> StoreError:
        known = system.rows("SELECT system_id FROM {schema}.systems ORDER BY system_id LIMIT 20")
        named = ", ".join(repr(name) for (name,) in known) or "none"
        return StoreError(
            f"{system.settings.location}: there is no system {system.system_id!r}; there is {named}"
        )


def place_of(system: System) -> str:
    """Return which schema of which cluster this is: a copy is elsewhere, a standby is not."""
    cluster, database, schema = system.row(
        "SELECT (SELECT system_identifier FROM pg_control_system()),"
        " (SELECT oid FROM pg_database WHERE datname = current_database()),"
        " (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)",
        schema=system.settings.schema,
    )
    return f"{cluster}/{database}/{schema}"
