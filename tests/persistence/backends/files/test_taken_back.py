"""What a failed write has left behind: nobody is shown it for long, and it never comes back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from papyra.exceptions import StoreError
from papyra.persistence import PersistedEvent
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.persistence.backends.files.file_persistence import FilePersistence

MakeStore: TypeAlias = Callable[..., FilePersistence]


class BrokenDisk(Disk):
    """Neither syncs nor cuts off while it is broken."""

    is_broken = False

    def sync(self, fd: int) -> None:
        self.fail_if_broken()
        super().sync(fd)

    def truncate(self, fd: int, length: int) -> None:
        self.fail_if_broken()
        super().truncate(fd, length)

    def fail_if_broken(self) -> None:
        if self.is_broken:
            raise OSError(errno.EIO, "I/O error")


def an_event(number: int, size: int = 1) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Counted", {"n": number, "x": "x" * size}, float(number))


def numbers(events: list[PersistedEvent]) -> list[int]:
    return [event.payload["n"] for event in events]


@pytest.fixture(params=["json", "rotating"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    def make_store(**options: Any) -> FilePersistence:
        if request.param == "json":
            return JsonFilePersistence(tmp_path / "events.ndjson", _disk=BrokenDisk(), **options)
        return RotatingFilePersistence(
            tmp_path / "journal", max_segment_bytes=700, _disk=BrokenDisk(), **options
        )

    return make_store


async def fail_to_append(store: FilePersistence, record: PersistedEvent) -> None:
    """Append what is written, and then neither synced nor cut off."""
    disk = store.store.journal.disk
    assert isinstance(disk, BrokenDisk)
    disk.is_broken = True
    with pytest.raises(StoreError):
        await store.append(record)
    disk.is_broken = False


@pytest.mark.parametrize("size", [1, 600])
async def test_a_refused_record_is_not_there_when_more_is_written(
    make: MakeStore, size: int
) -> None:
    """Be that in the same file or, as there is no more room, in a new one."""
    async with make() as store:
        await store.append(an_event(1))
        await fail_to_append(store, an_event(2))
        await store.append(an_event(3, size))
        assert numbers(await store.list_events()) == [1, 3]
        assert (await store.scan()).is_clean
    async with make() as store:
        assert numbers(await store.list_events()) == [1, 3]
        assert (await store.scan()).is_clean


async def test_a_refused_record_is_not_there_when_the_store_is_opened_again(
    make: MakeStore,
) -> None:
    async with make() as store:
        await store.append(an_event(1))
        await fail_to_append(store, an_event(2))
    async with make() as store:
        assert numbers(await store.list_events()) == [1]
        assert (await store.append(an_event(3))).first_seq == 2


@pytest.mark.parametrize("size", [1, 50, 300])
async def test_a_reader_that_has_seen_a_refused_record_sees_what_is_there_instead(
    make: MakeStore, size: int
) -> None:
    async with make() as store, make().reader() as reader:
        await store.append(*map(an_event, range(3)))
        assert isinstance(reader, FilePersistence)
        assert numbers(await reader.list_events()) == [0, 1, 2]
        await fail_to_append(store, an_event(99, 50))
        assert numbers(await reader.list_events()) == [0, 1, 2, 99]
        for number in (3, 4):
            await store.append(an_event(number, size))
            assert numbers(await reader.list_events()) == list(range(number + 1))
            assert reader.last_seq == store.last_seq == number + 1
            assert not (await reader.summarize()).damaged
        page = await reader.read("event", after=3)
        assert [record.seq for record in page.records] == [4, 5]
