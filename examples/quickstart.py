"""The main job in one page: actors that keep facts, and somebody who asks what was kept.

Run it: python examples/quickstart.py
"""

import anyio
import msgspec

from papyra import Actor, ActorSystem
from papyra.persistence import Append, GetMetrics
from papyra.persistence.backends.memory import InMemoryPersistence


class PlaceOrder(msgspec.Struct, frozen=True):
    order_id: int
    item: str


class OrderPlaced(msgspec.Struct, frozen=True):
    order_id: int
    item: str


class Desk(Actor):
    """Takes orders. What it persisted, happened."""

    async def receive(self, message: PlaceOrder) -> int:
        # Returns once the event is stored, with its position in the store.
        seq = await self.context.persist(OrderPlaced(message.order_id, message.item))
        # Fire and forget: only puts a message into the mailbox of the persistence actor.
        note = self.context.event(("LabelPrinted", {"order_id": message.order_id}))
        await self.context.persistence.tell(Append(note))
        return seq


async def main() -> None:
    backend = InMemoryPersistence()
    async with ActorSystem("shop", persistence=backend) as system:
        desk = system.spawn(Desk, name="desk")
        for order_id, item in enumerate(["tea", "cups", "kettle"], start=1):
            seq = await desk.ask(PlaceOrder(order_id, item))
            print(f"order {order_id} is event {seq}")

    print("\nStored:")
    for event in await backend.list_events():
        print(f"  {event.seq:2}  {event.actor_address:10}  {event.event_type:12}  {event.payload}")

    snapshot = await measure(backend)
    print("\nMetrics:")
    for name, value in snapshot.items():
        print(f"  {name:22} {value:6}")


async def measure(backend: InMemoryPersistence) -> dict[str, int]:
    """Host the backend again, and ask its actor for the metrics."""
    async with ActorSystem("audit", persistence=backend) as system:
        return dict(await system.persistence.ask(GetMetrics()))


if __name__ == "__main__":
    anyio.run(main)
