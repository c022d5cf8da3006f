"""What a backend asks of its store, and when."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from papyra import ActorSystem
from papyra.exceptions import BackendClosed, InvalidSetting, StoreError
from papyra.persistence import PersistenceScanReport, Scan, ScanProgress
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import MemoryStore
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.store import Batch, Store
from papyra.persistence.reports import ReportProgress
from papyra.testing import FaultyPersistence
from tests.actors import event
from tests.testing.shelf import Disk, ShelfStore


class Watched(ShelfStore):
    """Notes what it is asked, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__(Disk())
        self.calls: list[str] = []
        self.failing: set[str] = set()

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.failing:
            raise OSError(f"{call} on fire")

    async def open(self) -> None:
        self.note("open")

    async def last_seq(self) -> int:
        self.note("last_seq")
        return self.disk.last_seq

    async def claim(self) -> int:
        self.note("claim")
        return self.disk.last_seq

    async def append(self, batch: Batch) -> None:
        self.note("append")
        await super().append(batch)

    async def flush(self) -> None:
        self.note("flush")

    async def close(self) -> None:
        self.note("close")

    async def read(self, request: Any, policy: RetentionPolicy, now: float) -> Any:
        self.note("read")
        return await super().read(request, policy, now)

    async def recover(self, config: Any) -> Any:
        self.note("recover")
        return await super().recover(config)

    def asked(self) -> str:
        """Return what was asked since this was called last."""
        asked, self.calls[:] = " ".join(self.calls), []
        return asked


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def backend(store: Watched) -> PersistenceBackend:
    backend = PersistenceBackend(store)
    store.asked()
    return backend


async def test_a_backend_claims_its_store_before_the_first_append_only(
    store: Watched, backend: PersistenceBackend
) -> None:
    await backend.list_events()
    assert store.asked() == "open last_seq read"
    await backend.append(event(1))
    assert store.asked() == "claim append"
    await backend.append(event(2))
    await backend.append()
    assert store.asked() == "append"
    await backend.aclose()
    assert store.asked() == "flush close"


@pytest.mark.parametrize("hosted", [False, True])
async def test_a_store_is_claimed_again_after_an_append_that_raised(
    store: Watched, backend: PersistenceBackend, hosted: bool
) -> None:
    async def go() -> None:
        await backend.append(event(1))
        store.failing.add("append")
        with pytest.raises(StoreError, match="write failed: OSError"):
            await backend.append(event(2))
        store.failing.clear()
        store.disk.last_seq = 7  # as much of it was stored, after all
        store.asked()
        assert (await backend.append(event(3))).first_seq == 8
        assert store.asked() == "claim append"

    if hosted:
        async with ActorSystem(persistence=backend, audit_interval=None):
            await go()
    else:
        await go()


async def test_a_store_is_claimed_again_after_an_append_that_was_cancelled() -> None:
    class Slow(ShelfStore):
        claims = 0
        is_slow = True

        async def claim(self) -> int:
            self.claims += 1
            return await super().claim()

        async def append(self, batch: Batch) -> None:
            if self.is_slow:
                await anyio.sleep_forever()
            await super().append(batch)

    store = Slow(Disk())
    backend = PersistenceBackend(store)
    await backend.flush()
    with anyio.move_on_after(0):
        await backend.append(event(1))
    store.is_slow = False
    assert (await backend.append(event(2))).first_seq == 1
    assert store.claims == 2


async def test_a_store_is_claimed_again_after_a_recovery_that_failed(
    store: Watched, backend: PersistenceBackend
) -> None:
    await backend.append(event(1))
    store.failing.add("recover")
    with pytest.raises(StoreError, match="recovery failed"):
        await backend.recover()
    store.asked()
    await backend.append(event(2))
    assert store.asked() == "claim append"


async def test_a_claim_that_fails_fails_the_append_and_is_made_again(
    store: Watched, backend: PersistenceBackend
) -> None:
    store.failing.add("claim")
    with pytest.raises(StoreError, match="write failed: OSError"):
        await backend.append(event(1))
    store.failing.clear()
    assert (await backend.append(event(1))).first_seq == 1
    assert backend.metrics.write_errors == 1


async def test_a_backend_closes_a_store_whose_last_position_cannot_be_read(
    store: Watched, backend: PersistenceBackend
) -> None:
    store.failing.add("last_seq")
    with pytest.raises(StoreError, match="open failed: OSError"):
        await backend.append(event(1))
    assert store.asked() == "open last_seq close"
    store.failing.clear()
    assert (await backend.append(event(1))).first_seq == 1


