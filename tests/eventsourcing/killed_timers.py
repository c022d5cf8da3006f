"""A program that is killed: entities whose timers come all the time, which says what was set.

``python -m tests.eventsourcing.killed_timers KIND PLACE FIRST [DIES]``: each entity is asked to set
timers with the numbers after FIRST. A line ``set entity number`` is written once it has replied,
and a line ``due entity number`` whenever one comes, before anything is stored of that. When as many
have come as DIES says, it kills itself: where that is even, before anything is stored of the last
one, and else when that is stored, or on its way, and nobody knows yet.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

import anyio
import msgspec

from papyra import ActorRef, ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy, Timer
from tests.eventsourcing.killed import store

ENTITIES = 50


class Came(msgspec.Struct, frozen=True):
    number: int


class Due(msgspec.Struct, frozen=True):
    number: int


class Waiter(EventSourced[tuple[int, ...]]):
    """Sets timers with numbers, and keeps those that came; replies with these for `None`."""

    events = (Came,)
    timer_messages = (Due,)
    snapshots = SnapshotPolicy(every=7)
    idle_timeout = 0.01
    #: how many timers come before the process kills itself; 0 if it does not
    dies = 0
    came = itertools.count(1)

    def initial_state(self) -> tuple[int, ...]:
        return ()

    def apply(self, state: tuple[int, ...], event: Came) -> tuple[int, ...]:
        return (*state, event.number)

    async def receive(self, message: Any) -> Any:
        match message:
            case Due(number):
                os.write(1, f"due {self.context.entity_id} {number}\n".encode())
                is_last = next(Waiter.came) == self.dies
                if is_last and self.dies % 2 == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number % 2:
                    await self.persist(Came(number))
                else:
                    self.persist_nowait(Came(number))
                if is_last:
                    os.kill(os.getpid(), signal.SIGKILL)
            case int():
                after = message % 7 / 100
                await self.persist(schedule=Timer(str(message), Due(message), after=after))
        return self.state


async def main(kind: str, place: str, first: int) -> None:
    async def ask(entity: int, ref: ActorRef) -> None:
        number = first
        while True:
            number += 1
            await ref.ask(number)
            os.write(1, f"set {entity} {number}\n".encode())
            await anyio.sleep(number % 3 / 100)

    async with (
        ActorSystem("bank", persistence=store(kind, place), entities=[Waiter]) as system,
        anyio.create_task_group() as tasks,
    ):
        for entity in range(ENTITIES):
            tasks.start_soon(ask, entity, system.entity(Waiter, str(entity)))


if __name__ == "__main__":
    kind, place, first, *dies = sys.argv[1:]
    Waiter.dies = int(dies[0]) if dies else 0
    anyio.run(main, kind, place, int(first))
