"""The inbox of a store in files takes requests from who may write the store, and from nobody else.

Whatever else is put there, the writer goes on.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra.exceptions import StoreError, StoreReadOnly
from papyra.persistence import Attend, EventSkipped, PersistedEvent, SkipEvent
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.request_directory import STALE_AFTER, RequestDirectory
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.inbox import (
    MAX_POSTED_BYTES,
    PostedRequest,
    Refused,
    decode_answer,
    encode_posted,
)
from tests.conftest import event_loops
from tests.persistence.backends.files.file_persistence import FilePersistence

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


@pytest.fixture(params=["json", "rotating"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, path: Path, disk: Disk | None = None) -> FilePersistence:
    if kind == "json":
        return JsonFilePersistence(path, _disk=disk)
    return RotatingFilePersistence(path, _disk=disk)


def directory_of(kind: str, path: Path) -> Path:
    return path / ".requests" if kind == "rotating" else path.with_name(f"{path.name}.requests")


def step(revision: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Stepped", revision, float(revision), revision=revision)


def new_id() -> str:
    return uuid.uuid4().hex


def a_request(revision: int = 1) -> bytes:
    return encode_posted(PostedRequest(SkipEvent("s/a", revision, "why"), time.time() + 600))


@asynccontextmanager
async def opened(
    kind: str, path: Path, disk: Disk | None = None
) -> AsyncIterator[tuple[FilePersistence, Path]]:
    """Yield a store with a history of three, and where its requests are."""
    async with make(kind, path, disk) as store:
        await store.append(*map(step, (1, 2, 3)))
        yield store, directory_of(kind, path)


async def attend(store: FilePersistence) -> int | None:
    return (await store.execute(Attend())).count


async def history(store: FilePersistence) -> list[str]:
    return [event.event_type for event in (await store.read_history("s/a")).events]


UNTOUCHED = ["Stepped"] * 3


async def test_a_store_of_which_nobody_asks_anything_has_no_directory_more(
    tmp_path: Path, kind: str
) -> None:
    async with opened(kind, tmp_path / "store") as (store, directory):
        assert await attend(store) == 0
        assert not directory.exists()


async def test_requests_belong_to_the_owner_of_the_store_and_are_removed_once_answered(
    tmp_path: Path, kind: str
) -> None:
    async with opened(kind, tmp_path / "store") as (store, directory):
        file = next(store.store.journal.files(newest=True)).path
        file.chmod(0o640)
        async with store.reader() as reader:
            request_id = new_id()
            await reader.store.post(request_id, a_request())
            (posted,) = directory.iterdir()
            assert posted.stat().st_mode & 0o777 == 0o640
            assert directory.stat().st_mode & 0o777 == 0o750
            assert await attend(store) == 1
            data = await reader.store.answered(request_id) or b""
            assert decode_answer(data) == EventSkipped(4, "why", is_new=True)
        assert list(directory.iterdir()) == []
        assert (await store.scan()).is_clean


async def test_who_only_looks_at_a_store_takes_no_request(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path / "store") as (store, _), store.reader() as reader:
        request_id = new_id()
        await reader.store.post(request_id, a_request())
        with pytest.raises(StoreReadOnly):
            await reader.store.take(request_id)


# What others put there


def a_link(directory: Path, elsewhere: Path) -> None:
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)


def a_file(directory: Path, elsewhere: Path) -> None:
    del elsewhere
    directory.write_bytes(b"x")


def a_pipe(directory: Path, elsewhere: Path) -> None:
    del elsewhere
    os.mkfifo(directory)


def open_to_all(directory: Path, elsewhere: Path) -> None:
    del elsewhere
    directory.mkdir()
    directory.chmod(0o777)


def somebody_elses(directory: Path, elsewhere: Path) -> None:
    del elsewhere
    directory.mkdir(0o755)
    os.chown(directory, 12345, -1)


PLACES: list[Callable[[Path, Path], None]] = [a_link, a_file, a_pipe, open_to_all]
if os.geteuid() == 0:
    PLACES.append(somebody_elses)


@pytest.mark.parametrize("place", PLACES)
async def test_a_directory_that_more_may_write_than_the_store_is_not_looked_at(
    tmp_path: Path, kind: str, place: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    async with opened(kind, tmp_path / "store") as (store, directory):
        place(directory, elsewhere)
        if directory.is_dir():
            (directory / f"{new_id()}.request").write_bytes(a_request())
        assert await attend(store) == 0
        assert await history(store) == UNTOUCHED
        async with store.reader() as reader:
            with pytest.raises(StoreError, match="requests go to a directory like the store"):
                await reader.store.post(new_id(), a_request())
        assert (await store.append(step(4))).last_seq == 4


def as_a_link(path: Path) -> None:
    path.with_name("secret").write_bytes(a_request())
    path.symlink_to(path.with_name("secret"))


def as_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_a_directory(path: Path) -> None:
    path.mkdir()


def as_a_large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)


def a_little_too_long(path: Path) -> None:
    path.write_bytes(a_request().ljust(MAX_POSTED_BYTES + 1))


def as_nonsense(path: Path) -> None:
    path.write_bytes(os.urandom(1000))


@pytest.mark.parametrize(
    "put",
    [as_a_link, as_a_pipe, as_a_directory, as_a_large_file, a_little_too_long, as_nonsense],
)
async def test_what_is_no_request_is_refused_and_the_next_one_is_carried_out(
    tmp_path: Path, kind: str, put: Callable[[Path], None]
) -> None:
    async with opened(kind, tmp_path / "store") as (store, directory), store.reader() as reader:
        directory.mkdir(0o755)
        bad, good = "0" * 32, "1" * 32
        with anyio.fail_after(60):
            put(directory / f"{bad}.request")
            assert await attend(store) == 1
            refused = decode_answer(await reader.store.answered(bad) or b"")
            assert isinstance(refused, Refused)
            assert await history(store) == UNTOUCHED
            await reader.store.post(good, a_request())
            assert await attend(store) == 1
            assert await attend(store) == 0
        assert (await history(store))[3:] == ["papyra.event_skipped"]


async def test_files_of_other_names_are_left_alone(tmp_path: Path, kind: str) -> None:
    names = ["a.request", "../x", f"{'0' * 32}.request.new", f"{'F' * 32}.request", "note.txt"]
    async with opened(kind, tmp_path / "store") as (store, directory):
        directory.mkdir(0o755)
        for name in names:
            (directory / Path(name).name).write_bytes(a_request())
        before = sorted(directory.iterdir())
        assert await attend(store) == 0
        assert sorted(directory.iterdir()) == before
        assert await history(store) == UNTOUCHED


async def test_what_nobody_waits_for_any_more_is_removed(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path / "store") as (store, directory):
        directory.mkdir(0o755)
        kept = directory / "note.txt"
        kept.write_bytes(b"x")
        for suffix in ("request", "request.new", "taken", "answer", "answer.new", "withdrawn"):
            old = directory / f"{new_id()}.{suffix}"
            old.write_bytes(b"x")
            os.utime(old, (0, time.time() - STALE_AFTER - 10))
        os.utime(kept, (0, 0))
        assert await attend(store) in (0, 1)
        async with store.reader() as reader:
            await reader.store.post(new_id(), a_request())
        await attend(store)
        left = {path.suffix for path in directory.iterdir()}
        assert left <= {".txt", ".answer"}


# Races, and disks that fail


def test_of_taking_and_withdrawing_at_the_same_time_exactly_one_succeeds(tmp_path: Path) -> None:
    def requests() -> RequestDirectory:
        return RequestDirectory(Disk(), tmp_path / "requests", tmp_path.stat, syncs=False)

    both = threading.Barrier(2)
    ids = [new_id() for _ in range(300)]
    taken: list[bool] = []
    withdrawn: list[bool] = []

    def take() -> None:
        writer = requests()
        for request_id in ids:
            both.wait()
            taken.append(writer.take(request_id) is not None)

    def withdraw() -> None:
        poster = requests()
        for request_id in ids:
            poster.post(request_id, b"x")
            both.wait()
            withdrawn.append(poster.withdraw(request_id))

    threads = [threading.Thread(target=each) for each in (take, withdraw)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one != other for one, other in zip(taken, withdrawn, strict=True)] == [True] * 300


class Failing(Disk):
    """Lets the `left`-th call fail."""

    def __init__(self) -> None:
        self.left = -1

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, "the device has failed")

    def create(self, *args: Any, **options: Any) -> int:
        self._step()
        return super().create(*args, **options)

    def open(self, *args: Any) -> int:
        self._step()
        return super().open(*args)

    def list(self, *args: Any) -> list[str]:
        self._step()
        return super().list(*args)

    def sync(self, fd: int) -> None:
        self._step()
        super().sync(fd)

    def replace(self, *args: Any) -> None:
        self._step()
        super().replace(*args)

    def remove(self, *args: Any) -> None:
        self._step()
        super().remove(*args)

    def sync_directory(self, *args: Any) -> None:
        self._step()
        super().sync_directory(*args)


async def test_a_disk_that_fails_does_not_have_a_request_carried_out_twice(
    tmp_path: Path, kind: str
) -> None:
    number, failed = 0, 1
    while failed:
        number += 1
        disk, failed = Failing(), 0
        async with (
            opened(kind, tmp_path / str(number), disk) as (store, _),
            store.reader() as reader,
        ):
            await reader.store.post(new_id(), a_request())
            disk.left = number
            await attend(store)
            failed = int(disk.left <= 0)
            disk.left = -1
            await attend(store)
            decisions = (await history(store))[3:]
            assert decisions in ([], ["papyra.event_skipped"])
            assert (await store.append(step(4 + len(decisions)))).last_seq == 4 + len(decisions)
            assert (await store.scan()).is_clean
    assert number > 5
