"""Databases that a process may not write, or not even read: as another user, where this is root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")

#: Anybody but this user.
OTHER = 65534

AS_ANOTHER = """
import anyio, os, sys
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.sqlite import SQLitePersistence

path, uid, verb = sys.argv[1:]
# What is imported later may be where the other user can't read.
anyio.run(anyio.lowlevel.checkpoint)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))

async def main():
    async with SQLitePersistence(path, read_only=verb == "read") as store:
        if verb == "append":
            await store.append(PersistedEvent("s", "s/a", "A", {"order_id": 2}, 2.0))
        print([each.payload["order_id"] for each in await store.list_events()])

try:
    anyio.run(main)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def do_as_another(path: Path, verb: str) -> str:
    """Return what a process of another user says that reads a store, or appends to it."""
    command = [sys.executable, "-c", AS_ANOTHER, str(path), str(OTHER), verb]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or done.stderr
    return done.stdout.strip() or done.stderr.strip()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that another user may reach."""
    made = subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True)
    path = Path(made.stdout.strip())
    path.chmod(0o755)
    try:
        yield path
    finally:
        path.chmod(0o755)
        subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.fixture
async def closed(folder: Path) -> Path:
    """Return a database with one event that nobody has open."""
    path = folder / "shop.sqlite"
    async with SQLitePersistence(path, synchronous="off") as store:
        await store.append(event(1))
    return path


def give(folder: Path) -> None:
    """Give a folder, but not what is in it, to the other user, if this process may."""
    if os.geteuid() == 0:
        os.chown(folder, OTHER, OTHER)


async def test_a_database_that_may_not_be_written_is_named(folder: Path, closed: Path) -> None:
    closed.chmod(0o444)
    give(folder)
    said = do_as_another(closed, "append")
    assert said.startswith("StoreNotWritable: ")
    assert "mode 0444" in said


async def test_a_directory_that_may_not_be_written_is_named(folder: Path) -> None:
    folder.chmod(0o555)
    said = do_as_another(folder / "new.sqlite", "append")
    assert said.startswith("StoreAccessDenied: ")
    assert str(folder) in said


async def test_a_database_that_may_not_be_read_is_named(folder: Path, closed: Path) -> None:
    closed.chmod(0o000)
    give(folder)
    said = do_as_another(closed, "read")
    assert said.startswith("StoreAccessDenied: ")
    assert "mode 0000" in said


async def test_a_closed_database_is_read_where_nothing_may_be_written(
    folder: Path, closed: Path
) -> None:
    closed.chmod(0o444)
    folder.chmod(0o555)
    assert do_as_another(closed, "read") == "[1]"
    assert sorted(path.name for path in folder.iterdir()) == ["shop.sqlite", "shop.sqlite.lock"]
