"""Entities: who is reached by `system.entity` wakes with a message, and sleeps when it may."""

from __future__ import annotations

import asyncio
import copy
import enum
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForAll, OneForOne, Terminated
from papyra._trio import running_trio
from papyra.exceptions import (
    ActorInitializationError,
    ActorStopped,
    DuplicateActorName,
    DuplicateEntityName,
    EscalatedFailure,
    InvalidActor,
    InvalidActorName,
    InvalidEntityId,
    InvalidPolicy,
    MailboxFull,
    NotAnEntity,
    SystemNotRunning,
    UnhandledMessage,
    WouldDeadlock,
    WrongLoop,
)
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import wait_until_idle
from tests.actors import Echo, letters, story
from tests.conftest import on_event_loops

STOP = OneForOne(default=Decision.STOP)

request_id: ContextVar[str] = ContextVar("request_id")


class Account(Actor):
    """Notes the steps of each of its lives, in a list that all accounts share."""

    entity_name = "account"

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.balance = 0
        self.note("made")

    def note(self, what: Any) -> None:
        self.log.append((self.context.entity_id, what))

    async def on_start(self) -> None:
        self.note("start")

    async def receive(self, message: Any) -> Any:
        match message:
            case int(amount):
                self.note(amount)
                self.balance += amount
                return self.balance
            case "sleep":
                self.context.passivate()
            case "stop":
                self.context.stop()
            case BaseException():
                raise message
            case (anyio.Event() as entered, anyio.Event() as release):
                entered.set()
                await release.wait()
            case _ if callable(message):
                return await message(self)
            case _:
                return self.unhandled(message)
        return None

    async def on_stop(self) -> None:
        self.note("stop")


