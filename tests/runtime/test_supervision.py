from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForAll, OneForOne, Terminated
from papyra.events import ActorRestarted
from papyra.exceptions import ActorStopped, EscalatedFailure, InvalidPolicy
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, PersistenceProbe, wait_until_idle
from tests.actors import Echo, Gate, Log, Parent, letters, spawn_child, story


class Counter(Actor):
    """Counts its messages; the count is the state that a restart loses."""

    def __init__(self) -> None:
        self.count = 0

    async def receive(self, message: Any) -> int:
        self.count += 1
        if isinstance(message, BaseException):
            raise message
        return self.count


async def crash(ref: ActorRef, error: Exception | None = None) -> None:
    with pytest.raises(Exception, match="boom"):
        await ref.ask(error or ValueError("boom"))


def test_the_most_specific_error_type_of_a_supervision_policy_decides() -> None:
    policy = OneForOne(
        on={LookupError: Decision.STOP, KeyError: Decision.RESUME}, default=Decision.ESCALATE
    )
    assert policy.decide(KeyError()) is Decision.RESUME
    assert policy.decide(IndexError()) is Decision.STOP
    assert policy.decide(ValueError()) is Decision.ESCALATE


@pytest.mark.parametrize(
    "changes",
    [
        {"default": "restart"},
        {"on": {ValueError: "stop"}},
        {"on": {"ValueError": Decision.STOP}},
        {"on": {KeyboardInterrupt: Decision.STOP}},
        {"max_restarts": -1},
        {"max_restarts": 1.5},
        {"max_restarts": True},
        {"within": 0},
        {"within": float("nan")},
        {"within": "a minute"},
    ],
)
def test_an_invalid_supervision_policy_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        OneForOne(**changes)


async def test_supervision_by_resume_keeps_the_actors_state() -> None:
    async with ActorSystem(supervision=OneForOne(default=Decision.RESUME)) as system:
        ref = system.spawn(Counter)
        await crash(ref)
        assert await ref.ask(None) == 2


async def test_supervision_by_restart_loses_state_and_keeps_address_and_mailbox(
    persistence: InMemoryPersistence,
) -> None:
    log: list[Any] = []
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Log, log, name="log")
        for message in (1, ValueError("boom"), 2):
            await ref.tell(message)
        assert await ref.ask(3) == 6
        assert str(ref.address) == "shop/log"
        assert ref.is_alive
    assert log == ["start", 1, "stop", "start", 2, 3, "stop"]
    assert story(persistence) == ["ActorStarted", "ActorCrashed", "ActorRestarted", "ActorStopped"]
    assert persistence.events[1].payload == {
        "error_type": "ValueError",
        "error": "boom",
        "where": "receive",
        "decision": "restart",
        "message_type": "ValueError",
    }
    assert persistence.events[2].payload == {"restarts": 1}


async def test_supervision_by_stop_turns_waiting_messages_into_dead_letters(
    persistence: InMemoryPersistence,
) -> None:
    entered, release = anyio.Event(), anyio.Event()

    class Fails(Gate):
        async def receive(self, message: Any) -> Any:
            await super().receive(message)
            raise ValueError("boom")

    policy = OneForOne(default=Decision.STOP)
    async with ActorSystem(persistence=persistence, supervision=policy) as system:
        ref = system.spawn(Fails)
        await ref.tell((entered, release))
        await entered.wait()
        await ref.tell("waiting")
        release.set()
        with pytest.raises(ActorStopped):
            await ref.ask("too late")
        assert not ref.is_alive
    assert sorted(letters(persistence)) == ["too late", "waiting"]
    assert persistence.events[-1].payload["reason"] == "failed"


async def test_an_actor_that_restarts_too_often_is_stopped(
    persistence: InMemoryPersistence,
) -> None:
    policy = OneForOne(max_restarts=2, within=float("inf"))
    async with ActorSystem(persistence=persistence, supervision=policy) as system:
        ref = system.spawn(Counter)
        for _ in range(3):
            await crash(ref)
        with pytest.raises(ActorStopped):
            await ref.ask(None)
    assert [
        e.payload.get("decision") for e in persistence.events if e.event_type == "ActorCrashed"
    ] == [
        "restart",
        "restart",
        "stop",
    ]


