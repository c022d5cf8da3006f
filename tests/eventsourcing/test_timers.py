"""A durable timer brings its message at its time, whatever happens until then."""

from __future__ import annotations

import logging
import sys
import zoneinfo
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import anyio
import msgspec
import pytest

from papyra import ActorSystem, Decision, OneForOne
from papyra.eventsourcing import Timer, occurrences
from papyra.exceptions import (
    InvalidActor,
    InvalidPolicy,
    InvalidSchema,
    InvalidTimer,
    RecordTooLarge,
    WrongTask,
)
from papyra.persistence import (
    FireTimer,
    LoadSnapshot,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    ReadAll,
)
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.records import KINDS
from papyra.persistence.timer_operations import pending_timers
from papyra.testing import FaultyPersistence, ManualClock, wait_until_idle
from papyra.testing.fault_rules import InjectedFault
from tests.eventsourcing.accounts import Account, Deposit
from tests.eventsourcing.orders import Cancel, Do, KeptOrder, Look, Order, Remind, Set

pytestmark = pytest.mark.anyio

NOW = 1_000_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@asynccontextmanager
async def shop(
    store: PersistenceBackend, clock: ManualClock, seen: list[Any] | None = None, **options: Any
) -> AsyncIterator[ActorSystem]:
    system = ActorSystem("shop", persistence=store, clock=clock, audit_interval=None, **options)
    system.entities.register(Order, seen)
    async with system:
        yield system


async def history(store: PersistenceBackend, actor: str = "shop/Order/1") -> list[str]:
    """Return what happened to an actor, in short."""
    events = (await store.read_history(actor)).events
    return [
        event.payload.get("text") or f"{event.payload['change']} {event.payload['name']}"
        for event in events
    ]


# Set and fire


async def test_a_timer_comes_at_its_time(clock: ManualClock) -> None:
    async with shop(InMemoryPersistence(), clock) as system:
        order = system.entity(Order, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("pay")))
        await clock.advance(59)
        assert await order.ask(Look()) == ()
        await clock.advance(1)
        assert await order.ask(Look()) == ("pay",)
        assert len(system.timers) == 0


@pytest.mark.parametrize(
    "when",
    [
        {"at": NOW + 60},
        {"at": datetime.fromtimestamp(NOW + 60, UTC)},
        {"after": 60},
        {"every": 60},
        {"cron": "47 1 * * *"},  # it is 01:46:40
    ],
    ids=lambda when: next(iter(when)),
)
async def test_each_way_to_say_when_wakes_the_entity_after_a_restart(
    when: dict[str, Any], clock: ManualClock
) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        await system.entity(Order, "1").ask(Set("pay", when, message=Remind("pay")))
    async with shop(store, clock) as system:
        await clock.advance(60)
        assert [each.id for each in system.entities] == ["1"]
        assert await system.entity(Order, "1").ask(Look()) == ("pay",)


async def test_a_passivated_entity_wakes_for_its_timer(clock: ManualClock) -> None:
    async with shop(InMemoryPersistence(), clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Remind("pay")))
        await system.entity(Order, "1").stop()
        assert len(system.entities) == 0
        await clock.advance(60)
        assert await system.entity(Order, "1").ask(Look()) == ("pay",)


async def test_a_timer_is_part_of_the_append_of_its_command(clock: ManualClock) -> None:
    store = InMemoryPersistence()
    batches: list[list[str]] = []
    store.watch_commits(
        lambda batch: batches.append(
            [
                each.event_type
                for each in batch.records
                if isinstance(each, PersistedEvent)
                and (each.actor_address, bool(each.revision)) == ("shop/Order/1", True)
            ]
        )
    )
    async with shop(store, clock) as system:
        order = system.entity(Order, "1")
        assert await order.ask(Set("pay", {"after": 60}, text="ordered")) == 2
        assert await order.ask(Cancel("pay", text="paid")) == 4
    assert [each for each in batches if "Noted" in each] == [["Noted", "papyra.timer"]] * 2
    assert await history(store) == ["ordered", "scheduled pay", "paid", "unscheduled pay"]


