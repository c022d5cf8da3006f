"""Servers to test with: those that can be started here, each in turn."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing._redis_server import RedisServer, any_binary, server_binaries

MakeStore: TypeAlias = Callable[..., RedisStreamsPersistence]

BINARIES = server_binaries()


@pytest.fixture(scope="session", params=sorted(BINARIES) or ["none"])
def binary(request: pytest.FixtureRequest) -> Path:
    """Return a program; there is one test for each."""
    return BINARIES.get(request.param) or any_binary()  # which says what to install


@pytest.fixture(scope="session")
def server(binary: Path) -> Iterator[RedisServer]:
    """Return a server that tests share: each has a store of its own there."""
    with RedisServer(binary) as server:
        yield server


@pytest.fixture
def own_server(binary: Path) -> Iterator[RedisServer]:
    """Return a server that the test may do with as it likes."""
    with RedisServer(binary) as server:
        yield server


@pytest.fixture
def config(server: RedisServer) -> RedisStreamsConfig:
    """Return where a store of this test is."""
    return RedisStreamsConfig(url=server.url, prefix="test", system_id=uuid.uuid4().hex)


@pytest.fixture
def make(config: RedisStreamsConfig) -> MakeStore:
    """Return what opens the store of this test."""

    def make_store(**options: Any) -> RedisStreamsPersistence:
        return RedisStreamsPersistence(config, **options)

    return make_store
