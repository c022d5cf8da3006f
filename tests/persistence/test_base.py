"""Hosting, opening, closing, and what a failing store comes to: the contract of every backend."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from papyra import ActorSystem
from papyra.exceptions import (
    ActorInitializationError,
    BackendBusy,
    BackendClosed,
    BackendInUse,
    InvalidActor,
    InvalidRequest,
    StoreError,
)
from papyra.persistence import Append, PersistenceActor
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.actors import event


class Slow(InMemoryPersistence):
    """Waits in every append until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.release = anyio.Event()

    async def _append(self, batch: Any) -> None:
        await self.release.wait()
        await super()._append(batch)


async def test_verbs_work_the_same_alone_and_hosted(backend: InMemoryPersistence) -> None:
    assert (await backend.append(event(1))).last_seq == 1
    async with ActorSystem() as system:
        system.spawn(PersistenceActor, backend)
        assert (await backend.append(event(2))).last_seq == 2
        assert [e.seq for e in await backend.list_events()] == [1, 2]
        assert [e.seq async for e in backend.stream("event")] == [1, 2]
        assert (await backend.flush()).last_seq == 2
        assert (await backend.scan()).records_scanned == 2
        assert not (await backend.recover()).supported
        assert not (await backend.compact()).supported
        with pytest.raises(InvalidRequest):
            await backend.read("event", limit=-1)
    assert [e.seq for e in await backend.list_events()] == [1, 2]


async def test_two_tasks_that_would_meet_get_an_error_that_says_what_to_do() -> None:
    backend = Slow()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.append, event(1))
        await wait_all_tasks_blocked()
        with pytest.raises(BackendBusy, match="host it in a PersistenceActor to share it"):
            await backend.append(event(2))
        with pytest.raises(BackendBusy):
            await backend.aclose()
        async with ActorSystem() as system:
            with pytest.raises(BackendBusy):
                system.spawn(PersistenceActor, backend)
        backend.release.set()
    assert (await backend.append(event(3))).first_seq == 2


async def test_hosted_the_same_two_tasks_wait_for_each_other() -> None:
    backend = Slow()
    async with ActorSystem() as system:
        system.spawn(PersistenceActor, backend)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.append, event(1))
            tasks.start_soon(backend.append, event(2))
            await wait_all_tasks_blocked()
            backend.release.set()
    assert len(backend.events) == 2


async def test_hosting_twice_is_an_error_that_names_the_owner(
    backend: InMemoryPersistence,
) -> None:
    async with ActorSystem("shop") as system:
        first = system.spawn(PersistenceActor, backend, name="first")
        with pytest.raises(BackendInUse, match="hosted by shop/first already") as caught:
            system.spawn(PersistenceActor, backend)
        assert caught.value.owner == "shop/first"
        await first.ask(Append(event()))
        await first.stop()
        second = system.spawn(PersistenceActor, backend)
        assert (await second.ask(Append(event()))).first_seq == 2


async def test_a_hosted_backend_is_closed_by_its_actor_only(backend: InMemoryPersistence) -> None:
    async with ActorSystem("shop") as system:
        system.spawn(PersistenceActor, backend, name="keeper")
        with pytest.raises(BackendInUse, match="hosted by shop/keeper"):
            await backend.aclose()
    with pytest.raises(BackendClosed):
        await backend.append(event())


async def test_only_a_backend_can_be_hosted() -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidActor, match="hosts a PersistenceBackend"):
            system.spawn(PersistenceActor, "memory:")
        with pytest.raises(ActorInitializationError, match="missing 1 required"):
            system.spawn(PersistenceActor)


@pytest.mark.parametrize("request_", ["append", None, {"type": "Scan"}, Append])
async def test_a_request_that_is_none_is_an_error(
    backend: InMemoryPersistence, request_: Any
) -> None:
    with pytest.raises(InvalidRequest, match="is no request to a persistence backend"):
        await backend.perform(request_)


async def test_what_a_store_raises_is_the_cause_of_a_store_error() -> None:
    class Broken(InMemoryPersistence):
        async def _append(self, batch: Any) -> None:
            raise OSError(28, "No space left on device")

        async def _read(self, request: Any = None) -> Any:
            raise OSError(5, "Input/output error")

        _scan: Any = _read
        _recover: Any = _read
        _compact: Any = _read

    backend = Broken()
    with pytest.raises(StoreError, match=r"write failed: OSError.*No space left") as caught:
        await backend.append(event())
    assert isinstance(caught.value.__cause__, OSError)
    for verb in (backend.list_events, backend.scan, backend.recover, backend.compact):
        with pytest.raises(StoreError, match="failed: OSError"):
            await verb()
    counted = {name: count for name, count in backend.metrics.snapshot().items() if count}
    assert counted == dict.fromkeys(
        ("write_errors", "read_errors", "scan_errors", "recovery_errors", "compaction_errors"), 1
    )


async def test_a_store_that_can_not_be_opened_is_tried_again() -> None:
    class Mounted(InMemoryPersistence):
        ready = False

        async def _open(self) -> int:
            if not self.ready:
                raise OSError("not mounted")
            return 41

    backend = Mounted()
    for _ in range(2):
        with pytest.raises(StoreError, match="open failed: OSError"):
            await backend.append(event())
    backend.ready = True
    assert (await backend.append(event())).first_seq == 42


async def test_closing_flushes_first_and_closes_even_if_that_fails() -> None:
    calls: list[str] = []

    class Full(InMemoryPersistence):
        async def _flush(self) -> None:
            calls.append("flush")
            raise OSError("full")

        async def _close(self) -> None:
            calls.append("close")

    backend = Full()
    await backend.append(event())
    with pytest.raises(StoreError, match="flush failed"):
        await backend.aclose()
    assert calls == ["flush", "close"]


async def test_a_backend_that_fails_to_close_is_let_go_all_the_same() -> None:
    class Stuck(InMemoryPersistence):
        async def _close(self) -> None:
            raise OSError("stuck")

    backend = Stuck()
    for _ in range(2):
        async with ActorSystem(persistence=backend) as system:
            await system.persistence.ask(Append(event()))
    assert len(backend.events) == 2
