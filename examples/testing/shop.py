"""A shop that takes orders: the code under test in this project.

Try it: cd examples/testing && python -m pytest
"""

from __future__ import annotations

from typing import Any

import msgspec

from papyra import ActorRef, EventSourced, Failure
from papyra.eventsourcing import SnapshotPolicy


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


class Orders(msgspec.Struct, frozen=True):
    """What the desk knows. It is replaced, and never changed."""

    sold: dict[int, str] = {}
    paid: frozenset[int] = frozenset()


class Desk(EventSourced[Orders]):
    """Sells one of each item. What it knows is what its events say."""

    events = (OrderPlaced, OrderPaid)
    snapshots = SnapshotPolicy(every=2)  # rather 500, where there are more orders

    def __init__(self, till: ActorRef | None = None) -> None:
        self.till = till

    def initial_state(self) -> Orders:
        return Orders()

    def apply(self, state: Orders, event: OrderPlaced | OrderPaid) -> Orders:
        match event:
            case OrderPlaced(order_id, item):
                return Orders(state.sold | {order_id: item}, state.paid)
            case OrderPaid(order_id):
                return Orders(state.sold, state.paid | {order_id})

    async def receive(self, message: Any) -> Any:
        match message:
            case PlaceOrder(order_id) if order_id in self.state.sold:
                return order_id  # placed already, and asked again
            case PlaceOrder(order_id, item) if item in self.state.sold.values():
                return Failure(SoldOut(item))
            case PlaceOrder(order_id, item):
                await self.persist(OrderPlaced(order_id, item))
                return order_id
            case PayOrder(order_id) if order_id not in self.state.sold:
                return Failure(KeyError(order_id))
            case PayOrder(order_id) if order_id not in self.state.paid:
                if self.till is not None and await self.till.ask(Charge(order_id), timeout=10):
                    await self.persist(OrderPaid(order_id))
        return None