async def test_an_append_that_fails_schedules_nothing(clock: ManualClock) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with shop(store, clock) as system:
        order = system.entity(Order, "1")
        await order.ask(Set("first", {"after": 30}, text="first"))
        await wait_until_idle()
        store.fail_next("append")
        with pytest.raises(InjectedFault):
            await order.ask(Set("pay", {"after": 60}, text="ordered"))
        assert set(await order.ask(())) == {"first"}
        assert [each.name for each in system.timers] == ["first"]


async def test_what_is_scheduled_again_under_its_name_is_replaced(clock: ManualClock) -> None:
    async with shop(InMemoryPersistence(), clock) as system:
        order = system.entity(Order, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("early")))
        await order.ask(Set("pay", {"after": 90}, message=Remind("late")))
        await clock.advance(60)
        assert await order.ask(Look()) == ()
        await clock.advance(30)
        assert await order.ask(Look()) == ("late",)


@pytest.mark.parametrize("how", ["replaced", "taken back"])
async def test_a_stale_timer_never_reaches_receive_even_from_the_mailbox(
    how: str, clock: ManualClock
) -> None:
    class Slow(Order):
        entity_name = "Slow"

        async def receive(self, message: Any) -> Any:
            if not isinstance(message, tuple):
                return await super().receive(message)
            entered, release = message
            entered.set()
            await release.wait()
            if how == "replaced":
                await self.schedule("pay", Remind("late"), after=30)
            else:
                await self.unschedule("pay")
            return None

    async with shop(InMemoryPersistence(), clock) as system:
        order = system.entity(Slow, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("early")))
        entered, release = anyio.Event(), anyio.Event()
        await order.tell((entered, release))
        await entered.wait()
        await clock.advance(60)
        mailbox = system._entities.awake["Slow/1"].cell.mailbox  # type: ignore[union-attr]
        assert len(mailbox) == 1
        release.set()
        assert await order.ask(Look()) == ()
        await clock.advance(30)
        assert await order.ask(Look()) == (("late",) if how == "replaced" else ())


async def test_a_time_that_is_past_is_due_at_once(clock: ManualClock) -> None:
    async with shop(InMemoryPersistence(), clock) as system:
        order = system.entity(Order, "1")
        await order.ask(Set("pay", {"at": NOW - 1e6}, message=Remind("pay")))
        await wait_until_idle()
        assert await order.ask(Look()) == ("pay",)


# What receive sees, and what is noted


async def test_receive_sees_the_occurrence_and_its_id_is_the_same_each_time(
    clock: ManualClock,
) -> None:
    seen: list[Any] = []
    async with shop(InMemoryPersistence(), clock, seen) as system:
        order = system.entity(Order, "1")
        await order.ask(Set("pay", {"after": 60}, message=Do("raise")))
        await clock.advance(60 + 2 + 4)
        assert [(each.name, each.due, each.attempt) for each in seen] == [
            ("pay", NOW + 60, 1),
            ("pay", NOW + 60, 2),
            ("pay", NOW + 60, 3),
        ]
        assert len({each.id for each in seen}) == 1
        await order.ask(Do("nothing"))
        assert seen[-1] is None


async def test_two_occurrences_have_two_ids(clock: ManualClock) -> None:
    seen: list[Any] = []
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("tick", {"every": 60}))
        await system.entity(Order, "2").ask(Set("tick", {"every": 60}))
        await clock.advance(120)
        assert len(seen) == len({each.id for each in seen}) == 4


async def test_the_note_goes_with_the_first_persist(clock: ManualClock) -> None:
    store = InMemoryPersistence()
    batches: list[list[str]] = []
    async with shop(store, clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Remind("pay")))
        store.watch_commits(
            lambda batch: batches.append(
                [getattr(each, "event_type", "") for each in batch.records]
            )
        )
        await clock.advance(60)
    assert ["Noted", "papyra.timer"] in batches
    assert await history(store) == ["scheduled pay", "pay", "fired pay"]


