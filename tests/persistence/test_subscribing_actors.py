"""An actor that sends `Subscribe` gets what is stored as messages, no more than it can handle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from papyra import (
    Actor,
    ActorSystem,
    Decision,
    EventSourced,
    OneForOne,
)
from papyra.eventsourcing import event
from papyra.exceptions import (
    ActorStopped,
    InvalidEvent,
    InvalidRequest,
    InvalidSchema,
    StoreReplaced,
)
from papyra.persistence import (
    CaughtUp,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    PersistenceActor,
    Received,
    Subscribe,
    Subscribed,
    SubscriptionEnded,
    Unsubscribe,
)
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.records import KINDS
from papyra.testing import wait_until_idle
from tests.conftest import event_loops
from tests.extent import CI

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio", "trio")


def stored(number: int, actor: str = "s/a") -> PersistedEvent:
    return PersistedEvent("s", actor, "Added", {"number": number}, float(number))


def is_added(item: object) -> bool:
    """Return whether it is an event of the test's, and not one of an actor's life."""
    return isinstance(item, PersistedEvent) and item.event_type == "Added"


class Log:
    """What an actor was given, for the test to wait for."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = anyio.Event()

    def add(self, item: object) -> None:
        self.items.append(item)
        self._changed.set()
        self._changed = anyio.Event()

    @property
    def numbers(self) -> list[int]:
        return [item.payload["number"] for item in self.items if is_added(item)]

    async def until(self, wanted: object) -> None:
        """Wait for a message that is equal."""
        with anyio.fail_after(60):
            while wanted not in self.items:
                await self._changed.wait()

    async def until_numbers(self, *numbers: int) -> None:
        with anyio.fail_after(60):
            while len(self.numbers) < len(numbers):
                await self._changed.wait()
        assert self.numbers == [*numbers]

    async def until_ended(self) -> SubscriptionEnded:
        with anyio.fail_after(60):
            while not any(isinstance(item, SubscriptionEnded) for item in self.items):
                await self._changed.wait()
        (ended,) = (item for item in self.items if isinstance(item, SubscriptionEnded))
        return ended


class Follower(Actor):
    """Subscribes at each start, after the last record that any life of it has handled."""

    supervision = OneForOne(max_restarts=100)

    def __init__(self, log: Log, last: list[int], **options: Any) -> None:
        self.log = log
        self.last = last
        self.options = options

    async def on_start(self) -> None:
        ask = Subscribe(self.context.self_ref, after=self.last[0], **self.options)
        await self.context.persistence.ask(ask)

    async def receive(self, message: Any) -> None:
        if message == "crash":
            raise RuntimeError("as it was told")
        if isinstance(message, PersistedEvent):
            self.last[0] = message.seq or 0
        self.log.add(message)


class Listener(Actor):
    """Subscribes to nothing by itself."""

    def __init__(self, log: Log) -> None:
        self.log = log

    async def receive(self, message: Any) -> None:
        self.log.add(message)


class Slow(Actor):
    """Handles a message when it is let."""

    def __init__(self, log: Log, semaphore: anyio.Semaphore) -> None:
        self.log = log
        self.semaphore = semaphore

    async def receive(self, message: Any) -> int:
        if isinstance(message, PersistedEvent):
            await self.semaphore.acquire()
        self.log.add(message)
        return len(self.log.numbers)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def store() -> InMemoryPersistence:
    return InMemoryPersistence()


def system(store: InMemoryPersistence, **options: Any) -> ActorSystem:
    return ActorSystem("s", persistence=store, audit_interval=None, **options)


async def test_the_past_comes_then_that_it_is_over_then_what_is_new(
    log: Log, store: InMemoryPersistence
) -> None:
    await store.append(stored(1), stored(2))
    async with system(store) as running:
        running.spawn(Follower, log, [0], actor="s/a")
        await log.until_numbers(1, 2)
        await running.backend.append(stored(3), stored(0, "s/b"))
        await running.backend.append(stored(4))
        await log.until_numbers(1, 2, 3, 4)
    kinds = [type(item) for item in log.items]
    assert kinds == [PersistedEvent, PersistedEvent, CaughtUp, PersistedEvent, PersistedEvent]
    assert [item.seq for item in log.items if isinstance(item, PersistedEvent)][:2] == [1, 2]


