"""A program that somebody presses Ctrl-C in: it acknowledges numbers on its standard output."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import anyio

from papyra import Actor, ActorSystem
from papyra.persistence.backends.json import JsonFilePersistence
from tests.conftest import LOOPS


class Counter(Actor):
    async def receive(self, number: int) -> None:
        await self.context.persist(("Counted", {"number": number}))
        print(number, flush=True)


class Busy(Actor):
    async def receive(self, message: Any) -> None:
        for _ in range(1_000):
            await anyio.lowlevel.checkpoint()
        await self.context.self_ref.tell(message)


class Ticking(Actor):
    """Has timers, a task in the background, and calls that block."""

    async def on_start(self) -> None:
        self.timers.start("tick", "tick", every=0.001)
        self.context.receive_timeout(0.003, "idle")
        self.context.run_in_background(self.work)

    async def work(self) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            await self.context.run_in_thread(time.sleep, 0.001)

    async def receive(self, message: Any) -> None:
        """Do nothing."""


async def main(path: str) -> None:
    print("begun", flush=True)
    store = JsonFilePersistence(path, fsync="no")
    async with ActorSystem("program", persistence=store, shutdown_timeout=0.5) as system:
        counter = system.spawn(Counter)
        await system.spawn(Busy).tell("go on")
        system.spawn(Ticking)
        for number in range(int(sys.argv[3])):
            await counter.ask(number)
    print("left", flush=True)


if __name__ == "__main__":
    # A shell may have started the tests in the background, where it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name, options = LOOPS[sys.argv[1]]
    anyio.run(main, sys.argv[2], backend=name, backend_options=options)
