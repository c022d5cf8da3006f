"""Calls that are cancelled, or not answered, while a thread makes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra import ActorSystem
from papyra.exceptions import BackendInUse, InvalidPolicy, StoreError
from papyra.persistence import Append, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._io.worker_thread import WorkerThread
from tests.actors import event
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.backends.files.test_file_readers import numbers
from tests.persistence.conftest import MakeStore


class Slow(Disk):
    """Waits with each write, or each sync, until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        #: the call that waits from now on; none at first
        self.hangs = ""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._wait("write")
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._wait("sync")
        super().sync(fd)

    def _wait(self, name: str) -> None:
        if self.hangs == name:
            self.begun.set()
            assert self.go_on.wait(60)


@contextlib.contextmanager
def impatient(store: FilePersistence, seconds: float = 0.2) -> Iterator[None]:
    """Have a store give up calls after so many seconds, which a busy disk may take at any time."""
    patient, store.store.call_timeout = store.store.call_timeout, seconds
    try:
        yield
    finally:
        store.store.call_timeout = patient


async def answered(store: FilePersistence) -> None:
    """Wait until the disk has answered what was given up."""
    while True:
        try:
            await store.flush()
            break
        except StoreError:
            await anyio.lowlevel.checkpoint()


def test_an_append_to_files_that_asyncio_cancels_is_stored_and_known_to_be(make: MakeStore) -> None:
    async def main() -> None:
        disk = Slow()
        async with make(_disk=disk) as store:
            disk.hangs = "write"
            appending = asyncio.create_task(store.append(event(1)))
            assert await asyncio.to_thread(disk.begun.wait, 60)
            for _ in range(3):
                appending.cancel()
                await asyncio.sleep(0)
            assert not appending.done(), "it waits for what it has begun"
            disk.go_on.set()
            # The reply is there; the cancellation strikes at what is awaited next.
            await asyncio.wait([appending])
            assert (await store.append(event(2))).first_seq == 2
            assert await numbers(store) == [1, 2]

    asyncio.run(main())


def test_an_asyncio_cancellation_strikes_though_the_next_call_to_a_thread_has_begun() -> None:
    async def main() -> None:
        begun, go_on = threading.Event(), threading.Event()
        thread = WorkerThread("test")

        def hang() -> None:
            begun.set()
            assert go_on.wait(60)

        async def call_and_wait() -> None:
            await thread.run(hang)
            for _ in range(3):
                await thread.run(go_on.wait)
            await asyncio.Event().wait()

        calling = asyncio.create_task(call_and_wait())
        assert await asyncio.to_thread(begun.wait, 20)
        calling.cancel()
        await asyncio.sleep(0)
        go_on.set()
        done, _ = await asyncio.wait([calling], timeout=60)
        thread.stop()
        assert done, "its cancellation was lost"
        assert calling.cancelled()

    asyncio.run(main())


def test_an_asyncio_cancellation_strikes_that_came_right_before_a_call_to_a_thread() -> None:
    async def main() -> None:
        thread = WorkerThread("test")

        async def call_and_wait() -> str:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # as a signal's handler does, between any two steps
            reply = await thread.run(lambda: "reply")
            await asyncio.Event().wait()
            return reply

        calling = asyncio.create_task(call_and_wait())
        done, _ = await asyncio.wait([calling], timeout=60)
        thread.stop()
        assert done, "its cancellation was lost"
        assert calling.cancelled()

    asyncio.run(main())


def test_an_asyncio_timeout_strikes_after_an_append_to_files_has_ended(make: MakeStore) -> None:
    async def main() -> None:
        disk = Slow()
        async with make(_disk=disk) as store:
            disk.hangs = "write"
            asyncio.get_running_loop().call_later(0.05, disk.go_on.set)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await store.append(event(1))
                    await asyncio.Event().wait()
            assert await numbers(store) == [1]

    asyncio.run(main())


def test_an_asyncio_timeout_during_an_append_to_files_does_not_strike_after_its_block(
    make: MakeStore,
) -> None:
    async def main() -> None:
        disk = Slow()
        async with make(_disk=disk) as store:
            disk.hangs = "write"
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            async with asyncio.timeout(None) as timeout:

                async def expire() -> None:
                    assert await asyncio.to_thread(disk.begun.wait, 60)
                    timeout.reschedule(loop.time())
                    while not timeout.expired():  # noqa: ASYNC110 - it tells nobody
                        await asyncio.sleep(0)
                    disk.go_on.set()

                expiring = asyncio.create_task(expire())
                assert (await store.append(event(1))).first_seq == 1
            assert timeout.expired()
            assert expiring.done()
            assert not task.cancelling()
            for _ in range(5):
                await asyncio.sleep(0)
            assert await numbers(store) == [1]

    asyncio.run(main())


async def test_an_append_to_files_in_a_cancelled_scope_is_stored_and_known_to_be(
    make: MakeStore,
) -> None:
    disk = Slow()
    async with make(_disk=disk) as store, anyio.create_task_group() as tasks:
        disk.hangs = "write"

        async def cancel() -> None:
            assert await anyio.to_thread.run_sync(disk.begun.wait, 60)
            scope.cancel()
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            disk.go_on.set()

        tasks.start_soon(cancel)
        first_seq = 0
        with anyio.CancelScope() as scope:
            first_seq = (await store.append(event(1))).first_seq
            assert scope.cancel_called
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert first_seq == 1
        assert await numbers(store) == [1]


