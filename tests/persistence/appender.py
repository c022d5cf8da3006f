"""A process that appends until it is killed, and says what was acknowledged.

``python -m tests.persistence.appender FILE FSYNC``
"""

from __future__ import annotations

import random
import sys
from typing import Any, cast

import anyio

from papyra.persistence.backends.json import JsonFilePersistence
from tests.actors import event


async def main(path: str, fsync: str) -> None:
    async with JsonFilePersistence(path, fsync=cast("Any", fsync)) as store:
        number = store.last_seq
        while True:
            records = [event(number + i) for i in range(1, random.choice([2, 2, 5, 200]))]
            appended = await store.append(*records)
            number = appended.last_seq
            # What this pipe holds has been said, whatever becomes of the process.
            print(appended.first_seq, appended.last_seq, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
