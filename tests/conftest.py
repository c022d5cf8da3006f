"""Every async test runs on asyncio, on asyncio with uvloop, and on trio."""

from __future__ import annotations

from typing import Any

import pytest

from papyra.persistence.backends.memory import InMemoryPersistence

LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def backend() -> InMemoryPersistence:
    return InMemoryPersistence()
