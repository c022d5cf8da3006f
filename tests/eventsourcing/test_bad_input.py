"""What is done wrongly with actors of events loses nothing, and makes nothing up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any

import anyio
import msgspec
import pytest

from papyra import Actor, ActorRef, ActorSystem, Failure
from papyra.eventsourcing import EventSourced
from papyra.exceptions import (
    ActorStopped,
    AskTimeout,
    InvalidActor,
    InvalidEvent,
    PapyraError,
    PersistenceError,
    RecoveryFailed,
    StoreError,
)
from papyra.output_gate import OutputGate
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence
from tests.actors import Log
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    Look,
    PipelinedAccount,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def every_gate_is_open_in_the_end() -> Iterator[None]:
    before = OutputGate.shut
    yield
    assert OutputGate.shut == before


def faulty() -> FaultyPersistence:
    return FaultyPersistence(InMemoryPersistence())


async def ready(system: ActorSystem, actor: type[Actor]) -> ActorRef:
    """Return an actor that has recovered, with nothing on its way to the store."""
    ref = system.spawn(actor, name="ann")
    await ref.ask(Look())
    await system.backend.flush()
    return ref


# States


class Bag(msgspec.Struct, frozen=True):
    amounts: list[int]


@dataclasses.dataclass(frozen=True)
class Shelf:
    by_amount: dict[int, list[int]]


class Collector(EventSourced[Any]):
    """Its state can't be changed, but what is in it can, and `apply` does."""

    events = (Deposited,)
    first: Any = ()

    def initial_state(self) -> Any:
        return msgspec.convert(msgspec.to_builtins(self.first), type(self.first))

    def apply(self, state: Any, event: Deposited) -> Any:
        match state:
            case Bag(amounts):
                amounts.append(event.amount)
            case Shelf(by_amount):
                by_amount[0].append(event.amount)
            case ((amounts,),):
                amounts.append(event.amount)
        return state

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            try:
                await self.keep(Deposited(message.amount))
            except PapyraError as error:
                return Failure(error)
        return msgspec.to_builtins(self.state)

    async def keep(self, event: object) -> None:
        await self.persist(event)


class PipelinedCollector(Collector):
    async def keep(self, event: object) -> None:
        self.persist_nowait(event)


@pytest.mark.parametrize(
    "first", [Bag([]), Shelf({0: []}), (([],),)], ids=["bag", "shelf", "tuple"]
)
async def test_what_is_changed_within_a_frozen_state_is_read_again_after_a_failed_append(
    first: object,
) -> None:
    class Deep(Collector):
        pass

    Deep.first = first
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        ref = await ready(system, Deep)
        one = await ref.ask(Deposit(1))
        store.fail_next("append", kind="event")
        with pytest.raises(StoreError):
            await ref.ask(Deposit(2))
        assert await ref.ask(Look()) == one


async def test_a_state_changed_for_an_append_that_could_not_be_sent_is_read_again() -> None:
    class Deep(PipelinedCollector):
        first = Bag([])

    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        ref = await ready(system, Deep)
        await ref.ask(Deposit(1))
        await system.persistence.stop()
        with pytest.raises(ActorStopped):
            await ref.ask(Deposit(2))
        assert await ref.ask(Look()) == {"amounts": [1]}


# Events


class Limited(msgspec.Struct, frozen=True):
    amount: Annotated[int, msgspec.Meta(ge=0)]


class Several(msgspec.Struct, frozen=True):
    amounts: list[int]


class Nested(msgspec.Struct, frozen=True):
    inner: Deposited


class Measured(msgspec.Struct, frozen=True):
    value: float


@dataclasses.dataclass(frozen=True)
class Plain:
    amount: int


class Picky(msgspec.Struct, frozen=True):
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ValueError("less than nothing")


