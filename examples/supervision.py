"""A worker crashes, is restarted, gives up: and the facts tell the story.

Run it: python examples/supervision.py
"""

import logging

import anyio

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne, Terminated
from papyra.persistence.backends.memory import InMemoryPersistence


class OutOfPaper(Exception):
    """Passes by itself: the printer goes on with the next page."""


class Jammed(Exception):
    """Takes a restart to clear."""


class OnFire(Exception):
    """Nothing to be done."""


class Printer(Actor):
    def __init__(self) -> None:
        self.pages = 0

    async def receive(self, message: object) -> int:
        if isinstance(message, Exception):
            raise message
        self.pages += 1
        return self.pages


class Office(Actor):
    """Owns the printer, decides what its failures mean, and notices when it is gone."""

    supervision = OneForOne(
        on={OutOfPaper: Decision.RESUME, Jammed: Decision.RESTART},
        default=Decision.STOP,
        max_restarts=3,
        within=60,
    )

    def __init__(self, closed: anyio.Event) -> None:
        self.closed = closed

    async def on_start(self) -> None:
        self.printer = self.context.spawn(Printer, name="printer")
        self.context.watch(self.printer)

    async def receive(self, message: object) -> ActorRef | None:
        if isinstance(message, Terminated):
            await self.context.persist(("OfficeClosed", {"because": str(message.ref.address)}))
            self.closed.set()
            return None
        return self.printer


async def main() -> None:
    logging.getLogger("papyra").setLevel(logging.CRITICAL)  # these crashes are on purpose
    backend = InMemoryPersistence()
    closed = anyio.Event()
    async with ActorSystem("works", persistence=backend) as system:
        office = system.spawn(Office, closed, name="office")
        printer = await office.ask("where is the printer?")
        for message in ("page", "page", OutOfPaper(), "page", Jammed(), "page", OnFire(), "page"):
            try:
                print(f"{message!r:14} -> page {await printer.ask(message)}")
            except Exception as error:
                print(f"{message!r:14} -> {type(error).__name__}: {error}")
        await closed.wait()

    print("\nThe story, as it was recorded:")
    for event in await backend.list_events():
        print(f"  {event.seq:2}  {event.actor_address:20}  {event.event_type:14}  {event.payload}")
    for letter in await backend.list_dead_letters():
        print(f"  {letter.seq:2}  {letter.target:20}  (dead letter)   {letter.payload!r}")


if __name__ == "__main__":
    anyio.run(main)
