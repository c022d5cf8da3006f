"""An order that is reserved, paid and shipped, by services that fail, or undone.

Run it, stop it at any moment with Ctrl-C or kill -9, and run it again: the order goes on where it
was. python examples/order_saga.py

Each step is a durable timer, so it comes again until it is done; another one is the deadline, after
which all that was done is undone. What a step asks of a service names the order, so to ask twice
does no harm.
"""

from __future__ import annotations

import random
from typing import Any, Literal, Protocol, TypeAlias, assert_never

import anyio
import msgspec

from papyra import ActorSystem, EventSourced, Failure, Message, Retry
from papyra.eventsourcing import Timer
from papyra.persistence.backends.json import JsonFilePersistence

STORE = "orders.ndjson"
#: Seconds that an order may take, and a service.
DEADLINE, PATIENCE = 20.0, 2.0


class Services(Protocol):
    """The warehouse, the bank and the carrier. Each may be slow, raise, or do it and then raise."""

    async def reserve(self, order: str, item: str) -> None:
        """Put an item aside for an order."""

    async def pay(self, order: str, cents: int) -> None:
        """Take money for an order. Raises `Declined` if there is none."""

    async def ship(self, order: str, item: str) -> None:
        """Send the item."""

    async def refund(self, order: str) -> None:
        """Give the money for an order back, if it was taken."""

    async def release(self, order: str) -> None:
        """Put the item of an order back, if it was put aside."""


class Declined(Exception):
    """The bank gives no money."""


# What happens


class Placed(msgspec.Struct, frozen=True):
    item: str
    cents: int


class Reserved(msgspec.Struct, frozen=True):
    pass


class Paid(msgspec.Struct, frozen=True):
    pass


class Shipped(msgspec.Struct, frozen=True):
    pass


class Failed(msgspec.Struct, frozen=True):
    why: str


class Refunded(msgspec.Struct, frozen=True):
    pass


class Released(msgspec.Struct, frozen=True):
    pass


Event: TypeAlias = Placed | Reserved | Paid | Shipped | Failed | Refunded | Released
Step: TypeAlias = Literal["reserve", "pay", "ship", "refund", "release"]


class Progress(msgspec.Struct, frozen=True):
    """How far an order is."""

    item: str = ""
    cents: int = 0
    #: what is to be done next; `None` if nothing is
    step: Step | None = None
    #: why it is undone, if it is
    why: str = ""


# What is told


class Place(msgspec.Struct, Message[None], frozen=True):
    item: str
    cents: int


class HowFar(msgspec.Struct, Message[Progress], frozen=True):
    pass


class Next(msgspec.Struct, frozen=True):
    """Do the next step. A timer brings it."""


class TooLate(msgspec.Struct, frozen=True):
    """Give up. A timer brings it."""


#: To be scheduled with each event that leads to another step.
NEXT = Timer("step", Next(), after=0)


class Order(EventSourced[Progress]):
    events = (Placed, Reserved, Paid, Shipped, Failed, Refunded, Released)
    timer_messages = (Next, TooLate)
    timer_retry = Retry(None, backoff=0.5, jitter=0.2, max_backoff=5.0)  # the deadline ends it
    idle_timeout = 60

    def __init__(self, services: Services) -> None:
        self.services = services

    def initial_state(self) -> Progress:
        return Progress()

    def apply(self, state: Progress, event: Event) -> Progress:
        match event:
            case Placed(item, cents):
                return Progress(item, cents, "reserve")
            case Reserved():
                return msgspec.structs.replace(state, step="pay")
            case Paid():
                return msgspec.structs.replace(state, step="ship")
            case Failed(why):
                return msgspec.structs.replace(state, step="refund", why=why)
            case Refunded():
                return msgspec.structs.replace(state, step="release")
            case Shipped() | Released():
                return msgspec.structs.replace(state, step=None)
            case _:
                assert_never(event)

    async def receive(self, message: Any) -> Any:
        match message:
            case HowFar():
                return self.state
            case Place() if self.revision:
                return Failure(ValueError("it was placed before"))
            case Place(item, cents):
                deadline = Timer("deadline", TooLate(), after=DEADLINE)
                await self.persist(Placed(item, cents), schedule=(NEXT, deadline))
            case Next() if self.state.step is not None:
                with anyio.fail_after(PATIENCE):
                    await self.do(self.state.step)
            case TooLate() if self.state.step in {"reserve", "pay", "ship"}:
                await self.persist(Failed("it took too long"), schedule=NEXT)
            case Next() | TooLate():
                pass  # it is over
            case _:
                return self.unhandled(message)
        return None

    async def do(self, step: Step) -> None:
        """Do a step, and note it along with what is next. If it raises, it comes again."""
        order, state = self.context.entity_id, self.state
        match step:
            case "reserve":
                await self.services.reserve(order, state.item)
                await self.persist(Reserved(), schedule=NEXT)
            case "pay":
                try:
                    await self.services.pay(order, state.cents)
                except Declined:
                    failed = Failed("the bank has declined")
                    await self.persist(failed, schedule=NEXT, unschedule="deadline")
                else:
                    await self.persist(Paid(), schedule=NEXT)
            case "ship":
                await self.services.ship(order, state.item)
                await self.persist(Shipped(), unschedule="deadline")
            case "refund":
                await self.services.refund(order)
                await self.persist(Refunded(), schedule=NEXT)
            case "release":
                await self.services.release(order)
                await self.persist(Released())
            case _:
                assert_never(step)


class UnreliableServices:
    """Services that do what they are told, every other time."""

    async def reserve(self, order: str, item: str) -> None:
        await self._work(f"reserve {item} for {order}")

    async def pay(self, order: str, cents: int) -> None:
        await self._work(f"take {cents / 100:.2f} for {order}")

    async def ship(self, order: str, item: str) -> None:
        await self._work(f"ship {item} of {order}")

    async def refund(self, order: str) -> None:
        await self._work(f"refund {order}")

    async def release(self, order: str) -> None:
        await self._work(f"release {order}")

    async def _work(self, what: str) -> None:
        await anyio.sleep(0.2)
        if random.random() < 0.5:
            print(f"{what}: failed")
            raise ConnectionError(what)
        print(f"{what}: done")


async def main() -> None:
    system = ActorSystem("shop", persistence=JsonFilePersistence(STORE))
    system.entities.register(Order, UnreliableServices())
    async with system:
        order = system.entity(Order, "42")
        if (await order.ask(HowFar())).item == "":
            await order.ask(Place("lamp", 4900))
        while (progress := await order.ask(HowFar())).step is not None:
            print(f"next is to {progress.step}")
            await anyio.sleep(0.5)
        print("undone: " + progress.why if progress.why else "shipped")


if __name__ == "__main__":
    anyio.run(main)