class Door:
    """Where somebody waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = anyio.Event()
        self.release = anyio.Event()

    async def pass_through(self) -> None:
        self.entered.set()
        await self.release.wait()


class Slow(Account):
    """An account that takes its time to stop."""

    entity_name = "slow"

    def __init__(self, log: list[Any], door: Door) -> None:
        super().__init__(log)
        self.door = door

    async def on_stop(self) -> None:
        await self.door.pass_through()
        await super().on_stop()


@pytest.fixture
def log() -> list[Any]:
    return []


# Waking


async def test_a_ref_wakes_nobody_and_the_first_message_does(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        assert (str(account.address), account.entity_id) == ("bank/account/42", "42")
        assert account.is_alive
        await wait_until_idle()
        assert (log, len(system.entities)) == ([], 0)
        assert await account.ask(30) == 30
        assert log == [("42", "made"), ("42", "start"), ("42", 30)]
        assert await account.ask(12) == 42
        assert len(log) == 4


@pytest.mark.parametrize("send", ["tell", "tell_nowait", "ask"])
async def test_each_way_to_send_wakes(log: list[Any], send: str) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        if send == "tell_nowait":
            account.tell_nowait(1)
        else:
            await getattr(account, send)(1)
        assert await account.ask(2) == 3


async def test_there_is_one_ref_for_an_entity_and_copies_are_the_same(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        assert system.entity(Account, "42") is account
        assert system.entity(Account, "43") is not account
        assert copy.copy(account) is account
        assert copy.deepcopy([account])[0] is account
        assert repr(account) == "<EntityRef bank/account/42>"


async def test_an_entity_finds_others_and_itself_through_its_context() -> None:
    class Person(Actor):
        async def receive(self, message: Any) -> Any:
            match message:
                case ("ask", str(other)):
                    return await self.context.entity(Person, other).ask("who")
                case "who":
                    return self.context.entity_id, self.context.self_ref

    async with ActorSystem() as system:
        ada, bob = system.entity(Person, "Ada"), system.entity(Person, "Bob")
        assert await ada.ask(("ask", "Bob")) == ("Bob", bob)
        assert await system.entity(Person, "Bob").ask("who") == ("Bob", bob)
        assert system.find("papyra/Person/Ada") is ada


async def test_an_entity_is_found_while_it_is_awake(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "a/b")
        assert system.find(account.address) is None
        await account.ask(1)
        assert system.find("bank/account/a%2Fb") is account
        assert system.find("bank/account") is None
        assert system.find("bank/account/a") is None
        await account.stop()
        assert system.find(account.address) is None


async def test_a_child_of_an_entity_is_found_below_it(log: list[Any]) -> None:
    async def spawn(actor: Actor) -> ActorRef:
        return actor.context.spawn(Echo, name="child")

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        child = await system.entity(Account, "42").ask(spawn)
        assert system.find("bank/account/42/child") is child


async def test_who_is_awake_is_listed_and_counted(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        for number in range(3):
            await system.entity(Account, str(number)).ask(number)
        await system.entity(Account, "1").ask("sleep")
        await wait_until_idle()
        awake = [(entity.type, entity.id, entity.ref) for entity in system.entities]
        assert awake == [("account", each, system.entity(Account, each)) for each in ("0", "2")]
        assert len(system.entities) == 2
        assert (system.entities.activations, system.entities.passivations) == (3, 1)
        assert system.audit().actors == 2


async def test_a_message_in_a_callback_of_the_loop_wakes(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        trio = running_trio()
        call_soon: Callable[..., Any] = (
            asyncio.get_running_loop().call_soon
            if trio is None
            else trio.lowlevel.current_trio_token().run_sync_soon
        )
        call_soon(account.tell_nowait, 1)
        await wait_until_idle()
        assert await account.ask(2) == 3


@on_event_loops("asyncio")
async def test_ten_thousand_are_woken_at_once_by_an_actor_whose_mailbox_takes_a_thousand() -> None:
    class Counts(Actor):
        def __init__(self) -> None:
            self.heard: set[str] = set()
            self.all = anyio.Event()

        async def receive(self, message: Any) -> Any:
            self.heard.add(message)
            if len(self.heard) == 10_000:
                self.all.set()

    counts: list[Counts] = []

    class Keeps(Counts):
        def __init__(self) -> None:
            super().__init__()
            counts.append(self)

    class Reports(Actor):
        async def receive(self, message: ActorRef) -> None:
            await message.tell(self.context.entity_id)
            self.context.passivate()

    async with ActorSystem(mailbox_capacity=1_000) as system:
        counter = system.spawn(Keeps)
        for number in range(10_000):
            system.entity(Reports, str(number)).tell_nowait(counter)
        assert len(system.entities) == 10_000
        await counts[0].all.wait()
        await wait_until_idle()
        assert len(system.entities) == 0
        assert (system.entities.activations, system.entities.passivations) == (10_000, 10_000)


# How they are made


async def test_each_life_is_made_with_what_the_class_was_registered_with() -> None:
    class Priced(Actor):
        def __init__(self, rates: dict[str, int], *, currency: str) -> None:
            self.price = rates[currency], self.context.entity_id

        async def receive(self, message: Any) -> Any:
            self.context.passivate()
            return self.price

    system = ActorSystem()
    system.entities.register(Priced, {"EUR": 2}, currency="EUR")
    async with system:
        for _ in range(2):
            assert await system.entity(Priced, "rate").ask("?") == (2, "rate")


async def test_a_class_that_needs_arguments_is_refused_until_it_is_registered() -> None:
    async with ActorSystem() as system:
        with pytest.raises(
            InvalidActor, match=r"'log'.*system\.entities\.register\(Account, \.\.\."
        ):
            system.entity(Account, "42")
        with pytest.raises(InvalidActor, match="too many positional"):
            system.entities.register(Account, [], "more")
        system.entities.register(Account, [])
        assert await system.entity(Account, "42").ask(1) == 1


async def test_a_class_that_can_never_be_made_is_refused() -> None:
    class Abstract(Actor):
        pass

    class Tiny(Echo):
        mailbox_capacity = 0

    async with ActorSystem() as system:
        with pytest.raises(InvalidActor, match="Abstract is abstract: it lacks receive"):
            system.entity(Abstract, "42")  # type: ignore[type-abstract]
        with pytest.raises(InvalidPolicy, match="greater than 0"):
            system.entity(Tiny, "42")
        odd_ones: tuple[Any, ...] = (int, "Account", None, [])
        for odd in odd_ones:
            with pytest.raises(InvalidActor, match="only subclasses of Actor"):
                system.entity(odd, "42")


async def test_a_class_is_registered_once_and_before_its_first_entity() -> None:
    async with ActorSystem() as system:
        system.entities.register(Account, [])
        with pytest.raises(DuplicateEntityName, match="known as the entity type 'account' already"):
            system.entities.register(Account, [])
        system.entity(Echo, "42")
        with pytest.raises(DuplicateEntityName, match="before the first"):
            system.entities.register(Echo)


async def test_two_classes_with_one_name_are_refused() -> None:
    class Savings(Account):
        pass

    async with ActorSystem() as system:
        system.entities.register(Account, [])
        with pytest.raises(DuplicateEntityName, match=r"Savings and .*Account can't both be"):
            system.entities.register(Savings, [])


async def test_a_class_keeps_its_entities_when_it_is_renamed() -> None:
    async with ActorSystem("bank") as system:
        assert str(system.entity(Echo, "42").address) == "bank/Echo/42"

    class Repeats(Echo):
        entity_name = "Echo"

    async with ActorSystem("bank") as system:
        assert str(system.entity(Repeats, "42").address) == "bank/Echo/42"


async def test_an_actor_and_a_type_of_entities_can_t_have_one_name() -> None:
    class Numbered(Echo):
        entity_name = "Echo-1"

    async with ActorSystem("bank") as system:
        system.spawn(Echo, name="account")
        with pytest.raises(DuplicateActorName, match="an actor has this name"):
            system.entities.register(Account, [])
        system.entity(Echo, "42")
        with pytest.raises(DuplicateActorName, match="'Echo' is the name of a type of entities"):
            system.spawn(Echo, name="Echo")
        system.entity(Numbered, "42")
        assert system.spawn(Echo).address.name == "Echo-2"


@pytest.mark.parametrize("name", ["", "a/b", "$own", "a\n", 7])
def test_a_name_that_no_address_can_have_is_refused_with_the_class(name: Any) -> None:
    with pytest.raises(InvalidActor, match=r"Odd\.entity_name: .* can't be part of an address"):
        type("Odd", (Echo,), {"entity_name": name})


@pytest.mark.parametrize("timeout", [0, -1, "1", float("nan"), True])
def test_an_idle_timeout_that_makes_no_sense_is_refused_with_the_class(timeout: Any) -> None:
    with pytest.raises(InvalidActor, match=r"Odd\.idle_timeout is seconds, more than 0, or None"):
        type("Odd", (Echo,), {"idle_timeout": timeout})


async def test_a_class_whose_own_name_no_address_can_have_needs_another() -> None:
    odd = type("$Odd", (Echo,), {})
    async with ActorSystem() as system:
        with pytest.raises(InvalidActorName, match="the system's own"):
            system.entity(odd, "42")


class Id(Actor):
    async def receive(self, message: Any) -> Any:
        return self.context.entity_id


@pytest.mark.parametrize(
    "entity_id",
    ["42", "a/b", "..", "%2F", "$own", "\n\0", "Zürich", "😀", "\ud83d", " ", "x" * 5_000],
)
async def test_any_string_is_an_id(entity_id: str) -> None:
    async with ActorSystem("bank") as system:
        ref = system.entity(Id, entity_id)
        assert await ref.ask("?") == entity_id
        assert str(ref.address).isprintable()
        assert system.find(str(ref.address)) is ref
        assert [(each.id, each.ref) for each in system.entities] == [(entity_id, ref)]


@pytest.mark.parametrize("entity_id", ["", None, 42, b"42", ["42"], True])
async def test_what_is_no_string_or_an_empty_one_is_no_id(entity_id: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidEntityId, match="a string, and not an empty one"):
            system.entity(Id, entity_id)


async def test_a_string_that_shows_itself_as_something_else_is_its_plain_text() -> None:
    class Color(str, enum.Enum):  # noqa: UP042 - which shows itself as Color.RED
        RED = "red"

    async with ActorSystem() as system:
        assert system.entity(Id, Color.RED) is system.entity(Id, "red")
        assert type(await system.entity(Id, Color.RED).ask("?")) is str


@given(st.sets(st.text(st.characters(exclude_categories=()), min_size=1), max_size=10))
def test_different_ids_have_different_addresses(ids: set[str]) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            assert len({system.entity(Id, each).address for each in ids}) == len(ids)

    anyio.run(main)


# Passivation


async def test_it_sleeps_after_the_message_at_hand_and_the_next_message_wakes_it_anew(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        await account.ask(5)
        await account.ask("sleep")
        await wait_until_idle()
        assert log[-1] == ("42", "stop")
        assert len(system.entities) == 0
        assert await account.ask(1) == 1
    assert [what for _, what in log] == ["made", "start", 5, "stop", "made", "start", 1, "stop"]
    assert story(persistence, "bank/account/42") == ["ActorStarted", "ActorStopped"] * 2
    assert letters(persistence) == []


async def test_what_is_behind_that_message_is_for_the_next_life_in_order(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        for message in (1, "sleep", 2, 3, "sleep", "sleep", 4):
            account.tell_nowait(message)
        assert await account.ask(5) == 9
        assert (system.entities.activations, system.entities.passivations) == (4, 3)
    heard = [what for _, what in log if isinstance(what, int)]
    assert heard == [1, 2, 3, 4, 5]
    assert letters(persistence) == []


async def test_what_comes_while_it_stops_is_for_the_next_life_in_order(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    door = Door()
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Slow, log, door)
        slow = system.entity(Slow, "42")
        await slow.ask("sleep")
        await door.entered.wait()
        await slow.tell(1)
        slow.tell_nowait(2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.ask, 3)
            await wait_until_idle()
            assert [what for _, what in log] == ["made", "start"]
            door.release.set()
        assert [what for _, what in log] == ["made", "start", "stop", "made", "start", 1, 2, 3]
    assert letters(persistence) == []


async def test_the_capacity_of_the_mailbox_holds_while_it_stops(log: list[Any]) -> None:
    class Narrow(Slow):
        entity_name = "narrow"
        mailbox_capacity = 2

    door = Door()
    async with ActorSystem("bank") as system:
        system.entities.register(Narrow, log, door)
        narrow = system.entity(Narrow, "42")
        await narrow.ask("sleep")
        await door.entered.wait()
        narrow.tell_nowait(1)
        narrow.tell_nowait(2)
        with pytest.raises(MailboxFull, match="bank/narrow/42 holds 2 messages"):
            narrow.tell_nowait(13)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(narrow.tell, 3)
            await wait_until_idle()
            with anyio.move_on_after(0):
                await narrow.tell(13)  # whoever gives up has not sent anything
            tasks.start_soon(narrow.ask, 4)
            await wait_until_idle()
            assert not any(what == 1 for _, what in log)
            door.release.set()
    assert [what for _, what in log if isinstance(what, int)] == [1, 2, 3, 4]


async def test_one_that_is_passivated_in_on_start_handles_what_woke_it_first() -> None:
    class Hasty(Actor):
        async def on_start(self) -> None:
            self.context.passivate()

        async def receive(self, message: Any) -> Any:
            return message

    async with ActorSystem() as system:
        hasty = system.entity(Hasty, "42")
        assert await hasty.ask(1) == 1
        assert await hasty.ask(2) == 2
        assert system.entities.activations == 1


async def test_an_actor_that_was_spawned_is_no_entity() -> None:
    async def passivate(actor: Actor) -> None:
        actor.context.passivate()

    async def entity_id(actor: Actor) -> str:
        return actor.context.entity_id

    class Does(Actor):
        async def receive(self, message: Any) -> Any:
            return await message(self)

    async with ActorSystem("bank") as system:
        ref = system.spawn(Does, name="does")
        for step in (passivate, entity_id):
            with pytest.raises(NotAnEntity, match="bank/does was spawned"):
                await ref.ask(step)


async def test_children_stop_with_it_and_their_deaths_are_no_messages_for_the_next_life(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async def watch_a_child(actor: Actor) -> None:
        child = actor.context.spawn(Echo, name="child")
        actor.context.watch(child)
        child.tell_nowait(ValueError("dies"))

    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        account.tell_nowait(watch_a_child)
        account.tell_nowait("sleep")
        assert await account.ask(1) == 1
    assert letters(persistence) == []
    assert story(persistence, "bank/account/42/child")[-1] == "ActorStopped"


async def test_an_error_in_on_stop_is_recorded_and_the_next_message_wakes_it(
    persistence: InMemoryPersistence,
) -> None:
    class Clumsy(Actor):
        async def receive(self, message: Any) -> Any:
            self.context.passivate()
            return message

        async def on_stop(self) -> None:
            raise ValueError("clumsy")

    async with ActorSystem("bank", persistence=persistence) as system:
        clumsy = system.entity(Clumsy, "42")
        assert [await clumsy.ask(number) for number in range(2)] == [0, 1]
    assert story(persistence, "bank/Clumsy/42").count("ActorCrashed") == 2


# Stopping


async def test_stop_returns_when_it_sleeps_and_has_handled_what_it_was_sent(
    log: list[Any],
) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        await account.stop()
        assert log == []  # it does not wake for this
        for number in range(3):
            account.tell_nowait(number)
        await account.stop()
        assert [what for _, what in log] == ["made", "start", 0, 1, 2, "stop"]
        assert account.is_alive
        assert await account.ask(1) == 1


async def test_stop_waits_for_every_life_that_what_was_sent_before_takes(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        for message in (1, "sleep", 2, "sleep", 3):
            account.tell_nowait(message)
        await account.stop()
        assert [what for _, what in log if isinstance(what, int)] == [1, 2, 3]
        assert len(system.entities) == 0
        assert await account.ask(4) == 4


async def test_what_comes_after_stop_is_for_a_life_that_begins_when_that_one_has_ended(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    door = Door()
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Slow, log, door)
        slow = system.entity(Slow, "42")
        slow.tell_nowait(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.stop)
            await door.entered.wait()
            slow.tell_nowait(2)
            tasks.start_soon(slow.ask, 3)
            await wait_until_idle()
            tasks.start_soon(slow.stop)
            await wait_until_idle()
            slow.tell_nowait(4)
            assert [what for _, what in log] == ["made", "start", 1]
            door.release.set()
        await slow.stop()
    assert [what for _, what in log if what not in ("made", "start")] == [
        *(1, "stop"),
        *(2, 3, "stop"),
        *(4, "stop"),
    ]
    assert letters(persistence) == []


async def test_an_entity_that_stops_itself_does_not_wait_for_it(log: list[Any]) -> None:
    async def stop_itself(actor: Actor) -> str:
        await actor.context.self_ref.stop()
        actor.context.self_ref.tell_nowait(7)
        return "went on"

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        assert await account.ask(stop_itself) == "went on"
        assert await account.ask(1) == 8
        assert system.entities.activations == 2


async def test_one_that_stops_by_its_context_leaves_dead_letters_and_wakes_again(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        account.tell_nowait("stop")
        account.tell_nowait(13)
        with pytest.raises(ActorStopped, match="bank/account/42 stopped before") as caught:
            await account.ask(14)
        assert caught.value.handled == "never"
        assert await account.ask(1) == 1
    assert letters(persistence) == [13, 14]


# Failing


async def test_one_that_supervision_stops_wakes_again_with_the_next_message(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async with ActorSystem("bank", persistence=persistence, supervision=STOP) as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        for _ in range(2):
            await account.ask(1)
            with pytest.raises(ValueError, match="lost"):
                await account.ask(ValueError("lost"))
            assert await account.ask(1) == 1
            await account.stop()
        assert (system.entities.activations, system.entities.passivations) == (4, 2)
    assert letters(persistence) == []


async def test_what_a_failed_life_leaves_is_dead_letters_and_what_comes_then_is_not(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    door = Door()
    async with ActorSystem("bank", persistence=persistence, supervision=STOP) as system:
        system.entities.register(Slow, log, door)
        slow = system.entity(Slow, "42")
        slow.tell_nowait(ValueError("lost"))
        slow.tell_nowait(13)
        await door.entered.wait()
        slow.tell_nowait(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.ask, 2)
            await wait_until_idle()
            door.release.set()
        assert await slow.ask(3) == 6
    assert letters(persistence) == [13]


async def test_a_restart_keeps_the_mailbox_as_with_any_actor(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        account.tell_nowait(1)
        account.tell_nowait(ValueError("lost"))
        assert await account.ask(2) == 2
        assert system.audit().restarted == 1
        assert system.entities.activations == 1


async def test_one_that_passivates_and_then_fails_is_passivated(log: list[Any]) -> None:
    async def both(actor: Actor) -> None:
        actor.context.passivate()
        raise ValueError("lost")

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        with pytest.raises(ValueError, match="lost"):
            await account.ask(both)
        assert await account.ask(1) == 1
        assert system.entities.activations == 2


@pytest.mark.parametrize("where", ["__init__", "on_start"])
async def test_one_that_can_t_start_is_supervised_and_wakes_when_the_cause_is_gone(
    where: str, persistence: InMemoryPersistence
) -> None:
    broken = True

    class Starts(Actor):
        def __init__(self) -> None:
            if broken and where == "__init__":
                raise OSError("not yet")

        async def on_start(self) -> None:
            if broken and where == "on_start":
                raise OSError("not yet")

        async def receive(self, message: Any) -> Any:
            return message

    async with ActorSystem("bank", persistence=persistence) as system:
        ref = system.entity(Starts, "42")
        ref.tell_nowait(13)
        with pytest.raises(ActorStopped, match="OSError: not yet") as caught:
            await ref.ask(14)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.handled == "never"
        broken = False
        assert await ref.ask(1) == 1
    assert story(persistence, "bank/Starts/42").count("ActorCrashed") == 11
    assert letters(persistence) == [13, 14]


async def test_who_sends_a_message_does_not_run_the_entity_s_init() -> None:
    ran_in: list[Any] = []

    class Made(Actor):
        def __init__(self) -> None:
            ran_in.append(anyio.get_current_task().id)

        async def receive(self, message: Any) -> Any:
            return anyio.get_current_task().id

    async with ActorSystem() as system:
        assert [await system.entity(Made, "42").ask("?")] == ran_in


async def test_a_failure_that_is_escalated_ends_the_system(log: list[Any]) -> None:
    with pytest.raises(EscalatedFailure, match="ValueError: lost"):
        async with ActorSystem("bank", supervision=OneForOne(default=Decision.ESCALATE)) as system:
            system.entities.register(Account, log)
            await system.entity(Account, "42").tell(ValueError("lost"))
            await anyio.sleep_forever()
    assert log[-1] == ("42", "stop")


async def test_under_one_for_all_the_top_level_actors_and_the_entities_are_siblings(
    log: list[Any],
) -> None:
    class Fails(Actor):
        async def receive(self, message: Exception) -> None:
            raise message

    async with ActorSystem("bank", supervision=OneForAll()) as system:
        system.entities.register(Account, log)
        account, fails = system.entity(Account, "42"), system.spawn(Fails)
        await account.ask(1)
        fails.tell_nowait(ValueError("lost"))
        await wait_until_idle()
        assert await account.ask(2) == 2
        assert system.audit().restarted == 2


async def test_a_message_that_it_has_no_use_for_is_refused(
    log: list[Any], persistence: InMemoryPersistence
) -> None:
    async with ActorSystem("bank", persistence=persistence) as system:
        system.entities.register(Account, log)
        with pytest.raises(UnhandledMessage):
            await system.entity(Account, "42").ask("what")
    assert letters(persistence) == ["what"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_whose_task_somebody_cancels_wakes_again(
    log: list[Any], anyio_backend: str
) -> None:
    async def cancel(actor: Actor) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep_forever()

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")
        with pytest.raises(ActorStopped, match="was cancelled"):
            await account.ask(cancel)
        assert await account.ask(1) == 1
        assert (system.entities.activations, system.entities.passivations) == (2, 0)


# Watching


class Watches(Actor):
    def __init__(self) -> None:
        self.seen: list[Terminated] = []

    async def receive(self, message: Any) -> Any:
        match message:
            case ActorRef():
                self.context.watch(message)
            case ("unwatch", ActorRef() as ref):
                self.context.unwatch(ref)
            case Terminated():
                self.seen.append(message)
            case _:
                return self.seen
        return None


async def test_who_watches_an_entity_is_told_when_it_falls_asleep_and_at_once_if_it_sleeps(
    log: list[Any],
) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account, watcher = system.entity(Account, "42"), system.spawn(Watches)
        await watcher.ask(account)
        assert await watcher.ask("seen") == [Terminated(account)]
        await account.ask(1)
        await watcher.ask(account)
        await watcher.ask(account)
        assert len(await watcher.ask("seen")) == 1
        await account.ask("sleep")
        await wait_until_idle()
        assert await watcher.ask("seen") == [Terminated(account)] * 2
        await account.ask(1)
        await account.stop()
        assert len(await watcher.ask("seen")) == 2  # each life is watched anew
        assert system.entities.activations == 2


async def test_a_watch_of_an_entity_can_be_taken_back(log: list[Any]) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account, watcher = system.entity(Account, "42"), system.spawn(Watches)
        await account.ask(1)
        await watcher.ask(account)
        await watcher.ask(("unwatch", account))
        await account.stop()
        await watcher.ask(("unwatch", account))
        assert await watcher.ask("seen") == []


async def test_a_life_that_ends_with_messages_left_is_watched_to_its_end(log: list[Any]) -> None:
    door = Door()
    async with ActorSystem("bank") as system:
        system.entities.register(Slow, log, door)
        slow, watcher = system.entity(Slow, "42"), system.spawn(Watches)
        slow.tell_nowait("sleep")
        await door.entered.wait()
        slow.tell_nowait(1)
        await watcher.ask(slow)
        assert await watcher.ask("seen") == []
        door.release.set()
        assert await slow.ask(2) == 3
        assert await watcher.ask("seen") == [Terminated(slow)]


async def test_a_life_that_took_over_is_watched_and_waited_for_like_the_first(
    log: list[Any],
) -> None:
    async def ask_itself(actor: Actor) -> None:
        await actor.context.self_ref.ask(1)

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account, watcher = system.entity(Account, "42"), system.spawn(Watches)
        account.tell_nowait("sleep")
        assert await account.ask(1) == 1
        await watcher.ask(account)
        assert await watcher.ask("seen") == []
        with pytest.raises(WouldDeadlock):
            await account.ask(ask_itself)
        await account.stop()
        assert await watcher.ask("seen") == [Terminated(account)]


# Waiting for each other


async def test_an_entity_that_asks_itself_is_told_that_it_would_wait_for_itself(
    log: list[Any],
) -> None:
    async def ask_itself(actor: Actor) -> None:
        await actor.context.entity(Account, "42").ask(1)

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        with pytest.raises(WouldDeadlock, match="bank/account/42 can't wait for itself"):
            await system.entity(Account, "42").ask(ask_itself)


async def test_entities_that_ask_in_a_circle_are_told(log: list[Any]) -> None:
    async def ask_two(actor: Actor) -> Any:
        return await actor.context.entity(Account, "2").ask(ask_one)

    async def ask_one(actor: Actor) -> Any:
        return await actor.context.entity(Account, "1").ask(1)

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        with pytest.raises(WouldDeadlock, match="bank/account/2 can't wait for bank/account/1"):
            await system.entity(Account, "1").ask(ask_two)


async def test_one_that_asks_itself_as_it_stops_is_told(log: list[Any]) -> None:
    class Asks(Account):
        entity_name = "asks"

        async def on_stop(self) -> None:
            with pytest.raises(WouldDeadlock):
                await self.context.self_ref.ask(1)
            await super().on_stop()

    async with ActorSystem("bank") as system:
        system.entities.register(Asks, log)
        asks = system.entity(Asks, "42")
        for end in ("sleep", "stop"):
            await asks.ask(end)
            await wait_until_idle()
            assert log[-1] == ("42", "stop")
        assert len(system.entities) == 0
        assert system.entities.activations == 2  # and nobody woke for nothing


@pytest.mark.parametrize("end", ["sleep", "stop"])
async def test_one_that_asks_as_it_stops_who_waits_for_its_next_life_is_told(
    log: list[Any], end: str
) -> None:
    class Does(Actor):
        async def receive(self, message: Any) -> Any:
            return await message(self)

    class Asks(Slow):
        entity_name = "asks"

        async def on_stop(self) -> None:
            await self.door.pass_through()
            with pytest.raises(WouldDeadlock):
                await does.ask(answer)
            await super().on_stop()

    async def answer(_: Actor) -> None:
        pass

    async def ask_it(_: Actor) -> Any:
        return await asks.ask(5)

    door = Door()
    async with ActorSystem("bank") as system:
        system.entities.register(Asks, log, door)
        asks, does = system.entity(Asks, "42"), system.spawn(Does)
        await asks.ask(end)
        await door.entered.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(does.ask, ask_it)
            await wait_until_idle()
            door.release.set()
        assert ("42", 5) in log
        assert ("42", "stop") in log


async def test_a_wait_for_one_life_goes_over_to_the_next(log: list[Any]) -> None:
    class Does(Actor):
        async def receive(self, message: Any) -> Any:
            return await message(self)

    async def ask_back(_: Actor) -> str:
        with pytest.raises(WouldDeadlock):
            await does.ask(answer)
        return "told"

    async def answer(_: Actor) -> None:
        pass

    async def ask_it(_: Actor) -> Any:
        return await account.ask(ask_back)

    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account, does = system.entity(Account, "42"), system.spawn(Does)
        entered, release = anyio.Event(), anyio.Event()
        account.tell_nowait((entered, release))
        account.tell_nowait("sleep")
        await entered.wait()
        replies: list[Any] = []

        async def ask() -> None:
            replies.append(await does.ask(ask_it))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await wait_until_idle()
            release.set()
        assert replies == ["told"]
        assert system.entities.activations == 2


async def test_who_waits_for_a_later_life_waits_for_all_before_it(log: list[Any]) -> None:
    class Does(Actor):
        async def receive(self, message: Any) -> Any:
            return await message(self)

    async def ask_back(actor: Account) -> None:
        with pytest.raises(WouldDeadlock):
            await does.ask(answer)
        actor.note("told")

    async def answer(_: Actor) -> None:
        pass

    async def ask_it(_: Actor) -> Any:
        return await slow.ask(5)

    door = Door()
    async with ActorSystem("bank") as system:
        system.entities.register(Slow, log, door)
        slow, does = system.entity(Slow, "42"), system.spawn(Does)
        slow.tell_nowait("sleep")
        await door.entered.wait()
        slow.tell_nowait(ask_back)  # for a second life
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.stop)
            await wait_until_idle()
            tasks.start_soon(does.ask, ask_it)  # for a third
            await wait_until_idle()
            door.release.set()
        steps = [what for _, what in log if what not in ("made", "start")]
        assert steps == ["stop", "told", "stop", 5]


# Threads, loops, context variables


async def test_a_ref_is_used_from_the_loop_and_from_elsewhere_through_the_portal(
    log: list[Any],
) -> None:
    async with ActorSystem("bank") as system:
        system.entities.register(Account, log)
        account = system.entity(Account, "42")

        def use() -> None:
            with pytest.raises(WrongLoop):
                account.tell_nowait(1)
            with pytest.raises(WrongLoop):
                system.entity(Account, "42")

        await anyio.to_thread.run_sync(use)
        assert log == []
        found = await anyio.to_thread.run_sync(
            lambda: system.portal.call(system.entity, Account, "42")
        )
        assert found is account
        assert await anyio.to_thread.run_sync(system.portal.call, account.ask, 1) == 1


async def test_the_variables_of_who_wakes_it_travel_with_the_message_only() -> None:
    class Sees(Actor):
        async def on_start(self) -> None:
            self.at_start = request_id.get(None)

        async def receive(self, message: Any) -> Any:
            self.context.passivate()
            return self.at_start, request_id.get(None)

    async with ActorSystem(propagate=(request_id,)) as system:
        for number in ("1", "2"):
            request_id.set(number)
            assert await system.entity(Sees, "42").ask("?") == (None, number)


async def test_there_are_no_entities_before_the_start() -> None:
    system = ActorSystem("bank")
    with pytest.raises(SystemNotRunning, match="has not been started"):
        system.entity(Echo, "42")


async def test_an_error_of_init_is_wrapped_only_where_somebody_spawns(log: list[Any]) -> None:
    class Broken(Echo):
        def __init__(self) -> None:
            raise ValueError("broken")

    async with ActorSystem(supervision=STOP) as system:
        with pytest.raises(ActorInitializationError):
            system.spawn(Broken)
        with pytest.raises(ActorStopped, match="ValueError: broken"):
            await system.entity(Broken, "42").ask(1)
