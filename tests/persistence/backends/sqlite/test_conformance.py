"""The conformance suite on SQLite."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from pathlib import Path

import pytest

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")


class TestSQLitePersistence(PersistenceConformance):
    """The contract, on a database in a file."""

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        path = tmp_path / "events.sqlite"
        return functools.partial(SQLitePersistence, path, synchronous="off")

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        with contextlib.closing(sqlite3.connect(backend.location)) as database, database:
            for table in ("events", "audits", "dead_letters"):
                database.execute(f"UPDATE {table} SET record = '{{' WHERE seq = ?", (seq,))
