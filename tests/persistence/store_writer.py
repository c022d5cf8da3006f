"""A process that writes a store: appends, compactions, recoveries, reopenings, at random.

Called with a kind of store, what it is made of, a seed, and the numbers of the first and the last
event. It prints the number of each event that was acknowledged.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import anyio
import msgspec

from papyra.persistence import PersistedAudit, PersistedEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("AUDITS_ONLY", "event", "open_store")

#: A compaction with it removes audits alone.
AUDITS_ONLY = RetentionPolicy(events=Limits(), audits=Limits(max_records=1))


def open_store(kind: str, made_of: str) -> PersistenceBackend:
    """Return a backend on a store: files of a path, or a server with encoded settings."""
    match kind:
        case "json":
            return JsonFilePersistence(Path(made_of), fsync="no")
        case "rotating":
            return RotatingFilePersistence(Path(made_of), max_segment_records=7, fsync="no")
        case "sqlite":
            return SQLitePersistence(Path(made_of), synchronous="off")
        case "redis":
            from papyra.persistence.backends.redis import (  # noqa: PLC0415
                RedisStreamsConfig,
                RedisStreamsPersistence,
            )

            return RedisStreamsPersistence(msgspec.json.decode(made_of, type=RedisStreamsConfig))
        case _:
            from papyra.persistence.backends._postgres.settings import Settings  # noqa: PLC0415
            from papyra.persistence.backends.postgres import from_settings  # noqa: PLC0415

            return from_settings(msgspec.json.decode(made_of, type=Settings))


def event(number: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Added", {"number": number}, float(number))


async def write(kind: str, made_of: str, seed: int, first: int, last: int) -> None:
    chance = random.Random(seed)
    number = first
    while number <= last:
        async with open_store(kind, made_of) as store:
            while number <= last:
                numbers = range(number, min(last, number + chance.choice([0, 0, 1, 4])) + 1)
                audits = [PersistedAudit("s", {"n": number}, 1.0)] * chance.choice([0, 0, 1])
                await store.append(*audits, *map(event, numbers))
                number = numbers[-1] + 1
                print(*numbers, sep="\n", flush=True)
                match chance.randrange(30):
                    case 0:
                        break  # and opened again
                    case 1:
                        await store.compact(AUDITS_ONLY)
                    case 2:
                        await store.recover()
                    case 3 | 4 | 5:
                        await anyio.sleep(chance.uniform(0, 0.02))


if __name__ == "__main__":
    kind, made_of, seed, first, last = sys.argv[1:]
    anyio.run(write, kind, made_of, int(seed), int(first), int(last))
