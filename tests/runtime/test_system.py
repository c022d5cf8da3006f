"""How a system starts, stops, and what it says of itself."""

from __future__ import annotations

import enum
import threading
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from papyra import Actor, ActorRef, ActorSystem
from papyra._runtime.recorder import SystemRecorder
from papyra.address import ActorAddress
from papyra.clock import SystemClock
from papyra.exceptions import (
    ActorStopped,
    BackendInUse,
    DuplicateActorName,
    InvalidActorName,
    InvalidPolicy,
    InvalidSetting,
    StoreError,
    SystemAlreadyStarted,
    SystemNotRunning,
    WrongTask,
)
from papyra.mailbox import Mailbox
from papyra.persistence import Append, GetMetrics
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence, MemoryStore
from papyra.testing import ManualClock, wait_until_idle
from tests.actors import Echo, Gate, Log, Parent, event, letters, spawn_child, story
from tests.conftest import event_loops
from tests.persistence import payloads

anyio_backend = event_loops("asyncio", "uvloop", "trio")


async def test_leaving_a_systems_block_lets_each_actor_empty_its_mailbox() -> None:
    log: list[Any] = []
    async with ActorSystem() as system:
        ref = system.spawn(Log, log)
        for number in range(3):
            await ref.tell(number)
    assert log == ["start", 0, 1, 2, "stop"]


async def test_a_system_stops_the_last_spawned_actor_first_so_that_its_messages_arrive() -> None:
    log: list[Any] = []

    class Forward(Actor):
        def __init__(self, to: ActorRef) -> None:
            self.to = to

        async def receive(self, message: Any) -> None:
            await self.to.tell(message)

        async def on_stop(self) -> None:
            await self.to.tell("last words")

    async with ActorSystem() as system:
        sink = system.spawn(Log, log)
        source = system.spawn(Forward, sink)
        for number in range(10):
            await source.tell(number)
    assert log == ["start", *range(10), "last words", "stop"]


async def test_an_exception_in_a_systems_block_comes_out_as_it_is(
    persistence: InMemoryPersistence,
) -> None:
    entered, release = anyio.Event(), anyio.Event()
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with ActorSystem(persistence=persistence) as system:
            ref = system.spawn(Gate)
            await ref.tell((entered, release))
            await entered.wait()
            await ref.tell("not handled any more")
            release.set()
            raise error
    assert caught.value is error
    assert letters(persistence) == ["not handled any more"]
    assert story(persistence) == ["ActorStarted", "ActorStopped"]


async def test_a_systems_shutdown_cancels_busy_actors_after_its_timeout(
    persistence: InMemoryPersistence,
) -> None:
    cancelled: list[str] = []

    class Stuck(Gate):
        async def receive(self, message: Any) -> Any:
            try:
                await super().receive(message)
            except anyio.get_cancelled_exc_class():
                cancelled.append("receive")
                raise

        async def on_stop(self) -> None:
            cancelled.append("on_stop")

    entered = anyio.Event()
    errors: list[Exception] = []

    async def ask(ref: ActorRef) -> None:
        try:
            await ref.ask((entered, anyio.Event()))
        except ActorStopped as error:
            errors.append(error)

    async with (
        anyio.create_task_group() as tasks,
        ActorSystem("shop", persistence=persistence, shutdown_timeout=0.01) as system,
    ):
        parent = system.spawn(Parent, name="parent")
        ref = await spawn_child(parent, Stuck, name="stuck")
        tasks.start_soon(ask, ref)
        await entered.wait()
        await ref.tell("left over")
    assert cancelled == ["receive", "on_stop"]
    assert "was cancelled before it could reply" in str(errors[0])
    assert letters(persistence) == ["left over"]
    assert [
        (e.actor_address, e.payload) for e in persistence.events if e.event_type == "ActorStopped"
    ] == [
        ("shop/parent/stuck", {"reason": "cancelled", "unhandled": 1}),
        ("shop/parent", {"reason": "cancelled", "unhandled": 0}),
    ]


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
async def test_a_systems_shutdown_does_not_wait_for_a_hook_that_never_ends(
    persistence: InMemoryPersistence, hook: str
) -> None:
    async def forever(self: Any) -> None:
        await anyio.sleep_forever()

    stuck = type("Stuck", (Echo,), {hook: forever})
    async with ActorSystem(persistence=persistence, shutdown_timeout=0.01) as system:
        ref = system.spawn(stuck)
        if hook == "on_stop":
            assert await ref.ask("started") == "started"
    assert persistence.events[-1].event_type == "ActorStopped"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), pytest.fail.Exception("no")])
