"""Every backend passes the conformance suite."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance
from tests.testing.shelf import Disk, Shelf, ruin


class TestInMemoryPersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return InMemoryPersistence


class TestShelf(PersistenceConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return functools.partial(Shelf, Disk())

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, Shelf)
        ruin(backend.disk, seq)


class TestFaultyPersistence(PersistenceConformance):
    """Without any faults, it is what it wraps."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        disk = Disk()

        def make(**options: Any) -> PersistenceBackend:
            return FaultyPersistence(Shelf(disk, **options))

        return make

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, FaultyPersistence)
        assert isinstance(backend.wrapped, Shelf)
        ruin(backend.wrapped.disk, seq)
