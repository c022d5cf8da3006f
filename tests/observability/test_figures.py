"""The figures of a system, by the class of its actors."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import anyio
import msgspec
import pytest

from papyra import Actor, ActorSystem, EventSourced
from papyra._runtime.measured_mailbox import MeasuredMailbox
from papyra.class_counters import MAX_CLASSES, OTHER_CLASSES, ClassCounters, CountersByClass
from papyra.eventsourcing import SnapshotPolicy
from papyra.exceptions import AskTimeout, InvalidSetting, MailboxClosed, MailboxFull
from papyra.figures import ClassFigures, Figures
from papyra.mailbox import Mailbox
from papyra.observability.series import families_of
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence, ManualClock, wait_until_idle
from tests.actors import Echo, Gate
from tests.conftest import event_loops
from tests.extent import CI

anyio_backend = event_loops("asyncio")


class Added(msgspec.Struct, frozen=True):
    amount: int


class Account(EventSourced[int]):
    events = (Added,)
    snapshots = SnapshotPolicy(every=2)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Added) -> int:
        return state + event.amount

    async def receive(self, message: int) -> int:
        await self.persist(Added(message))
        return self.state


def of(system: ActorSystem, actor_class: type) -> ClassFigures:
    """Return the figures of one class."""
    name = f"{actor_class.__module__}.{actor_class.__qualname__}"
    (found,) = (each for each in system.figures().classes if each.name == name)
    return found


async def test_figures_count_the_lives_and_the_dead_letters_of_actors_by_their_class() -> None:
    async with ActorSystem("shop") as system:
        first, second = system.spawn(Echo), system.spawn(Echo)
        gate = system.spawn(Gate)
        with pytest.raises(ZeroDivisionError):
            await first.ask(ZeroDivisionError())
        await first.ask("there again")
        await second.stop()
        for _ in range(3):
            await second.tell("too late")
        entered, release = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate.tell, (entered, release))
            await entered.wait()
            with pytest.raises(AskTimeout):
                await gate.ask("handled", timeout=0)
            release.set()
        await gate.ask("handled")
        echo, waiting = of(system, Echo), of(system, Gate)
    assert (echo.actors, echo.started, echo.stopped, echo.crashed) == (1, 2, 1, 1)
    assert (echo.restarted, echo.dead_letters, echo.unclaimed_replies) == (1, 3, 0)
    assert (waiting.actors, waiting.dead_letters, waiting.unclaimed_replies) == (1, 0, 1)
    assert [each.actors for each in system.figures().classes] == [0, 0]


async def test_children_are_counted_by_their_own_class() -> None:
    class Parent(Actor):
        async def on_start(self) -> None:
            for _ in range(3):
                self.context.spawn(Echo)

        async def receive(self, message: object) -> None: ...

    async with ActorSystem() as system:
        await system.spawn(Parent).ask("started?")
        assert (of(system, Parent).actors, of(system, Echo).actors) == (1, 3)


async def test_figures_count_entities_that_are_awake_with_recoveries_and_snapshots() -> None:
    backend = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem(persistence=backend) as system:
        for number in range(5):
            ref = system.entity(Account, str(number))
            for _ in range(2):
                await ref.ask(1)
        await ref.stop()
        backend.fail_next("read", times=2)  # for the snapshot, and for the history
        with pytest.raises(Exception, match="can't be recovered"):
            await ref.ask(1)
        await wait_until_idle()
        account = of(system, Account)
        assert account.snapshots == system.figures().persistence.snapshots_saved == 5
    assert (account.actors, account.entities_awake, account.started) == (5, 5, 6)
    assert (account.recoveries, account.recovery_errors) == (5, 1)
    assert of(system, Account).entities_awake == 0


async def test_a_system_that_measures_counts_messages_and_takes_times_by_its_clock() -> None:
    clock = ManualClock()
    async with ActorSystem(clock=clock, measure=True, audit_interval=None) as system:
        gate = system.spawn(Gate)
        entered, release = anyio.Event(), anyio.Event()
        await gate.tell((entered, release))
        await entered.wait()
        await gate.tell("waits")
        assert of(system, Gate).messages_waiting == 1
        await clock.advance(3)
        release.set()
        await gate.ask("handled")
        await wait_until_idle()
        found = of(system, Gate)
    assert (found.messages_waiting, found.handled) == (0, 3)
    assert found.mailbox_seconds is not None
    assert found.receive_seconds is not None
    assert (found.mailbox_seconds.count, found.mailbox_seconds.total) == (3, 3.0)
    assert (found.receive_seconds.count, found.receive_seconds.total) == (3, 3.0)
    bounds = found.receive_seconds.bounds
    (place,) = (n for n, count in enumerate(found.receive_seconds.counts) if count == 1)
    assert bounds[place - 1] < 3.0 <= bounds[place]


async def test_a_system_that_measures_counts_commits_by_their_size() -> None:
    async with ActorSystem(measure=True, audit_interval=None) as system:
        ref = system.spawn(Echo)
        await ref.ask("started?")
        await system.backend.flush()
        figures = system.figures()
        assert figures.commit_records is not None
        assert figures.commit_seconds is not None
        assert figures.commit_records.count == figures.persistence.commits
        assert figures.commit_records.total == figures.persistence.records_written
        assert figures.commit_seconds.count == figures.commit_records.count


async def test_a_system_that_does_not_measure_has_the_mailboxes_and_handlers_of_always() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Echo)
        await ref.ask("started?")
        echo = of(system, Echo)
        assert type(ref._mailbox) is Mailbox
        assert system.backend._session.commit_counters is None
    assert (echo.messages_waiting, echo.handled) == (None, None)
    assert (echo.mailbox_seconds, echo.receive_seconds) == (None, None)
    assert system.figures().commit_seconds is None


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_measure_is_true_or_false(value: Any) -> None:
    with pytest.raises(InvalidSetting, match="measure is True or False"):
        ActorSystem(measure=value)


def series(figures: Figures) -> int:
    """Return how many series there are."""
    return sum(len(family.series) for family in families_of([figures]))


async def test_ten_thousand_actors_make_no_more_series_than_ten() -> None:
    async with ActorSystem(measure=True) as system:
        for _ in range(10):
            system.spawn(Echo)
        few = system.figures()
        for _ in range(9_990 if CI else 490):
            system.spawn(Echo)
        many = system.figures()
    assert series(many) == series(few) > 40
    assert many.classes[0].actors == (10_000 if CI else 500)


def calls(function: Callable[[], object]) -> int:
    """Return how many functions are called, those written in C among them."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    gc.collect()
    gc.disable()  # what it finds may have functions called
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