class Keeper(EventSourced[tuple[object, ...]]):
    """Keeps events, and looks at none of them."""

    events = (Deposited, Limited, Several, Nested, Measured, Plain, Picky)

    def initial_state(self) -> tuple[object, ...]:
        return ()

    def apply(self, state: tuple[object, ...], event: object) -> tuple[object, ...]:
        return (*state, event)

    async def receive(self, message: Any) -> Any:
        if message != Look():
            try:
                await self.persist(message)
            except PersistenceError as error:
                return Failure(error)
        return self.state


def _negative() -> Picky:
    event = Picky(1)
    msgspec.structs.force_setattr(event, "amount", -1)
    return event


@pytest.mark.parametrize(
    "bad",
    [
        Deposited("five"),  # type: ignore[arg-type]
        Deposited(None),  # type: ignore[arg-type]
        Deposited(True),
        Deposited(1.0),  # type: ignore[arg-type]
        Limited(-1),
        Several(["a"]),  # type: ignore[list-item]
        Nested(Deposited("five")),  # type: ignore[arg-type]
        Measured(math.nan),
        Plain("five"),  # type: ignore[arg-type]
        _negative(),
    ],
    ids=repr,
)
async def test_an_event_that_could_not_be_read_back_is_not_stored(bad: object) -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        keeper = system.spawn(Keeper, name="ann")
        with pytest.raises(InvalidEvent, match="could not be read back"):
            await keeper.ask(bad)
        await keeper.ask(Deposited(1))
    async with ActorSystem("bank", persistence=store) as system:
        assert await system.spawn(Keeper, name="ann").ask(Look()) == (Deposited(1),)


# Hooks


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_an_apply_that_is_async_is_refused_whatever_kind_of_method_it_is(kind: Any) -> None:
    async def apply(*args: object) -> object:
        return args

    with pytest.raises(InvalidActor, match="apply is pure"):
        type("Late", (Account,), {"apply": kind(apply)})


async def test_apply_may_be_a_static_method_and_initial_state_one_of_the_class() -> None:
    class Odd(Account):
        @classmethod
        def initial_state(cls) -> Balance:
            return Balance(100)

        @staticmethod
        def apply(state: Balance, event: Any) -> Balance:
            return Balance(state.amount + event.amount)

    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        assert await system.spawn(Odd, name="ann").ask(Deposit(3)) == 103


async def test_on_recovered_is_called_until_it_has_returned() -> None:
    calls: list[int] = []

    class Fragile(PipelinedAccount):
        async def on_recovered(self) -> None:
            calls.append(self.revision)
            if len(calls) in (2, 3):
                raise LookupError("not prepared")

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system, Fragile)
        store.fail_next("append", kind="event")
        with pytest.raises(StoreError):
            await account.ask(Deposit(1))
        for _ in range(2):
            with pytest.raises(LookupError):
                await account.ask(Deposit(1))
        assert await account.ask(Deposit(5)) == 5
    assert calls == [0, 0, 0, 0]


# The gate


async def test_an_ask_at_the_gate_waits_no_longer_than_it_says() -> None:
    class Asker(PipelinedAccount):
        async def receive(self, message: Any) -> Any:
            if isinstance(message, ActorRef):
                self.persist_nowait(Deposited(1))
                with pytest.raises(AskTimeout):
                    await message.ask("what", timeout=0.01)
                store.release()
                return "gave up"
            return await super().receive(message)

    log: list[Any] = []
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        asker = await ready(system, Asker)
        target = system.spawn(Log, log, name="log")
        await target.ask("first")
        await system.backend.flush()
        store.hang("append", kind="event")
        with anyio.fail_after(60):
            assert await asker.ask(target) == "gave up"
        await target.ask("last")
    assert "what" not in log


