"""Every backend passes the conformance suite."""

from __future__ import annotations

import pytest

from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance


class TestInMemoryPersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return InMemoryPersistence