async def test_to_look_at_many_actors_takes_no_more_steps_than_at_few() -> None:
    async with ActorSystem(measure=True) as system:

        def look() -> None:
            list(families_of([system.figures()]))

        system.spawn(Echo)
        await system.entity(Account, "0").ask(1)
        few = calls(look)
        refs = [system.spawn(Echo) for _ in range(300)]
        for ref in refs:
            await ref.tell("waits in the mailbox")
        for number in range(30):
            await system.entity(Account, str(number)).ask(1)
        assert calls(look) == few


async def test_subscriptions_are_counted_with_the_longest_lag() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Echo)
        await ref.ask("started?")
        await system.backend.flush()
        async with system.subscribe() as behind, system.subscribe() as ahead:
            await anext(ahead)
            figures = system.figures()
            assert figures.subscriptions.open == 2
            assert figures.subscriptions.longest_lag == figures.last_seq > 0
            await anext(behind)
            assert system.figures().subscriptions.longest_lag == 0
        assert system.figures().subscriptions.open == 0


async def test_figures_are_there_before_the_start_after_the_end_and_in_other_threads() -> None:
    system = ActorSystem("shop")
    before = system.figures()
    assert (before.started_at, before.is_running, before.classes) == (None, False, ())
    async with system:
        await system.spawn(Echo).ask("started?")
        there = await anyio.to_thread.run_sync(system.figures)
        assert there.is_running
        assert there.classes[0].actors == 1
    after = system.figures()
    assert (after.is_running, after.classes[0].actors, after.classes[0].stopped) == (False, 0, 1)
    assert after.last_seq == after.persistence.records_written


def test_classes_of_one_name_share_their_counters_and_are_not_kept_alive() -> None:
    counters = CountersByClass()

    def make() -> type:
        class Made(Actor):
            async def receive(self, message: object) -> None: ...

        return Made

    assert counters.of(make()) is counters.of(make())
    assert len(counters) == 1


