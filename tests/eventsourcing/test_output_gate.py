"""Nobody hears of what is not stored, though the actor goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorRef, ActorSystem
from papyra.exceptions import AskTimeout, RecoveryFailed, StoreError, UnhandledMessage
from papyra.output_gate import OutputGate
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence
from tests.actors import Log
from tests.eventsourcing.accounts import (
    Account,
    Deposit,
    Deposited,
    InsufficientFunds,
    Look,
    PipelinedAccount,
    Withdraw,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def every_gate_is_open_in_the_end() -> Any:
    before = OutputGate.shut
    yield
    assert OutputGate.shut == before


def faulty() -> FaultyPersistence:
    return FaultyPersistence(InMemoryPersistence())


def hold_steps(store: FaultyPersistence) -> None:
    """Let the appends of histories, and no others, wait for their release."""
    store.hang("append", kind="event", times=1)


async def ready(system: ActorSystem, actor: type[Account] = PipelinedAccount) -> ActorRef:
    account = system.spawn(actor, name="ann")
    await account.ask(Look())
    await system.backend.flush()
    return account


class Asked:
    """Asks that are under way."""

    def __init__(self, tasks: anyio.abc.TaskGroup, ref: ActorRef) -> None:
        self._tasks = tasks
        self._ref = ref
        self._waiting: list[anyio.Event] = []
        #: what came of each, in the order in which they were asked; nothing for those that wait
        self.outcomes: dict[int, object] = {}

    async def ask(self, *messages: object) -> None:
        """Ask for each, in this order, and wait until all are on their way."""
        for message in messages:
            begun = anyio.Event()
            self.ask_soon(message, begun)
            await begun.wait()

    def ask_soon(self, message: object, begun: anyio.Event | None = None) -> None:
        """Ask when the event loop comes to it."""
        self._waiting.append(anyio.Event())
        begun = begun or anyio.Event()
        self._tasks.start_soon(self._ask, message, len(self._waiting) - 1, begun)

    async def all(self) -> list[object]:
        """Wait until nobody waits, and return what came of all."""
        for answered in self._waiting:
            await answered.wait()
        return [self.outcomes[number] for number in range(len(self._waiting))]

    async def _ask(self, message: object, number: int, begun: anyio.Event) -> None:
        begun.set()
        try:
            self.outcomes[number] = await self._ref.ask(message)
        except Exception as error:
            self.outcomes[number] = error
        self._waiting[number].set()


async def test_replies_wait_until_what_they_tell_of_is_stored() -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system, anyio.create_task_group() as tasks:
        account = await ready(system)
        asked = Asked(tasks, account)
        hold_steps(store)
        await asked.ask(Deposit(1), Look(), Deposit(2), Withdraw(100), "what", Look())
        with pytest.raises(AskTimeout):
            await account.ask(Look(), timeout=0.05)
        assert asked.outcomes == {}
        store.release()
        assert await account.ask(Look()) == (3, 2)
        *replies, refusal, unhandled, last = await asked.all()
        assert replies == [1, (1, 1), 3]
        assert isinstance(refusal, InsufficientFunds)
        assert isinstance(unhandled, UnhandledMessage)
        assert last == (3, 2)


async def test_one_actor_persists_many_commands_in_few_commits() -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system, anyio.create_task_group() as tasks:
        account = await ready(system)
        before = system.backend.metrics.snapshot().commits
        asked = Asked(tasks, account)
        for _ in range(200):
            asked.ask_soon(Deposit(1))
        assert set(await asked.all()) == set(range(1, 201))
        assert system.backend.metrics.snapshot().commits - before < 100


@pytest.mark.parametrize("then", [Look(), Deposit(7)])
async def test_a_failed_append_fails_those_who_depend_on_it_and_the_actor_recovers(
    then: object,
) -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system, anyio.create_task_group() as tasks:
        account = await ready(system)
        asked = Asked(tasks, account)
        assert await account.ask(Deposit(10)) == 10
        hold_steps(store)
        await asked.ask(Look())
        store.fail_next("append", kind="event")
        await asked.ask(Deposit(1), Look(), Deposit(2))
        with pytest.raises(AskTimeout):
            await account.ask(Look(), timeout=0.05)
        store.release()
        before, *others = await asked.all()
        assert await account.ask(then) in ((10, 1), 17)
        assert before == (10, 1)
        assert len(others) == 3
        assert all(isinstance(error, StoreError) for error in others)
    events = (await store.wrapped.read_history("bank/ann")).events
    assert [event.payload["amount"] for event in events] in ([10], [10, 7])


async def test_tells_and_asks_wait_for_what_was_persisted_before_them() -> None:
    log: list[Any] = []

    class Teller(PipelinedAccount):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, tuple):
                way, target = message
                self.persist_nowait(Deposited(1))
                await way(target, f"told of {self.revision}")
                return self.revision
            return await super().receive(message)

    async def tell_nowait(ref: ActorRef, message: object) -> None:
        ref.tell_nowait(message)

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system, anyio.create_task_group() as tasks:
        teller = await ready(system, Teller)
        target = system.spawn(Log, log, name="log")
        await target.ask("first")
        ways: list[Callable[..., Any]] = [tell_nowait, ActorRef.tell, ActorRef.ask]
        for number, way in enumerate(ways, 1):
            asked = Asked(tasks, teller)
            await system.backend.flush()
            hold_steps(store)
            await asked.ask((way, target))
            with pytest.raises(AskTimeout):
                await teller.ask(Look(), timeout=0.05)
            assert f"told of {number}" not in log
            store.release()
            assert await teller.ask(Look()) == (number, number)
            assert await asked.all() == [number]
            await target.ask("next")
            assert f"told of {number}" in log


async def test_what_was_to_be_told_of_an_append_that_failed_is_dropped() -> None:
    log: list[Any] = []

    class Teller(PipelinedAccount):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, ActorRef):
                self.persist_nowait(Deposited(1))
                message.tell_nowait("it is done")
                return "done"
            return await super().receive(message)

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        teller = await ready(system, Teller)
        target = system.spawn(Log, log, name="log")
        await target.ask("first")
        await system.backend.flush()
        store.fail_next("append", kind="event")
        with pytest.raises(StoreError):
            await teller.ask(target)
        assert await teller.ask(Look()) == (0, 0)
        await target.ask("last")
    assert log == ["start", "first", "last", "stop"]


async def test_a_circle_of_asks_does_not_hang_at_the_gate() -> None:
    class Partner(Actor):
        async def receive(self, message: Any) -> Any:
            return await message.ask(Look())

    class Asker(PipelinedAccount):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, ActorRef):
                self.persist_nowait(Deposited(1))
                return await message.ask(self.context.self_ref, timeout=0.2)
            return await super().receive(message)

    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        asker = await ready(system, Asker)
        with pytest.raises(AskTimeout):  # the asker waits for itself, and only that ends it
            await asker.ask(system.spawn(Partner))
        assert await asker.ask(Look()) == (1, 1)


async def test_a_crash_behind_an_append_is_told_when_that_is_stored() -> None:
    class Frail(PipelinedAccount):
        async def receive(self, message: Any) -> Any:
            if message == "crash":
                self.persist_nowait(Deposited(1))
                raise RuntimeError("crash")
            return await super().receive(message)

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system, anyio.create_task_group() as tasks:
        account = await ready(system, Frail)
        asked = Asked(tasks, account)
        hold_steps(store)
        await asked.ask("crash", Look())
        with pytest.raises(AskTimeout):
            await account.ask(Look(), timeout=0.05)
        assert asked.outcomes == {}
        store.release()
        assert await account.ask(Look()) == (1, 1)
        crash, look = await asked.all()
        assert isinstance(crash, RuntimeError)
        assert look == (1, 1)


async def test_a_stopping_actor_waits_for_its_appends_and_replies_get_their_outcome() -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system, anyio.create_task_group() as tasks:
        account = await ready(system)
        asked = Asked(tasks, account)
        hold_steps(store)
        await asked.ask(Deposit(1), Deposit(2))
        stopped = anyio.Event()

        async def stop() -> None:
            await account.stop()
            stopped.set()

        tasks.start_soon(stop)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert not stopped.is_set()
        assert asked.outcomes == {}
        store.release()
        await stopped.wait()
        assert await asked.all() == [1, 3]


async def test_an_actor_that_is_cancelled_leaves_its_replies_to_their_appends() -> None:
    class Doomed(PipelinedAccount):
        async def on_stop(self) -> None:
            store.release()  # it was waited for in vain

    store = faulty()
    async with (
        anyio.create_task_group() as tasks,
        ActorSystem("bank", persistence=store, shutdown_timeout=0.2) as system,
    ):
        asked = Asked(tasks, await ready(system, Doomed))
        hold_steps(store)
        await asked.ask(Deposit(1), Deposit(2))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
    assert asked.outcomes == {0: 1, 1: 3}
    assert len((await store.wrapped.read_history("bank/ann")).events) == 2


async def test_outstanding_appends_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papyra.eventsourcing.recovery.MAX_OUTSTANDING", 5)
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system)
        hold_steps(store)
        for _ in range(50):
            await account.tell(Deposit(1))
        with pytest.raises(AskTimeout):
            await account.ask(Look(), timeout=0.05)
        assert system.audit().persistence_waiting <= 5
        store.release()
        assert await account.ask(Look()) == (50, 50)


async def test_persist_after_persist_nowait_keeps_the_order() -> None:
    class Both(Account):
        async def receive(self, message: Any) -> Any:
            if message == "both":
                self.persist_nowait(Deposited(1), Deposited(2))
                await self.persist(Deposited(3))
                self.persist_nowait(Deposited(4))
                return self.state.amount
            return await super().receive(message)

    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system, Both)
        assert await account.ask("both") == 10
        assert await account.ask("both") == 20
    found = (await store.read_history("bank/ann")).events
    assert [event.payload["amount"] for event in found] == [1, 2, 3, 4] * 2
    assert [event.revision for event in found] == list(range(1, 9))


async def test_a_failed_append_in_the_midst_of_a_message_fails_what_it_persists_next() -> None:
    class Both(Account):
        async def receive(self, message: Any) -> Any:
            if message == "both":
                self.persist_nowait(Deposited(1))
                await self.persist(Deposited(3))
                return "done"
            return await super().receive(message)

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system, Both)
        store.fail_next("append", kind="event")
        with pytest.raises((StoreError, RecoveryFailed)):
            await account.ask("both")
        assert await account.ask(Look()) == (0, 0)
        assert await account.ask("both") == "done"
        assert await account.ask(Look()) == (4, 2)


async def test_persist_nowait_when_the_system_stops_loses_nothing_that_was_told() -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system)
        for _ in range(100):
            await account.tell(Deposit(1))
    assert len((await store.read_history("bank/ann")).events) == 100
