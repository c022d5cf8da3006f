"""A process that appends until it is killed or fenced, and says what was acknowledged.

``python -m tests.persistence.backends.postgres.appender URL``
"""

from __future__ import annotations

import random
import sys

import anyio

from papyra.exceptions import StoreFenced
from papyra.persistence.backends.postgres import PostgresPersistence
from tests.actors import event

__all__ = ("main",)


async def main(url: str) -> None:
    async with PostgresPersistence(url) as store:
        number = store.last_seq
        while True:
            records = map(event, range(number + 1, number + random.choice([2, 2, 5, 300])))
            try:
                appended = await store.append(*records)
            except StoreFenced:
                print("fenced", flush=True)
                return
            number = appended.last_seq
            # What this pipe holds has been said, whatever becomes of the process.
            print(appended.first_seq, appended.last_seq, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
