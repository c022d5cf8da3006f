"""A disk that is full, and has room again."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from papyra.exceptions import StoreError
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.backends.files.test_file_readers import numbers

STORES: dict[str, Callable[[Path], FilePersistence]] = {
    "json": lambda disk: JsonFilePersistence(disk / "events.ndjson"),
    "rotating": lambda disk: RotatingFilePersistence(disk / "journal", max_segment_bytes=20_000),
}


@contextmanager
def a_small_disk(path: Path) -> Iterator[Callable[[], None]]:
    """Make a disk of 256 KB, of which more than a third is taken; give what frees that."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        # Only root may do that. What anybody may do is to say how large a file may get.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    ballast = path / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    try:
        yield ballast.unlink
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("name", STORES)
async def test_a_file_store_refuses_appends_on_a_full_disk_and_goes_on_once_there_is_room(
    tmp_path: Path, name: str
) -> None:
    disk = tmp_path / "disk"
    with a_small_disk(disk) as free:
        stored: list[int] = []
        refused: list[str] = []
        async with STORES[name](disk) as store:
            number = 0
            while len(refused) < 3:
                number += 1
                record = event(number, payload={"order_id": number, "text": "x" * 200})
                try:
                    await store.append(record)
                    stored.append(number)
                except StoreError as error:
                    refused.append(str(error))
            free()
            assert len(stored) > 20
            assert stored == list(range(1, len(stored) + 1)), "all until it was full, and no more"
            assert all("No space left" in error or "too large" in error for error in refused)
            assert await numbers(store) == stored
            assert (await store.append(event(number + 1))).first_seq == len(stored) + 1
            assert await numbers(store) == [*stored, number + 1]
            assert (await store.scan()).is_clean
        async with STORES[name](disk) as store:
            assert await numbers(store) == [*stored, number + 1]
            assert (await store.scan()).is_clean
