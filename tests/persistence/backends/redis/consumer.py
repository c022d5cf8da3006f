"""A consumer in a process of its own.

``python -m tests.persistence.backends.redis.consumer URL NAME SYSTEM...``

It says what it has got, a line each, acknowledges nothing, and goes on until it is killed.
"""

from __future__ import annotations

import sys

import anyio

from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence


async def consume(url: str, name: str, system_id: str) -> None:
    config = RedisStreamsConfig(url=url, system_id=system_id)
    async with RedisStreamsPersistence(config) as store:
        async for delivery in store.consume("group", name, claim_after=None):
            print(system_id, delivery.record.seq, flush=True)


async def main(url: str, name: str, system_ids: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for system_id in system_ids:
            tasks.start_soon(consume, url, name, system_id)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
