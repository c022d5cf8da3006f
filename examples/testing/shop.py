"""A shop that takes orders: the code under test in this project.

Try it: cd examples/testing && python -m pytest
"""

from __future__ import annotations

from typing import Any

import msgspec

from papyra import Actor, ActorRef, Failure


class PlaceOrder(msgspec.Struct, frozen=True):
    order_id: int
    item: str


class PayOrder(msgspec.Struct, frozen=True):
    order_id: int


class OrderPlaced(msgspec.Struct, frozen=True):
    order_id: int
    item: str


class OrderPaid(msgspec.Struct, frozen=True):
    order_id: int


class Charge(msgspec.Struct, frozen=True):
    """What the till is asked; it replies whether the customer could pay."""

    order_id: int


class SoldOut(Exception):
    pass


class Desk(Actor):
    """Sells one of each item. What it knows is what its events say."""

    def __init__(self, till: ActorRef | None = None) -> None:
        self.till = till
        self.sold: dict[int, str] = {}
        self.paid: set[int] = set()

    async def on_start(self) -> None:
        store, address = self.context.system.backend, str(self.context.self_ref.address)
        async for event in store.stream("event", actor=address):
            match event.event_type:
                case "OrderPlaced":
                    self.apply(msgspec.convert(event.payload, OrderPlaced))
                case "OrderPaid":
                    self.apply(msgspec.convert(event.payload, OrderPaid))

    async def receive(self, message: Any) -> Any:
        match message:
            case PlaceOrder(order_id) if order_id in self.sold:
                return order_id  # placed already, and asked again
            case PlaceOrder(order_id, item) if item in self.sold.values():
                return Failure(SoldOut(item))
            case PlaceOrder(order_id, item):
                await self.happened(OrderPlaced(order_id, item))
                return order_id
            case PayOrder(order_id) if order_id not in self.sold:
                return Failure(KeyError(order_id))
            case PayOrder(order_id) if order_id not in self.paid:
                if self.till is not None and await self.till.ask(Charge(order_id), timeout=10):
                    await self.happened(OrderPaid(order_id))
        return None

    async def happened(self, event: OrderPlaced | OrderPaid) -> None:
        """Store what happened first, and know it then."""
        await self.context.persist(event)
        self.apply(event)

    def apply(self, event: OrderPlaced | OrderPaid) -> None:
        match event:
            case OrderPlaced(order_id, item):
                self.sold[order_id] = item
            case OrderPaid(order_id):
                self.paid.add(order_id)
