"""Volatile timers: messages of an actor to itself, after a while, now and then, or when idle."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne
from papyra.exceptions import ActorNotRunning, InvalidPolicy, WrongLoop
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, explore, wait_until_idle
from papyra.volatile_timers import _Timer
from tests.actors import letters
from tests.extent import CI
from tests.persistence.payloads import Hostile


class Clockwork(Actor):
    """Calls what it is sent with itself, and notes when anything else arrives."""

    noted: ClassVar[list[tuple[float, Any]]]

    async def receive(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        match message:
            case (anyio.Event() as entered, anyio.Event() as release):
                entered.set()
                await release.wait()
                return None
            case BaseException():
                raise message
        self.noted.append((self.context.clock.monotonic(), message))
        return None


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def noted() -> list[tuple[float, Any]]:
    Clockwork.noted = []
    return Clockwork.noted


def start(key: Any, message: Any, **when: Any) -> Callable[[Clockwork], None]:
    return lambda actor: actor.timers.start(key, message, **when)


def cancel(key: Any) -> Callable[[Clockwork], bool]:
    return lambda actor: actor.timers.cancel(key)


def active(actor: Clockwork) -> tuple[Any, ...]:
    return actor.timers.active


async def test_a_timer_sends_its_message_once_after_its_time(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("one", "ring", after=5))
        assert await ref.ask(active) == ("one",)
        await clock.advance(4.9)
        assert noted == []
        await clock.advance(60)
        assert noted == [(5.0, "ring")]
        assert await ref.ask(active) == ()


async def test_a_timer_without_delay_sends_its_message_behind_what_is_in_the_mailbox(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.tell(start("one", None, after=0))
        await ref.tell("told")
        await clock.advance(0)
        assert noted == [(0.0, "told"), (0.0, None)]


async def test_timers_of_one_moment_arrive_in_the_order_they_were_started(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        for number in range(2_000):
            await ref.ask(start(number, number, after=7))
        await clock.advance(7)
        assert noted == [(7.0, number) for number in range(2_000)]


async def test_a_periodic_timer_does_not_drift(clock: ManualClock, noted: list[Any]) -> None:
    async with ActorSystem(clock=clock, audit_interval=None) as system:
        ref = system.spawn(Clockwork)
        await clock.advance(0.7)
        await ref.ask(start("tick", "tick", every=0.1))
        await clock.advance(20)
        assert [when for when, _ in noted] == [0.7 + n * 0.1 for n in range(1, 201)]


async def test_a_periodic_timer_leaves_out_what_a_slow_actor_has_missed(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("tick", "tick", every=1))
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        await clock.advance(1_000.5)
        assert system.audit().messages_waiting == 1
        release.set()
        await clock.advance(2.5)
        assert [when for when, _ in noted] == [1000.5, 1001.0, 1002.0, 1003.0]


async def test_a_timer_that_is_started_again_replaces_the_one_before(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("one", "old", after=5))
        await ref.ask(start("two", "other", after=6))
        await ref.ask(start("one", "new", after=10))
        assert await ref.ask(active) == ("two", "one")
        await clock.advance(60)
        assert noted == [(6.0, "other"), (10.0, "new")]


@pytest.mark.parametrize("every", [False, True], ids=["after", "every"])
@pytest.mark.parametrize("again", [False, True], ids=["cancelled", "replaced"])
async def test_a_message_that_is_in_the_mailbox_does_not_arrive_once_its_timer_is(
    clock: ManualClock, noted: list[Any], *, every: bool, again: bool
) -> None:
    same = "tick"  # the very object that others tell, too
    async with ActorSystem(clock=clock, audit_interval=None) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("one", same, **{"every" if every else "after": 5}))
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        await ref.tell(start("one", "new", after=10) if again else cancel("one"))
        await clock.advance(5)
        await ref.tell(same)
        assert system.audit().messages_waiting == 3
        release.set()
        await clock.advance(60)
        assert noted == [(5.0, same)] + ([(15.0, "new")] if again else [])


async def test_cancel_says_whether_there_was_a_timer(clock: ManualClock, noted: list[Any]) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        assert await ref.ask(cancel("one")) is False
        await ref.ask(start("one", "ring", after=5))
        assert await ref.ask(cancel("one")) is True
        assert await ref.ask(cancel("one")) is False
        await clock.advance(60)
        assert noted == []


async def test_a_handler_can_start_the_timer_again_whose_message_it_handles(
    clock: ManualClock,
) -> None:
    class Backoff(Actor):
        def __init__(self) -> None:
            self.tried_at: list[float] = []

        async def on_start(self) -> None:
            self.timers.start("try", 1.0, after=1)

        async def receive(self, message: Any) -> Any:
            if message == "tried at":
                return self.tried_at
            assert self.timers.active == ()
            self.tried_at.append(self.context.clock.monotonic())
            self.timers.start("try", 2 * message, after=2 * message)
            return None

    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Backoff)
        await clock.advance(20)
        assert await ref.ask("tried at") == [1.0, 3.0, 7.0, 15.0]


async def test_timers_that_are_started_and_cancelled_without_end_take_no_memory(
    clock: ManualClock, noted: list[Any]
) -> None:
    class Churns(Clockwork):
        async def receive(self, message: Any) -> Any:
            most = 0
            for number in range(300):
                self.timers.start(number, number, after=0)
                await wait_until_idle()  # it is in the mailbox
                self.timers.cancel(number)
                most = max(most, self.context.system.audit().messages_waiting)
            for number in range(3_000):
                self.timers.start("far", number, after=10_000)
            return most

    async with ActorSystem(clock=clock, audit_interval=None) as system:
        most = await system.spawn(Churns).ask("go")
        gc.collect()
        kept = [each for each in gc.get_objects() if type(each) is _Timer]
        assert 0 < most < 50
        assert len(kept) < 200


async def test_a_timer_finds_room_in_a_full_mailbox_and_holds_up_nobody(
    clock: ManualClock, noted: list[Any], persistence: InMemoryPersistence
) -> None:
    class Second(Clockwork):
        pass

    async with ActorSystem(clock=clock, persistence=persistence) as system:
        full = system.spawn(Clockwork, mailbox_capacity=1)
        other = system.spawn(Second)
        await full.ask(start("one", "of the full one", after=5))
        await other.ask(start("one", "of the other", after=5))
        entered, release = anyio.Event(), anyio.Event()
        await full.tell((entered, release))
        await entered.wait()
        await full.tell("told")
        await clock.advance(5)
        assert noted == [(5.0, "of the other")]
        release.set()
        await wait_until_idle()
        assert noted[1:] == [(5.0, "told"), (5.0, "of the full one")]
    assert letters(persistence) == []


@pytest.mark.parametrize("where", ["pending", "in the mailbox"])
async def test_timers_end_when_the_actor_restarts(
    clock: ManualClock, noted: list[Any], where: str, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(clock=clock, persistence=persistence) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("once", "once", after=5))
        await ref.ask(start("tick", "tick", every=5))
        await ref.ask(lambda actor: actor.context.receive_timeout(5, "idle"))
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        await ref.tell(ValueError("lost"))
        if where == "in the mailbox":
            await clock.advance(5)
        await ref.tell("told")
        release.set()
        assert await ref.ask(active) == ()
        await clock.advance(60)
        assert [message for _, message in noted] == ["told"]
        assert system.audit().restarted == 1
    assert letters(persistence) == []


@pytest.mark.parametrize("how", ["stop", "context", "system", "failure"])
async def test_timers_end_when_the_actor_stops(
    clock: ManualClock, noted: list[Any], how: str, persistence: InMemoryPersistence
) -> None:
    supervision = OneForOne(default=Decision.STOP)
    async with ActorSystem(clock=clock, persistence=persistence, supervision=supervision) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("once", "once", after=5))
        await ref.ask(start("tick", "tick", every=5))
        match how:
            case "stop":
                await ref.stop()
            case "context":
                await ref.ask(lambda actor: actor.context.stop())
            case "failure":
                await ref.tell(ValueError("lost"))
        if how != "system":
            await clock.advance(60)
            assert not ref.is_alive
    assert noted == []
    assert letters(persistence) == []


async def test_timers_end_when_somebody_cancels_the_actor_s_task(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("tick", "tick", every=5))
        system._guardian.children.cancel()
        await clock.advance(60)
        assert not ref.is_alive
        assert noted == []


async def test_volatile_timers_keep_no_entity_awake_and_end_when_it_sleeps(
    clock: ManualClock, noted: list[Any], persistence: InMemoryPersistence
) -> None:
    class Sleeper(Clockwork):
        idle_timeout = 10

    async with ActorSystem(clock=clock, persistence=persistence) as system:
        ref = system.entity(Sleeper, "42")
        await ref.ask(start("tick", "tick", every=1))
        await ref.ask(start("late", "late", after=10.5))
        await clock.advance(9.9)
        assert len(system.entities) == 1
        await clock.advance(60)
        assert len(system.entities) == 0
        assert noted == [(float(n), "tick") for n in range(1, 10)]
        assert await ref.ask(active) == ()
        assert system.entities.activations == 2
    assert letters(persistence) == []


async def test_a_message_puts_off_the_sleep_of_an_entity_with_timers(
    clock: ManualClock, noted: list[Any]
) -> None:
    class Sleeper(Clockwork):
        idle_timeout = 10

    async with ActorSystem(clock=clock) as system:
        ref = system.entity(Sleeper, "42")
        await ref.ask(start("tick", "tick", every=0.5))
        await clock.advance(9.25)
        await ref.ask(active)
        await clock.advance(9.75)
        assert len(system.entities) == 1
        await clock.advance(0.5)
        assert len(system.entities) == 0


async def test_a_timer_in_the_mailbox_of_an_entity_that_sleeps_does_not_wake_it(
    clock: ManualClock, noted: list[Any]
) -> None:
    class Sleeper(Clockwork):
        async def receive(self, message: Any) -> Any:
            if message == "sleep":
                self.context.passivate()
            return await super().receive(message)

    async with ActorSystem(clock=clock) as system:
        ref = system.entity(Sleeper, "42")
        await ref.ask(start("one", "ring", after=5))
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        await ref.tell("sleep")
        await clock.advance(5)
        release.set()
        await clock.advance(60)
        assert system.entities.activations == 1
        assert [message for _, message in noted] == ["sleep"]


async def test_the_life_after_one_with_timers_is_not_idle_while_it_handles_a_message(
    clock: ManualClock, noted: list[Any]
) -> None:
    entered, release = anyio.Event(), anyio.Event()

    class Sleeper(Clockwork):
        idle_timeout = 10

        async def on_stop(self) -> None:
            if not entered.is_set():
                self.context.self_ref.tell_nowait((entered, release))

    async with ActorSystem(clock=clock) as system:
        ref = system.entity(Sleeper, "42")
        await ref.ask(start("one", "ring", after=1))
        await clock.advance(10)
        await entered.wait()
        await clock.advance(35)
        release.set()
        await clock.advance(9.9)
        assert (len(system.entities), system.entities.activations) == (1, 2)
        await clock.advance(10)
        assert len(system.entities) == 0


async def test_a_receive_timeout_comes_whenever_nobody_has_sent_anything_for_so_long(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("tick", "tick", every=2))
        await ref.ask(cancel("tick"))
        await ref.ask(lambda actor: actor.context.receive_timeout(10, "idle"))
        await clock.advance(4)
        await ref.tell("told")
        await clock.advance(30)
        assert noted == [(4.0, "told"), (14.0, "idle"), (24.0, "idle"), (34.0, "idle")]
        await ref.ask(lambda actor: actor.context.receive_timeout(None))
        await clock.advance(60)
        assert len(noted) == 4


async def test_a_receive_timeout_counts_from_the_end_of_the_message_before(
    clock: ManualClock, noted: list[Any]
) -> None:
    class Slow(Clockwork):
        async def receive(self, message: Any) -> Any:
            if message == "begin":
                self.context.receive_timeout(10, "idle")
                await self.context.clock.sleep(25)
                return None
            return await super().receive(message)

    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Slow)
        await ref.tell("begin")
        await clock.advance(34.9)
        assert noted == []
        await clock.advance(0.1)
        assert noted == [(35.0, "idle")]


async def test_timers_of_its_own_do_not_put_off_a_receive_timeout(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(lambda actor: actor.context.receive_timeout(10, "idle"))
        await ref.ask(start("tick", "tick", every=1))
        await clock.advance(25)
        assert [when for when, message in noted if message == "idle"] == [10.0, 20.0]
        assert len(noted) == 27


async def test_a_receive_timeout_that_is_set_anew_replaces_the_one_in_the_mailbox(
    clock: ManualClock, noted: list[Any]
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(lambda actor: actor.context.receive_timeout(10, "old"))
        for number in range(3):
            await ref.ask(
                lambda actor, n=number: actor.context.receive_timeout(10 + n, f"idle {n}")
            )
        await clock.advance(12)
        assert noted == [(12.0, "idle 2")]


async def test_an_entity_gets_a_receive_timeout_that_is_shorter_than_its_idle_timeout(
    clock: ManualClock, noted: list[Any]
) -> None:
    class Sleeper(Clockwork):
        idle_timeout = 25

    async with ActorSystem(clock=clock) as system:
        ref = system.entity(Sleeper, "42")
        await ref.ask(lambda actor: actor.context.receive_timeout(10, "idle"))
        await clock.advance(60)
        assert noted == [(10.0, "idle"), (20.0, "idle")]
        assert len(system.entities) == 0


async def test_tens_of_thousands_of_timers_take_one_task(
    clock: ManualClock, noted: list[Any]
) -> None:
    def start_many(actor: Clockwork) -> None:
        for number in range(20_000):
            actor.timers.start(number, number, after=1 + number % 7)

    async with ActorSystem(clock=clock, audit_interval=None) as system:
        ref = system.spawn(Clockwork)
        before = {task.id for task in anyio.get_running_tasks()}
        await ref.ask(start_many)
        await wait_until_idle()
        started = [task for task in anyio.get_running_tasks() if task.id not in before]
        assert [task.name for task in started] == ["papyra deadlines"]
        await clock.advance(7)
        assert sorted(message for _, message in noted) == list(range(20_000))


async def test_a_timer_s_message_can_be_unhandled_or_fail_like_any_other(
    clock: ManualClock, persistence: InMemoryPersistence
) -> None:
    class Choosy(Actor):
        lives: ClassVar[int] = 0

        async def on_start(self) -> None:
            Choosy.lives += 1
            if Choosy.lives == 1:
                self.timers.start("bad", ValueError("lost"), after=1)
                self.timers.start("never", "never", after=2)
            self.timers.start("odd", "odd", after=3)

        async def receive(self, message: Any) -> Any:
            if isinstance(message, Exception):
                raise message
            return self.unhandled(message)

    async with ActorSystem(clock=clock, persistence=persistence) as system:
        system.spawn(Choosy)
        await clock.advance(10)
        assert system.audit().restarted == 1
    assert letters(persistence) == ["odd"]


async def test_an_actor_with_timers_handles_messages_that_answer_no_question(
    clock: ManualClock,
) -> None:
    got: list[Any] = []

    class Takes(Actor):
        async def on_start(self) -> None:
            self.timers.start("one", Hostile(ValueError("no")), after=1)

        async def receive(self, message: Any) -> None:
            got.append(message)

    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Takes)
        await ref.tell(Hostile(ValueError("no")))
        await clock.advance(1)
    assert [type(message) for message in got] == [Hostile, Hostile]


async def test_a_timer_s_message_of_a_batch_type_is_handled_as_a_batch(clock: ManualClock) -> None:
    batches: list[list[Any]] = []

    class Batches(Actor):
        batch_types = (int,)

        async def on_start(self) -> None:
            self.timers.start("one", 1, after=1)
            self.timers.start("text", "text", after=1)

        async def receive(self, message: Any) -> None:
            batches.append(message)

        async def receive_batch(self, messages: Any) -> Any:
            batches.append(list(messages))
            return [None] * len(messages)

    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Batches)
        await clock.advance(1)
        await ref.ask(2)
        assert batches == [[1], "text", [2]]


async def test_a_timer_s_message_brings_the_variables_of_who_has_started_it(
    clock: ManualClock,
) -> None:
    request: ContextVar[str] = ContextVar("request")
    seen: list[Any] = []

    class Traced(Actor):
        async def receive(self, message: Any) -> None:
            seen.append((message, request.get("none")))
            if message == "begin":
                self.timers.start("later", "later", every=1)

    async with ActorSystem(clock=clock, propagate=(request,)) as system:
        ref = system.spawn(Traced)
        request.set("42")
        await ref.ask("begin")
        request.set("43")
        await clock.advance(2)
        await ref.ask("other")
    assert seen == [("begin", "42"), ("later", "42"), ("later", "42"), ("other", "43")]


NO_TIME: list[Any] = [float("nan"), -1, -0.001, True, "5", None, [], -(10**400)]


@pytest.mark.parametrize("value", NO_TIME, ids=repr)
async def test_a_time_that_makes_no_sense_is_refused_and_the_timer_before_goes_on(
    clock: ManualClock, noted: list[Any], value: Any
) -> None:
    async with ActorSystem(clock=clock) as system:
        ref = system.spawn(Clockwork)

        def start_all(actor: Clockwork) -> None:
            actor.timers.start("one", "ring", after=5)
            for when in ({"after": value}, {"every": value}, {"after": 1, "every": 2}):
                with pytest.raises(InvalidPolicy):
                    actor.timers.start("one", "bad", **when)
            for period in (0, 0.0009, 5e-324):
                with pytest.raises(InvalidPolicy, match="a millisecond at least"):
                    actor.timers.start("one", "bad", every=period)
            for length in (value, 0):
                if length is not None:
                    with pytest.raises(InvalidPolicy, match="receive_timeout is seconds"):
                        actor.context.receive_timeout(length, "bad")

        await ref.ask(start_all)
        await clock.advance(60)
        assert noted == [(5.0, "ring")]


@pytest.mark.parametrize("value", [float("inf"), 10**400, 1e300, 1e10], ids=repr)
async def test_a_time_that_nobody_waits_for_never_comes(
    clock: ManualClock, noted: list[Any], value: Any
) -> None:
    async with ActorSystem(clock=clock, audit_interval=None) as system:
        ref = system.spawn(Clockwork)
        await ref.ask(start("after", 1, after=value))
        await ref.ask(start("every", 1, every=value))
        await ref.ask(lambda actor: actor.context.receive_timeout(value, 1))
        await clock.advance(3e9)
        assert await ref.ask(active) == ("after", "every")
        assert await ref.ask(cancel("every")) is True
        await ref.ask(start("after", 2, after=1))
        await clock.advance(1)
        assert [message for _, message in noted] == [2]


async def test_a_key_that_can_not_be_hashed_is_refused(noted: list[Any]) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Clockwork)
        unhashable: Any = []

        def start_all(actor: Clockwork) -> None:
            for use in (
                lambda: actor.timers.start(unhashable, 1, after=1),
                lambda: actor.timers.cancel(unhashable),
            ):
                with pytest.raises(TypeError, match="unhashable"):
                    use()

        await ref.ask(start_all)


async def test_a_key_that_changes_its_hash_fails_its_actor_and_nobody_else(
    clock: ManualClock, noted: list[Any]
) -> None:
    class Fickle:
        def __init__(self) -> None:
            self.is_broken = False

        def __hash__(self) -> int:
            if self.is_broken:
                raise ValueError("broken")
            return 1

    key = Fickle()
    async with ActorSystem(clock=clock) as system:
        ref, other = system.spawn(Clockwork), system.spawn(Clockwork)
        await ref.ask(start(key, "ring", after=1))
        await other.ask(start("one", "other", after=2))
        key.is_broken = True
        await clock.advance(2)
        assert system.audit().crashed == 1
        assert noted == [(2.0, "other")]
        await ref.ask(start("one", "again", after=1))
        await clock.advance(1)
        assert noted[1:] == [(3.0, "again")]


async def test_timers_can_be_started_neither_in_init_nor_once_the_actor_stops() -> None:
    errors: list[Exception] = []

    class Early(Actor):
        def __init__(self) -> None:
            self.start()

        def start(self) -> None:
            uses: list[Callable[[], None]] = [
                lambda: self.timers.start("one", 1, after=1),
                lambda: self.context.receive_timeout(1, "idle"),
            ]
            for use in uses:
                try:
                    use()
                except ActorNotRunning as error:
                    errors.append(error)

        async def on_start(self) -> None:
            self.timers.start("one", 1, after=1)

        async def receive(self, message: Any) -> None:
            """Never."""

        async def on_stop(self) -> None:
            self.start()

    async with ActorSystem() as system:
        await system.spawn(Early).stop()
    assert len(errors) == 4


async def test_timers_of_an_instance_that_was_replaced_can_not_be_started(
    noted: list[Any],
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Clockwork)
        before = await ref.ask(lambda actor: (actor.timers.active, actor.timers)[1])
        with pytest.raises(ValueError, match="lost"):
            await ref.ask(ValueError("lost"))
        await ref.ask(active)
        with pytest.raises(ActorNotRunning):
            before.start("one", 1, after=1)


async def test_timers_are_started_in_the_loop_of_their_system(noted: list[Any]) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Clockwork)
        timers = await ref.ask(lambda actor: actor.timers)

        def in_a_thread() -> None:
            with pytest.raises(WrongLoop):
                timers.start("one", 1, after=1)
            with pytest.raises(WrongLoop):
                timers.cancel("one")

        await anyio.to_thread.run_sync(in_a_thread)
        assert timers.active == ()


async def test_a_class_can_have_an_attribute_of_its_own_called_timers() -> None:
    class Old(Actor):
        def __init__(self) -> None:
            self.timers = ["mine"]  # type: ignore[assignment]

        async def receive(self, message: Any) -> Any:
            return self.timers

    async with ActorSystem() as system:
        assert await system.spawn(Old).ask(1) == ["mine"]


async def test_timers_run_by_the_clock_of_the_machine() -> None:
    class Ticks(Actor):
        def __init__(self, over: anyio.Event) -> None:
            self.over = over
            self.ticks: list[int] = []

        async def on_start(self) -> None:
            self.timers.start("tick", 1, every=0.001)
            self.timers.start("late", 1_000, after=0.01)

        async def receive(self, message: Any) -> None:
            self.ticks.append(message)
            if sum(self.ticks) >= 1_005:
                self.over.set()

    async with ActorSystem() as system:
        over = anyio.Event()
        ref: ActorRef = system.spawn(Ticks, over)
        await over.wait()
        await ref.stop()


# In every order


class Switched(Actor):
    """Sets, replaces and cancels one timer, and fails if it gets the message of another."""

    def __init__(self, arrived: list[int]) -> None:
        self.arrived = arrived
        self.current: int | None = None

    async def receive(self, message: Any) -> Any:
        match message:
            case ("set", int(number), float(after)):
                self.current = number
                self.timers.start("one", number, after=after)
            case ("every", int(number), float(period)):
                self.current = number
                self.timers.start("one", number, every=period)
            case "cancel":
                assert self.timers.cancel("one") == (self.current is not None)
                self.current = None
            case "fail":
                raise ValueError("lost")
            case int():
                assert message == self.current, f"{message} is stale: now it is {self.current}"
                self.arrived.append(message)
                if self.timers.active == ():
                    self.current = None
        return None


async def test_no_stale_message_arrives_in_whatever_order_a_timer_is_set_cancelled_and_fires() -> (
    None
):
    outcomes: set[tuple[int, ...]] = set()

    class Sender(Actor):
        def __init__(self, to: ActorRef, messages: list[Any]) -> None:
            self.to, self.messages = to, messages

        async def on_start(self) -> None:
            self.timers.start("next", "next", after=0)

        async def receive(self, message: Any) -> None:
            if self.messages:
                self.to.tell_nowait(self.messages.pop(0))
                self.timers.start("next", "next", after=0.5)

    async def program(system: ActorSystem) -> None:
        arrived: list[int] = []
        ref = system.spawn(Switched, arrived)
        system.spawn(Sender, ref, [("set", 1, 1.0), ("set", 2, 0.0), "cancel"])
        system.spawn(Sender, ref, [("every", 3, 0.5), "fail", ("set", 4, 0.5)])
        await system.clock.sleep(5)
        assert system.audit().crashed == 1
        await ref.stop()
        outcomes.add(tuple(arrived))

    explored = await explore(program, 120 if CI else 40)
    assert explored.schedules > 20
    assert len(outcomes) > 5
