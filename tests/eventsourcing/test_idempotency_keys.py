"""A command with an idempotency key is carried out once, however often it is asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import Actor, ActorRef, ActorSystem, Failure
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.exceptions import (
    AskTimeout,
    IdempotencyKeysUnsupported,
    InvalidIdempotencyKey,
    InvalidPolicy,
    InvalidRecord,
    RepeatedFailure,
    ReplyNotKept,
    StoreError,
)
from papyra.message import Message
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.retry import Retry
from papyra.testing import FaultyPersistence
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    InsufficientFunds,
    Look,
    PipelinedAccount,
    Withdraw,
)

pytestmark = pytest.mark.anyio

ACCOUNTS = pytest.mark.parametrize("account_class", [Account, PipelinedAccount])


def spawn(system: ActorSystem, account_class: type[Actor] = Account) -> ActorRef:
    return system.spawn(account_class, name="ann")


async def history(store: PersistenceBackend) -> list[Any]:
    return list((await store.read_history("bank/ann")).events)


@ACCOUNTS
async def test_a_repeated_command_is_answered_as_the_first_time_and_stores_nothing(
    account_class: type[Account],
) -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        account = spawn(system, account_class)
        assert await account.ask(Deposit(5), idempotency_key="a") == 5
        assert await account.ask(Deposit(1)) == 6
        before = await history(system.backend)
        assert await account.ask(Deposit(5), idempotency_key="a") == 5
        assert await account.ask(Deposit(5), idempotency_key="b") == 11
        after = await history(system.backend)
        assert after[: len(before)] == before
        assert (await account.ask(Look()))[0] == 11


@ACCOUNTS
async def test_who_repeats_after_a_restart_is_answered_as_the_first_time(
    account_class: type[Account], tmp_path: Path
) -> None:
    for _ in range(3):
        store = JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no")
        async with ActorSystem("bank", persistence=store) as system:
            account = spawn(system, account_class)
            assert await account.ask(Deposit(5), idempotency_key="a") == 5
            assert await account.ask(Withdraw(2), idempotency_key="b") == 3
            assert (await account.ask(Look()))[0] == 3


async def test_an_entity_that_was_passivated_knows_the_key() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        account = system.entity(Account, "ann")
        assert await account.ask(Deposit(5), idempotency_key="a") == 5
        await account.stop()
        assert await account.ask(Deposit(5), idempotency_key="a") == 5
        assert (await account.ask(Look()))[0] == 5


class OldAccount(Account):
    snapshots = SnapshotPolicy(every=3, keep=2)


class OldPipelinedAccount(PipelinedAccount):
    snapshots = SnapshotPolicy(every=3, keep=2)


OLD_ACCOUNTS = pytest.mark.parametrize("account_class", [OldAccount, OldPipelinedAccount])


@OLD_ACCOUNTS
async def test_a_snapshot_holds_the_keys(account_class: type[Account]) -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, account_class)
        for number in range(10):
            assert await account.ask(Deposit(1), idempotency_key=f"{number}") == number + 1
        await system.backend.flush()
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, account_class)
        for number in range(10):
            assert await account.ask(Deposit(1), idempotency_key=f"{number}") == number + 1
        assert store.metrics.snapshot().snapshots_loaded == 1
        assert (await account.ask(Look()))[0] == 10


@OLD_ACCOUNTS
async def test_a_history_whose_beginning_was_removed_keeps_the_keys(
    account_class: type[Account], tmp_path: Path
) -> None:
    store = JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no")
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, account_class)
        for number in range(10):
            await account.ask(Deposit(1), idempotency_key=f"{number}")
        await system.backend.flush()
        policy = RetentionPolicy(max_records=1, trim_histories=True)
        report = await system.backend.compact(policy)
        assert report.histories is not None
        assert report.histories.trimmed == 1
        first = (await history(system.backend))[0]
        assert (first.event_type, first.revision > 10) == ("papyra.base", True)
    shutil.rmtree(tmp_path / "bank.ndjson.snapshots")
    store = JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no")
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, account_class)
        for number in range(10):
            assert await account.ask(Deposit(1), idempotency_key=f"{number}") == number + 1
        assert (await account.ask(Look()))[0] == 10


async def test_a_command_that_stored_nothing_is_decided_anew() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        account = spawn(system)
        with pytest.raises(InsufficientFunds):
            await account.ask(Withdraw(5), idempotency_key="a")
        await account.ask(Deposit(7))
        assert await account.ask(Withdraw(5), idempotency_key="a") == 2
        assert await account.ask(Withdraw(5), idempotency_key="a") == 2


@ACCOUNTS
async def test_a_key_is_not_kept_if_nothing_could_be_stored(account_class: type[Account]) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, account_class)
        await account.ask(Look())
        await system.backend.flush()
        store.fail_next("append", kind="event", times=1)
        with pytest.raises(StoreError):
            await account.ask(Deposit(5), idempotency_key="a")
        assert (await account.ask(Look()))[0] == 0
        assert await account.ask(Deposit(5), idempotency_key="a") == 5
        assert await account.ask(Deposit(5), idempotency_key="a") == 5


@ACCOUNTS
async def test_who_repeats_while_the_first_is_on_its_way_waits_for_its_outcome(
    account_class: type[Account],
) -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, account_class)
        await account.ask(Look())
        await system.backend.flush()
        store.hang("append", kind="event", times=1)
        replies: list[object] = []

        async def ask() -> None:
            replies.append(await account.ask(Deposit(5), idempotency_key="a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            with pytest.raises(AskTimeout):
                await account.ask(Deposit(5), timeout=0.05, idempotency_key="a")
            assert replies == []
            store.release()
        assert replies == [5, 5]
        assert (await account.ask(Look()))[0] == 5


async def test_who_is_told_twice_of_a_failure_may_repeat_it() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, PipelinedAccount)
        await account.ask(Look())
        await system.backend.flush()
        store.fail_next("append", kind="event", times=1)
        outcomes: list[object] = []

        async def ask() -> None:
            try:
                outcomes.append(await account.ask(Deposit(5), idempotency_key="a"))
            except StoreError as error:
                outcomes.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        assert isinstance(outcomes[0], StoreError)
        # The other waited behind the failure, or came after it, and then it was carried out.
        assert await account.ask(Deposit(5), idempotency_key="a") == 5
        assert (await account.ask(Look()))[0] == 5


class Receipt(msgspec.Struct, frozen=True):
    number: int
    lines: tuple[str, ...]


class Buy(msgspec.Struct, Message[Receipt], frozen=True):
    item: str


class Say(msgspec.Struct, frozen=True):
    """Persist, and reply with this."""

    reply: Any


class Till(EventSourced[int]):
    events = (Deposited,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Deposited) -> int:
        return state + event.amount

    async def receive(self, message: Any) -> Any:
        match message:
            case Buy(item):
                await self.persist(Deposited(1), metadata={"item": item})
                return Receipt(self.state, (item,))
            case Say(reply):
                await self.persist(Deposited(1))
                return reply
        return self.state


async def test_a_reply_comes_back_as_the_type_that_its_message_says() -> None:
    store = InMemoryPersistence()
    for _ in range(2):
        async with ActorSystem("bank", persistence=store) as system:
            receipt = await spawn(system, Till).ask(Buy("tea"), idempotency_key="a")
            assert receipt == Receipt(1, ("tea",))


@pytest.mark.parametrize("reply", [None, True, 0, 1.5, "ü", [1, {"a": None}], {}])
async def test_plain_replies_come_back_as_they_are(reply: object) -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        till = spawn(system, Till)
        for _ in range(2):
            again = await till.ask(Say(reply), idempotency_key="a")
            assert (type(again), again) == (type(reply), reply)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Receipt(1, ()), "Message"),
        ((1, 2), "Message"),
        (float("nan"), "could not be kept"),
        (object(), "could not be kept"),
        ("x" * 10_000, "larger than"),
    ],
    ids=["struct", "tuple", "nan", "object", "large"],
)
async def test_a_reply_that_could_not_come_back_is_said_not_to_be_kept(
    reply: object, why: str
) -> None:
    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        assert await spawn(system, Till).ask(Say(reply), idempotency_key="a") is reply
    for _ in range(2):
        async with ActorSystem("bank", persistence=store) as system:
            with pytest.raises(ReplyNotKept, match=why):
                await spawn(system, Till).ask(Say(reply), idempotency_key="a")
            assert await spawn_or_find(system, Till).ask("look") == 1


async def test_a_failure_after_something_was_stored_is_repeated_by_name() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        till, refusal = spawn(system, Till), Failure(InsufficientFunds("no change"))
        with pytest.raises(InsufficientFunds):
            await till.ask(Say(refusal), idempotency_key="a")
        with pytest.raises(RepeatedFailure, match="no change") as raised:
            await till.ask(Say(refusal), idempotency_key="a")
        assert raised.value.error_type == "InsufficientFunds"
        assert await till.ask("look") == 1


async def test_the_window_forgets_the_oldest_key() -> None:
    class Short(Account):
        idempotency_window = 3

    store = InMemoryPersistence()
    async with ActorSystem("bank", persistence=store) as system:
        for number in range(4):
            await spawn_or_find(system, Short).ask(Deposit(1), idempotency_key=f"{number}")
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, Short)
        for number in (1, 2, 3):
            assert await account.ask(Deposit(1), idempotency_key=f"{number}") == number + 1
        assert await account.ask(Deposit(1), idempotency_key="0") == 5
        assert await account.ask(Deposit(1), idempotency_key="2") == 3
        assert await account.ask(Deposit(1), idempotency_key="1") == 6


def spawn_or_find(system: ActorSystem, account_class: type[Actor]) -> ActorRef:
    return system.find("bank/ann") or spawn(system, account_class)


@pytest.mark.parametrize("window", [0, -1, True, None, "1000", 10**9])
def test_a_window_that_makes_no_sense_is_refused(window: Any) -> None:
    with pytest.raises(InvalidPolicy, match="idempotency_window"):
        type("Wrong", (Account,), {"idempotency_window": window})


class Plain(Actor):
    async def receive(self, message: Any) -> Any:
        return message


async def test_only_event_sourced_actors_keep_keys() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        for ref in (system.spawn(Plain), system.entity(Plain, "x"), system.persistence):
            with pytest.raises(IdempotencyKeysUnsupported):
                await ref.ask("hello", idempotency_key="a")


class OwnKeys(Plain):
    """Keeps its keys itself."""

    def __init__(self) -> None:
        self._replies: dict[str, object] = {}

    async def receive_once(self, message: Any, idempotency_key: str) -> Any:
        return self._replies.setdefault(idempotency_key, message)


async def test_an_actor_may_keep_its_keys_itself() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        for ref in (system.spawn(OwnKeys), system.entity(OwnKeys, "x")):
            assert await ref.ask(1, idempotency_key="a") == 1
            assert await ref.ask(2, idempotency_key="a") == 1
            assert await ref.ask(3) == 3


@pytest.mark.parametrize("key", ["", "x" * 1_025, 7, b"a", True, "\ud800"])
async def test_a_key_that_is_none_is_refused_and_nothing_is_stored(key: Any) -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        for account in (spawn(system), system.entity(Account, "ben")):
            with pytest.raises(InvalidIdempotencyKey):
                await account.ask(Deposit(5), idempotency_key=key)
            with pytest.raises(InvalidIdempotencyKey):
                await account.ask(Deposit(5), idempotency_key=key, retry=Retry(5))
            assert (await account.ask(Look())) == (0, 0)


@pytest.mark.parametrize("key", ["x" * 1_024, "ü€\U0001f600" * 300, '"\\\n\x00', "papyra.x"])
async def test_any_other_string_is_a_key(key: str, tmp_path: Path) -> None:
    for _ in range(2):
        store = JsonFilePersistence(tmp_path / "bank.ndjson", fsync="no")
        async with ActorSystem("bank", persistence=store) as system:
            assert await spawn(system).ask(Deposit(5), idempotency_key=key) == 5


async def test_a_key_belongs_to_one_command() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        account = spawn(system)
        await account.ask(Deposit(5), idempotency_key="a")
        with pytest.raises(InvalidIdempotencyKey, match="Deposit"):
            await account.ask(Withdraw(5), idempotency_key="a")
        assert (await account.ask(Look()))[0] == 5


async def test_keys_of_one_actor_are_nothing_to_another() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        for name in ("ann", "ben"):
            assert await system.spawn(Account, name=name).ask(Deposit(5), idempotency_key="a") == 5


async def test_the_events_of_a_command_name_its_key() -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        await spawn(system, Till).ask(Buy("tea"), idempotency_key="a")
        bought, replied = await history(system.backend)
        assert bought.metadata == {
            "item": "tea",
            "papyra.idempotency_key": "a",
            "papyra.command": "Buy",
        }
        assert (replied.event_type, replied.revision) == ("papyra.replied", 2)
        reply = {"value": {"number": 1, "lines": ["tea"]}}
        assert replied.payload == {"idempotency_key": "a", "reply": reply}


@pytest.mark.parametrize("metadata", [[("a", "b")], {"papyra.x": "1"}, {1: "a"}, {"a": 1}, "ab"])
async def test_metadata_that_is_none_is_refused(metadata: Any) -> None:
    class Careless(Account):
        async def receive(self, message: Any) -> Any:
            if message == "nowait":
                self.persist_nowait(Deposited(1), metadata=metadata)
            if message == "wait":
                await self.persist(Deposited(1), metadata=metadata)
            return self.state

    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        account = spawn(system, Careless)
        for message in ("wait", "nowait"):
            with pytest.raises(InvalidRecord):
                await account.ask(message)
            assert await account.ask("look") == Balance()


async def test_what_on_recovered_stores_is_no_part_of_a_command() -> None:
    class Greeting(Account):
        async def on_recovered(self) -> None:
            await self.persist(Deposited(100))

    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store) as system:
        account = spawn(system, Greeting)
        assert await account.ask(Deposit(5), idempotency_key="a") == 105
        keyed = [each.metadata for each in await history(system.backend)]
        assert [bool(each) for each in keyed] == [False, True, False]


class Diary(EventSourced[list[int]]):
    """Its state is changed in place, so it recovers in the middle of a command that fails."""

    events = (Deposited,)

    def initial_state(self) -> list[int]:
        return []

    def apply(self, state: list[int], event: Deposited) -> list[int]:
        state.append(event.amount)
        return state

    async def on_recovered(self) -> None:
        await self.persist(Deposited(100))

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Deposit):
            try:
                await self.persist(Deposited(message.amount))
            except StoreError:
                await self.persist(Deposited(message.amount + 1))
        return list(self.state)


async def test_a_recovery_in_the_middle_of_a_command_is_no_part_of_it() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store) as system:
        diary = spawn(system, Diary)
        assert await diary.ask("look") == [100]
        await system.backend.flush()
        store.fail_next("append", kind="event")
        assert await diary.ask(Deposit(5), idempotency_key="a") == [100, 100, 6]
        assert await diary.ask(Deposit(5), idempotency_key="a") == [100, 100, 6]
        keyed = [each.metadata for each in await history(system.backend)]
        assert [bool(each) for each in keyed] == [False, False, True, False]
