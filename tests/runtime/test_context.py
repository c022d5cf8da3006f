from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from papyra import Actor, ActorSystem
from papyra.exceptions import InvalidRecord, UnencodablePayload
from papyra.persistence import Append, AppendMany
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.records import event_record
from tests.persistence import payloads


class OrderPlaced(msgspec.Struct):
    order_id: int


@dataclasses.dataclass
class OrderShipped:
    order_id: int


class Keeper(Actor):
    """Persists what it is sent."""

    async def receive(self, message: Any) -> int:
        return await self.context.persist(message)


async def test_structs_dataclasses_and_pairs_are_events(persistence: InMemoryPersistence) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Keeper, name="keeper")
        seqs = [
            await ref.ask(event)
            for event in (OrderPlaced(1), OrderShipped(1), ("OrderPaid", {"order_id": 1}))
        ]
    assert seqs == [2, 3, 4]
    assert [(e.seq, e.actor_address, e.event_type, e.payload) for e in persistence.events[1:4]] == [
        (2, "shop/keeper", "OrderPlaced", {"order_id": 1}),
        (3, "shop/keeper", "OrderShipped", {"order_id": 1}),
        (4, "shop/keeper", "OrderPaid", {"order_id": 1}),
    ]


@pytest.mark.parametrize(
    "event", ["OrderPlaced", {"order_id": 1}, OrderPlaced, OrderShipped, ("A", 1), (1, {}), None]
)
async def test_persist_refuses_what_is_no_event(
    persistence: InMemoryPersistence, event: Any
) -> None:
    async with ActorSystem(persistence=persistence) as system:
        with pytest.raises(InvalidRecord, match="an event is a msgspec Struct"):
            await system.spawn(Keeper).ask(event)


def test_persist_refuses_objects_that_only_claim_to_be_events() -> None:
    hostile = payloads.Hostile(ZeroDivisionError("no"))
    events = [hostile, ("A", hostile), (hostile, {}), payloads.Endless(), payloads.Unnamed()]
    for event in events:
        with pytest.raises(InvalidRecord, match="an event is a msgspec Struct"):
            event_record("shop", "shop/a", event, 1.0)
    assert event_record("shop", "shop/a", payloads.Pair("A", {}), 1.0).event_type == "A"


async def test_persist_raises_what_the_append_raises(persistence: InMemoryPersistence) -> None:
    async with ActorSystem(persistence=persistence) as system:
        with pytest.raises(UnencodablePayload, match=r"payload\['x'\]\[1\] is object"):
            await system.spawn(Keeper).ask(("Odd", {"x": [1, object()]}))
    assert persistence.metrics.snapshot().write_errors == 1


async def test_an_actor_sends_persist_messages(persistence: InMemoryPersistence) -> None:
    class Sender(Actor):
        async def receive(self, message: Any) -> None:
            record = self.context.event(OrderPlaced(message))
            await self.context.persistence.tell(Append(record))
            both = self.context.event(OrderPlaced(message + 1)), record
            await self.context.persistence.tell(AppendMany(both))

    async with ActorSystem(persistence=persistence) as system:
        await system.spawn(Sender).tell(1)
    assert [e.payload for e in persistence.events if e.event_type == "OrderPlaced"] == [
        {"order_id": 1},
        {"order_id": 2},
        {"order_id": 1},
    ]
