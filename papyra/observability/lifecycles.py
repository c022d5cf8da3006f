"""The lifecycles of actors, as their events tell them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import ReadAll
from papyra.persistence.records import PersistedDeadLetter, PersistedEvent, Record

What: TypeAlias = Literal["started", "crashed", "restarted", "stopped"]

#: How many records are examined at once, where a timeline is followed; it may be a page more.
MOST = 10_000

#: The types of the events of `papyra.events`.
_STEPS: dict[str, What] = {
    "ActorStarted": "started",
    "ActorCrashed": "crashed",
    "ActorRestarted": "restarted",
    "ActorStopped": "stopped",
}


class Step(msgspec.Struct, frozen=True, gc=False):
    """One step of a lifecycle."""

    seq: int
    #: Unix time in seconds
    time: float
    what: What
    #: the payload of the event: see `papyra.events`
    detail: dict[str, Any]


class Lifecycle(msgspec.Struct):
    """The lifecycle of one actor, oldest step first."""

    actor: str
    #: the name of its class, as far as it is known
    actor_type: str
    steps: list[Step]

    @property
    def is_whole(self) -> bool:
        """Whether the first step is how the actor began, or tried to."""
        first = self.steps[0]
        return first.what == "started" or first.detail.get("where") in ("__init__", "on_start")

    @property
    def crashes(self) -> int:
        """The number of its crashes."""
        return sum(step.what == "crashed" for step in self.steps)


class Timeline(msgspec.Struct):
    """The lifecycles and dead letters of a store, as a timeline shows them."""

    #: the store that it was read from
    store: str
    #: from when to when there are steps; Unix time in seconds
    start: float
    end: float
    lives: list[Lifecycle]
    dead_letters: list[PersistedDeadLetter]
    #: the position that it goes up to, where it can be followed
    head: int | None = None
    #: whether there is more behind `head` already
    more: bool = False


async def read_timeline(
    backend: PersistenceBackend,
    name: str,
    since: float | None = None,
    until: float | None = None,
    actor: str | None = None,
) -> Timeline:
    """Return the lifecycles of the actors, in the order of their first steps.

    With `actor`, of those alone whose address that is, or begins with it.
    """
    found = _Found(actor)
    async for event in backend.stream("event", since=since, until=until):
        found.add(event)
    async for letter in backend.stream("dead_letter", since=since, until=until):
        found.add(letter)
    return found.timeline(name)


async def read_timeline_after(backend: PersistenceBackend, name: str, after: int) -> Timeline:
    """Return what comes after position `after`, with the `head` to go on from.

    Where there is much, it is not all: about `MOST` records are examined. Retention hides nothing
    here. Raises `StoreReplaced` for a position after the end of the store.
    """
    found, last = _Found(None), after + MOST
    while True:
        page = await backend.execute(ReadAll(after, ("event", "dead_letter")))
        for record in page.records:
            found.add(record)
        after = page.next_after
        if after >= min(page.head, last):
            return found.timeline(name, after, more=after < page.head)


class _Found:
    """The steps and dead letters that were found in a store."""

    def __init__(self, actor: str | None) -> None:
        self._actor = actor
        self._lives: dict[str, Lifecycle] = {}
        self._letters: list[PersistedDeadLetter] = []

    def add(self, record: Record) -> None:
        """Add what a record tells of the actors that are wanted."""
        match record:
            case PersistedEvent(event_type=event_type, actor_address=address) if (
                what := _STEPS.get(event_type)
            ) is not None and self._is_wanted(address):
                life = self._lives.setdefault(address, Lifecycle(address, "", []))
                step = _step(record, what)
                life.actor_type = life.actor_type or str(step.detail.get("actor_type", ""))
                life.steps.append(step)
            case PersistedDeadLetter(target=target) if self._is_wanted(target):
                self._letters.append(record)

    def timeline(self, name: str, head: int | None = None, *, more: bool = False) -> Timeline:
        """Return all of it, in order."""
        lives = list(self._lives.values())
        for life in lives:
            life.steps.sort(key=lambda step: (step.time, step.seq))
        times = [step.time for life in lives for step in life.steps]
        times += [letter.timestamp for letter in self._letters]
        start, end = min(times, default=0.0), max(times, default=0.0)
        return Timeline(name, start, end, lives, self._letters, head, more)

    def _is_wanted(self, address: str) -> bool:
        actor = self._actor
        return actor is None or address == actor or address.startswith(f"{actor}/")


def _step(event: PersistedEvent, what: What) -> Step:
    # Anybody may persist an event of this type, with whatever payload.
    detail = event.payload if isinstance(event.payload, dict) else {}
    return Step(event.seq or 0, event.timestamp, what, detail)
