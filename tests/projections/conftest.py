"""A place for views, and systems whose events are in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from papyra import ActorSystem
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.conftest import event_loops

NewSystem = Callable[[], ActorSystem]

#: Most of this is in the view's thread.
anyio_backend = event_loops("asyncio")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the view is to be."""
    return tmp_path / "views.db"


@pytest.fixture
def store() -> InMemoryPersistence:
    """Return the store of the events, which outlives the systems of a test."""
    return InMemoryPersistence()


@pytest.fixture
def new_system(store: InMemoryPersistence) -> NewSystem:
    """Return what makes a system on that store."""
    return lambda: ActorSystem("bank", persistence=store, audit_interval=None)