def test_classes_beyond_the_limit_are_counted_together() -> None:
    counters = CountersByClass()
    for number in range(3 * MAX_CLASSES):
        counters.of(type(f"Made{number}", (), {})).actors += 1
    assert len(counters) == MAX_CLASSES + 1
    (other,) = (each for each in counters.all() if each.name == OTHER_CLASSES)
    assert other.actors == 2 * MAX_CLASSES


class Liar(type):
    """A metaclass whose classes say nothing of themselves."""

    def __getattribute__(cls, name: str) -> Any:
        raise LookupError(name)

    def __hash__(cls) -> int:
        raise LookupError


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"__module__": 5}, "Odd"),
        ({"__module__": "a.b", "__qualname__": "x" * 1_000}, "a.b." + "x" * 193 + "..."),
        ({"__module__": "\udc80", "__qualname__": "Odd"}, "\\udc80.Odd"),
    ],
)
def test_classes_are_named_whatever_they_say_of_themselves(
    attributes: dict[str, Any], name: str
) -> None:
    assert CountersByClass().of(Liar("Odd", (), attributes)).name == name


def mailboxes() -> tuple[MeasuredMailbox, Mailbox[object], ClassCounters, ManualClock]:
    counters, clock = ClassCounters("x", measured=True), ManualClock()
    signal: Any = Future  # nobody waits for it
    return MeasuredMailbox(20, signal, clock, counters), Mailbox(20, signal), counters, clock


@pytest.mark.parametrize("seed", range(30 if CI else 5))
def test_a_measured_mailbox_does_what_others_do_and_knows_what_waits_in_it(seed: int) -> None:
    """Whatever is done to it, in any order."""
    chance = random.Random(seed)
    measured, plain, counters, clock = mailboxes()
    in_at: dict[int, float] = {}
    waited = 0.0
    for number in range(2_000):
        clock._now += chance.random()
        match chance.randrange(8):
            case 0 | 1 | 2:
                errors: list[object] = []
                for each in (measured, plain):
                    try:
                        each.put_nowait(number)
                        in_at[number] = clock.monotonic()
                        errors.append(None)
                    except (MailboxFull, MailboxClosed) as error:
                        errors.append(type(error))
                assert errors[0] == errors[1]
            case 3:
                for each in (measured, plain):
                    each.push(number)
                in_at[number] = clock.monotonic()
            case 4:
                taken = measured.pop(None)
                assert taken == plain.pop(None)
                if taken is not None:
                    waited += clock.monotonic() - in_at[cast("int", taken)]
            case 5:
                count = chance.randint(min(1, len(plain)), len(plain))
                if not count:
                    continue
                run = cast("list[int]", measured.pop_run(count))
                assert run == plain.pop_run(count)
                waited += sum(clock.monotonic() - in_at[each] for each in run)
                if run and chance.random() < 0.5:
                    for mailbox in (measured, plain):
                        mailbox.put_back(run[-1:])
                    in_at[run[-1]] = clock.monotonic()
            case 6:
                unwanted = set(range(chance.randrange(5), number, 5))
                for each in (measured, plain):
                    each.discard(unwanted.__contains__)
            case 7:
                assert measured.wakeup() is None or not len(plain)
                plain.wakeup()
        assert list(measured.peek(99)) == list(plain.peek(99))
        assert counters.messages_waiting == len(plain)
    assert counters.mailbox_seconds is not None
    assert counters.mailbox_seconds.snapshot().total == pytest.approx(waited)


async def test_messages_of_senders_that_wait_for_room_are_counted_once_they_are_in() -> None:
    async with ActorSystem(measure=True) as system:
        gate = system.spawn(Gate, mailbox_capacity=1)
        entered, release = anyio.Event(), anyio.Event()
        await gate.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(gate.tell, number)
            await wait_until_idle()
            assert of(system, Gate).messages_waiting == 1
            release.set()
        await gate.ask("handled")
        assert of(system, Gate).messages_waiting == 0
        assert of(system, Gate).handled in (4, 5)  # the last is replied to before it is counted


async def test_messages_left_to_an_actor_that_stops_wait_no_more() -> None:
    async with ActorSystem(measure=True) as system:
        gate = system.spawn(Gate)
        entered, release = anyio.Event(), anyio.Event()
        await gate.tell((entered, release))
        await entered.wait()
        for number in range(3):
            await gate.tell(number)
        system.find(gate.address)._cell.stop_now()  # type: ignore[union-attr]
        release.set()
        await gate.stop()
        assert (of(system, Gate).messages_waiting, of(system, Gate).dead_letters) == (0, 3)