async def test_a_task_of_before_the_first_event_tells_nobody_of_what_is_not_stored() -> None:
    log: list[Any] = []

    class Teller(PipelinedAccount):
        async def on_recovered(self) -> None:
            self.has_changed = anyio.Event()
            self.tasks = await anyio.create_task_group().__aenter__()
            self.tasks.start_soon(self.tell_of_changes)

        async def tell_of_changes(self) -> None:
            await self.has_changed.wait()
            self.context.system.find("bank/log").tell_nowait(self.revision)  # type: ignore[union-attr]
            await self.context.system.find("bank/log").tell(self.revision)  # type: ignore[union-attr]

        async def keep(self, event: object) -> None:
            self.persist_nowait(event)
            self.has_changed.set()

        async def on_stop(self) -> None:
            await self.tasks.__aexit__(None, None, None)

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        target = system.spawn(Log, log, name="log")
        teller = await ready(system, Teller)
        store.hang("append", kind="event")
        await teller.tell(Deposit(1))
        with pytest.raises(AskTimeout):
            await teller.ask(Look(), timeout=0.05)
        await target.ask("between")
        store.release()
        assert await teller.ask(Look()) == (1, 1)
        await teller.stop()
    assert log == ["start", "between", 1, 1, "stop"]


class Stubborn(Collector):
    """Persists, and goes on whatever comes of it."""

    first = Bag([])

    async def receive(self, message: Any) -> Any:
        if message != "go on":
            return await super().receive(message)
        self.persist_nowait(Deposited(1))
        seen = list(self.state.amounts)
        for _ in range(3):
            with contextlib.suppress(PapyraError):
                await self.persist(Deposited(10))
        return seen


async def test_who_goes_on_after_an_append_that_failed_tells_nobody_of_it() -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        stubborn = await ready(system, Stubborn)
        store.fail_next("append", kind="event")
        with pytest.raises(StoreError):
            await stubborn.ask("go on")
        assert await stubborn.ask(Look()) == {"amounts": []}
        assert await stubborn.ask("go on") == [1]
        assert await stubborn.ask(Look()) == {"amounts": [1, 10, 10, 10]}


class Strange(StoreError):
    """An error that its author did not think would be copied."""

    def __init__(self, *, code: int) -> None:
        super().__init__("strange")
        self.code = code


@pytest.mark.parametrize("actor", [Account, PipelinedAccount])
async def test_an_error_that_can_not_be_copied_reaches_who_asked(actor: type[Account]) -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system, actor)
        store.fail_next("append", Strange(code=7), kind="event")
        with pytest.raises(Strange) as caught:
            await account.ask(Deposit(1))
        assert caught.value.code == 7
        assert await account.ask(Deposit(1)) == 1


async def test_each_asker_of_an_actor_that_can_not_recover_gets_an_error_of_its_own() -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        store.fail_when(lambda operation: operation.name == "read")
        account = system.spawn(Account, name="ann")
        lengths = []
        for _ in range(20):
            with pytest.raises(RecoveryFailed) as caught:
                await account.ask(Look())
            lengths.append(len(caught.traceback))
        assert lengths[-1] <= lengths[1] + 1
        store.clear()


# Answers that got lost


class Calm(Account):
    """Says no when the store does, and goes on with the same instance."""

    recoveries: list[int]

    async def on_recovered(self) -> None:
        self.recoveries.append(self.revision)

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            try:
                await self.persist(Deposited(message.amount))
            except StoreError as error:
                assert self.state.movements == self.revision
                return Failure(error)
        return await super().receive(Look())


@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_append_that_is_stored_though_it_failed_is_seen_by_the_next_message(
    is_stored: bool,
) -> None:
    found: list[int] = []

    class Counted(Calm):
        recoveries = found

    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system, Counted)
        assert await account.ask(Deposit(1)) == (1, 1)
        store.fail_next("append", kind="event", after=is_stored)
        with pytest.raises(StoreError):
            await account.ask(Deposit(5))
        assert await account.ask(Look()) == ((6, 2) if is_stored else (1, 1))
        assert await account.ask(Deposit(1)) == ((7, 3) if is_stored else (2, 2))
    assert found == ([0, 2] if is_stored else [0])
