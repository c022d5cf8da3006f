"""The conformance suite on PostgreSQL."""

from __future__ import annotations

import functools
import uuid

import psycopg
import pytest

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")


class TestPostgresPersistence(PersistenceConformance):
    """The contract, on a system of its own."""

    @pytest.fixture
    def make_backend(self, database: str, shared_schema: str) -> MakeBackend:
        return functools.partial(
            PostgresPersistence, database, schema=shared_schema, system_id=uuid.uuid4().hex
        )

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, PostgresPersistence)
        settings = backend.store.settings
        with psycopg.connect(settings.dsn) as connection:
            for table in ("events", "audits", "dead_letters"):
                statement = f'UPDATE "{settings.schema}".{table} SET record = \'{{"a": 1}}\''
                here = "WHERE seq = %s AND system_id = %s"
                connection.execute(f"{statement} {here}".encode(), (seq, settings.system_id))
