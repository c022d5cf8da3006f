"""A program that is killed: fifty accounts under load, which says what was acknowledged to whom.

``python -m tests.eventsourcing.killed KIND DIRECTORY FIRST``: each account is asked to keep the
numbers after FIRST, one after the other. A line ``account number`` is written once it has replied.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio
import msgspec

from papyra import ActorRef, ActorSystem
from papyra.eventsourcing import EventSourced
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence

ACCOUNTS = 50


class Kept(msgspec.Struct, frozen=True):
    number: int


class Keeper(EventSourced[tuple[int, ...]]):
    """Keeps numbers, in one of the ways that there are; replies with all of them for `None`."""

    events = (Kept,)

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
        return None


def store(kind: str, directory: str) -> PersistenceBackend:
    """Return the store that is killed."""
    if kind == "json":
        return JsonFilePersistence(f"{directory}/events", fsync="no")
    return RotatingFilePersistence(f"{directory}/events", max_segment_records=500, fsync="no")


async def main(kind: str, directory: str, first: int) -> None:
    async def ask(account: int, ref: ActorRef) -> None:
        number = first
        while True:
            number += 1
            await ref.ask(number)
            os.write(1, f"{account} {number}\n".encode())

    async with (
        ActorSystem("bank", persistence=store(kind, directory)) as system,
        anyio.create_task_group() as tasks,
    ):
        for account in range(ACCOUNTS):
            tasks.start_soon(ask, account, system.spawn(Keeper, name=f"a{account}"))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