async def test_a_base_exception_in_a_systems_block_comes_out_as_it_is(error: BaseException) -> None:
    caught: BaseException | None = None
    try:
        async with ActorSystem() as system:
            await system.spawn(Echo).ask("x")
            raise error
    except BaseException as raised:
        caught = raised
    assert caught is error
    assert not system.is_running


async def test_a_cancelled_caller_stops_the_system_in_order(
    persistence: InMemoryPersistence,
) -> None:
    with anyio.CancelScope() as scope:
        async with ActorSystem("shop", persistence=persistence) as system:
            parent = system.spawn(Parent, name="parent")
            await spawn_child(parent, Echo, name="child")
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert [e.actor_address for e in persistence.events if e.event_type == "ActorStopped"] == [
        "shop/parent/child",
        "shop/parent",
    ]


async def test_a_task_group_around_a_system_may_cancel_the_system(
    persistence: InMemoryPersistence,
) -> None:
    running = anyio.Event()

    async def run() -> None:
        async with ActorSystem(persistence=persistence) as system:
            system.spawn(Echo)
            running.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await running.wait()
        tasks.cancel_scope.cancel()
    assert story(persistence) == ["ActorStarted", "ActorStopped"]


async def test_no_actor_can_be_spawned_before_the_start_or_after_the_end_of_a_system() -> None:
    system = ActorSystem("shop")
    with pytest.raises(SystemNotRunning, match="'shop' is not running"):
        system.spawn(Echo)
    with pytest.raises(SystemNotRunning):
        _ = system.persistence
    with pytest.raises(SystemNotRunning):
        _ = system.backend
    async with system:
        ref = system.spawn(Echo)
    with pytest.raises(SystemNotRunning):
        system.spawn(Echo)
    with pytest.raises(ActorStopped):
        await ref.ask("anybody?")
    await ref.tell("anybody?")


async def test_no_actor_can_be_spawned_while_a_system_stops() -> None:
    errors: list[Exception] = []

    class Late(Echo):
        async def on_stop(self) -> None:
            try:
                self.context.system.spawn(Echo)
            except SystemNotRunning as error:
                errors.append(error)

    async with ActorSystem() as system:
        system.spawn(Late)
    assert len(errors) == 1


async def test_a_system_can_be_started_and_stopped_by_hand(
    persistence: InMemoryPersistence,
) -> None:
    system = ActorSystem(persistence=persistence)
    running = []
    await system.stop()
    await system.start()
    running.append(system.is_running)
    assert await system.spawn(Echo).ask(1) == 1
    await system.stop()
    await system.stop()
    running.append(system.is_running)
    assert running == [True, False]
    assert story(persistence) == ["ActorStarted", "ActorStopped"]


async def test_a_system_can_be_started_only_once() -> None:
    async with ActorSystem() as system:
        with pytest.raises(SystemAlreadyStarted):
            await system.start()
    with pytest.raises(SystemAlreadyStarted):
        await system.start()


