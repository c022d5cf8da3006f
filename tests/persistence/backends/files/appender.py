"""A process that appends until it is killed, and says what was acknowledged.

``python -m tests.persistence.backends.files.appender json|rotating PATH FSYNC``
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import anyio

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event

__all__ = ("STORES",)


def _json(path: Path, fsync: str = "no") -> JsonFilePersistence:
    return JsonFilePersistence(path, fsync=cast("Any", fsync))


def _rotating(path: Path, fsync: str = "no") -> RotatingFilePersistence:
    return RotatingFilePersistence(path, max_segment_bytes=20_000, fsync=cast("Any", fsync))


STORES: Mapping[str, Callable[..., PersistenceBackend]] = {"json": _json, "rotating": _rotating}


async def main(name: str, path: str, fsync: str) -> None:
    async with STORES[name](Path(path), fsync) as store:
        number = store.last_seq
        while True:
            records = [event(number + i) for i in range(1, random.choice([2, 2, 5, 200]))]
            appended = await store.append(*records)
            number = appended.last_seq
            # What this pipe holds has been said, whatever becomes of the process.
            print(appended.first_seq, appended.last_seq, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