@event("Counted")
class Counted(msgspec.Struct, frozen=True):
    by: int


class Counter(EventSourced[int]):
    events = (Counted,)
    idle_timeout: ClassVar[float | None] = None

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Counted) -> int:
        return state + event.by

    async def receive(self, message: int) -> int:
        await self.persist(Counted(message))
        return self.state


async def test_events_come_as_the_classes_that_are_asked_for(
    log: Log, store: InMemoryPersistence
) -> None:
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        for selection in ({"entity": Counter}, {"types": [Counted]}):
            subscribed = await running.persistence.ask(Subscribe(listener, **selection))
            assert isinstance(subscribed, Subscribed)
        await running.entity(Counter, "a").ask(3)
        await wait_until_idle()
        received = [item for item in log.items if isinstance(item, Received)]
        assert [item.event for item in received] == [Counted(3)] * 2
        assert received[0].record.actor_address == "s/Counter/a"


async def test_an_actor_with_much_to_follow_has_no_more_than_some_in_its_mailbox(
    log: Log, store: InMemoryPersistence
) -> None:
    await store.append(*map(stored, range(1, 301)))
    may = anyio.Semaphore(0)
    async with system(store) as running:
        slow = running.spawn(Slow, log, may, mailbox_capacity=1)
        await running.persistence.ask(Subscribe(slow, types=["Added"]))
        for number in range(1, 101):
            may.release()
            await log.until_numbers(*range(1, number + 1))
            assert len(running._guardian.children) == 1
            (cell,) = running._guardian.children
            assert len(cell.mailbox) <= 1
        # Whoever asks meanwhile waits for those alone.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.ask, "a question")
            for _ in range(33):
                may.release()
            await log.until("a question")
        assert len(log.numbers) <= 133
        for _ in range(300):
            may.release()
        await log.until_numbers(*range(1, 301))


async def test_what_was_not_handled_at_a_crash_comes_once_more_and_all_the_rest_once(
    log: Log, store: InMemoryPersistence
) -> None:
    await store.append(*map(stored, range(1, 201)))
    async with system(store) as running:
        ref = running.spawn(Follower, log, [0], types=["Added"])
        for number in (5, 50, 120):
            with anyio.fail_after(60):
                while len(log.numbers) < number:
                    await checkpoint()
            await ref.tell("crash")
        await log.until_numbers(*range(1, 201))
        await running.backend.append(stored(201))
        await log.until_numbers(*range(1, 202))
        assert not [item for item in log.items if isinstance(item, SubscriptionEnded)]


async def test_an_actor_that_resumes_goes_on_with_the_next_item(
    log: Log, store: InMemoryPersistence
) -> None:
    class Careless(Listener):
        async def receive(self, message: Any) -> None:
            if isinstance(message, PersistedEvent) and message.payload["number"] == 2:
                raise RuntimeError("not this one")
            await super().receive(message)

    await store.append(*map(stored, range(1, 5)))
    policy = OneForOne(default=Decision.RESUME)
    async with system(store, supervision=policy) as running:
        ref = running.spawn(Careless, log)
        await running.persistence.ask(Subscribe(ref, types=["Added"]))
        await log.until_numbers(1, 3, 4)


async def test_nothing_comes_once_unsubscribe_is_answered(
    log: Log, store: InMemoryPersistence
) -> None:
    await store.append(*map(stored, range(1, 101)))
    may = anyio.Semaphore(0)
    async with system(store) as running:
        slow = running.spawn(Slow, log, may)
        subscribed = await running.persistence.ask(Subscribe(slow))
        may.release()
        await log.until_numbers(1)
        for _ in range(2):  # the second time it is none any more
            await running.persistence.ask(Unsubscribe(subscribed.subscription))
        for _ in range(200):
            may.release()
        await running.backend.append(stored(101))
        await wait_until_idle()
        assert log.numbers in ([1], [1, 2])  # the second was at hand