async def test_restarts_outside_of_the_supervision_window_do_not_count() -> None:
    clock = ManualClock()
    policy = OneForOne(max_restarts=1, within=10)
    async with ActorSystem(supervision=policy, clock=clock) as system:
        ref = system.spawn(Counter)
        for _ in range(5):
            await crash(ref)
            await clock.advance(10.1)
        assert await ref.ask(None) == 1
        await crash(ref)
        await crash(ref)
        assert not ref.is_alive


async def test_the_restart_backoff_grows_with_each_restart(
    persistence: InMemoryPersistence,
) -> None:
    clock = ManualClock()
    policy = OneForOne(backoff=1, max_backoff=3, within=100)
    async with ActorSystem(persistence=persistence, supervision=policy, clock=clock) as system:
        ref = system.spawn(Counter)
        probe = PersistenceProbe(system)
        for delay in (1, 2, 3, 3):
            await crash(ref)
            await ref.tell(None)
            await clock.advance(delay - 0.01)
            await probe.expect_none(ActorRestarted)
            await clock.advance(0.01)
            await probe.expect_restart(ref)
        await clock.advance(101)
        await crash(ref)
        await clock.advance(1)
        await probe.expect_restart(ref)
        assert system.audit().dead_letters == 0


async def test_an_actor_that_fails_to_start_is_restarted_with_backoff(
    persistence: InMemoryPersistence,
) -> None:
    class Unlucky(Actor):
        starts = 0

        async def on_start(self) -> None:
            Unlucky.starts += 1
            raise ValueError("boom")

        async def receive(self, message: Any) -> None: ...

    clock = ManualClock()
    policy = OneForOne(backoff=1, max_restarts=3)
    async with ActorSystem(persistence=persistence, supervision=policy, clock=clock) as system:
        ref = system.spawn(Unlucky)
        for seconds, starts in ((0, 1), (1, 2), (2, 3), (3.9, 3), (0.1, 4)):
            await clock.advance(seconds)
            assert Unlucky.starts == starts
        assert not ref.is_alive


@pytest.mark.parametrize("how", ["stop", "leave"])
async def test_stopping_an_actor_does_not_wait_for_its_restart_backoff(
    persistence: InMemoryPersistence, how: str
) -> None:
    policy = OneForOne(backoff=1000, max_backoff=1000)
    async with ActorSystem(persistence=persistence, supervision=policy) as system:
        ref = system.spawn(Counter)
        await crash(ref)
        await ref.tell(None)
        if how == "stop":
            await ref.stop()
    assert story(persistence) == ["ActorStarted", "ActorCrashed", "ActorRestarted", "ActorStopped"]
    assert persistence.dead_letters == ()


async def test_siblings_restarted_one_for_all_back_off_together() -> None:
    class Boss(Parent):
        supervision = OneForAll(backoff=5)

    clock, log = ManualClock(), list[Any]()
    async with ActorSystem(clock=clock) as system:
        boss = system.spawn(Boss)
        first, second = [await spawn_child(boss, Log, log) for _ in range(2)]
        await crash(first)
        await second.tell("later")
        await clock.advance(4.9)
        assert log == ["start", "start", "stop", "stop"]
        await clock.advance(0.1)
        assert sorted(log[4:]) == ["later", "start", "start"]


@pytest.mark.parametrize(
    "limits", [{"backoff": -1}, {"backoff": float("nan")}, {"max_backoff": float("inf")}]
)
def test_an_invalid_restart_backoff_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy, match="backoff is seconds, 0 or more"):
        OneForOne(**limits)


def test_the_delay_of_a_restart_backoff_never_overflows() -> None:
    assert OneForOne(backoff=1, max_backoff=60).delay(10_000) == 60
    assert OneForOne().delay(5) == 0


async def test_an_actor_that_may_not_restart_at_all_is_stopped_at_once() -> None:
    async with ActorSystem(supervision=OneForOne(max_restarts=0)) as system:
        ref = system.spawn(Counter)
        await crash(ref)
        assert not ref.is_alive


async def test_the_parent_decides_about_its_child() -> None:
    class Lenient(Parent):
        supervision = OneForOne(on={KeyError: Decision.RESUME}, default=Decision.STOP)

    async with ActorSystem() as system:
        parent = system.spawn(Lenient)
        child = await spawn_child(parent, Counter)
        await crash(child, KeyError("boom"))
        assert await child.ask(None) == 2
        await crash(child)
        assert not child.is_alive
        assert parent.is_alive


