"""The migration of a database: what it takes, who has to be out of the way, and doing it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from papyra.persistence.backends._files.disk import CAN_WRITE
from papyra.persistence.backends._sql.migrations import pending
from papyra.persistence.backends._sqlite import schema
from papyra.persistence.backends._sqlite.connection import connect, connect_to_read, transaction
from papyra.persistence.backends._sqlite.database_file import DatabaseFile
from papyra.persistence.backends._sqlite.migrations import MIGRATIONS, VERSION
from papyra.persistence.backends._sqlite.system_lock import system_lock
from papyra.persistence.backends._sqlite.writer_row import WriterRow
from papyra.persistence.reports import MigrationReport

__all__ = ("migrate", "plan")


def plan(name: str, file: DatabaseFile, busy_timeout: float) -> MigrationReport:
    """Return the report of what `migrate` would do. Changes nothing, and heeds no writer."""
    file.check(must_exist=False)
    if not file.path.exists():
        return _report(name, 0)
    with contextlib.closing(connect_to_read(file.path, busy_timeout)) as connection:
        return _report(name, schema.version_of(connection))


def migrate(name: str, file: DatabaseFile, system_id: str, busy_timeout: float) -> MigrationReport:
    """Bring the tables to the newest version, while nobody writes any system in them.

    The system itself gets its row, so that events can be handed over to it before it ever starts.
    """
    file.check(must_exist=False)
    with contextlib.ExitStack() as stack:
        _lock(stack, file, system_id)
        connection = stack.enter_context(
            contextlib.closing(connect(file.path, "full", busy_timeout))
        )
        for other in _systems(connection):
            if other != system_id:
                _lock(stack, file, other)
        report = _report(name, schema.version_of(connection))
        schema.migrate(connection)
        with transaction(connection):
            WriterRow(system_id, str(file.place.name)).ensure(connection, file.inode)
        return report


def _lock(stack: contextlib.ExitStack, file: DatabaseFile, system_id: str) -> None:
    """Keep the writer of a system out until the end. Raises `BackendInUse` while there is one."""
    if CAN_WRITE:
        lock = system_lock(file.path, system_id)
        lock.acquire()
        stack.callback(lock.release)


def _systems(connection: sqlite3.Connection) -> Iterator[str]:
    if schema.is_there(connection):
        for (name,) in connection.execute("SELECT system_id FROM systems").fetchall():
            yield name.decode()


def _report(name: str, found: object) -> MigrationReport:
    steps = tuple(each.what for each in pending(MIGRATIONS, found))
    before = found if isinstance(found, int) else 0
    return MigrationReport(
        name, supported=True, version_before=before, version_after=VERSION, steps=steps
    )