async def test_what_waits_for_an_actor_that_stops_is_no_dead_letter(
    log: Log, store: InMemoryPersistence
) -> None:
    class Quits(Listener):
        async def receive(self, message: Any) -> None:
            await super().receive(message)
            self.context.stop()

    await store.append(*map(stored, range(1, 101)))
    async with system(store) as running:
        quits, drains = running.spawn(Quits, log), running.spawn(Listener, Log())
        for ref in (quits, drains):
            await running.persistence.ask(Subscribe(ref, types=["Added"]))
        await log.until_numbers(1)
        await drains.stop()
        await wait_until_idle()
        assert not quits.is_alive
        assert log.numbers == [1]
        stopped = [e for e in await store.list_events() if e.event_type == "ActorStopped"]
    assert {e.payload["unhandled"] for e in stopped} == {0}
    assert [letter async for letter in store.stream("dead_letter")] == []


async def test_the_subscription_of_an_entity_ends_when_it_falls_asleep(
    store: InMemoryPersistence,
) -> None:
    logs: list[Log] = []

    class Reader(Listener):
        def __init__(self) -> None:
            super().__init__(Log())
            logs.append(self.log)

        async def receive(self, message: Any) -> None:
            if message == "subscribe":
                await self.context.persistence.ask(Subscribe(self.context.self_ref))
            if message == "sleep":
                self.context.passivate()
            await super().receive(message)

    await store.append(*map(stored, range(1, 101)))
    async with system(store) as running:
        reader = running.entity(Reader, "a")
        await reader.ask("subscribe")
        await logs[0].until_numbers(*range(1, 101))
        await reader.ask("sleep")
        await running.backend.append(stored(101))
        await wait_until_idle()
        assert logs[0].numbers == [*range(1, 101)]
        await reader.ask("hello")
        await wait_until_idle()
        assert logs[1].items == ["hello"]
        await reader.stop()
        with pytest.raises(ActorStopped, match="asleep"):
            await running.persistence.ask(Subscribe(reader))


async def test_an_event_that_cannot_be_decoded_ends_it_with_the_error(
    log: Log, store: InMemoryPersistence, caplog: pytest.LogCaptureFixture
) -> None:
    bad = msgspec.structs.replace(
        stored(1), event_type="Counted", payload={"by": "many"}, revision=1
    )
    await store.append(bad)
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        with caplog.at_level(logging.ERROR, "papyra"):
            subscribed = await running.persistence.ask(Subscribe(listener, types=[Counted]))
            ended = await log.until_ended()
        assert ended.subscription == subscribed.subscription
        assert isinstance(ended.error, InvalidEvent)
        assert "s/Listener" in caplog.text


async def test_a_position_after_the_end_ends_it_with_the_error(
    log: Log, store: InMemoryPersistence
) -> None:
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        await running.persistence.ask(Subscribe(listener, after=1000))
        assert isinstance((await log.until_ended()).error, StoreReplaced)


async def test_it_ends_without_an_error_when_the_persistence_actor_stops(
    log: Log, store: InMemoryPersistence
) -> None:
    async with system(InMemoryPersistence()) as running:
        other = running.spawn(PersistenceActor, store)
        listener = running.spawn(Listener, log)
        await other.ask(Subscribe(listener))
        await log.until(CaughtUp(0))
        await other.stop()
        assert (await log.until_ended()).error is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("moment", ["at the end", "in the past"])
async def test_an_actor_is_told_that_a_subscription_has_ended_whose_task_somebody_cancels(
    moment: str, log: Log, store: InMemoryPersistence
) -> None:
    for number in range(1, 1001):
        await store.append(stored(number))
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        subscribed = await running.persistence.ask(Subscribe(listener))
        if moment == "at the end":
            await wait_until_idle()
        (task,) = [each for each in asyncio.all_tasks() if each.get_name().endswith("is fed")]
        task.cancel()
        assert await log.until_ended() == SubscriptionEnded(subscribed.subscription, None)
        assert log.numbers == [*range(1, len(log.numbers) + 1)]
        again = await running.persistence.ask(Subscribe(listener, after=len(log.numbers)))
        await running.backend.append(stored(1001))
        await wait_until_idle()
        assert log.numbers == [*range(1, 1002)]
        assert again.subscription != subscribed.subscription


