"""A system gives out what its actors store, as objects of their own classes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, event, upcaster
from papyra.exceptions import InvalidEvent, InvalidRequest, InvalidSchema, SystemNotRunning
from papyra.persistence import CaughtUp, PersistedEvent, Received
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Account, Deposit, Deposited, Withdraw, Withdrawn

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio", "trio")


@event("Moved", version=2)
class Moved(msgspec.Struct, frozen=True):
    steps: int


class Walker(EventSourced[int]):
    events = (Moved,)
    entity_name = "walkers"

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Moved) -> int:
        return state + event.steps

    @upcaster("Moved", from_version=1)
    def in_steps(payload: Any) -> Any:
        return [{"steps": step} for step in payload["all"]]

    async def receive(self, message: int) -> int:
        await self.persist(Moved(message))
        return self.state


async def received(items: AsyncIterator[Any]) -> list[Any]:
    """Return the events up to the end."""
    found: list[Any] = []
    with anyio.fail_after(60):
        async for item in items:
            if isinstance(item, CaughtUp):
                return found
            found.append(item.event if isinstance(item, Received) else item)
    raise AssertionError("it has ended")


async def test_events_of_entities_come_as_their_classes_whoever_else_stores_some() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        ann, other = system.entity(Account, "ann"), system.spawn(Account, name="other")
        for message in (Deposit(5), Withdraw(2)):
            await ann.ask(message)
            await other.ask(message)
        async with system.subscribe(entity=Account) as items:
            assert await received(items) == [Deposited(5), Withdrawn(2)]
            await ann.ask(Deposit(7))
            live = await anext(items)
            assert isinstance(live, Received)
            assert (live.event, live.record.revision) == (Deposited(7), 3)
        async with system.subscribe(types=[Deposited]) as items:
            assert await received(items) == [Deposited(5), Deposited(5), Deposited(7)]
        async with system.subscribe(types=["Withdrawn"], actor=ann) as items:
            (record,) = await received(items)
            assert isinstance(record, PersistedEvent)
            assert record.actor_address == "bank/Account/ann"
        async with system.subscribe(entity=Account, types=[Withdrawn]) as items:
            assert await received(items) == [Withdrawn(2)]


async def test_old_events_pass_the_upcasters_of_their_entity() -> None:
    store = InMemoryPersistence()
    old = PersistedEvent("s", "s/walkers/a", "Moved", {"all": [1, 2]}, 1.0, revision=1)
    await store.append(old)
    async with ActorSystem("s", persistence=store) as system:
        assert await system.entity(Walker, "a").ask(4) == 7
        async with system.subscribe(entity=Walker) as items:
            assert await received(items) == [Moved(1), Moved(2), Moved(4)]
        async with system.subscribe(types=[Moved]) as items:
            with pytest.raises(InvalidEvent, match="version 1"):
                await received(items)
            assert await received(items) == [Moved(4)]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"types": "Deposited"}, InvalidRequest),
        ({"types": ["Deposited", Withdrawn]}, InvalidRequest),
        ({"types": [3]}, InvalidRequest),
        ({"types": [int]}, InvalidSchema),
        ({"actor": 3}, InvalidRequest),
        ({"entity": Account, "kinds": ("audit",)}, InvalidRequest),
    ],
    ids=str,
)
async def test_what_cannot_be_subscribed_to_is_refused_at_once(
    options: dict[str, Any], error: type[Exception]
) -> None:
    async with ActorSystem("s", persistence=InMemoryPersistence()) as system:
        with pytest.raises(error):
            system.subscribe(**options)


async def test_a_system_that_does_not_run_has_nothing_to_subscribe_to() -> None:
    with pytest.raises(SystemNotRunning):
        ActorSystem("s", persistence=InMemoryPersistence()).subscribe()