@pytest.mark.parametrize(
    ("what", "noted"),
    [
        ("nothing", ["fired pay"]),
        ("unhandled", ["fired pay"]),
        ("nowait", ["nowait", "fired pay"]),
        ("persist and raise", ["persist and raise", "fired pay"]),
        ("once more", ["fired pay", "scheduled again"]),
    ],
)
async def test_the_note_is_stored_once(what: str, noted: list[str], clock: ManualClock) -> None:
    store, seen = InMemoryPersistence(), list[Any]()
    async with shop(store, clock, seen) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Do(what)))
        await clock.advance(60)
        assert await history(store) == ["scheduled pay", *noted]
        assert len(seen) == 1


@pytest.mark.parametrize("what", ["raise", "refuse"])
async def test_what_fails_comes_again_and_then_is_a_dead_letter(
    what: str, clock: ManualClock
) -> None:
    store, seen = InMemoryPersistence(), list[Any]()
    async with shop(store, clock, seen) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Do(what)))
        await clock.advance(60)
        assert len(seen) == 1
        assert [each.attempts for each in system.timers] == [1]
        await clock.advance(2)
        assert len(seen) == 2
        await clock.advance(3.9)
        assert len(seen) == 2
        await clock.advance(0.1)
        assert len(seen) == 3
        assert len(system.timers) == 0
        metrics = system.timers.metrics()
        assert (metrics.failed, metrics.given_up, metrics.fired) == (3, 1, 0)
        await clock.advance(1e6)
        assert len(seen) == 3
        letters = [
            each
            async for each in store.stream("dead_letter")
            if isinstance(each, PersistedDeadLetter)
        ]
    (letter,) = letters
    assert (letter.target, letter.message_type) == ("shop/Order/1", "Do")
    assert letter.payload == {
        "timer": "pay",
        "occurrence": seen[0].id,
        "attempts": 3,
        "error": "ValueError: not today",
        "message": {"what": what},
    }
    assert await history(store) == ["scheduled pay", *["failed pay"] * 2, "fired pay"]


async def test_a_message_too_large_for_a_dead_letter_is_left_out_of_it(clock: ManualClock) -> None:
    memory = InMemoryPersistence()
    store = FaultyPersistence(memory)
    store.reject(
        lambda record: isinstance(record, PersistedDeadLetter) and record.payload["message"],
        error=RecordTooLarge("with what is said about it, it has more than 64 MiB"),
        times=None,
    )
    async with shop(store, clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Do("raise")))
        for _ in range(3):
            await clock.advance(60)
        assert len(system.timers) == 0
    (letter,) = memory.dead_letters
    assert letter.payload["message"] is None
    assert (letter.message_type, letter.payload["attempts"]) == ("Do", 3)


async def test_failures_are_counted_across_restarts(clock: ManualClock) -> None:
    store, seen = InMemoryPersistence(), list[Any]()
    async with shop(store, clock, seen) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Do("raise")))
        await clock.advance(60)
    for _ in range(2):
        async with shop(store, clock, seen) as system:
            await clock.advance(4)
    assert [each.attempt for each in seen] == [1, 2, 3]


async def test_a_recurring_timer_that_is_given_up_goes_on_with_its_next_time(
    clock: ManualClock,
) -> None:
    seen: list[Any] = []
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("tick", {"every": 60}, message=Do("raise")))
        await clock.advance(119)
        assert [each.due - NOW for each in seen] == [60, 60, 60]
        await clock.advance(1)
        assert [each.due - NOW for each in seen] == [60, 60, 60, 120]


