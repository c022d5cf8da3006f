"""A server that has no room for its log, and then has."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from papyra.exceptions import StoreFull, StoreNotReady, StoreUnreachable
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance._fixtures import an_event
from tests.mounting import mount_small_disk
from tests.postgres_server import PostgresServer

#: What can't be compressed, and takes its place: 60 KB.
NOISE = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Callable[[], None]]:
    """Make a disk of 12 MB, of which a third is taken; give what frees that. Needs root."""
    path.mkdir()
    mount_small_disk(path, "12m")
    ballast = path / "ballast"
    ballast.write_bytes(b"x" * 4_000_000)
    try:
        yield ballast.unlink
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_postgres_server_that_has_no_room_for_its_log_keeps_what_was_acknowledged(
    installation: Path,
) -> None:
    """It may end, and start by itself, or can't be started before there is room."""
    with contextlib.closing(
        PostgresServer(installation, "max_wal_size=2MB", "min_wal_size=2MB")
    ) as server:
        server.make_data()
        disk = server.directory / "disk"
        with small_disk(disk) as free:
            server.run("cp", "-R", str(server.data / "pg_wal"), str(disk / "log"))
            server.run("rm", "-r", str(server.data / "pg_wal"))
            server.run("ln", "-s", str(disk / "log"), str(server.data / "pg_wal"))
            server.start()
            # Whoever replicates has not got it yet: so no log is removed.
            server.query("SELECT pg_create_physical_replication_slot('slow', true)")
            stored: list[int] = []
            is_raised = False
            store = PostgresPersistence(server.url, retry_for=0.1)
            async with store:
                while not is_raised:
                    number = len(stored) + 1
                    try:
                        await store.append(an_event(number, payload={"n": number, "noise": NOISE}))
                    except (StoreFull, StoreUnreachable, StoreNotReady):
                        is_raised = True
                    else:
                        stored.append(number)
                assert len(stored) > 3
                free()
                server.kill()
                server.start()
                found = [event.payload["n"] async for event in store.stream("event")]
                assert found == stored
                await store.append(an_event(len(stored) + 1))
                assert (await store.scan()).is_clean
            server.stop()
