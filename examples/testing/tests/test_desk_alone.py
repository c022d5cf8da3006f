"""A desk alone: given events, when a command, then events, reply, state and error."""

from __future__ import annotations

from typing import Any

import pytest
from shop import Charge, Desk, OrderPaid, OrderPlaced, Orders, PayOrder, PlaceOrder, SoldOut

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import CheckedSystem, TestProbe, given_history

HISTORY = [OrderPlaced(1, "tea"), OrderPaid(1), OrderPlaced(2, "cups")]
KNOWN = Orders({1: "tea", 2: "cups"}, frozenset({1}))


@pytest.fixture(params=["in no store", "in a store"])
def store(request: pytest.FixtureRequest) -> PersistenceBackend | None:
    """Return one that finds out what a restart or a snapshot would change, or none."""
    return None if request.param == "in no store" else InMemoryPersistence()


async def test_a_desk_knows_what_happened_before(store: PersistenceBackend | None) -> None:
    desk = given_history(Desk, *HISTORY, store=store)
    outcome = await desk.when(PlaceOrder(3, "tea"))
    assert isinstance(outcome.error, SoldOut)
    assert (outcome.events, outcome.state) == ((), KNOWN)
    outcome = await desk.when(PlaceOrder(3, "a kettle"))
    assert (outcome.reply, outcome.events) == (3, (OrderPlaced(3, "a kettle"),))


@pytest.mark.parametrize("command", [PlaceOrder(1, "tea"), PlaceOrder(1, "else"), PayOrder(1)])
async def test_what_was_done_is_not_done_again(
    command: Any, store: PersistenceBackend | None
) -> None:
    outcome = await given_history(Desk, *HISTORY, store=store).when(command)
    assert (outcome.events, outcome.error) == ((), None)


async def test_a_desk_asks_a_real_till(
    actor_system: CheckedSystem, store: PersistenceBackend | None
) -> None:
    till = TestProbe(actor_system, "till", reply=True)
    outcome = await given_history(Desk, *HISTORY, args=(till.ref,), store=store).when(PayOrder(2))
    await till.expect_message(Charge(2))
    assert outcome.events == (OrderPaid(2),)
    assert outcome.state.paid == {1, 2}
