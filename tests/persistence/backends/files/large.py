"""A large store: filled, opened, scanned, read and compacted, each in a process of its own.

``python -m tests.persistence.backends.files.large json|rotating COUNT [DIRECTORY]``

It says how long each took, and the most memory that its process had.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio

from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.persistence.backends.files.file_persistence import FilePersistence

__all__ = ("figures",)

MAKERS: Mapping[str, Callable[..., FilePersistence]] = {
    "json": JsonFilePersistence,
    "rotating": RotatingFilePersistence,
}
BATCH = 5000


async def fill(make: Callable[..., FilePersistence], count: int) -> None:
    async with make() as store:
        for first in range(1, count + 1, BATCH):
            await store.append(*map(event, range(first, min(first + BATCH, count + 1))))


async def open_it(make: Callable[..., FilePersistence], count: int) -> None:
    async with make() as store:
        assert store.last_seq == count


async def scan(make: Callable[..., FilePersistence], count: int) -> None:
    async with make() as store:
        report = await store.scan()
        assert report.is_clean
        assert report.records_scanned == count


async def read(make: Callable[..., FilePersistence], count: int) -> None:
    async with make() as store:
        assert [e.seq for e in await store.list_events(limit=10)] == list(
            range(count - 9, count + 1)
        )
        since = event(count // 2).timestamp
        page = await store.read("event", since=since, limit=10)
        assert page.records[0].seq == count // 2


async def compact(make: Callable[..., FilePersistence], count: int) -> None:
    async with make(retention_policy=RetentionPolicy(max_records=count // 2)) as store:
        report = await store.compact()
        assert (report.records_before, report.records_after) == (count, count // 2)
        assert (await store.scan()).is_clean


PHASES: Mapping[str, Callable[..., Awaitable[None]]] = {
    "fill": fill,
    "open": open_it,
    "scan": scan,
    "read": read,
    "compact": compact,
}


def run_phase(phase: str, name: str, count: int, path: Path) -> dict[str, Any]:
    """Do one thing, and return how long it took and what it needed."""

    def make(**options: Any) -> FilePersistence:
        return MAKERS[name](path, fsync="no", **options)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    anyio.run(PHASES[phase], make, count)
    seconds = time.perf_counter() - started
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"phase": phase, "seconds": seconds, "before_kb": before, "most_kb": most}


def figures(name: str, count: int, directory: Path) -> Iterator[dict[str, Any]]:
    """Yield what `run_phase` returns for each phase."""
    for phase in PHASES:
        command = [sys.executable, "-m", "tests.persistence.backends.files.large", "--phase", phase]
        command += [name, str(count), str(directory / "store")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield json.loads(done.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "--phase":
        print(json.dumps(run_phase(sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))))
    else:
        place = sys.argv[3] if len(sys.argv) > 3 else None
        with tempfile.TemporaryDirectory(dir=place) as directory:
            for found in figures(sys.argv[1], int(sys.argv[2]), Path(directory)):
                print(
                    f"{found['phase']:8} {found['seconds']:8.1f} s, "
                    f"{found['before_kb'] / 1024:6.0f} MB before, "
                    f"{found['most_kb'] / 1024:6.0f} MB at most"
                )