async def test_a_system_is_not_stopped_from_inside() -> None:
    class Saboteur(Actor):
        async def receive(self, message: Any) -> None:
            # Type checkers, too, are told that actors don't stop their system.
            await self.context.system.stop()  # type: ignore[attr-defined]

    async with ActorSystem() as system:
        with pytest.raises(WrongTask):
            await system.spawn(Saboteur).ask("stop it")
        assert system.is_running is True


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"system_id": ""}, InvalidActorName),
        ({"system_id": 7}, InvalidActorName),
        ({"persistence": "memory:"}, InvalidSetting),
        ({"mailbox_capacity": 0}, InvalidPolicy),
        ({"mailbox_capacity": 1.5}, InvalidPolicy),
        ({"shutdown_timeout": -1}, InvalidPolicy),
        ({"shutdown_timeout": float("nan")}, InvalidPolicy),
        ({"shutdown_timeout": "soon"}, InvalidPolicy),
        ({"audit_interval": 0}, InvalidPolicy),
        ({"supervision": "restart"}, InvalidPolicy),
    ],
)
def test_invalid_options_of_a_system_are_refused(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ActorSystem(**options)


async def test_a_backend_that_can_not_be_opened_is_an_error_at_the_start() -> None:
    class Missing(MemoryStore):
        async def open(self) -> None:
            raise FileNotFoundError("no such disk")

    with pytest.raises(StoreError, match="open failed: FileNotFoundError"):
        async with ActorSystem(persistence=PersistenceBackend(Missing())):
            pytest.fail("it started")


async def test_two_systems_can_not_share_a_backend(persistence: InMemoryPersistence) -> None:
    async with ActorSystem("one", persistence=persistence):
        with pytest.raises(BackendInUse, match=r"hosted by one/\$persistence already") as caught:
            async with ActorSystem("two", persistence=persistence):
                pytest.fail("it started")
        assert caught.value.owner == "one/$persistence"
    async with ActorSystem("two", persistence=persistence) as system:
        assert await system.spawn(Echo).ask(1) == 1


async def test_the_store_is_there_before_the_first_actor_and_after_the_last(
    persistence: InMemoryPersistence,
) -> None:
    class Chatty(Echo):
        async def on_start(self) -> None:
            await self.context.persist(("Hello", {}))

        async def on_stop(self) -> None:
            await self.context.persist(("Goodbye", {}))

    async with ActorSystem(persistence=persistence) as system:
        system.spawn(Chatty)
    assert story(persistence) == ["Hello", "ActorStarted", "Goodbye", "ActorStopped"]


async def test_the_persistence_actor_records_no_facts_about_itself(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem(persistence=persistence) as system:
        await system.persistence.ask(GetMetrics())
        await system.persistence.stop()
        await system.persistence.tell(Append(event()))
    assert persistence.events == ()
    assert persistence.dead_letters == ()


async def test_a_message_that_can_not_be_stored_is_a_dead_letter_by_its_repr(
    persistence: InMemoryPersistence,
) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<odd \udcff>"

    class Worse:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Echo)
        await ref.stop()
        for message in (Odd(), Worse(), {"nan": float("nan")}):
            await ref.tell(message)
    odd, worse, nan = letters(persistence)
    assert odd == {"repr": "<odd \\udcff>"}
    assert worse["repr"].startswith("<Worse instance at ")
    assert nan == {"repr": "{'nan': nan}"}


class Items(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class Greedy:
    def __repr__(self) -> str:
        return "x" * 1_000_000


deep: Any = []
for _ in range(2000):
    deep = [deep]
itself: list[Any] = []
itself.append(itself)

#: Messages, and what is stored of them; `...` stands for what a ``__repr__`` says, or cannot.
HOSTILE: list[tuple[Any, Any]] = [
    ({"n": 10**5000}, "{'n': <int of 16610 bits>}"),
    (payloads.without(payloads.Line(1), "y"), ...),
    (Items(a=1), {"a": 1}),
    (payloads.Endless([1]), [1]),
    (payloads.Endless([object()]), ...),
    (deep, "[[[[[...]]]]]"),
    (itself, "[[[[[...]]]]]"),
    ({1: "a", "1": "b"}, "{1: 'a', '1': 'b'}"),
    (msgspec.Raw(b'{},"target":"bank"'), ...),
    (payloads.Unnamed(), ...),
    (payloads.Text("text"), "'text'"),
    (Greedy(), ...),
    ((number for number in range(3)), ...),
    ([*range(6), *[6] * 1_000_000], "[0, 1, 2, 3, 4, 5, ...]"),
    ("x" * 2_000_000, ...),
    (payloads.Line(b"x" * 2_000_000), "<Line, too large to be kept>"),
    ([[[itself] * 1000] * 1000] * 1000, ...),
    *((message, ...) for error in payloads.ERRORS for message in payloads.hostile(error)),
]


class Leaver(Actor):
    """Stops after its first message, once it is let go."""

    async def receive(self, message: Any) -> None:
        entered, release = message
        entered.set()
        await release.wait()
        self.context.stop()


@pytest.mark.parametrize("capacity", [1, 1000], ids=["told by those who wait", "told"])
async def test_a_stopping_actor_ends_though_its_unhandled_messages_raise(
    persistence: InMemoryPersistence, capacity: int
) -> None:
    outcomes: list[object] = []

    async def ask(ref: ActorRef, message: object) -> None:
        try:
            outcomes.append(await ref.ask(message))
        except ActorStopped as error:
            outcomes.append(error)

    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Leaver, mailbox_capacity=capacity)
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            for message, _ in HOSTILE:
                tasks.start_soon(ref.tell, message)
                tasks.start_soon(ask, ref, message)
            await wait_until_idle()
            release.set()
        await ref.stop()
        for message, _ in HOSTILE:
            await ref.tell(message)
            ref.tell_nowait(message)
            await ask(ref, message)
    assert len(outcomes) == 2 * len(HOSTILE)
    assert all(isinstance(outcome, ActorStopped) for outcome in outcomes)
    stored = letters(persistence)
    assert len(stored) == 5 * len(HOSTILE)
    (stopped,) = [e for e in persistence.events if e.event_type == "ActorStopped"][:1]
    assert stopped.payload["unhandled"] == 2 * len(HOSTILE)
    for (_, expected), payload in zip(HOSTILE, stored[2 * len(HOSTILE) :: 3], strict=True):
        if expected is ...:
            assert 2 < len(payload["repr"]) <= 200
        else:
            assert payload == ({"repr": expected} if isinstance(expected, str) else expected)
    assert persistence.metrics.write_errors == 0


async def test_a_dead_letter_is_the_message_as_it_was_when_it_was_sent(
    persistence: InMemoryPersistence,
) -> None:
    message = {"items": [1]}
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Echo)
        await ref.stop()
        await ref.tell(message)
        message["items"].append(object())  # type: ignore[arg-type]
    assert letters(persistence) == [{"items": [1]}]


