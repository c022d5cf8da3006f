"""When timers come: every, cron in time zones, what was missed, and wall clocks that are moved."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, Timer
from papyra.exceptions import MissingExtra
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock
from tests.eventsourcing.orders import Do, Order, Set
from tests.extent import some

pytestmark = pytest.mark.anyio

NOW = 1_000_000_000.0
DAY = 86_400.0
YEAR = 365 * DAY


@asynccontextmanager
async def shop(
    store: InMemoryPersistence, clock: ManualClock, seen: list[Any]
) -> AsyncIterator[ActorSystem]:
    system = ActorSystem("shop", persistence=store, clock=clock, audit_interval=None)
    system.entities.register(Order, seen)
    async with system:
        yield system


async def seen_by(when: dict[str, Any], *steps: Any, missed: str = "once") -> list[float]:
    """Return when a timer was due that came, in seconds after it was set.

    A step is seconds that pass, or ``"down"``: a day and a half without a system, and a restart.
    """
    clock, store, seen = ManualClock(NOW), InMemoryPersistence(), list[Any]()
    async with shop(store, clock, seen) as system:
        timer = Set("tick", {**when, "missed": missed}, None, Do("nothing"))
        await system.entity(Order, "1").ask(timer)
        for step in steps:
            if isinstance(step, str):
                break
            await clock.advance(step)
    if "down" in steps:
        await clock.advance(1.5 * DAY)
        async with shop(store, clock, seen):
            for step in steps[steps.index("down") + 1 :]:
                await clock.advance(step)
    return [each.due - NOW for each in seen]


# Every


async def test_every_does_not_drift() -> None:
    clock, seen = ManualClock(NOW), list[Any]()
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("tick", {"every": 0.1}, None, Do("nothing")))
        for _ in range(20):
            await clock.advance(1.07)
        due = [each.due for each in seen]
        assert due == [NOW + n * 0.1 for n in range(1, len(due) + 1)]
        assert len(due) == 214


async def test_every_does_not_pile_up_behind_a_slow_actor() -> None:
    begun: list[float] = []

    class Slow(EventSourced[int]):
        timer_messages = (Do,)

        def initial_state(self) -> int:
            return 0

        def apply(self, state: int, event: Any) -> int:
            raise AssertionError

        async def receive(self, message: Any) -> None:
            if isinstance(message, Do):
                begun.append(self.context.clock.time() - NOW)
                await self.context.clock.sleep(25)
            else:
                await self.schedule("tick", Do(""), every=10)

    clock = ManualClock(NOW)
    async with ActorSystem(persistence=InMemoryPersistence(), clock=clock) as system:
        await system.entity(Slow, "1").ask("go")
        await clock.advance(99)
    assert begun == [10, 40, 70]


# What was missed


@pytest.mark.parametrize(
    ("missed", "came"),
    [
        # It is up again after 36 hours, when the next is due at 40.
        ("once", [10, 40, 50]),
        ("all", [10, 20, 30, 40, 50]),
        ("skip", [40, 50]),
    ],
)
async def test_what_was_missed_while_the_system_was_down(missed: str, came: list[int]) -> None:
    hour = 3_600.0
    due = await seen_by({"every": 10 * hour}, "down", 0.0, 14 * hour, missed=missed)
    assert [each / hour for each in due] == came


@pytest.mark.parametrize(("missed", "came"), [("once", 1), ("all", 1), ("skip", 0)])
async def test_what_is_due_once_and_was_missed(missed: str, came: int) -> None:
    assert len(await seen_by({"after": 3_600.0}, "down", 0.0, DAY, missed=missed)) == came


async def test_what_is_late_by_less_than_a_minute_was_not_missed() -> None:
    assert len(await seen_by({"after": 1.5 * DAY - 59}, "down", 0.0, missed="skip")) == 1
    assert len(await seen_by({"after": 1.5 * DAY - 61}, "down", 0.0, missed="skip")) == 0


# Cron


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize(
    ("cron", "count"),
    some([("30 2 * * *", 365), ("15 */6 * * *", 1_460), ("0 9 * * MON", 52)], every=3),
)
async def test_a_year_of_cron_with_both_changes_of_the_clocks(
    zone: str, cron: str, count: int
) -> None:
    start = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone))
    clock, seen = ManualClock(start.timestamp()), list[Any]()
    async with shop(InMemoryPersistence(), clock, seen) as system:
        timer = Set("tick", {"cron": cron, "tz": zone}, None, Do("nothing"))
        await system.entity(Order, "1").ask(timer)
        await clock.advance(YEAR - 1)
    came = [datetime.fromtimestamp(each.due, UTC).astimezone(ZoneInfo(zone)) for each in seen]
    assert came == sorted(set(came))
    offsets = {each.utcoffset() for each in came}
    assert len(offsets) == 2  # both winter and summer
    assert abs(len(came) - count) <= 2
    if cron.startswith("30 2"):
        # Once a day, whether there is no such hour or there are two of them.
        assert len({each.date() for each in came}) == len(came) == 365
        assert {each.strftime("%H:%M") for each in came} <= {"02:30", "03:00", "03:30"}
    if cron.startswith("0 9"):
        assert {each.strftime("%a %H:%M") for each in came} == {"Mon 09:00"}


async def test_cron_without_its_extra_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    async with ActorSystem(persistence=InMemoryPersistence()) as system:
        with pytest.raises(MissingExtra, match="extra 'cron'"):
            await system.entity(Order, "1").ask(Set("tick", {"cron": "0 0 * * *"}))
    assert Timer("tick", Do(""), after=1)  # which needs nothing


# Wall clocks that are moved


@pytest.mark.parametrize("by", [3_600.0, YEAR])
@pytest.mark.parametrize("when", [{"after": 1_800.0}, {"every": 1_800.0}, {"cron": "0 * * * *"}])
async def test_a_clock_put_forward_makes_due_what_lies_between_and_no_more(
    when: dict[str, Any], by: float
) -> None:
    clock, seen = ManualClock(NOW), list[Any]()
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("tick", when, None, Do("nothing")))
        await clock.put_wall_clock(by)
        assert clock.monotonic() == 0
        assert len(seen) == 1
        await clock.advance(3_599)
        assert len(seen) == (1 if "after" in when else 2)


@pytest.mark.parametrize("by", [3_600.0, YEAR])
async def test_a_clock_put_back_repeats_nothing_and_what_is_pending_waits(
    by: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, seen = ManualClock(NOW), list[Any]()
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("tick", {"every": 60.0}, None, Do("nothing")))
        await clock.advance(60)
        await clock.put_wall_clock(-by)
        assert clock.monotonic() == 60
        await clock.advance(by)
        assert [each.due - NOW for each in seen] == [60]
        await clock.advance(60)
        assert [each.due - NOW for each in seen] == [60, 120]
    assert "the wall clock went back" in caplog.text


async def test_a_clock_put_forward_and_back_again_fires_each_once() -> None:
    clock, seen = ManualClock(NOW), list[Any]()
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 60.0}, None, Do("nothing")))
        await clock.put_wall_clock(3_600)
        await clock.put_wall_clock(-3_600)
        await clock.advance(2 * YEAR)
    assert [each.due - NOW for each in seen] == [60]


async def test_a_clock_that_does_not_tell_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(ManualClock):
        move_on_at = None  # type: ignore[assignment]

    clock, seen = Silent(NOW), list[Any]()
    async with shop(InMemoryPersistence(), clock, seen) as system:
        await system.entity(Order, "1").ask(Set("pay", {"after": 3_600.0}, None, Do("nothing")))
        await clock.put_wall_clock(3_600)
        assert seen == []
        await clock.advance(30)
        assert len(seen) == 1