@pytest.mark.parametrize("missing", ["time zone", "cronsim"])
async def test_a_timer_whose_next_time_is_not_known_waits_until_it_is(
    missing: str,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, seen = InMemoryPersistence(), list[Any]()
    when = {"cron": "47 2 * * *", "tz": "Europe/London"}  # it is 02:46:40 there
    async with shop(store, clock, seen) as system:
        await system.entity(Order, "1").ask(Set("pay", when, message=Remind("pay")))
    with monkeypatch.context() as patch:
        occurrences.zone.cache_clear()
        if missing == "cronsim":
            patch.setitem(sys.modules, "cronsim", None)
        else:
            patch.setattr("zoneinfo.ZoneInfo", _no_such_zone)
        async with shop(store, clock, seen) as system:
            await clock.advance(20)
            await clock.advance(5_000)
            assert await system.entity(Order, "1").ask(Look()) == ()
            assert [each.name for each in system.timers] == ["pay"]
    occurrences.zone.cache_clear()
    assert seen == []
    assert [each async for each in store.stream("dead_letter")] == []
    assert "waits, and is looked at again" in caplog.text
    async with shop(store, clock, seen) as system:
        await clock.advance(600)
        assert await system.entity(Order, "1").ask(Look()) == ("pay",)
        (timer,) = system.timers
        assert (timer.attempts, timer.due) == (0, NOW + 20 + 86_400)


def _no_such_zone(name: str) -> NoReturn:
    raise zoneinfo.ZoneInfoNotFoundError(name)


async def test_a_store_that_fails_loses_no_timer(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with shop(store, clock) as system:
        order = system.entity(Order, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("pay")))
        await wait_until_idle()
        store.fail_when(lambda operation: operation.name == "append")
        await clock.advance(600)
        store.clear()
        assert len(system.timers) == 1
        await clock.advance(120)
        assert await order.ask(Look()) == ("pay",)
    assert "could not be handled" in caplog.text


# Who is woken


async def test_due_timers_of_a_class_that_nobody_knows_are_a_warning_and_wait(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        for number in range(3):
            await system.entity(Order, f"ü/{number}").ask(
                Set("pay", {"after": 60}, message=Remind("pay"))
            )
    async with ActorSystem("shop", persistence=store, clock=clock) as system:
        await clock.advance(59)
        assert "entities=[...]" not in caplog.text
        await clock.advance(1)
        assert caplog.text.count("entities=[...]") == 1
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert len(system.timers) == 3
        assert system.timers.metrics().due == 3
        assert await system.entity(Order, "other").ask(Look()) == ()
        await wait_until_idle()
        assert len(system.timers) == 0
        for number in range(3):
            assert await system.entity(Order, f"ü/{number}").ask(Look()) == ("pay",)


async def test_entities_names_the_classes_that_may_be_woken(clock: ManualClock) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Remind("pay")))
    async with ActorSystem("shop", persistence=store, clock=clock, entities=[Order]) as system:
        await clock.advance(60)
        assert len(system.entities) == 1
    with pytest.raises(InvalidActor):
        ActorSystem("shop", entities=[str])  # type: ignore[list-item]


async def test_a_spawned_actor_gets_its_timers_while_it_lives_and_when_it_is_back(
    clock: ManualClock,
) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        order = system.spawn(Order, name="night")
        for after in (60, 120):
            await order.ask(Set(f"in {after}", {"after": after}, message=Remind(str(after))))
        await clock.advance(60)
        assert await order.ask(Look()) == ("60",)
        await order.stop()
        await clock.advance(60)
        assert len(system.timers) == 1
        order = system.spawn(Order, name="night")
        await wait_until_idle()
        assert await order.ask(Look()) == ("60", "120")
    async with shop(store, clock) as system:
        assert await system.spawn(Order, name="night").ask(Look()) == ("60", "120")


async def test_an_actor_of_many_timers_gets_them_one_after_the_other_between_its_messages(
    clock: ManualClock,
) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        order = system.entity(Order, "1")
        for number in range(50):
            when = {"at": NOW + 60 + number / 1000}
            await order.ask(Set(f"t{number}", when, message=Remind(str(number))))
        mailbox = system._entities.awake["Order/1"].cell.mailbox  # type: ignore[union-attr]
        most = 0

        def look(_: object) -> None:
            nonlocal most
            most = max(most, len(mailbox))

        store.watch_commits(look)
        await clock.advance(61)
        assert await order.ask(Look()) == tuple(map(str, range(50)))
        assert most <= 1


