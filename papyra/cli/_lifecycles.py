"""The lifecycles of actors, as their events tell them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.records import PersistedDeadLetter, PersistedEvent

What: TypeAlias = Literal["started", "crashed", "restarted", "stopped"]

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

    def is_wanted(address: str) -> bool:
        return actor is None or address == actor or address.startswith(f"{actor}/")

    lives: dict[str, Lifecycle] = {}
    async for event in backend.stream("event", since=since, until=until):
        what = _STEPS.get(event.event_type)
        if what is None or not is_wanted(event.actor_address):
            continue
        life = lives.get(event.actor_address)
        if life is None:
            life = lives[event.actor_address] = Lifecycle(event.actor_address, "", [])
        step = _step(event, what)
        life.actor_type = life.actor_type or str(step.detail.get("actor_type", ""))
        life.steps.append(step)
    letters = [
        letter
        async for letter in backend.stream("dead_letter", since=since, until=until)
        if is_wanted(letter.target)
    ]
    for life in lives.values():
        life.steps.sort(key=lambda step: (step.time, step.seq))
    times = [step.time for life in lives.values() for step in life.steps]
    times += [letter.timestamp for letter in letters]
    start, end = min(times, default=0.0), max(times, default=0.0)
    return Timeline(name, start, end, list(lives.values()), letters)


def _step(event: PersistedEvent, what: What) -> Step:
    # Anybody may persist an event of this type, with whatever payload.
    detail = event.payload if isinstance(event.payload, dict) else {}
    return Step(event.seq or 0, event.timestamp, what, detail)
