"""The promise of the appender: acknowledged means synced, and what was refused is gone."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from papyra.persistence import codec
from papyra.persistence.backends._files.appender import Appender, Tail
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.file_handle import FileHandle
from tests.actors import event


class Recorded(Disk):
    """Records each write and sync, with its descriptor, and fails as many syncs as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.failing_syncs = 0

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.calls.append(("write", fd))
        self.writes.append((offset, len(data)))
        return super().write(fd, data, offset)

    def truncate(self, fd: int, length: int) -> None:
        self.calls.append(("truncate", fd))
        super().truncate(fd, length)

    def sync(self, fd: int) -> None:
        self.calls.append(("sync", fd))
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "the device is gone")
        super().sync(fd)

    def names(self) -> list[str]:
        """Return which calls were made since this was asked last."""
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names


@pytest.fixture
def disk() -> Recorded:
    return Recorded()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.ndjson"


@pytest.fixture
def appender(path: Path, disk: Recorded) -> Iterator[Appender]:
    handle = FileHandle(path, disk, name=path, read_only=False)
    handle.open()
    appender = Appender(handle, Tail(0, 0, 0))
    appender.start()
    yield appender
    handle.close()


def write(appender: Appender, *numbers: int, sync: bool = True) -> None:
    records = [event(number) for number in numbers]
    first_seq = appender.tail.last_seq + 1
    appender.write(first_seq, records, codec.encode(records), sync=sync)


def append(appender: Appender, *numbers: int, sync: bool = True) -> None:
    write(appender, *numbers, sync=sync)
    appender.commit()


def test_a_write_is_synced_before_it_can_be_acknowledged(
    appender: Appender, path: Path, disk: Recorded
) -> None:
    write(appender, 1, 2)
    assert disk.names() == ["write", "sync"]
    assert (appender.tail.end, appender.tail.last_seq) == (0, 0), "nobody was told of it yet"
    run = appender.commit()
    assert run is not None
    assert (run.first_seq, run.last_seq, run.end) == (1, 2, path.stat().st_size)
    assert (appender.tail.end, appender.tail.last_seq) == (path.stat().st_size, 2)
    assert disk.names() == []
    assert appender.durability.is_synced(appender.tail.end)
    assert appender.commit() is None


def test_a_write_that_can_not_be_synced_is_truncated(
    appender: Appender, path: Path, disk: Recorded
) -> None:
    append(appender, 1)
    before = path.read_bytes()
    disk.failing_syncs = 1
    with pytest.raises(OSError, match="the device is gone"):
        write(appender, 2)
    assert path.read_bytes() == before
    assert appender.commit() is None
    assert (appender.tail.end, appender.tail.last_seq) == (len(before), 1)


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_write_that_is_rolled_back_gives_its_positions_back(
    appender: Appender, path: Path, is_committed: bool
) -> None:
    append(appender, 1)
    before = path.read_bytes()
    write(appender, 2, 3)
    if is_committed:
        appender.commit()
    appender.roll_back()
    assert path.read_bytes() == before
    assert appender.tail == Tail(len(before), 1, 1)
    append(appender, 4)
    assert b'"seq":2,' in path.read_bytes()[len(before) :]


def test_what_was_committed_before_an_append_began_is_not_rolled_back(
    appender: Appender, path: Path
) -> None:
    append(appender, 1)
    before = path.read_bytes()
    appender.begin()
    appender.roll_back()
    assert path.read_bytes() == before
    assert appender.tail.last_seq == 1


def test_after_a_sync_that_failed_what_was_not_synced_is_written_again_by_another_descriptor(
    appender: Appender, disk: Recorded
) -> None:
    append(appender, 1)
    synced_end = appender.tail.end
    append(appender, 2, sync=False)
    disk.failing_syncs = 1
    with pytest.raises(OSError, match="the device is gone"):
        appender.sync()
    (_, failed), end = disk.calls[-1], appender.tail.end
    disk.calls.clear()
    disk.writes.clear()
    assert not appender.durability.is_synced(end)
    append(appender, 3)
    assert disk.writes == [(synced_end, end - synced_end), (end, appender.tail.end - end)]
    assert failed not in {fd for _, fd in disk.calls}
    assert disk.names() == ["write", "sync", "write", "sync"]
    assert appender.durability.is_synced(appender.tail.end)


def test_the_torn_tail_is_truncated_on_the_device_before_the_next_write(
    appender: Appender, path: Path, disk: Recorded
) -> None:
    append(appender, 1)
    with path.open("ab") as file:
        file.write(b'{"crc":"')
    appender.start()
    disk.names()
    append(appender, 2)
    assert disk.names() == ["truncate", "sync", "write", "sync"]
    assert path.read_bytes().count(b"\n") == 2
    assert path.stat().st_size == appender.tail.end
