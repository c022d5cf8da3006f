"""The fixtures `actor_system`, `persistence` and `manual_clock` come with papyra."""

from __future__ import annotations

import pytest
from shop import Charge, Desk, OrderPaid, OrderPlaced, PayOrder, PlaceOrder, SoldOut

from papyra import Actor
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import (
    CheckedSystem,
    FaultyPersistence,
    ManualClock,
    PersistenceProbe,
    TestProbe,
)


async def test_an_order_is_an_event(actor_system: CheckedSystem) -> None:
    probe = PersistenceProbe(actor_system)
    desk = actor_system.spawn(Desk, name="desk")
    assert await desk.ask(PlaceOrder(1, "tea")) == 1
    await probe.expect_next(OrderPlaced(1, "tea"))


async def test_an_item_is_sold_once(actor_system: CheckedSystem) -> None:
    probe = PersistenceProbe(actor_system)
    desk = actor_system.spawn(Desk)
    await desk.ask(PlaceOrder(1, "tea"))
    with pytest.raises(SoldOut):
        await desk.ask(PlaceOrder(2, "tea"))
    await probe.expect_event(OrderPlaced, payload={"order_id": 1})
    await probe.expect_none(OrderPlaced)


@pytest.mark.parametrize("has_money", [True, False])
async def test_paying_asks_the_till(actor_system: CheckedSystem, has_money: bool) -> None:
    till = TestProbe(actor_system, "till", reply=has_money)
    probe = PersistenceProbe(actor_system)
    desk = actor_system.spawn(Desk, till.ref)
    await desk.ask(PlaceOrder(1, "tea"))
    await desk.ask(PayOrder(1))
    await till.expect_message(Charge(1))
    if has_money:
        await probe.expect_sequence([OrderPlaced(1, "tea"), OrderPaid(1)])
    else:
        await probe.expect_none(OrderPaid)


class SlowTill(Actor):
    """Takes a minute."""

    async def receive(self, message: Charge) -> bool:
        await self.context.clock.sleep(60)
        return True


@pytest.mark.papyra(allow=["unclaimed_replies"])
async def test_the_desk_does_not_wait_for_ever(
    actor_system: CheckedSystem, manual_clock: ManualClock
) -> None:
    probe = PersistenceProbe(actor_system)
    desk = actor_system.spawn(Desk, actor_system.spawn(SlowTill), name="desk")
    await desk.ask(PlaceOrder(1, "tea"))
    await desk.tell(PayOrder(1))
    await manual_clock.advance(10)  # takes no time at all
    await probe.expect_restart(desk)
    await probe.expect_none(OrderPaid, within=60)


class TestWhenTheStoreFails:
    @pytest.fixture
    def persistence(self, persistence: InMemoryPersistence) -> FaultyPersistence:
        return FaultyPersistence(persistence)

    @pytest.mark.papyra(allow=["write_errors"])
    async def test_the_customer_is_told_and_may_try_again(
        self, actor_system: CheckedSystem, persistence: FaultyPersistence
    ) -> None:
        probe = PersistenceProbe(actor_system)
        desk = actor_system.spawn(Desk, name="desk")
        await probe.expect_event("ActorStarted", actor=desk)
        persistence.fail_next("append", OSError("disk full"))
        with pytest.raises(Exception, match="disk full"):
            await desk.ask(PlaceOrder(1, "tea"))
        assert await desk.ask(PlaceOrder(1, "tea")) == 1
        await probe.expect_restart(desk)