async def test_other_tasks_go_on_while_a_stopping_actor_leaves_many_dead_letters(
    persistence: InMemoryPersistence,
) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while not stopped:
            turns += 1
            await checkpoint()

    stopped = False
    async with ActorSystem(persistence=persistence) as system:
        ref = system.spawn(Leaver)
        entered, release = anyio.Event(), anyio.Event()
        await ref.tell((entered, release))
        await entered.wait()
        for number in range(1000):
            await ref.tell(number)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count_turns)
            release.set()
            await ref.stop()
            stopped = True
    assert letters(persistence) == list(range(1000))
    assert turns > 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_message_whose_encoding_ends_the_program_leaves_its_dead_letter_first(
    error: type[BaseException],
) -> None:
    store: Mailbox[object] = Mailbox(10)
    facts = SystemRecorder("shop", SystemClock(), store)
    with pytest.raises(error):
        facts.dead_letter_nowait(ActorAddress("shop", "a"), payloads.Hostile(error()), False)
    append = store.pop(None)
    assert isinstance(append, Append)
    assert append.record.payload == {"repr": "<Hostile>"}
    assert store.pop(None) is None


async def test_dead_letters_wait_when_the_store_is_behind() -> None:
    release = anyio.Event()

    class Slow(MemoryStore):
        async def append(self, batch: Any) -> None:
            await release.wait()
            await super().append(batch)

    sent: list[int] = []

    async def tell(ref: ActorRef) -> None:
        for number in range(20_000):
            await ref.tell(number)
            sent.append(number)

    store = Slow()
    async with ActorSystem(persistence=PersistenceBackend(store)) as system:
        ref = system.spawn(Echo)
        await ref.stop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell, ref)
            await wait_until_idle()
            assert len(sent) < 20_000
            release.set()
    assert [letter.payload for letter in store.all("dead_letter")] == list(range(20_000))


