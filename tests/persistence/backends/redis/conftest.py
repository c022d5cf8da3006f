"""Servers to test with: those that can be started here, in turn.

Tests of the way to a server run on asyncio and on trio, which takes another; those of what is kept
there on asyncio, and in CI on all event loops.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import msgspec
import pytest
import redis

from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from tests.extent import CI
from tests.redis_server import RedisServer, any_binary, server_binaries
from tests.server_versions import leave_to_other_versions

MakeStore: TypeAlias = Callable[..., RedisStreamsPersistence]

#: What takes longer than a newcomer likes to wait. It runs if it is named, too.
_LONG = (
    *("broken_numbers", "cluster", "histories_takeovers", "kill", "replicas", "server"),
    *("server_errors", "takeovers", "torn_log", "trimmed_histories"),
)
collect_ignore = [] if CI else [f"test_{name}.py" for name in _LONG]

BINARIES = server_binaries()
#: Where stores are that need no server of their own, if it is set.
URL = os.environ.get("REDIS_URL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have a test run on one program after another."""
    versions = {"binary": len(BINARIES) or 1, "server": 1 if URL else len(BINARIES) or 1}
    leave_to_other_versions(config, items, Path(__file__).parent, versions)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition: as long as it takes, and no longer.

    What servers agree on they tell nobody, so they are asked, with a pause between: who asks all
    the time takes the processor that they need to agree.
    """
    while not condition():  # noqa: ASYNC110 - no event of this process makes it true
        await anyio.sleep(0.005)


@contextlib.contextmanager
def impatient(store: RedisStreamsPersistence, seconds: float) -> Iterator[None]:
    """Have a store wait no longer than this for an answer that does not come.

    Answers that do come may take longer than that on a busy machine.
    """
    client = store.store.client
    patient = client.config
    client.config = msgspec.structs.replace(patient, timeout=seconds)
    try:
        yield
    finally:
        client.config = patient


class GivenServer(RedisServer):
    """The one at ``REDIS_URL``, on the loopback interface. Nobody starts or stops it here."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.hostname not in ("localhost", "127.0.0.1"):
            pytest.exit("tests talk to servers on this machine only: see REDIS_URL")
        super().__init__(any_binary(), port=parts.port or 6379)


@pytest.fixture(scope="session", params=sorted(BINARIES) or ["none"])
def binary(request: pytest.FixtureRequest) -> Path:
    """Return a program; there is one test for each."""
    return BINARIES.get(request.param) or any_binary()  # which says what to install


@pytest.fixture(scope="session", params=["REDIS_URL"] if URL else sorted(BINARIES) or ["none"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Return a server that tests share: each has a store of its own there."""
    if URL:
        given = GivenServer(URL)
        yield given
        given.close()  # what it keeps here: nothing
    else:
        with RedisServer(BINARIES.get(request.param) or any_binary()) as server:
            yield server


@pytest.fixture
def own_server(binary: Path) -> Iterator[RedisServer]:
    """Return a server that the test may do with as it likes."""
    with RedisServer(binary) as server:
        yield server


@pytest.fixture
def config(server: RedisServer) -> Iterator[RedisStreamsConfig]:
    """Return where a store of this test is."""
    config = RedisStreamsConfig(url=server.url, prefix="test", system_id=uuid.uuid4().hex)
    yield config
    if URL:
        with redis.Redis.from_url(server.url) as client:
            client.delete(*config.keys.everything)


@pytest.fixture
def make(config: RedisStreamsConfig) -> MakeStore:
    """Return what opens the store of this test."""

    def make_store(**options: Any) -> RedisStreamsPersistence:
        return RedisStreamsPersistence(config, **options)

    return make_store