# What else holds timers: snapshots, bases, the index


async def test_timers_are_part_of_the_snapshot(clock: ManualClock) -> None:
    store = InMemoryPersistence()
    async with ActorSystem("shop", persistence=store, clock=clock) as system:
        order = system.entity(KeptOrder, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("pay")))
        for number in range(10):
            await order.ask(Set(f"other {number}", {"after": 1e6}))
            await order.ask(Cancel(f"other {number}"))
    assert (await store.load_snapshot("shop/Order/1")).snapshot
    async with ActorSystem("shop", persistence=store, clock=clock, entities=[KeptOrder]) as system:
        assert set(await system.entity(KeptOrder, "1").ask(())) == {"pay"}
        await clock.advance(60)
        assert await system.entity(KeptOrder, "1").ask(Look()) == ("pay",)


async def test_timers_outlive_the_events_that_set_them(clock: ManualClock, tmp_path: Any) -> None:
    path = tmp_path / "shop.ndjson"
    async with ActorSystem(
        "shop", persistence=JsonFilePersistence(path, fsync="no"), clock=clock
    ) as system:
        order = system.entity(KeptOrder, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("pay")))
        for number in range(40):
            await order.ask(Set("other", {"after": 1e6}, text=str(number)))
        await system.backend.compact(RetentionPolicy(max_records=1, trim_histories=True))
        first = (await system.backend.read_history("shop/Order/1", limit=1)).events[0]
        assert first.event_type == "papyra.base"
    for index in (tmp_path / "shop.ndjson.snapshots").glob("**/*"):
        if index.is_file():
            index.unlink()  # so it is made from what is stored
    async with ActorSystem(
        "shop",
        persistence=JsonFilePersistence(path, fsync="no"),
        clock=clock,
        entities=[KeptOrder],
    ) as system:
        await clock.advance(60)
        with anyio.fail_after(60):
            while [each.name for each in system.timers] != ["other"]:
                await system.backend.flush()  # behind what the index has asked the store
        assert (await system.entity(KeptOrder, "1").ask(Look()))[-1] == "pay"


# Bad input


class Unknown(msgspec.Struct):
    pass


class Cell(msgspec.Struct):
    value: Any


@pytest.mark.parametrize(
    ("when", "why"),
    [
        ({}, "at, after, every, cron says when, not none of them"),
        ({"at": NOW, "after": 1}, "not at and after"),
        ({"at": datetime(2030, 1, 1)}, "only with a time zone"),
        ({"at": "tomorrow"}, "aware datetime"),
        ({"at": float("nan")}, "aware datetime"),
        ({"at": 1e12}, "no date"),
        ({"after": -1}, "0 or more"),
        ({"after": True}, "0 or more"),
        ({"after": float("inf")}, "0 or more"),
        ({"every": 0}, "0.001 or more"),
        ({"every": 1, "tz": "UTC"}, "there is none"),
        ({"cron": "every day"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"cron": 5}, "cron is text"),
        ({"cron": "* " * 1_000}, "cron is text"),
        ({"cron": "0 0 * * *", "tz": "Europe/Atlantis"}, "no time zone"),
        ({"cron": "0 0 * * *", "tz": "../../etc/passwd"}, "no time zone"),
        ({"cron": "0 0 * * *", "tz": 5}, "no time zone"),
        ({"after": 1, "missed": "never"}, "missed is once, all, skip"),
    ],
)
async def test_a_time_that_makes_no_sense_is_refused_and_nothing_is_stored(
    when: dict[str, Any], why: str, clock: ManualClock
) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        order = system.spawn(Order, name="1")
        with pytest.raises(InvalidTimer, match=why):
            await order.ask(Set("pay", when, text="ordered"))
    assert await history(store, "shop/1") == []