async def test_an_audit_counts_actors_and_waiting_messages_of_a_system(
    persistence: InMemoryPersistence,
) -> None:
    entered, release = anyio.Event(), anyio.Event()
    async with ActorSystem("shop", persistence=persistence) as system:
        gate = system.spawn(Gate, name="gate")
        parent = system.spawn(Parent)
        await spawn_child(parent, Echo)
        await gate.tell((entered, release))
        await entered.wait()
        for number in range(3):
            await gate.tell(number)
        report = system.audit()
        assert (report.actors, report.messages_waiting, report.started) == (3, 3, 3)
        assert (report.deepest_mailbox, report.deepest_actor) == (3, "shop/gate")
        release.set()
    (audit,) = persistence.audits
    assert audit.system_id == "shop"
    assert (audit.payload["actors"], audit.payload["stopped"]) == (0, 3)


async def test_audits_are_taken_at_intervals(persistence: InMemoryPersistence) -> None:
    clock = ManualClock()
    async with ActorSystem(persistence=persistence, audit_interval=3600, clock=clock):
        await clock.advance(3599)
        assert len(persistence.audits) == 0
        await clock.advance(2 * 3600)
        assert len(persistence.audits) == 2
    assert len(persistence.audits) == 3


async def test_records_carry_the_time_of_the_systems_clock(
    persistence: InMemoryPersistence,
) -> None:
    clock = ManualClock(time=42.5)
    async with ActorSystem(persistence=persistence, clock=clock) as system:
        await system.spawn(Echo).stop()
        await system.spawn(Echo).tell("x")
    assert {event.timestamp for event in persistence.events} == {42.5}
    assert {audit.timestamp for audit in persistence.audits} == {42.5}


async def test_thousands_of_actors_come_and_go(persistence: InMemoryPersistence) -> None:
    async with ActorSystem(persistence=persistence) as system:
        parent = system.spawn(Parent)
        for _ in range(20):
            refs = [await spawn_child(parent, Echo) for _ in range(50)]
            for ref in refs:
                await ref.tell("x")
            for ref in refs:
                await ref.stop()
        assert system.audit().actors == 1
    assert (
        story(persistence).count("ActorStarted") == story(persistence).count("ActorStopped") == 1001
    )


async def test_a_spawn_outside_of_the_event_loop_leaves_nothing_behind() -> None:
    errors: list[BaseException] = []

    async with ActorSystem(shutdown_timeout=0) as system:

        def spawn() -> None:
            try:
                system.spawn(Echo)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=spawn)
        thread.start()
        thread.join()
        assert system.audit().actors == 0
    assert isinstance(errors[0], RuntimeError)


RESERVED = ("$persistence", "$", "$x", "$persistence-1")
ODD: tuple[Any, ...] = ("", "a/b", "a\x1bb", "\ud800", "n" * 1_001, 7, b"x", [], {}, object())


def _text_or_type(name: object) -> str:
    return name if isinstance(name, str) else type(name).__name__


