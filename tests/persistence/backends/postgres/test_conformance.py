"""The conformance suite on PostgreSQL."""

from __future__ import annotations

import functools

import psycopg
import pytest

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")


class TestPostgresPersistence(PersistenceConformance):
    """The contract, in a schema of its own."""

    @pytest.fixture
    def make_backend(self, database: str, schema: str) -> MakeBackend:
        return functools.partial(PostgresPersistence, database, schema=schema)

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, PostgresPersistence)
        settings = backend.store.settings
        with psycopg.connect(settings.dsn) as connection:
            for table in ("events", "audits", "dead_letters"):
                statement = f'UPDATE "{settings.schema}".{table} SET record = \'{{"a": 1}}\''
                connection.execute(f"{statement} WHERE seq = %s".encode(), (seq,))