@pytest.mark.parametrize(
    "name", ["", "n" * 1_024, 5, None, "\ud800"], ids=["empty", "1 kB", "number", "none", "half"]
)
async def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(InvalidTimer, match="name"):
        Timer(name, Remind(), after=1)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Unknown(), "timer_messages, which names Do, Remind"),
        ("text", "timer_messages"),
        (Remind(5), "can't be scheduled"),  # type: ignore[arg-type]
    ],
)
async def test_a_message_that_could_not_be_brought_is_refused(
    message: Any, why: str, clock: ManualClock
) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        with pytest.raises(InvalidTimer, match=why):
            await system.entity(Order, "1").ask(Set("pay", {"after": 1}, "ordered", message))
    assert await history(store) == []


def test_a_type_of_messages_that_could_not_be_read_back_is_refused_with_its_class() -> None:
    class Odd(msgspec.Struct):
        value: complex

    with pytest.raises(InvalidSchema, match="Odd"):

        class WithOdd(Order):
            timer_messages = (Odd,)

    with pytest.raises(InvalidSchema, match="timer_messages holds"):

        class WithText(Order):
            timer_messages = (str,)

    with pytest.raises(InvalidSchema, match="tuple of classes"):

        class WithOne(Order):
            timer_messages = Remind  # type: ignore[assignment]

    with pytest.raises(InvalidPolicy, match="timer_retry"):

        class WithTimes(Order):
            timer_retry = 3  # type: ignore[assignment]


async def test_what_is_stored_and_can_not_be_read_any_more_becomes_a_dead_letter(
    clock: ManualClock,
) -> None:
    class Newer(Order):
        entity_name = "Order"
        timer_messages = (Remind,)

    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Do("nothing")))
    async with ActorSystem("shop", persistence=store, clock=clock, entities=[Newer]) as system:
        await clock.advance(60 + 2 + 4)
        assert len(system.timers) == 0
        (letter,) = [each async for each in store.stream("dead_letter")]
        assert isinstance(letter, PersistedDeadLetter)
        assert letter.payload["message"] == {"what": "nothing"}
        assert "Do" in letter.payload["error"]


async def test_timers_are_set_in_the_actors_own_task(clock: ManualClock) -> None:
    class Other(Order):
        entity_name = "Other"

        async def receive(self, message: Any) -> Any:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.set_it)

        async def set_it(self) -> None:
            with pytest.raises(WrongTask):
                await self.schedule("pay", Remind(), after=1)

    async with shop(InMemoryPersistence(), clock) as system:
        await system.entity(Other, "1").ask("go")


async def test_to_take_back_what_is_not_pending_stores_nothing(clock: ManualClock) -> None:
    store = InMemoryPersistence()
    async with shop(store, clock) as system:
        assert await system.entity(Order, "1").ask(Cancel("pay")) == 0
    assert await history(store) == []


async def test_what_a_timer_brings_to_an_actor_that_stops_is_no_dead_letter_and_comes_again(
    clock: ManualClock,
) -> None:
    class Fragile(Order):
        entity_name = "Fragile"
        supervision = OneForOne(default=Decision.STOP)

        async def receive(self, message: Any) -> Any:
            if not isinstance(message, tuple):
                return await super().receive(message)
            entered, release = message
            entered.set()
            await release.wait()
            raise ValueError

    store = InMemoryPersistence()
    async with shop(store, clock, supervision=OneForOne(default=Decision.STOP)) as system:
        order = system.entity(Fragile, "1")
        await order.ask(Set("pay", {"after": 60}, message=Remind("pay")))
        entered, release = anyio.Event(), anyio.Event()
        await order.tell((entered, release))
        await entered.wait()
        await clock.advance(60)
        release.set()
        await clock.advance(10)
        assert await order.ask(Look()) == ("pay",)
        assert [each async for each in store.stream("dead_letter")] == []


# The index