@pytest.mark.parametrize("first", ["scope", "task"])
def test_a_task_that_asyncio_cancels_together_with_its_scope_is_cancelled_after_its_append_to_files(
    make: MakeStore, first: str
) -> None:
    async def main() -> None:
        disk, scope, stored = Slow(), anyio.CancelScope(), []

        async def append() -> None:
            with scope:
                stored.append(await store.append(event(1)))
                await anyio.sleep_forever()
            await anyio.sleep_forever()

        async with make(_disk=disk) as store:
            disk.hangs = "write"
            appending = asyncio.create_task(append())
            assert await asyncio.to_thread(disk.begun.wait, 60)
            strikes = [scope.cancel, appending.cancel]
            for strike in strikes if first == "scope" else reversed(strikes):
                strike()
            await asyncio.sleep(0)
            disk.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(appending, 60)
            assert [appended.first_seq for appended in stored] == [1]

    asyncio.run(main())


async def test_calls_to_a_file_store_have_their_time_each_however_fast_they_follow(
    make: MakeStore,
) -> None:
    disk = Slow()
    async with make(call_timeout=1, _disk=disk) as store:
        ended = anyio.current_time() + 1.2
        while anyio.current_time() < ended:
            await store.append(event(1))
        disk.hangs = "write"
        began = anyio.current_time()
        with pytest.raises(StoreError, match="has not answered for 1 seconds"):
            await store.append(event(2))
        assert anyio.current_time() - began >= 0.99
        disk.go_on.set()
        await answered(store)


async def test_a_call_to_a_file_store_that_ctrl_c_cuts_short_holds_up_no_other(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def interrupt(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        raise KeyboardInterrupt

    async with make() as store:
        await store.append(event(1))
        monkeypatch.setattr(os, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            await store.append(event(2))
        with anyio.fail_after(60):
            await store.append(event(3))
        assert (await numbers(store))[-1] == 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are listed by Linux")
async def test_a_closed_file_store_has_nothing_open(make: MakeStore) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with make() as store:
        await store.append(event(1))
    while set(os.listdir("/proc/self/fd")) - before:
        await anyio.lowlevel.checkpoint()  # the thread ends soon


@pytest.mark.parametrize("hangs", ["write", "sync"])
async def test_a_disk_that_does_not_answer_fails_calls_of_a_file_store_in_time(
    make: MakeStore, hangs: str
) -> None:
    disk = Slow()
    async with make(fsync="always", _disk=disk) as store:
        await store.append(event(1))
        disk.hangs = hangs
        with (
            impatient(store),
            pytest.raises(StoreError, match=r"has not answered for 0\.2 seconds"),
        ):
            await store.append(event(2))
        for verb in (lambda: store.append(event(3)), store.list_events, store.scan, store.flush):
            with pytest.raises(StoreError, match="has not yet answered what it was asked before"):
                await verb()
        disk.go_on.set()
        await answered(store)
        appended = await store.append(event(4))
        # What was given up does not count, though it was written in the end.
        assert appended.first_seq == 2
        assert await numbers(store) == [1, 4]
        assert (await store.scan()).is_clean
    async with make() as store:
        assert await numbers(store) == [1, 4]


async def test_a_file_store_holds_its_lock_until_the_disk_has_answered(make: MakeStore) -> None:
    disk = Slow()
    store = make(_disk=disk)
    await store.append(event(1))
    disk.hangs = "write"
    with impatient(store), pytest.raises(StoreError, match="has not answered"):
        await store.append(event(2))
    with pytest.raises(StoreError, match="has not yet answered"):
        await store.aclose()
    with pytest.raises(BackendInUse):
        await make().list_events()
    disk.go_on.set()
    while True:
        other = make()
        try:
            assert await numbers(other) == [1]
            break
        except BackendInUse:
            await anyio.lowlevel.checkpoint()
    await other.aclose()


async def test_a_system_goes_on_while_its_disk_does_not_answer(make: MakeStore) -> None:
    disk = Slow()
    store = make(_disk=disk)
    policy = CircuitBreakerPolicy(max_failures=2, reset_timeout=600)
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, store, policy)
        await ref.ask(Append(event(1)))
        disk.hangs = "write"
        outcomes = []
        with impatient(store):
            for number in range(5):
                try:
                    await ref.ask(Append(event(number)))
                except StoreError as error:
                    outcomes.append(type(error).__name__)
        assert outcomes == ["StoreError"] * 2 + ["StoreUnavailable"] * 3
        for number in range(1000):
            await ref.tell(Append(event(number)))
        disk.go_on.set()
    assert store.metrics.records_written == 1
    assert store.metrics.records_dropped == 3 + 1000


@pytest.mark.parametrize("value", [0, -1, "30", True, float("inf"), float("nan")])
def test_an_invalid_call_timeout_of_a_file_store_is_an_error(make: MakeStore, value: Any) -> None:
    with pytest.raises(InvalidPolicy, match="call_timeout is seconds"):
        make(call_timeout=value)
