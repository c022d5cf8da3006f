"""Orders and parcels: what is ordered is packed, by a process manager.

``python -m tests.projections.shop KIND PATH ORDERS DIE``: orders that many, packs what is ordered,
and writes what is packed. It is killed in the handler that comes to the order of that number: right
after the command, and before the position is saved.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import anyio
import msgspec

from papyra import ActorSystem, EventSourced
from papyra.message import Message
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import Pause, Projection, Retry


class Ordered(msgspec.Struct, frozen=True):
    item: str


class Packed(msgspec.Struct, frozen=True):
    item: str


class Order(msgspec.Struct, Message[int], frozen=True):
    """Order; reply with how many orders there are."""

    item: str


class Pack(msgspec.Struct, Message[int], frozen=True):
    """Pack; reply with how many items are in the parcel."""

    item: str


class Customer(EventSourced[int]):
    events = (Ordered,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Ordered) -> int:
        return state + 1

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Order):
            await self.persist(Ordered(message.item))
        return self.state


class Parcel(EventSourced[tuple[str, ...]]):
    events = (Packed,)

    def initial_state(self) -> tuple[str, ...]:
        return ()

    def apply(self, state: tuple[str, ...], event: Packed) -> tuple[str, ...]:
        return (*state, event.item)

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Pack):
            await self.persist(Packed(message.item))
            return len(self.state)
        return list(self.state)


class Packing(Projection):
    """Packs what was ordered."""

    name = "packing"
    events = (Ordered,)
    on_error = Retry(3).then(Pause())

    def __init__(self, dies_at: str = "") -> None:
        super().__init__()
        self._dies_at = dies_at

    async def handle(self, received: Any) -> None:
        await self.command(Parcel, "p", Pack(received.event.item))
        if received.event.item == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def store_at(kind: str, path: str) -> PersistenceBackend:
    """Return the backend on a store of this kind."""
    return JsonFilePersistence(path) if kind == "json" else SQLitePersistence(path)


async def main(kind: str, path: str, orders: int, dies_at: str) -> None:
    async with ActorSystem("shop", persistence=store_at(kind, path)) as system:
        packing = system.project(Packing(dies_at))
        customer = system.entity(Customer, "c")
        for number in range(orders):
            await customer.ask(Order(f"{number}"))
        await packing.wait_for(system.backend.last_seq, timeout=60)
        print(await system.entity(Parcel, "p").ask("look"))


if __name__ == "__main__":
    kind, path, orders, dies_at = sys.argv[1:]
    anyio.run(main, kind, path, int(orders), dies_at)
