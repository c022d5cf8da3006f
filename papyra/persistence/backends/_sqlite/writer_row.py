"""The row of a system: the id of the store, its writer's epoch, and the last position given.

Every append changes this row, in its own transaction, and only where the epoch is its own. So a
writer that another one has taken over from stores nothing more, whatever it has missed.
"""

from __future__ import annotations

import sqlite3
import uuid

from papyra.exceptions import StoreError, StoreFenced
from papyra.persistence.backends._sql.tables import TABLES

__all__ = ("WriterRow",)


class WriterRow:
    """The row of one system, as one writer sees it. `place` is for messages."""

    def __init__(self, system_id: str, place: str) -> None:
        self._system_id = system_id
        self._place = place
        #: of this writer, once it has claimed the store
        self._epoch: int | None = None
        #: of its claim, until that is committed
        self._claimed: int | None = None

    def ensure(self, connection: sqlite3.Connection, inode: int) -> None:
        """Make the row if there is none. In a copy of the file, the store gets an id of its own."""
        made = uuid.uuid4().hex
        row = connection.execute(
            "SELECT inode FROM systems WHERE system_id = ?", (self._system_id,)
        ).fetchone()
        if row is None:
            connection.execute(
                "INSERT INTO systems VALUES (?, ?, ?, 0, ?)",
                (self._system_id, made, inode, self._greatest_stored(connection)),
            )
        elif row[0] != inode:
            connection.execute(
                "UPDATE systems SET store_id = ?, inode = ? WHERE system_id = ?",
                (made, inode, self._system_id),
            )

    def _greatest_stored(self, connection: sqlite3.Connection) -> int:
        found = [
            connection.execute(
                f"SELECT max(seq) FROM {table.name} WHERE system_id = ?",  # noqa: S608 - a constant
                (self._system_id,),
            ).fetchone()[0]
            for table in TABLES.values()
        ]
        return max(seq or 0 for seq in found)

    def forget(self) -> None:
        """Have the next `claim` take over from whoever writes by then."""
        self._epoch = None

    def claim(self, connection: sqlite3.Connection) -> int:
        """Begin an epoch, this writer's once it is `claimed`, and return the last position given.

        Raises `StoreFenced` for a writer that another one has taken over from.
        """
        epoch, last_seq = self._read(connection, "epoch"), self.greatest_seq(connection)
        if self._epoch not in (None, epoch):
            raise self._fenced("another one has taken over")
        self._claimed = int(epoch) + 1
        connection.execute(
            "UPDATE systems SET epoch = ?, last_seq = ? WHERE system_id = ?",
            (self._claimed, last_seq, self._system_id),
        )
        return last_seq

    def claimed(self) -> None:
        """Note that the claim was committed: one that was rolled back is nobody's."""
        self._epoch = self._claimed

    def advance(self, connection: sqlite3.Connection, first_seq: int, last_seq: int) -> None:
        """Give positions. Raises `StoreFenced` if they, or the right to, are somebody else's."""
        done = connection.execute(
            "UPDATE systems SET last_seq = ? WHERE system_id = ? AND epoch = ? AND last_seq < ?",
            (last_seq, self._system_id, self._epoch, first_seq),
        )
        if done.rowcount != 1:
            raise self._fenced(f"position {first_seq} is another one's to give")

    def check(self, connection: sqlite3.Connection) -> None:
        """Raise `StoreFenced` for a writer that another one has taken over from."""
        if self._read(connection, "epoch") != self._epoch:
            raise self._fenced("another one has taken over")

    def touch(self, connection: sqlite3.Connection) -> None:
        """Write the row as it is, so that the log is written to."""
        # There and back: a page that stays as it is throughout is not written at all.
        for change in (1, -1):
            connection.execute(
                "UPDATE systems SET epoch = epoch + ? WHERE system_id = ?",
                (change, self._system_id),
            )

    def last_seq(self, connection: sqlite3.Connection) -> int:
        """Return the last position given."""
        return int(self._read(connection, "last_seq"))

    def greatest_seq(self, connection: sqlite3.Connection) -> int:
        """Return the last position given, also if the row says less than what is stored."""
        return max(self.last_seq(connection), self._greatest_stored(connection))

    def store_id(self, connection: sqlite3.Connection, inode: int) -> str:
        """Return the id of the store; the empty string in a copy that no writer has opened yet."""
        if self._read(connection, "inode") != inode:
            return ""
        return bytes(self._read(connection, "store_id")).decode()

    def _read(self, connection: sqlite3.Connection, column: str) -> int | bytes:
        row: tuple[int | bytes] | None = connection.execute(
            f"SELECT {column} FROM systems WHERE system_id = ?",  # noqa: S608 - a constant
            (self._system_id,),
        ).fetchone()
        if row is None:
            known = [
                name.decode() for (name,) in connection.execute("SELECT system_id FROM systems")
            ]
            raise StoreError(
                f"{self._place} holds no system {self._system_id!r}; it holds "
                f"{', '.join(map(repr, known)) or 'none'}"
            )
        return row[0]

    def _fenced(self, why: str) -> StoreFenced:
        return StoreFenced(
            f"{self._place}: this writer of {self._system_id!r} must not write any more: {why}"
        )
