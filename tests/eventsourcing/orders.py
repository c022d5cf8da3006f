"""The order that the tests of durable timers use."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from papyra import Failure
from papyra.eventsourcing import EventSourced, SnapshotPolicy, Timer
from papyra.retry import Retry


class Noted(msgspec.Struct, frozen=True):
    text: str


class Remind(msgspec.Struct, frozen=True):
    text: str = ""


class Do(msgspec.Struct, frozen=True):
    """Do this with each timer: see `Order.receive`."""

    what: str


class Set(msgspec.Struct, frozen=True):
    """Schedule a timer, along with an event if `text` is one; `when` says when."""

    name: str
    when: dict[str, Any]
    text: str | None = None
    message: Any = Remind()


class Cancel(msgspec.Struct, frozen=True):
    name: str
    text: str | None = None


class Look(msgspec.Struct, frozen=True):
    """Reply with the texts so far."""


class Order(EventSourced[tuple[str, ...]]):
    """Notes what it is told, and what its timers bring."""

    events = (Noted,)
    timer_messages: ClassVar[tuple[type, ...]] = (Remind, Do)
    timer_retry = Retry(3, backoff=2.0)
    #: the occurrences that `receive` was called for
    seen: list[Any]

    def __init__(self, seen: list[Any] | None = None) -> None:
        self.seen = [] if seen is None else seen

    def initial_state(self) -> tuple[str, ...]:
        return ()

    def apply(self, state: tuple[str, ...], event: Noted) -> tuple[str, ...]:
        return (*state, event.text)

    async def receive(self, message: Any) -> Any:
        match message:
            case Set(name, when, text, bring):
                events = () if text is None else (Noted(text),)
                await self.persist(*events, schedule=Timer(name, bring, **when))
            case Cancel(name, text):
                events = () if text is None else (Noted(text),)
                await self.persist(*events, unschedule=name)
            case Look():
                return self.state
            case Remind(text):
                self.seen.append(self.occurrence)
                await self.persist(Noted(text))
            case Do(what):
                self.seen.append(self.occurrence)
                return await self.do(what)
            case (*_,):
                return {name: each.due for name, each in self.scheduled.items()}
            case _:
                return self.unhandled(message)
        return self.revision

    async def do(self, what: str) -> Any:
        match what:
            case "nothing":
                return None
            case "nowait":
                self.persist_nowait(Noted(what))
            case "raise":
                raise ValueError("not today")
            case "refuse":
                return Failure(ValueError("not today"))
            case "unhandled":
                return self.unhandled(what)
            case "persist and raise":
                await self.persist(Noted(what))
                raise ValueError("too late")
            case "once more":
                await self.schedule("again", Remind("again"), after=1)
        return None


class KeptOrder(Order):
    """The same, with snapshots."""

    entity_name = "Order"
    snapshots = SnapshotPolicy(every=5)
