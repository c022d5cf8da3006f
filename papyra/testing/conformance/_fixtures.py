"""The fixtures of the suite: a store to make, records to put there."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec

from papyra.persistence.actor import PersistenceActor
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.store import Store
from papyra.persistence.messages import Read
from papyra.persistence.records import (
    KINDS,
    Kind,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)
from papyra.ref import ActorRef
from papyra.system import ActorSystem
from papyra.testing._list_model import ListModel, read_to_the_end

#: A test of the suite: its object, and the fixture ``make_backend``.
Test: TypeAlias = Callable[..., Awaitable[None]]

#: Unix time of the first records.
T0 = 1_700_000_000.0


class MakeStore(Protocol):
    """The value of the fixture ``make_store``."""

    def __call__(self) -> Store:
        """Return a new store for this test, not opened yet.

        Called again, also while the first is open, it is in the same place if it is durable.
        """


class MakeBackend(Protocol):
    """The callable of the fixture ``make_backend``."""

    def __call__(
        self,
        *,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = ...,
    ) -> PersistenceBackend:
        """Return a new backend on the store of this test.

        Called again, also while the first is open, a durable backend is on the same store.
        """


def needs(what: Callable[[PersistenceBackend], bool]) -> Callable[[Test], Test]:
    """Have a test done with stores alone that have what it is about; others may leave it out."""

    def mark(test: Test) -> Test:
        @functools.wraps(test)
        async def checked(self: object, make_backend: MakeBackend) -> None:
            if what(make_backend()):
                await test(self, make_backend)

        return checked

    return mark


def again(
    backend: PersistenceBackend, make_backend: MakeBackend, **options: Any
) -> PersistenceBackend:
    """Return what a closed backend is opened as after a restart: another one, if it is durable."""
    return make_backend(**options) if backend.capabilities.durable else backend


def an_event(number: int, **changes: Any) -> PersistedEvent:
    fields: dict[str, Any] = {
        "system_id": "s",
        "actor_address": f"s/{'ab'[number % 2]}",
        "event_type": "ABC"[number % 3],
        "payload": {"n": number},
        "timestamp": T0 + number,
    }
    return PersistedEvent(**(fields | changes))


def a_record(number: int) -> Record:
    """Return a record; of three in a row, one of each kind."""
    if number % 3 == 1:
        return PersistedAudit("s", {"n": number}, T0 + number)
    if number % 3 == 2:
        target = f"s/{'ab'[number % 2]}"
        return PersistedDeadLetter("s", target, "str", {"n": number}, number % 2 == 0, T0 + number)
    return an_event(number)


async def fill(
    backend: PersistenceBackend, count: int, policy: RetentionPolicy | None = None
) -> ListModel:
    """Append records whose times are out of order; return a model that holds the same."""
    model = ListModel(policy)
    times = list(range(count))
    random.Random(count).shuffle(times)  # noqa: S311 - the same order each time
    for number, time in enumerate(times):
        record = an_event(number) if number % 2 else a_record(number)
        record = msgspec.structs.replace(record, timestamp=T0 + time)
        model.append(record)
        await backend.append(record)
    return model


def reads(choices: dict[str, list[Any]]) -> list[Read]:
    """Return reads of each kind with every combination of arguments that makes sense."""
    requests = []
    for kind in KINDS:
        for values in itertools.product(*choices.values()):
            arguments = dict(zip(choices, values, strict=True))
            if arguments.get("event_type") and kind != "event":
                continue
            if arguments.get("actor") and kind == "audit":
                continue
            requests.append(Read(kind, **arguments))
    return requests


async def everything(backend: PersistenceBackend) -> list[Record]:
    """Return every record that reads show, in the order of their positions."""
    kinds: tuple[Kind, ...] = KINDS
    found = [record for kind in kinds for record in await read_to_the_end(backend, Read(kind))]
    return sorted(found, key=lambda record: record.seq or 0)


def without_seq(record: Record) -> Record:
    return msgspec.structs.replace(record, seq=None)


@asynccontextmanager
async def hosted(
    backend: PersistenceBackend,
) -> AsyncIterator[tuple[PersistenceBackend, ActorRef]]:
    async with ActorSystem("conformance") as system:
        yield backend, system.spawn(PersistenceActor, backend)


def files_outside(directory: str, places: Sequence[str]) -> list[str]:
    """Return what is a file elsewhere; a store that keeps no files has its own sort of places."""
    paths = map(Path, places)
    return [str(path) for path in paths if path.exists() and not path.is_relative_to(directory)]