async def test_an_actor_with_no_use_for_dead_letters_does_not_get_one_for_each_of_them(
    log: Log, store: InMemoryPersistence
) -> None:
    class Refuses(Listener):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, SubscriptionEnded):
                return await super().receive(message)
            return self.unhandled(message)

    async with system(store) as running:
        refuses = running.spawn(Refuses, log)
        await running.persistence.ask(Subscribe(refuses, kinds=("dead_letter",)))
        await refuses.tell("hello")
        ended = await log.until_ended()
        assert "does not handle PersistedDeadLetter" in str(ended.error)
        await wait_until_idle()
    letters = [letter async for letter in store.stream("dead_letter")]
    assert [letter.message_type for letter in letters if isinstance(letter, PersistedDeadLetter)][
        -1
    ] == "PersistedDeadLetter"
    assert len(letters) <= 4


async def test_many_actors_follow_one_store(store: InMemoryPersistence) -> None:
    logs = [Log() for _ in range(50 if CI else 10)]
    async with system(store) as running:
        for each in logs:
            running.spawn(Follower, each, [0], types=["Added"])
        for number in range(1, 21):
            await running.backend.append(stored(number))
        for each in logs:
            await each.until_numbers(*range(1, 21))


async def test_told_it_subscribes_as_well(log: Log, store: InMemoryPersistence) -> None:
    await store.append(stored(1))
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        await running.persistence.tell(Subscribe(listener))
        await running.persistence.tell(Subscribe(listener, after=-1))  # refused, and logged
        await log.until_numbers(1)


class Bad:
    """An iterable of a user's, which fails."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no types today")

    def __repr__(self) -> str:
        return "Bad"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"after": -1}, InvalidRequest),
        ({"kinds": ("events",)}, InvalidRequest),
        ({"kinds": 3}, InvalidRequest),
        ({"types": "Added"}, InvalidRequest),
        ({"types": Bad()}, InvalidRequest),
        ({"types": [int]}, InvalidSchema),
        ({"types": ["Added"], "kinds": ("audit",)}, InvalidRequest),
        ({"actor": 3}, InvalidRequest),
        ({"entity": "Counter"}, InvalidRequest),
        ({"actor": "s/a", "kinds": KINDS}, InvalidRequest),
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused_and_harms_nobody(
    options: dict[str, Any], error: type[Exception], log: Log, store: InMemoryPersistence
) -> None:
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        with pytest.raises(error):
            await running.persistence.ask(Subscribe(listener, **options))
        with pytest.raises(InvalidRequest):
            await running.persistence.ask(Subscribe("s/Listener"))  # type: ignore[arg-type]
        await listener.stop()
        with pytest.raises(ActorStopped):
            await running.persistence.ask(Subscribe(listener))
        await running.backend.append(stored(1))
    crashed = [e for e in await store.list_events() if e.event_type == "ActorCrashed"]
    assert crashed == []


async def test_a_system_stops_in_order_while_an_actor_has_much_to_follow(
    log: Log, store: InMemoryPersistence
) -> None:
    await store.append(*map(stored, range(1, 10_001)))
    with anyio.fail_after(60):
        async with system(store) as running:
            running.spawn(Follower, log, [0], types=["Added"])
            while not log.numbers:
                await checkpoint()
    assert log.numbers == [*range(1, len(log.numbers) + 1)]
    assert [letter async for letter in store.stream("dead_letter")] == []


async def test_records_of_all_kinds_come_in_the_order_of_their_positions(
    log: Log, store: InMemoryPersistence
) -> None:
    audit = PersistedAudit("s", {"n": 1}, 1.0)
    letter = PersistedDeadLetter("s", "s/a", "int", 1, False, 1.0)
    await store.append(letter, stored(1), audit)
    async with system(store) as running:
        listener = running.spawn(Listener, log)
        await running.persistence.ask(Subscribe(listener, kinds=KINDS))
        await wait_until_idle()
        kinds = [type(item) for item in log.items[:3]]
        assert kinds == [PersistedDeadLetter, PersistedEvent, PersistedAudit]
