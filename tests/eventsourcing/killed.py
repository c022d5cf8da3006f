"""A program that is killed: 200 entities under load, which says what was acknowledged to whom.

``python -m tests.eventsourcing.killed KIND PLACE FIRST``: each entity is asked to keep the numbers
after FIRST, one after the other. A line ``entity number`` is written once it has replied.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio
import msgspec

from papyra import ActorRef, ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.persistence.backends import postgres
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence

ENTITIES = 200


class Kept(msgspec.Struct, frozen=True):
    number: int


class Keeper(EventSourced[tuple[int, ...]]):
    """Keeps numbers, in one of the ways that there are; replies with all of them for `None`.

    It goes to sleep with every fourth.
    """

    events = (Kept,)
    snapshots = SnapshotPolicy(every=3)

    def initial_state(self) -> tuple[int, ...]:
        return ()

    def apply(self, state: tuple[int, ...], event: Kept) -> tuple[int, ...]:
        return (*state, event.number)

    async def receive(self, message: Any) -> Any:
        match message:
            case None:
                return self.state
            case int() if message % 2:
                await self.persist(Kept(message))
            case _:
                self.persist_nowait(Kept(message))
                if message % 4 == 0:
                    self.context.passivate()
        return None


def store(kind: str, place: str) -> PersistenceBackend:
    """Return the store whose writer is killed: in a directory, or at a URL."""
    match kind:
        case "json":
            return JsonFilePersistence(f"{place}/events", fsync="no")
        case "rotating":
            return RotatingFilePersistence(f"{place}/events", max_segment_records=500, fsync="no")
        case "sqlite":
            return SQLitePersistence(f"{place}/events.db", synchronous="normal")
        case "postgres":
            return postgres.from_url(place, read_only=False)
        case _:
            return RedisStreamsPersistence(RedisStreamsConfig(url=place, system_id="bank"))


async def main(kind: str, place: str, first: int) -> None:
    async def ask(entity: int, ref: ActorRef) -> None:
        number = first
        while True:
            number += 1
            await ref.ask(number)
            os.write(1, f"{entity} {number}\n".encode())

    async with (
        ActorSystem("bank", persistence=store(kind, place)) as system,
        anyio.create_task_group() as tasks,
    ):
        for entity in range(ENTITIES):
            tasks.start_soon(ask, entity, system.entity(Keeper, str(entity)))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
