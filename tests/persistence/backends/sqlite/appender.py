"""A process that appends until it is killed, and says what was acknowledged.

``python -m tests.persistence.backends.sqlite.appender PATH SYNCHRONOUS``
"""

from __future__ import annotations

import random
import sys
from typing import Any, cast

import anyio
import msgspec

from papyra.persistence.backends.sqlite import SQLitePersistence
from tests.actors import event

__all__ = ("main",)


async def main(path: str, synchronous: str) -> None:
    async with SQLitePersistence(path, synchronous=cast("Any", synchronous)) as store:
        number = store.last_seq
        while True:
            records = [
                msgspec.structs.replace(event(seq), actor_address="shop/one", revision=seq)
                for seq in range(number + 1, number + random.choice([2, 2, 5, 300]))
            ]
            appended = await store.append(*records)
            number = appended.last_seq
            # What this pipe holds has been said, whatever becomes of the process.
            print(appended.first_seq, appended.last_seq, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
