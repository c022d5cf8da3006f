"""A backend of one's own, held to the rules that papyra's are held to."""

from __future__ import annotations

import pytest

from papyra.persistence.backends.base import Batch
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance


class CountingPersistence(InMemoryPersistence):
    """Counts how often it writes."""

    writes = 0

    async def _append(self, batch: Batch) -> None:
        await super()._append(batch)
        self.writes += 1


class TestCountingPersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return CountingPersistence