@pytest.mark.parametrize("name", [*RESERVED, *ODD], ids=_text_or_type)
async def test_reserved_or_empty_actor_names_are_refused(name: Any) -> None:
    async with ActorSystem("shop") as system:
        with pytest.raises(InvalidActorName):
            system.spawn(Echo, name=name)
        parent = system.spawn(Parent)
        with pytest.raises(InvalidActorName):
            await spawn_child(parent, Echo, name=name)
        assert system.audit().actors <= 1


async def test_an_actor_of_a_class_with_a_reserved_name_needs_another_name() -> None:
    async with ActorSystem("shop") as system:
        for name in ("$Odd", "a/b"):
            odd = type(name, (Echo,), {})
            with pytest.raises(InvalidActorName):
                system.spawn(odd)
            assert str(system.spawn(odd, name="fine").address) == "shop/fine"
            fine = system.find("shop/fine")
            assert fine is not None
            await fine.stop()


async def test_find_returns_the_systems_own_persistence_actor_and_no_impostor() -> None:
    async with ActorSystem("shop") as system:
        assert system.find("shop/$persistence") is system.persistence
        for address in ("shop/$persistence/x", "shop/$x", "shop/", "shop", "$persistence"):
            assert system.find(address) is None


async def test_an_actor_name_of_a_str_subclass_is_taken_by_its_characters() -> None:
    class Name(str):
        def __str__(self) -> str:
            return "another"

        def __format__(self, spec: str) -> str:
            return "another"

    async with ActorSystem("shop") as system:
        ref = system.spawn(Echo, name=Name("one"))
        assert str(ref.address) == "shop/one"
        assert system.find("shop/one") is ref
        with pytest.raises(DuplicateActorName):
            system.spawn(Echo, name="one")


class Shop(enum.StrEnum):
    NAME = "shop"


class Pretender(str, enum.Enum):  # noqa: UP042 - this one says of itself that it is another text
    NAME = "shop"


@pytest.mark.parametrize("name", [Shop.NAME, Pretender.NAME])
async def test_a_system_may_be_named_by_an_enum_and_keeps_its_facts(
    persistence: InMemoryPersistence, name: str
) -> None:
    async with ActorSystem(name, persistence=persistence) as system:
        ref = system.spawn(Echo, name="one")
        assert str(ref.address) == "shop/one"
        assert system.find("shop/one") is ref
    assert [(e.system_id, e.event_type) for e in persistence.events] == [
        ("shop", "ActorStarted"),
        ("shop", "ActorStopped"),
    ]


async def test_an_invalid_system_name_of_a_str_subclass_is_refused() -> None:
    class Liar(str):
        def isprintable(self) -> bool:
            return True

        def __contains__(self, part: object) -> bool:
            return False

        def __len__(self) -> int:
            return 1

    for name in ("", "a/b", "a\x1bb", "n" * 1_001):
        with pytest.raises(InvalidActorName):
            ActorSystem(Liar(name))


async def test_a_system_that_cancels_many_actors_names_the_first_of_them_in_its_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sleeper(Actor):
        async def receive(self, message: Any) -> None:
            await anyio.sleep_forever()

    async with ActorSystem("s", shutdown_timeout=0.01) as system:
        for _ in range(100):
            await system.spawn(Sleeper).tell("sleep")
    assert len(system.cancelled_actors) == 100
    (line,) = (record.getMessage() for record in caplog.records if "in time" in record.msg)
    assert line.count("s/Sleeper-") == 20
    assert line.endswith(" and 80 others")


async def test_a_name_is_free_again_where_its_actor_could_not_be_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def launch(cell: Any) -> None:
        cell.run().close()
        raise RuntimeError("no room for a task")

    async with ActorSystem("world") as system:
        with monkeypatch.context() as patched:
            patched.setattr(system._runtime, "launch", launch)
            with pytest.raises(RuntimeError, match="no room"):
                system.spawn(Echo, name="echo")
        assert await system.spawn(Echo, name="echo").ask("hello") == "hello"
