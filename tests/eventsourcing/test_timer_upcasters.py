"""A timer outlives the class of its message: it comes as what that is today."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import pytest

from papyra import ActorSystem, Retry
from papyra.eventsourcing import EventSourced, event, upcaster
from papyra.exceptions import InvalidSchema
from papyra.persistence import PersistedDeadLetter
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock

pytestmark = pytest.mark.anyio


class Rang(msgspec.Struct, frozen=True):
    text: str


class Ring(msgspec.Struct, frozen=True):
    """As the first release had it."""

    text: str


class Alarm(EventSourced[tuple[str, ...]]):
    entity_name = "Alarm"
    events = (Rang,)
    timer_messages: ClassVar[tuple[type, ...]] = (Ring,)
    timer_retry = Retry(1)
    starts = 0

    def initial_state(self) -> tuple[str, ...]:
        return ()

    def apply(self, state: tuple[str, ...], event: Rang) -> tuple[str, ...]:
        return (*state, event.text)

    async def on_recovered(self) -> None:
        type(self).starts += 1

    async def receive(self, message: Any) -> Any:
        match message:
            case "set":
                await self.schedule("morning", Ring("up"), after=60)
            case "look":
                return self.state
            case _:
                await self.persist(Rang(str(message)))
        return None


@asynccontextmanager
async def later(
    released: type[Alarm], store: PersistenceBackend, clock: ManualClock
) -> AsyncIterator[ActorSystem]:
    """Schedule with the first release; then run a later one, up to the time of the timer."""
    async with ActorSystem("home", persistence=store, clock=clock, audit_interval=None) as system:
        await system.entity(Alarm, "1").ask("set")
    async with ActorSystem(
        "home", persistence=store, clock=clock, audit_interval=None, entities=[released]
    ) as system:
        await clock.advance(60)
        assert len(system.timers) == 0
        yield system


async def test_a_message_of_an_older_version_comes_as_an_upcaster_makes_it() -> None:
    @event("Ring", version=3)
    class NewRing(msgspec.Struct, frozen=True):
        texts: list[str]
        volume: int

        def __str__(self) -> str:
            return f"{self.texts} at {self.volume}"

    class NewAlarm(Alarm):
        timer_messages = (NewRing,)

        @staticmethod
        @upcaster("Ring", 1)
        def with_volume(payload: dict[str, Any]) -> dict[str, Any]:
            return {**payload, "volume": 5}

        @staticmethod
        @upcaster("Ring", 2)
        def with_texts(payload: dict[str, Any]) -> dict[str, Any]:
            return {"texts": [payload["text"]], "volume": payload["volume"]}

    async with later(NewAlarm, InMemoryPersistence(), ManualClock(1e9)) as system:
        assert await system.entity(NewAlarm, "1").ask("look") == ("['up'] at 5",)


async def test_a_message_comes_as_one_of_another_name_where_an_upcaster_says_so() -> None:
    class Beep(msgspec.Struct, frozen=True):
        text: str

        def __str__(self) -> str:
            return f"beep: {self.text}"

    class NewAlarm(Alarm):
        timer_messages = (Beep,)

        @staticmethod
        @upcaster("Ring", 1, to="Beep")
        def beep(payload: dict[str, Any]) -> Any:
            return [("Beep", payload)]

    async with later(NewAlarm, InMemoryPersistence(), ManualClock(1e9)) as system:
        assert await system.entity(NewAlarm, "1").ask("look") == ("beep: up",)


async def test_a_timer_whose_message_is_no_more_is_over_and_brings_nothing() -> None:
    class Other(msgspec.Struct, frozen=True):
        pass

    class NewAlarm(Alarm):
        timer_messages = (Other,)

        @staticmethod
        @upcaster("Ring", 1, to=())
        def no_more(payload: dict[str, Any]) -> None:
            return None

    async with later(NewAlarm, InMemoryPersistence(), ManualClock(1e9)) as system:
        assert system.timers.metrics().skipped == 1
        assert await system.entity(NewAlarm, "1").ask("look") == ()


async def test_a_message_that_nothing_leads_from_is_given_up_and_the_actor_goes_on() -> None:
    @event("Ring", version=2)
    class NewRing(msgspec.Struct, frozen=True):
        texts: list[str]

    class NewAlarm(Alarm):
        timer_messages = (NewRing,)
        starts = 0

    store = InMemoryPersistence()
    async with later(NewAlarm, store, ManualClock(1e9)) as system:
        assert await system.entity(NewAlarm, "1").ask("look") == ()
        assert system.timers.metrics().given_up == 1
        assert NewAlarm.starts == 1
    (letter,) = store.dead_letters
    assert isinstance(letter, PersistedDeadLetter)
    assert letter.payload["message"] == {"text": "up"}
    assert letter.payload["error"] == (
        "InvalidTimer: timer 'morning': message 'Ring' is of version 1, older than the 2 that "
        "NewAlarm knows, and there is no upcaster for it"
    )


async def test_a_message_of_which_an_upcaster_makes_two_is_given_up() -> None:
    class Beep(msgspec.Struct, frozen=True):
        text: str

    class NewAlarm(Alarm):
        timer_messages = (Beep,)

        @staticmethod
        @upcaster("Ring", 1, to="Beep")
        def twice(payload: dict[str, Any]) -> Any:
            return [("Beep", payload), ("Beep", payload)]

    store = InMemoryPersistence()
    async with later(NewAlarm, store, ManualClock(1e9)) as system:
        assert system.timers.metrics().given_up == 1
    (letter,) = store.dead_letters
    assert "upcasters make 2 messages of a 'Ring'" in letter.payload["error"]


async def test_a_class_has_upcasters_of_events_beside_those_of_messages() -> None:
    @event("Ring", version=2)
    class NewRing(msgspec.Struct, frozen=True):
        text: str

        def __str__(self) -> str:
            return self.text

    @event("Rang", version=2)
    class NewRang(Rang, frozen=True):
        pass

    class NewAlarm(Alarm):
        events = (NewRang,)
        timer_messages = (NewRing,)

        @staticmethod
        @upcaster("Ring", 1)
        def ring(payload: dict[str, Any]) -> dict[str, Any]:
            return {"text": f"new {payload['text']}"}

        @staticmethod
        @upcaster("Rang", 1)
        def rang(payload: dict[str, Any]) -> dict[str, Any]:
            return {"text": f"old {payload['text']}"}

        async def receive(self, message: Any) -> Any:
            if isinstance(message, NewRing):
                await self.persist(NewRang(message.text))
            return self.state

    store = InMemoryPersistence()
    async with ActorSystem("home", persistence=store, audit_interval=None) as system:
        await system.entity(Alarm, "1").ask("rung")
    async with later(NewAlarm, store, ManualClock(1e9)) as system:
        assert await system.entity(NewAlarm, "1").ask("look") == ("old rung", "new up")


def test_an_upcaster_of_a_message_that_leads_to_no_version_that_there_is_is_refused() -> None:
    with pytest.raises(InvalidSchema, match="newest version is 1"):

        class NewAlarm(Alarm):
            @staticmethod
            @upcaster("Ring", 1)
            def ring(payload: dict[str, Any]) -> dict[str, Any]:
                return payload


def test_an_older_version_of_a_message_from_which_no_upcaster_leads_on_is_refused() -> None:
    @event("Ring", version=3)
    class NewRing(msgspec.Struct, frozen=True):
        text: str

    with pytest.raises(InvalidSchema, match="version 2"):

        class NewAlarm(Alarm):
            timer_messages = (NewRing,)

            @staticmethod
            @upcaster("Ring", 1)
            def ring(payload: dict[str, Any]) -> dict[str, Any]:
                return payload
