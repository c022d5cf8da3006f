"""Where the stores are that outlive the processes of tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres_server import own_database, shared_server
from tests.redis_server import RedisServer, any_binary


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Iterator[str]:
    """Return where the store is: in files, or on a server that goes on when its writer does not."""
    if kind == "postgres":
        yield f"{own_database(shared_server())}?schema=bank_{secrets.token_hex(8)}"
    elif kind != "redis":
        yield str(tmp_path)
    else:
        with RedisServer(any_binary()) as server:
            yield server.url
