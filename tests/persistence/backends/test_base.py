"""Hosting, opening, closing, and what a failing store comes to: the contract of every backend."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

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
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence, MemoryStore
from papyra.testing import FaultyPersistence, wait_until_idle
from tests.actors import event


async def test_verbs_of_a_backend_work_the_same_alone_and_hosted(
    persistence: InMemoryPersistence,
) -> None:
    assert (await persistence.append(event(1))).last_seq == 1
    async with ActorSystem() as system:
        system.spawn(PersistenceActor, persistence)
        assert (await persistence.append(event(2))).last_seq == 2
        assert [e.seq for e in await persistence.list_events()] == [1, 2]
        assert [e.seq async for e in persistence.stream("event")] == [1, 2]
        assert (await persistence.flush()).last_seq == 2
        assert (await persistence.scan()).records_scanned == 2
        assert not (await persistence.recover()).supported
        assert not (await persistence.compact()).supported
        with pytest.raises(InvalidRequest):
            await persistence.read("event", limit=-1)
    assert [e.seq for e in await persistence.list_events()] == [1, 2]


async def test_concurrent_calls_of_an_unhosted_backend_raise_backend_busy() -> None:
    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.hang()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(persistence.append, event(1))
        await wait_until_idle()
        with pytest.raises(BackendBusy, match="host it in a PersistenceActor to share it"):
            await persistence.append(event(2))
        with pytest.raises(BackendBusy):
            await persistence.aclose()
        async with ActorSystem() as system:
            with pytest.raises(BackendBusy):
                system.spawn(PersistenceActor, persistence)
        persistence.release()
    assert (await persistence.append(event(3))).first_seq == 2


async def test_concurrent_calls_of_a_hosted_backend_wait_for_each_other() -> None:
    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.hang()
    async with ActorSystem() as system:
        system.spawn(PersistenceActor, persistence)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(persistence.append, event(1))
            tasks.start_soon(persistence.append, event(2))
            await wait_until_idle()
            persistence.release()
    assert len(await persistence.list_events()) == 2


async def test_hosting_a_backend_twice_is_an_error_that_names_the_owner(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem("shop") as system:
        first = system.spawn(PersistenceActor, persistence, name="first")
        with pytest.raises(BackendInUse, match="hosted by shop/first already") as caught:
            system.spawn(PersistenceActor, persistence)
        assert caught.value.owner == "shop/first"
        await first.ask(Append(event()))
        await first.stop()
        second = system.spawn(PersistenceActor, persistence)
        assert (await second.ask(Append(event()))).first_seq == 2


async def test_a_hosted_backend_is_closed_by_its_actor_only(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem("shop") as system:
        system.spawn(PersistenceActor, persistence, name="keeper")
        with pytest.raises(BackendInUse, match="hosted by shop/keeper"):
            await persistence.aclose()
    with pytest.raises(BackendClosed):
        await persistence.append(event())


async def test_only_a_backend_can_be_hosted() -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidActor, match="hosts a PersistenceBackend"):
            system.spawn(PersistenceActor, "memory:")
        with pytest.raises(ActorInitializationError, match="missing 1 required"):
            system.spawn(PersistenceActor)


@pytest.mark.parametrize("request_", ["append", None, {"type": "Scan"}, Append])
async def test_a_backend_refuses_what_is_no_request(
    persistence: InMemoryPersistence, request_: Any
) -> None:
    with pytest.raises(InvalidRequest, match="is no request to a persistence backend"):
        await persistence.execute(request_)


async def test_an_exception_of_a_store_is_the_cause_of_a_store_error() -> None:
    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.fail_next("append", OSError(28, "No space left on device"))
    persistence.fail_when(lambda operation: operation.name != "open", OSError(5, "I/O error"))
    with pytest.raises(StoreError, match=r"write failed: OSError.*No space left") as caught:
        await persistence.append(event())
    assert isinstance(caught.value.__cause__, OSError)
    for verb in (
        persistence.list_events,
        persistence.scan,
        persistence.recover,
        persistence.compact,
    ):
        with pytest.raises(StoreError, match="failed: OSError"):
            await verb()
    counted = {name: count for name, count in persistence.metrics.snapshot().items() if count}
    assert counted == dict.fromkeys(
        ("write_errors", "read_errors", "scan_errors", "recovery_errors", "compaction_errors"), 1
    )


async def test_a_store_that_can_not_be_opened_is_tried_again() -> None:
    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.fail_next("open", OSError("not mounted"), times=2)
    for _ in range(2):
        with pytest.raises(StoreError, match="open failed: OSError"):
            await persistence.append(event())
    assert (await persistence.append(event())).first_seq == 1


async def test_closing_a_backend_flushes_its_store_and_closes_it_even_if_the_flush_fails() -> None:
    calls: list[str] = []

    class Full(MemoryStore):
        async def flush(self) -> None:
            calls.append("flush")
            raise OSError("full")

        async def close(self) -> None:
            calls.append("close")

    persistence = PersistenceBackend(Full())
    await persistence.append(event())
    with pytest.raises(StoreError, match="flush failed"):
        await persistence.aclose()
    assert calls == ["flush", "close"]


async def test_a_backend_that_fails_to_close_can_be_hosted_again() -> None:
    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.fail_every(1, "close", OSError("stuck"))
    for _ in range(2):
        async with ActorSystem(persistence=persistence) as system:
            await system.persistence.ask(Append(event()))
    assert len(await persistence.list_events()) == 2


async def test_subscribers_of_a_backend_are_told_before_the_caller_of_an_append(
    persistence: InMemoryPersistence,
) -> None:
    seen: list[tuple[int, bytes]] = []
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, persistence)
        end = persistence.watch_commits(
            lambda batch: seen.append((batch.first_seq, batch.encoded[0]))
        )
        await ref.ask(Append(event(1)))
        assert [(seq, msgspec.json.decode(data)["payload"]) for seq, data in seen] == [
            (1, {"order_id": 1})
        ]
        end()
        await ref.ask(Append(event(2)))
    assert len(seen) == 1


async def test_a_subscriber_that_raises_harms_neither_the_append_nor_other_subscribers(
    persistence: InMemoryPersistence, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    persistence.watch_commits(lambda batch: seen[99])  # type: ignore[arg-type]
    persistence.watch_commits(lambda batch: seen.append(batch.first_seq))
    assert (await persistence.append(event(1))).first_seq == 1
    assert seen == [1]
    assert "a watcher of this InMemoryPersistence raised" in caplog.text


async def test_a_failed_append_is_not_published() -> None:
    persistence, seen = FaultyPersistence(InMemoryPersistence()), []
    persistence.fail_next()
    persistence.watch_commits(lambda batch: seen.append(batch.first_seq))
    with pytest.raises(StoreError):
        await persistence.append(event(1))
    assert seen == []


async def test_a_backend_knows_the_last_position(persistence: InMemoryPersistence) -> None:
    assert persistence.last_seq == 0
    await persistence.append(event(1), event(2))
    assert persistence.last_seq == 2