async def test_on_child_failure_overrides_the_policy() -> None:
    async with ActorSystem() as system:
        parent = system.spawn(Parent, Decision.RESUME)
        child = await spawn_child(parent, Counter)
        await crash(child)
        assert await child.ask(None) == 2


async def test_a_parent_that_waits_for_its_failing_child_does_not_hang() -> None:
    class Asks(Parent):
        async def receive(self, message: Any) -> Any:
            if message != "ask":
                return await super().receive(message)
            (child,) = self.context.children
            with pytest.raises(ValueError, match="boom"):
                await child.ask(ValueError("boom"))
            return await child.ask(None)

    async with ActorSystem() as system:
        parent = system.spawn(Asks, Decision.RESTART)
        await spawn_child(parent, Counter)
        assert await parent.ask("ask") == 1


@pytest.mark.parametrize("answer", [None, "restart"])
async def test_an_on_child_failure_that_returns_no_decision_stops_the_child_only(
    answer: Any,
) -> None:
    class Undecided(Parent):
        async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
            return answer  # type: ignore[no-any-return]

    async with ActorSystem() as system:
        parent = system.spawn(Undecided)
        child = await spawn_child(parent, Counter)
        await crash(child)
        assert not child.is_alive
        assert parent.is_alive


async def test_an_on_child_failure_that_raises_stops_the_child_only() -> None:
    class Panics(Parent):
        async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
            raise RuntimeError("panic")

    async with ActorSystem() as system:
        parent = system.spawn(Panics)
        child = await spawn_child(parent, Counter)
        await crash(child)
        assert not child.is_alive
        assert parent.is_alive


async def test_a_restart_stops_the_children_first(persistence: InMemoryPersistence) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        parent = system.spawn(Parent, name="parent")
        child = await spawn_child(parent, Echo, name="child")
        await crash(parent)
        assert await parent.ask(("children",)) == ()
        assert not child.is_alive
        again = await spawn_child(parent, Echo, name="child")
        assert again.address == child.address
    assert [f"{e.actor_address} {e.event_type}" for e in persistence.events][2:5] == [
        "shop/parent ActorCrashed",
        "shop/parent/child ActorStopped",
        "shop/parent ActorRestarted",
    ]


async def test_an_actor_that_has_stopped_itself_is_not_restarted() -> None:
    class Leaves(Actor):
        async def receive(self, message: Any) -> None:
            self.context.stop()
            raise ValueError("boom")

    async with ActorSystem() as system:
        ref = system.spawn(Leaves)
        await crash(ref)
        await ref.stop()
        assert system.audit().restarted == 0


async def test_on_stop_at_a_restart_finds_the_children_stopped() -> None:
    children: list[int] = []

    class Counts(Parent):
        async def on_stop(self) -> None:
            children.append(len(self.context.children))

    async with ActorSystem() as system:
        parent = system.spawn(Counts)
        await spawn_child(parent, Echo)
        await crash(parent)
        await spawn_child(parent, Echo)
    assert children == [0, 0]


