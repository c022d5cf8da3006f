"""Wrong arguments: whatever is given, the error names the argument and can be shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from papyra import (
    ActorSystem,
    Decision,
    EventSourced,
    Failure,
    OneForOne,
    Retry,
)
from papyra.eventsourcing import event, upcaster
from papyra.exceptions import InvalidPath, PapyraError
from papyra.observability.asgi import health, lifespan, ready, timeline
from papyra.observability.opentelemetry import OpenTelemetry
from papyra.observability.prometheus import PapyraCollector
from papyra.persistence import PersistenceActor, PersistenceStartupConfig, Read
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import PostgresView, SQLiteView
from papyra.testing import FaultyPersistence

#: More digits than Python writes out.
HUGE = 10**5_000


class Mute:
    """Can't be shown by itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no word")

    __str__ = __repr__


def with_system(call: Callable[[ActorSystem, Any], Any]) -> Callable[[Any], Any]:
    return lambda value: call(ActorSystem("bank"), value)


#: By what they are of: calls with one argument that nothing makes sense for.
CALLS: dict[str, Callable[[Any], Any]] = {
    "system_id": ActorSystem,
    "supervision": lambda value: ActorSystem("s", supervision=value),
    "persistence": lambda value: ActorSystem("s", persistence=value),
    "startup": lambda value: ActorSystem("s", startup=value),
    "breaker": lambda value: ActorSystem("s", breaker=value),
    "mailbox_capacity": lambda value: ActorSystem("s", mailbox_capacity=[value]),  # type: ignore[arg-type]
    "shutdown_timeout": lambda value: ActorSystem("s", shutdown_timeout=[value]),  # type: ignore[arg-type]
    "clock": lambda value: ActorSystem("s", clock=value),
    "dispatcher": lambda value: ActorSystem("s", dispatcher=value),
    "propagate": lambda value: ActorSystem("s", propagate=value),
    "telemetry": lambda value: ActorSystem("s", telemetry=value),
    "entities": lambda value: ActorSystem("s", entities=value),
    "an entity": lambda value: ActorSystem("s", entities=[value]),
    "failure": Failure,
    "default": lambda value: OneForOne(default=value),
    "on of supervision": lambda value: OneForOne(on=value),
    "a type in on": lambda value: OneForOne(on={value: Decision.STOP}),
    "a decision in on": lambda value: OneForOne(on={ValueError: value}),
    "on": lambda value: Retry(3, on=value),
    "attempts": lambda value: Retry([value]),  # type: ignore[arg-type]
    "event": event,
    "an event's class": event("opened"),
    "upcaster": lambda value: upcaster(value, 1),
    "PersistenceActor": PersistenceActor,
    "mode": lambda value: PersistenceStartupConfig(mode=value),
    "recovery": lambda value: PersistenceStartupConfig(recovery=value),
    "retention_policy": lambda value: InMemoryPersistence(retention_policy=value),
    "read": Read,
    "path of json": JsonFilePersistence,
    "path of rotating": RotatingFilePersistence,
    "path of sqlite": SQLitePersistence,
    "fsync": lambda value: JsonFilePersistence("x", fsync=value),
    "segment bytes": lambda value: RotatingFilePersistence("x", max_segment_bytes=[value]),  # type: ignore[arg-type]
    "segment age": lambda value: RotatingFilePersistence("x", max_segment_age=[value]),  # type: ignore[arg-type]
    "acknowledge": lambda value: RedisStreamsConfig(acknowledge=value),
    "trim": lambda value: RedisStreamsConfig(trim=value),
    "prefix": lambda value: RedisStreamsConfig(prefix=value),
    "path of a view": SQLiteView,
    "conninfo of a view": PostgresView,
    "lease": lambda value: SQLiteView("x", lease=[value]),  # type: ignore[arg-type]
    "wrapped": FaultyPersistence,
    "tracer_provider": lambda value: OpenTelemetry(tracer_provider=value),
    "meter_provider": lambda value: OpenTelemetry(meter_provider=value),
    "collector": PapyraCollector,
    "health": health,
    "ready": ready,
    "allow": with_system(lambda system, value: timeline(system, allow=value)),
    "setup": with_system(lambda system, value: lifespan(system, setup=value)),
}


@pytest.mark.parametrize("value", [HUGE, Mute()], ids=["huge", "mute"])
@pytest.mark.parametrize("argument", CALLS)
def test_the_error_says_what_was_given_even_if_that_can_not_be_shown(
    argument: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((PapyraError, TypeError)) as caught:
        CALLS[argument](value)
    assert any(part in str(caught.value) for part in ("<int of 16610 bits>", "<Mute instance"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [True, 3.5], ids=["a bool", "a float"])
@pytest.mark.parametrize("argument", CALLS)
def test_an_argument_of_another_type_is_an_error_of_its_own(
    argument: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((PapyraError, TypeError), match=re.escape(repr(value))):
        CALLS[argument](value)
    assert not list(tmp_path.iterdir())


@pytest.mark.anyio
@pytest.mark.parametrize("value", [HUGE, Mute()], ids=["huge", "mute"])
async def test_so_it_is_in_a_running_system(value: Any) -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        for call in (
            lambda: system.spawn(value),
            lambda: system.entity(value, "ann"),
            lambda: system.subscribe(kinds=value),
            lambda: system.subscribe(types=value),
            lambda: system.subscribe(entity=value),
            lambda: system.subscribe(actor=value),
            lambda: system.subscribe(after=[value]),  # type: ignore[arg-type]
            lambda: system.project(value),
        ):
            with pytest.raises(PapyraError) as caught:
                call()
            assert any(part in str(caught.value) for part in ("<int of 16610 bits>", "<Mute inst"))


class Called(EventSourced[int]):
    """Does what it is told."""

    events = ()

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Any) -> int:
        raise NotImplementedError

    async def receive(self, message: Callable[[Called], Any]) -> str:
        with pytest.raises((PapyraError, TypeError)) as caught:
            result = message(self)
            if result is not None:
                await result
        return str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("value", [HUGE, Mute(), None], ids=["huge", "mute", "none"])
async def test_so_it_is_within_an_actor(value: Any) -> None:
    async with ActorSystem("bank", persistence=InMemoryPersistence()) as system:
        actor = system.entity(Called, "ann")
        for call in (
            lambda me: me.context.spawn(value),
            lambda me: me.context.watch(value),
            lambda me: me.persist(schedule=value),
            lambda me: me.persist(unschedule=value),
            lambda me: me.schedule(value, "x", after=1),
            lambda me: me.timers.start("x", "y", after=[value]),
            lambda me: me.context.run_in_background(value),
        ):
            text = await actor.ask(call)
            assert any(part in text for part in ("<int of 16610 bits>", "<Mute inst", "None")), text


@pytest.mark.parametrize(
    "make", [JsonFilePersistence, RotatingFilePersistence, SQLitePersistence, SQLiteView]
)
def test_a_path_that_no_file_can_have_is_refused_at_once(make: Callable[[str], Any]) -> None:
    for path in ("", "a\0b", "half a \ud800 pair"):
        with pytest.raises(InvalidPath) as caught:
            make(path)
        str(caught.value).encode()
