"""A store of one's own, held to the rules that papyra's are held to."""

from __future__ import annotations

import pytest

from papyra.persistence.backends.memory import MemoryStore
from papyra.persistence.backends.store import Batch
from papyra.testing.conformance import MakeStore, PersistenceConformance


class CountingStore(MemoryStore):
    """Counts how often it writes."""

    writes = 0

    async def append(self, batch: Batch) -> None:
        await super().append(batch)
        self.writes += 1


class TestCountingStore(PersistenceConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return CountingStore