class Counting(InMemoryPersistence):
    """Counts the records that are read to follow it, and the looks for a snapshot."""

    followed = loaded = 0

    async def execute(self, request: Any) -> Any:
        reply = await super().execute(request)
        if isinstance(request, ReadAll):
            self.followed += len(reply.records)
        self.loaded += isinstance(request, LoadSnapshot)
        return reply


async def test_a_start_reads_what_came_after_the_checkpoint_and_nothing_else(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papyra._runtime.timer_checkpoint.SAVE_EVERY", 50)
    store = Counting()
    async with shop(store, clock) as system:
        for number in range(200):
            order = system.entity(Order, str(number % 10))
            await order.ask(Set("pay", {"after": 60 + number}, message=Remind("pay")))
        await wait_until_idle()
    store.followed = 0
    async with shop(store, clock) as system:
        await system.entity(Order, "1").ask(Look())
        await wait_until_idle()
        assert len(system.timers) == 10
        assert 0 < store.followed < 120
        await clock.advance(1_000)
        assert len(system.timers) == 0


@pytest.mark.parametrize("how", ["missing", "damaged", "of nobody"])
async def test_the_index_is_made_anew_where_its_checkpoint_can_not_be_believed(
    how: str, clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "shop.ndjson"
    async with shop(JsonFilePersistence(path, fsync="no"), clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Remind("pay")))
        with anyio.fail_after(60):
            while not (await system.backend.load_snapshot("shop/$timers")).snapshot:
                await system.backend.flush()  # behind what the index has asked the store
    files = [each for each in tmp_path.rglob("*") if each.is_file() and ".snapshots" in str(each)]
    assert files
    for file in files:
        match how:
            case "missing":
                file.unlink()
            case "damaged":
                file.write_bytes(file.read_bytes()[:-20])
            case _:
                file.write_bytes(b"")
    async with shop(JsonFilePersistence(path, fsync="no"), clock, entities=()) as system:
        with anyio.fail_after(60):
            while not len(system.timers):
                await system.backend.flush()
        await clock.advance(60)
        with anyio.fail_after(60):
            while len(system.timers):
                await system.backend.flush()
        assert await system.entity(Order, "1").ask(Look()) == ("pay",)


class Slow(InMemoryPersistence):
    """Keeps back the checkpoint of the index until the last audit is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = anyio.Event(), anyio.Event()
        self.watch_commits(self.saw)

    def saw(self, batch: Any) -> None:
        if any(isinstance(record, PersistedAudit) for record in batch.records):
            self.answers.set()

    async def execute(self, request: Any) -> Any:
        reply = await super().execute(request)
        if isinstance(request, LoadSnapshot):
            self.asked.set()
            await self.answers.wait()
        return reply


async def test_a_system_stops_whose_index_of_timers_is_still_being_loaded(
    clock: ManualClock,
) -> None:
    store = Slow()
    with anyio.fail_after(10):
        async with shop(store, clock):
            await store.asked.wait()
    assert store.answers.is_set()


class Weighed(InMemoryPersistence):
    """Counts all records that are read."""

    weight = 0

    async def execute(self, request: Any) -> Any:
        reply = await super().execute(request)
        self.weight += len(getattr(reply, "records", ())) + len(getattr(reply, "events", ()))
        return reply


async def found_in(store: PersistenceBackend) -> list[tuple[str, Any]]:
    async with store:
        return sorted([each async for each in pending_timers(store)], key=repr)


async def as_in_the_whole(store: PersistenceBackend) -> list[tuple[str, Any]]:
    """Return the timers of the same records without any checkpoint."""
    whole = InMemoryPersistence()
    async with store:
        for kind in KINDS:
            await whole.restore(*[record async for record in store.stream(kind)])
    return await found_in(whole)


async def set_all_kinds_of_timers(clock: ManualClock, system: ActorSystem, name: str) -> None:
    order = system.entity(Order, name).ask
    await order(Set("plain", {"after": 600}, "ordered", Remind("plain")))
    await order(Set("replaced", {"after": 600}, None, Remind("old")))
    await order(Set("replaced", {"after": 700}, None, Remind("new")))
    await order(Set("again", {"every": 1}, None, Remind("again")))
    await order(Set("bad", {"after": 1}, None, Do("raise")))
    await order(Set("over", {"after": 1}, None, Remind("over")))
    await order(Set("gone", {"after": 600}))
    await order(Set("early", {"every": 5_000}))
    await order(Cancel("gone"))
    await clock.advance(1)
    await system.persistence.ask(FireTimer(f"shop/Order/{name}", "early"))
    await wait_until_idle()


async def test_who_looks_for_pending_timers_reads_what_came_after_the_checkpoint_and_these(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papyra._runtime.timer_checkpoint.READ_AT_MOST", 200)
    store = Weighed()
    async with shop(store, clock) as system:
        await set_all_kinds_of_timers(clock, system, "1")
        account = system.spawn(Account, name="ann")
        for number in range(3_000):
            await account.ask(Deposit(1))
            if number % 100 == 0:
                await wait_until_idle()
        await set_all_kinds_of_timers(clock, system, "2")
    store.weight = 0
    found = await found_in(store)
    assert store.weight < 400
    assert found == await as_in_the_whole(store)
    names = [(actor[-1], timer.name, timer.attempts) for actor, timer in found]
    assert sorted(names) == [
        (number, name, attempts)
        for number in ("1", "2")
        for name, attempts in (
            *(("again", 0), ("bad", 1), ("early", 0)),
            *(("plain", 0), ("replaced", 0)),
        )
    ]


async def test_the_whole_store_is_read_for_timers_where_another_system_has_some(
    clock: ManualClock,
) -> None:
    store = Weighed()
    for name in ("bank", "shop"):
        async with ActorSystem(name, persistence=store, clock=clock, entities=[Order]) as system:
            await system.entity(Order, "1").ask(Set("pay", {"after": 60}))
            await wait_until_idle()
    assert [actor for actor, _ in await found_in(store)] == ["bank/Order/1", "shop/Order/1"]


async def test_a_system_without_timers_reads_nothing_to_follow_them(clock: ManualClock) -> None:
    store = Counting()
    async with ActorSystem("shop", persistence=store, clock=clock) as system:
        await system.spawn(Account, name="ann").ask(Deposit(1))
        await wait_until_idle()
    assert store.loaded == 0  # where nothing was stored yet, there is nothing to look for
    async with ActorSystem("shop", persistence=store, clock=clock) as system:
        await system.spawn(Account, name="ann").ask(Deposit(1))
        await wait_until_idle()
        names = [task.name for task in anyio.get_running_tasks()]
        assert "papyra timers" not in names
    assert (store.loaded, store.followed) == (1, 0)


async def test_the_audit_tells_of_timers(clock: ManualClock) -> None:
    async with shop(InMemoryPersistence(), clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Remind("pay")))
        await system.entity(Order, "2").ask(Set("pay", {"after": 600}, message=Remind("pay")))
        await wait_until_idle()
        await clock.put_wall_clock(90)
        audit = system.audit()
        assert (audit.timers_pending, audit.timers_fired, audit.timers_failed) == (1, 1, 0)
        assert audit.timers_longest_late == 30


async def test_a_copy_of_a_store_has_its_timers(clock: ManualClock, tmp_path: Path) -> None:
    original, copy = tmp_path / "shop.ndjson", tmp_path / "copy.ndjson"
    async with shop(JsonFilePersistence(original, fsync="no"), clock) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60}, message=Remind("pay")))
    await anyio.run_process([sys.executable, "-m", "papyra.cli", "copy", original, copy])
    async with shop(JsonFilePersistence(copy, fsync="no"), clock) as system:
        with anyio.fail_after(60):
            while not len(system.timers):
                await system.backend.flush()
            await clock.advance(60)
            while len(system.timers):
                await system.backend.flush()
        assert await system.entity(Order, "1").ask(Look()) == ("pay",)