async def test_a_backend_asks_for_the_last_position_when_others_may_write_the_store(
    store: Watched, backend: PersistenceBackend
) -> None:
    other = PersistenceBackend(ShelfStore(store.disk))
    async with backend:
        assert backend.last_seq == 0
        await other.append(event(1), event(2))
        assert (await backend.flush()).last_seq == backend.last_seq == 2
        await other.append(event(3))
        await backend.list_events()
        assert backend.last_seq == 3


async def test_a_store_is_read_and_compacted_by_the_policy_and_clock_of_its_backend(
    store: Watched,
) -> None:
    given: list[tuple[RetentionPolicy, float]] = []

    class Asked(ShelfStore):
        async def read(self, request: Any, policy: RetentionPolicy, now: float) -> Any:
            given.append((policy, now))
            return await super().read(request, policy, now)

        async def compact(self, policy: RetentionPolicy, now: float, *, dry_run: bool) -> Any:
            given.append((policy, now))
            return await super().compact(policy, now, dry_run=dry_run)

    own, other = RetentionPolicy(max_records=3), RetentionPolicy(max_records=1)
    backend = PersistenceBackend(Asked(Disk()), retention_policy=own, clock=lambda: 42.0)
    await backend.read("event")
    await backend.compact()
    await backend.compact(other)
    assert given == [(own, 42.0), (own, 42.0), (other, 42.0)]


@pytest.mark.parametrize("store", [None, "json:a.ndjson", MemoryStore, object()])
def test_a_backend_refuses_an_object_that_is_no_store_by_what_it_lacks(store: Any) -> None:
    if store is MemoryStore:
        store = PersistenceBackend(MemoryStore())
    with pytest.raises(InvalidSetting, match=r"is no Store: it has no .*claim"):
        PersistenceBackend(store)


class Reporting(ShelfStore):
    """Reports three steps of each scan, from a thread."""

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        for done in (1, 2, 3):
            await anyio.to_thread.run_sync(report_progress, ScanProgress(done, 3))
        return await super().scan(report_progress)


STEPS = [ScanProgress(done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("hosted", [False, True])
async def test_a_scan_reports_its_progress_to_whoever_asked_for_it(hosted: bool) -> None:
    backend = PersistenceBackend(Reporting(Disk()))
    told: list[ScanProgress] = []

    async def go() -> None:
        assert (await backend.scan(told.append)).is_clean
        assert told == STEPS
        await backend.scan()
        assert told == STEPS, "that one was not asked for"

    if hosted:
        async with ActorSystem(persistence=backend, audit_interval=None):
            await go()
    else:
        await go()


async def test_a_scan_that_an_actor_requested_can_be_watched() -> None:
    backend = PersistenceBackend(Reporting(Disk()))
    told: list[ScanProgress] = []
    threads: set[str] = set()
    async with ActorSystem(persistence=backend, audit_interval=None) as system:
        unwatch = backend.watch_scans(told.append)
        end = backend.watch_scans(lambda _: threads.add(threading.current_thread().name))
        await system.persistence.ask(Scan())
        unwatch()
        end()
        await system.persistence.ask(Scan())
    assert told == STEPS
    assert threads != {threading.main_thread().name}


async def test_a_scan_watcher_that_raises_harms_neither_the_scan_nor_other_watchers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raise_(progress: ScanProgress) -> None:
        raise ValueError(f"no more of {progress.done}")

    backend = PersistenceBackend(Reporting(Disk()))
    told: list[ScanProgress] = []
    backend.watch_scans(raise_)
    with caplog.at_level(logging.ERROR, "papyra"):
        assert (await backend.scan(told.append)).is_clean
    assert told == STEPS
    assert "no more of 2" in caplog.text


async def test_a_watcher_sees_the_scan_that_a_wrapping_backend_makes() -> None:
    inner = PersistenceBackend(Reporting(Disk()))
    told: list[ScanProgress] = []
    async with FaultyPersistence(inner):
        await inner.scan(told.append)
    assert told == STEPS


async def test_a_store_needs_no_base_class() -> None:
    """What the type checker says of a `Store` is all that it has to be."""
    store: Store = MemoryStore()
    backend = PersistenceBackend(store)
    await backend.append(event(1))
    await backend.aclose()
    with pytest.raises(BackendClosed):
        await backend.append(event(2))
