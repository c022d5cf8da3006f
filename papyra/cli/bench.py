"""``papyra bench``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import anyio

from papyra.cli._exit_codes import WrongUse
from papyra.cli._output import AsJson, is_terminal, progress, show_json, show_table, tell
from papyra.cli._store_argument import backend_at, home_of, name_of, place_of
from papyra.cli._units import Count, format_count
from papyra.persistence.actor import PersistenceActor
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Append
from papyra.persistence.records import PersistedEvent
from papyra.persistence.reports import ScanProgress
from papyra.ref import ActorRef
from papyra.system import ActorSystem

#: Tasks that ask at the same time.
_TASKS = 100
#: Records in a read.
_NEWEST = 10


#: What is measured, in words. Results have the figures a second by these names, and the store; of
#: what can't be scanned, no figure.
_TITLES = {
    "appends_told": "appends told, one task",
    "appends_asked": "appends asked, one task",
    "appends_asked_by_100": f"appends asked, {_TASKS} tasks",
    "newest_10_reads": f"reads of the newest {_NEWEST}",
    "records_read": "records read from the first to the last",
    "records_scanned": "records scanned",
}


def bench(*stores: str, records: Count = 20_000, as_json: AsJson = False) -> None:
    """Measure what this machine does with a store.

    Appends told and asked, reads, and a scan. A new store is made for that beside each STORE (in
    its directory, or on its server), and removed afterwards; what is in STORE is not touched.
    Without one, memory and files in the directory for temporary ones are measured.

    Examples
    --------
      papyra bench
      papyra bench /var/lib/app/journal/ 'redis://localhost/0' --records 100000

    Parameters
    ----------
    stores
        Where to measure.
    records
        How many records are told; asked from one task are a tenth of that.

    """
    if records < 100:
        raise WrongUse("--records: at least 100, or there is nothing to measure")
    # What an actor has to say of its store comes back to those who ask.
    logging.getLogger("papyra").setLevel(logging.CRITICAL)
    results = [anyio.run(_measure, store, records) for store in stores or _default()]
    if as_json:
        for result in results:
            show_json(result)
        return
    columns = [[_format_figure(result[name]) for name in _TITLES] for result in results]
    if is_terminal():
        show_table(
            ["a second", *(result["store"] for result in results)],
            list(zip(_TITLES.values(), *columns, strict=True)),
            numbers=[result["store"] for result in results],
        )
    else:
        for result, figures in zip(results, columns, strict=True):
            rows = zip(_TITLES, figures, strict=True)
            show_table(["store", "what", "a second"], [(result["store"], *row) for row in rows])
    tell("figures of one machine, at one moment: compare them within a run", "dim")


def _default() -> Sequence[str]:
    """Return the stores that are measured where none is named."""
    return ["memory:", *sorted(name for name in registry.names() if _file_name(name))]


def _format_figure(figure: float | None) -> str:
    if figure is None:
        return "-"
    return format_count(round(figure)) if is_terminal() else f"{figure:.0f}"


async def _measure(store: str, records: int) -> dict[str, Any]:
    name = store if _file_name(store) else name_of(backend_at(store))
    async with _scratch(store) as backend:
        few = max(records // 10, 10)
        results: dict[str, Any] = {"store": name, **dict.fromkeys(_TITLES)}
        done = 0
        with progress(f"measuring {name}") as advance:

            async def measure(name: str, count: int, work: Callable[[], Awaitable[object]]) -> None:
                began = time.perf_counter()
                await work()
                results[name] = count / (time.perf_counter() - began)
                nonlocal done
                done += 1
                advance(ScanProgress(done, len(_TITLES)))

            async with ActorSystem("bench", audit_interval=None) as system:
                ref = system.spawn(PersistenceActor, backend)
                await measure("appends_told", records, lambda: _tell(ref, backend, records))
                await measure("appends_asked", few, lambda: _ask(ref, few))
                await measure("appends_asked_by_100", records, lambda: _ask_by_many(ref, records))
                reads = 200
                await measure("newest_10_reads", reads, lambda: _read_newest(backend, reads))
                count = (await backend.summarize()).total_records
                await measure("records_read", count, lambda: _read_all(backend))
                if backend.capabilities.recovery:
                    await measure("records_scanned", count, backend.scan)
    return results


def _event(number: int) -> PersistedEvent:
    payload = {"order_id": number, "item": "kettle", "count": 2, "paid": True}
    return PersistedEvent("bench", "bench/desk", "OrderPlaced", payload, 1.7e9 + number)


async def _tell(ref: ActorRef, backend: PersistenceBackend, count: int) -> None:
    for number in range(count):
        await ref.tell(Append(_event(number)))
    await backend.flush()


async def _ask(ref: ActorRef, count: int) -> None:
    for number in range(count):
        await ref.ask(Append(_event(number)))


async def _ask_by_many(ref: ActorRef, count: int) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(_TASKS):
            tasks.start_soon(_ask, ref, count // _TASKS)


async def _read_newest(backend: PersistenceBackend, count: int) -> None:
    for _ in range(count):
        await backend.list_events(limit=_NEWEST)


async def _read_all(backend: PersistenceBackend) -> None:
    async for _ in backend.stream("event"):
        pass


@asynccontextmanager
async def _scratch(store: str) -> AsyncIterator[PersistenceBackend]:
    """Make a store of the same sort in the same place, and remove it afterwards."""
    if file_name := _file_name(store):
        with tempfile.TemporaryDirectory(prefix="papyra-bench-") as directory:
            yield _new_at(f"{directory}/{file_name}", store)
        return
    backend = backend_at(store)
    place = place_of(backend)
    if place is not None:
        with tempfile.TemporaryDirectory(prefix=".papyra-bench-", dir=home_of(place)) as directory:
            yield backend_at(f"{directory}/{place.name if place.suffix else 'journal/'}")
    elif not backend.capabilities.durable:
        yield backend
    else:
        registration = registry.find(backend.store.name)
        if registration is None or registration.beside is None:
            raise WrongUse(
                f"{name_of(backend)} can't be measured: there is no way to make "
                "a new store of the same kind beside it"
            )
        async with registration.beside(backend) as made:
            yield made


def _new_at(path: str, kind: str) -> PersistenceBackend:
    """Return a new store of a kind at a path, which need not tell that it is of that kind."""
    registration = registry.find(kind)
    if registration is None or registration.is_path_of is not None:
        return backend_at(path)
    return registration.from_url(f"{kind}://{quote(path)}", read_only=False)


def _file_name(store: str) -> str | None:
    """Return the file name for a store named by its kind alone; `None` for any other."""
    registration = registry.find(store) if store in registry.names() else None
    return None if registration is None else registration.file_name
