"""What files keep beside the records: the id of the store, and snapshots."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError, StoreReadOnly
from papyra.persistence import (
    PersistedEvent,
    PersistenceRecoveryConfig,
    SaveSnapshot,
)
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.snapshots import all_snapshots, snapshots_of
from papyra.persistence.startup import PersistenceStartupConfig, plan_start
from tests.conftest import event_loops
from tests.persistence.backends.files.file_persistence import FilePersistence

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


@pytest.fixture(params=["json", "rotating"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_store(kind: str, path: Path, *, disk: Disk | None = None) -> FilePersistence:
    if kind == "json":
        return JsonFilePersistence(path, _disk=disk)
    return RotatingFilePersistence(path, max_segment_bytes=700, _disk=disk)


def beside(kind: str, path: Path, suffix: str) -> Path:
    return path / suffix if kind == "rotating" else path.with_name(path.name + suffix)


def files_of(kind: str, path: Path) -> list[Path]:
    """Return the files of snapshots, in the order of their revisions."""
    return sorted(beside(kind, path, ".snapshots").glob("*/*"), key=lambda file: file.name)


def step(revision: int, actor: str = "s/a") -> PersistedEvent:
    return PersistedEvent("s", actor, "Stepped", revision, float(revision), revision=revision)


async def fill(store: FilePersistence, *revisions: int, actor: str = "s/a") -> None:
    """Store a history of nine events, and snapshots after some of them."""
    for revision in range(1, 10):
        appended = await store.append(step(revision, actor))
        if revision in revisions:
            state = msgspec.Raw(b"%d" % revision)
            request = SaveSnapshot(actor, revision, appended.first_seq, state, 1.0, keep=9)
            await store.execute(request)


async def newest(store: FilePersistence, actor: str = "s/a") -> tuple[int, int]:
    """Return the revision of the snapshot that is given out, or 0, and how many are not."""
    found = await store.load_snapshot(actor)
    return found.snapshot.revision if found.snapshot else 0, len(found.passed_over)


# The id


async def test_who_asks_for_nothing_finds_nothing_more(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(step(1))
        assert (await store.load_snapshot("s/a")).snapshot is None
    assert not beside(kind, path, ".id").exists()
    assert not beside(kind, path, ".snapshots").exists()


async def test_a_reader_makes_no_id(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(step(1))
        async with store.reader() as reader:
            assert await reader.store_id() is None
            assert not beside(kind, path, ".id").exists()
            made = await store.store_id()
            assert await reader.store_id() == made


@pytest.mark.parametrize("lost", [None, b"", b"what?\n", b"0" * 32])
async def test_an_id_that_is_lost_or_damaged_is_made_anew_and_snapshots_are_passed_over(
    tmp_path: Path, kind: str, lost: bytes | None
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5, 9)
        before = await store.store_id()
    place = beside(kind, path, ".id")
    if lost is None:
        place.unlink()
    else:
        place.write_bytes(lost)
    async with open_store(kind, path) as store:
        assert await newest(store) == (0, 2)
        after = await store.store_id()
        assert after is not None
        assert after != before
    async with open_store(kind, path) as store:
        assert await store.store_id() == after
        found = await store.scan()
        assert [anomaly.kind for anomaly in found.anomalies] == ["snapshot", "snapshot"]
        assert "of another store" in found.anomalies[0].detail
        assert (await store.recover()).scan.is_clean
        assert await newest(store) == (0, 0)


async def test_a_store_that_is_made_anew_has_another_id(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 9)
        before = await store.store_id()
    for file in [path] if kind == "json" else path.glob("*.ndjson"):
        file.unlink()
    for file in path.glob("*.index") if kind == "rotating" else ():
        file.unlink()
    async with open_store(kind, path) as store:
        await fill(store)
        assert await store.store_id() != before
        assert await newest(store) == (0, 1)


async def test_an_empty_store_keeps_its_id(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        before = await store.store_id()
    async with open_store(kind, path) as store:
        assert await store.store_id() == before


# Files


def a_link(place: Path, target: Path) -> None:
    if target.is_dir():
        shutil.move(place, target / "moved")
        place.symlink_to(target / "moved")
    else:
        target.write_bytes(place.read_bytes())
        place.unlink()
        place.symlink_to(target)


@pytest.mark.parametrize("which", ["file", "actor", "all"])
async def test_no_link_is_followed(tmp_path: Path, kind: str, which: str) -> None:
    path, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    async with open_store(kind, path) as store:
        await fill(store, 5, 9)
        (_, file) = files_of(kind, path)
        place = {"file": file, "actor": file.parent, "all": file.parent.parent}[which]
        if which != "file":
            elsewhere.mkdir()
        a_link(place, elsewhere)
        assert await newest(store) == ((5, 1) if which == "file" else (0, 0))
        (last,) = (await store.read_history("s/a", after_revision=8)).events
        request = SaveSnapshot("s/a", 9, last.seq or 0, msgspec.Raw(b"9"), 1.0)
        before = {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()}
        if which == "file":
            content = elsewhere.read_bytes()
            await store.execute(request)
            assert elsewhere.read_bytes() == content
            assert not file.is_symlink()
            assert await newest(store) == (9, 0)
        else:
            with pytest.raises(StoreError, match="no link is followed"):
                await store.execute(request)
        assert {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} == before


async def test_an_id_behind_a_link_is_an_error_and_nothing_is_written(
    tmp_path: Path, kind: str
) -> None:
    path, target = tmp_path / "store", tmp_path / "target"
    target.write_text("0" * 32 + "\n")
    async with open_store(kind, path) as store:
        await store.append(step(1))
        beside(kind, path, ".id").symlink_to(target)
        with pytest.raises(StoreError):
            await store.store_id()
        assert target.read_text() == "0" * 32 + "\n"


async def test_snapshots_have_owner_and_mode_of_the_store(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    before = os.umask(0o027)
    try:
        async with open_store(kind, path) as store:
            os.umask(0o000)
            await fill(store, 5)
            await store.store_id()
    finally:
        os.umask(before)
    (file,) = files_of(kind, path)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (file, beside(kind, path, ".id"))]
    assert modes == [0o640, 0o640]
    for directory in (file.parent, file.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750


async def test_what_a_crash_has_left_of_a_snapshot_does_not_count(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5)
        (file,) = files_of(kind, path)
        for name in (f"{9:014}.json.new", f"{5:014}.json.new", "notes", f"{0:014}.json", "7.json"):
            file.with_name(name).write_bytes(b"half")
        assert await newest(store) == (5, 0)
        await store.execute(SaveSnapshot("s/a", 5, 5, msgspec.Raw(b"5"), 1.0))
        assert await newest(store) == (5, 0)
        assert not file.with_name(f"{5:014}.json.new").exists()
        assert (await store.scan()).is_clean
        assert (await store.recover()).scan.is_clean
    async with open_store(kind, path) as store:
        assert await newest(store) == (5, 0)


async def test_snapshots_of_actors_that_were_swapped_are_passed_over(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5)
        await fill(store, 5, actor="s/b")
        one, other = files_of(kind, path)
        one.rename(tmp_path / "aside")
        other.rename(one)
        (tmp_path / "aside").rename(other)
        assert await newest(store) == (0, 1)
        assert await newest(store, "s/b") == (0, 1)


async def test_a_store_that_was_moved_saves_nothing_elsewhere(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store)
        path.rename(tmp_path / "moved")
        with pytest.raises(StoreError, match=r"No such file|was renamed"):
            await store.execute(SaveSnapshot("s/a", 5, 5, msgspec.Raw(b"5"), 1.0))
        assert not beside(kind, path, ".snapshots").exists()
        (tmp_path / "moved").rename(path)


async def test_a_copy_of_the_files_has_the_same_past_and_a_reader_changes_nothing(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5)
        async with store.reader() as reader:
            assert await newest(reader) == (5, 0)
            with pytest.raises(StoreReadOnly):
                await reader.execute(SaveSnapshot("s/a", 5, 5, msgspec.Raw(b"5"), 1.0))


class Failing(Disk):
    """Lets the `number`-th call fail that a snapshot needs."""

    def __init__(self) -> None:
        self.left = -1

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, "the device has failed")

    def _failing(name: str) -> Callable[..., object]:  # type: ignore[misc]
        def call(self: Failing, *args: object, **kwargs: object) -> object:
            self._step()
            return getattr(Disk, name)(self, *args, **kwargs)

        return call

    create = _failing("create")  # type: ignore[assignment]
    write = _failing("write")  # type: ignore[assignment]
    sync = _failing("sync")  # type: ignore[assignment]
    replace = _failing("replace")  # type: ignore[assignment]
    remove = _failing("remove")  # type: ignore[assignment]
    sync_directory = _failing("sync_directory")  # type: ignore[assignment]
    make_directory_like = _failing("make_directory_like")  # type: ignore[assignment]


async def test_a_snapshot_is_saved_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    failed = 0
    for number in range(1, 100):
        path, disk = tmp_path / str(number), Failing()
        async with open_store(kind, path, disk=disk) as store:
            await fill(store)
            request = SaveSnapshot("s/a", 9, 9, msgspec.Raw(b"9"), 1.0)
            disk.left = number
            try:
                await store.execute(request)
            except StoreError:
                failed += 1
                has_failed = True
            else:
                has_failed = False
            disk.left = -1
            assert (await newest(store)) in ((9, 0), (0, 0))
            assert (await store.scan()).is_clean
            await store.append(step(10))
            await store.execute(request)
            assert await newest(store) == (9, 0)
        if not has_failed:
            break
    assert failed >= 10


# The list


async def test_what_is_no_snapshot_by_its_name_is_not_listed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5, 9)
        snapshots = snapshots_of(store.store)
        listed = [each async for each in all_snapshots(snapshots)]
        assert [(each.revision, each.size) for each in listed] == [
            (revision, file.stat().st_size)
            for revision, file in zip((5, 9), files_of(kind, path), strict=True)
        ]
        first = files_of(kind, path)[0]
        for name in ("5.json", f"{0:014}.json", f"{7:014}.json.new", "note.txt"):
            first.with_name(name).write_bytes(first.read_bytes())
        first.with_name(f"{8:014}.json").mkdir()
        (first.parent.parent / "notes").mkdir()
        (first.parent.parent / ("0" * 40)).write_text("a file")
        assert [each async for each in all_snapshots(snapshots)] == listed
        async with store.reader() as reader:
            assert [each async for each in all_snapshots(snapshots_of(reader.store))] == listed


async def test_a_link_in_the_place_of_a_snapshot_is_listed_and_not_followed(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5, 9)
        snapshots = snapshots_of(store.store)
        a_link(files_of(kind, path)[0], tmp_path / "elsewhere")
        link, whole = [each async for each in all_snapshots(snapshots)]
        with pytest.raises(OSError, match="not followed"):
            await snapshots.load_listed(link)
        await snapshots.remove_listed(link)
        assert [each async for each in all_snapshots(snapshots)] == [whole]
        assert (tmp_path / "elsewhere").exists()


async def test_a_list_goes_on_after_what_was_removed_meanwhile(tmp_path: Path, kind: str) -> None:
    async with open_store(kind, tmp_path / "store") as store:
        await fill(store, 5, 9)
        snapshots = snapshots_of(store.store)
        (first,) = await snapshots.list_snapshots(None, 1)
        await snapshots.remove_listed(first)
        assert [each.revision for each in await snapshots.list_snapshots(first, 9)] == [9]
        assert await snapshots.list_snapshots(None, 0) == []


# Scans and recoveries


async def kinds(store: FilePersistence) -> list[str]:
    return [anomaly.kind for anomaly in (await store.scan()).anomalies]


@pytest.mark.parametrize("mode", ["repair", "quarantine"])
async def test_a_snapshot_file_that_can_not_be_read_is_an_anomaly_and_is_removed(
    tmp_path: Path, kind: str, mode: Literal["repair", "quarantine"]
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 3, 5, 9)
        cut, link, _ = files_of(kind, path)
        cut.write_bytes(damaged := cut.read_bytes()[:50])
        a_link(link, tmp_path / "elsewhere")
        async with store.reader() as reader:
            assert await kinds(reader) == ["snapshot", "snapshot"]
        report = await store.recover(PersistenceRecoveryConfig(mode, str(tmp_path / "aside")))
        assert report.scan.is_clean
        assert await kinds(store) == []
        assert await newest(store) == (9, 0)
        assert (tmp_path / "elsewhere").exists()
    kept = [Path(place) for place in report.quarantined]
    assert len(kept) == (2 if mode == "quarantine" else 0)
    if kept:
        assert {each.parent for each in kept} == {tmp_path / "aside"}
        assert kept[0].read_bytes() == damaged
        assert kept[1].is_symlink()


async def test_snapshots_in_quarantine_are_beside_the_store_and_keep_their_names_apart(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    places: list[str] = []
    for _ in range(2):
        async with open_store(kind, path) as store:
            if not places:
                await fill(store, 5)
            await snapshots_of(store.store).save_snapshot("s/a", 7, b"rubbish")
            report = await store.recover(PersistenceRecoveryConfig("quarantine"))
            places += report.quarantined
            assert await kinds(store) == []
    assert len({*places}) == 2
    assert {Path(place).parent for place in places} == {path.parent}
    assert {Path(place).read_bytes() for place in places} == {b"rubbish"}


async def test_a_system_starts_whatever_is_wrong_with_snapshots(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await fill(store, 5, 9)
        for file in files_of(kind, path):
            file.write_bytes(b"rubbish")
    modes: tuple[Literal["fail_on_anomaly", "recover"], ...] = ("fail_on_anomaly", "recover")
    for mode in modes:
        startup = PersistenceStartupConfig(mode)
        store = open_store(kind, path)
        async with ActorSystem("s", persistence=store, startup=startup):
            assert len(await store.list_events()) >= 9
    async with open_store(kind, path) as store:
        assert await kinds(store) == ["snapshot", "snapshot"]
        for mode in modes:
            report = await store.scan()
            assert plan_start(report, PersistenceStartupConfig(mode)) == "start"