async def test_an_escalated_failure_of_a_child_is_its_parents_failure(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem("shop", persistence=persistence) as system:
        top = system.spawn(Parent, Decision.RESTART, name="top")
        middle = await spawn_child(top, Parent, Decision.ESCALATE, name="middle")
        child = await spawn_child(middle, Counter, name="child")
        await crash(child)
        await middle.ask(("children",))
        assert not child.is_alive
        assert middle.is_alive
    assert story(persistence, "shop/top/middle") == [
        "ActorStarted",
        "ActorCrashed",
        "ActorRestarted",
        "ActorStopped",
    ]
    assert story(persistence, "shop/top/middle/child")[1:] == ["ActorCrashed", "ActorStopped"]
    assert story(persistence, "shop/top") == ["ActorStarted", "ActorStopped"]


async def test_an_escalated_failure_that_is_resumed_resumes_the_child_too() -> None:
    async with ActorSystem() as system:
        top = system.spawn(Parent, Decision.RESUME)
        middle = await spawn_child(top, Parent, Decision.ESCALATE)
        child = await spawn_child(middle, Counter)
        await crash(child)
        assert await child.ask(None) == 2


async def test_a_failure_escalated_past_the_top_ends_the_system(
    persistence: InMemoryPersistence,
) -> None:
    policy = OneForOne(default=Decision.ESCALATE)
    with pytest.raises(EscalatedFailure, match="ValueError: boom") as caught:
        async with ActorSystem(persistence=persistence, supervision=policy) as system:
            other = system.spawn(Echo)
            await system.spawn(Echo).tell(ValueError("boom"))
            await anyio.sleep_forever()
    assert isinstance(caught.value.__cause__, ValueError)
    assert not other.is_alive
    assert story(persistence).count("ActorStopped") == 2


async def test_one_for_all_restarts_the_siblings_too(persistence: InMemoryPersistence) -> None:
    async with ActorSystem(persistence=persistence, supervision=OneForAll()) as system:
        one, two = system.spawn(Counter), system.spawn(Counter)
        assert await two.ask(None) == 1
        await crash(one)
        await wait_until_idle()
        assert await one.ask(None) == 1
        assert await two.ask(None) == 1
    assert story(persistence).count("ActorRestarted") == 2
    assert story(persistence).count("ActorCrashed") == 1


async def test_one_for_all_stops_the_siblings_too() -> None:
    async with ActorSystem(supervision=OneForAll(default=Decision.STOP)) as system:
        one, two = system.spawn(Counter), system.spawn(Counter)
        await crash(one)
        await wait_until_idle()
        assert not two.is_alive


async def test_one_for_one_leaves_the_siblings_alone() -> None:
    async with ActorSystem() as system:
        one, two = system.spawn(Counter), system.spawn(Counter)
        assert await two.ask(None) == 1
        await crash(one)
        assert await two.ask(None) == 2


class Watching(Actor):
    """Spawns and watches a child when it starts, and another one when that has terminated."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    async def on_start(self) -> None:
        self.log.append("start")
        self.spawn_child()

    def spawn_child(self) -> None:
        self.child = self.context.spawn(Echo, name="child")
        self.context.watch(self.child)

    async def receive(self, message: Any) -> Any:
        match message:
            case Terminated(ref):
                self.log.append(("terminated", ref is self.child))
                self.spawn_child()
            case "child":
                return self.child
            case _:
                raise ValueError(message)
        return None


async def test_a_restarted_actor_gets_no_notice_of_what_it_watched_before(
    persistence: InMemoryPersistence,
) -> None:
    log: list[Any] = []
    async with ActorSystem("shop", persistence=persistence) as system:
        ref = system.spawn(Watching, log, name="parent")
        with pytest.raises(ValueError, match="once"):
            await ref.ask("once")
        child = await ref.ask("child")
        assert await child.ask("alive") == "alive"
        await child.stop()  # which the new incarnation does watch
        await ref.ask("child")
    assert log == ["start", "start", ("terminated", True)]
    assert story(persistence, "shop/parent").count("ActorCrashed") == 1


async def test_a_restarted_actor_finds_no_earlier_termination_notice_in_its_mailbox() -> None:
    entered, release = anyio.Event(), anyio.Event()
    log: list[Any] = []

    class Blocked(Watching):
        async def receive(self, message: Any) -> Any:
            if message == "crash when told":
                entered.set()
                await release.wait()
            return await super().receive(message)

    async with ActorSystem() as system:
        ref = system.spawn(Blocked, log)
        child = await ref.ask("child")
        await ref.tell("crash when told")
        await entered.wait()
        await child.stop()  # its notice is in the mailbox now
        release.set()
        assert await (await ref.ask("child")).ask("alive") == "alive"
    assert log == ["start", "start"]


async def test_a_restarted_actor_has_no_context_variable_that_it_set_before() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")

    class Sets(Actor):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, Exception):
                raise message
            before = variable.get()
            variable.set(message)
            return before

    async with ActorSystem() as system:
        ref = system.spawn(Sets)
        assert [await ref.ask("a"), await ref.ask("b")] == ["none", "a"]
        with pytest.raises(KeyError):
            await ref.ask(KeyError())
        assert await ref.ask("c") == "none"


async def test_an_actor_whose_on_start_always_fails_can_be_stopped(
    persistence: InMemoryPersistence,
) -> None:
    class NeverStarts(Echo):
        async def on_start(self) -> None:
            raise ValueError("not today")

    policy = OneForOne(max_restarts=10**9, within=1e-9)
    async with ActorSystem("shop", persistence=persistence, supervision=policy) as system:
        ref = system.spawn(NeverStarts, name="never")
        while story(persistence).count("ActorCrashed") < 100:
            await anyio.lowlevel.checkpoint()
        await ref.stop()
        assert system.find("shop/never") is None
    assert story(persistence, "shop/never")[-1] == "ActorStopped"
