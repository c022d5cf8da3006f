"""Positions in files: whole or not at all, through links to nowhere, and as lasting as records."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from papyra.exceptions import StoreDamaged, StoreError
from papyra.persistence import PersistedEvent
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.position_directory import PositionDirectory
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.conftest import event_loops
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.backends.files.power import PoweredDisk
from tests.persistence.backends.files.test_file_snapshots import Failing, beside

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


@pytest.fixture(params=["json", "rotating"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_store(kind: str, path: Path, *, disk: Disk | None = None) -> FilePersistence:
    if kind == "json":
        return JsonFilePersistence(path, _disk=disk)
    return RotatingFilePersistence(path, _disk=disk)


def file_of(kind: str, path: Path, name: str) -> Path:
    """Return the file of a name, by what the guide says about it."""
    hashed = hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
    return beside(kind, path, ".positions") / hashed


async def test_who_keeps_no_position_finds_nothing_more(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0))
        assert await store.load_position("a") is None
        assert await store.list_positions() == []
        assert not await store.remove_position("a", b"")
    assert not beside(kind, path, ".positions").exists()


async def test_a_file_of_a_position_says_whose_it_is_and_is_readable(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.save_position("balances/é\n", b'{"seq":7}', None)
    content = file_of(kind, path, "balances/é\n").read_bytes()
    first, data = content.split(b"\n", 1)
    checksum, name = first.split(b" ", 1)
    assert json.loads(name) == "balances/é\n"
    assert data == b'{"seq":7}'
    body = content[len(checksum) + 1 :]
    assert checksum.decode() == hashlib.blake2b(body, digest_size=16).hexdigest()


async def test_positions_have_owner_and_mode_of_the_store(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    before = os.umask(0o027)
    try:
        async with open_store(kind, path) as store:
            os.umask(0o000)
            await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0))
            await store.save_position("a", b"1", None)
            await store.save_position("a", b"2", b"1")
    finally:
        os.umask(before)
    file = file_of(kind, path, "a")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o750


@pytest.mark.parametrize("which", ["file", "directory"])
async def test_no_link_is_followed_to_a_position(tmp_path: Path, kind: str, which: str) -> None:
    path, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    async with open_store(kind, path) as store:
        await store.save_position("a", b"1", None)
        place = file_of(kind, path, "a")
        place = place if which == "file" else place.parent
        place.rename(elsewhere)
        place.symlink_to(elsewhere)
        there = elsewhere if which == "file" else elsewhere / file_of(kind, path, "a").name
        before = there.read_bytes()
        for expected in (None, b"1"):
            with pytest.raises(StoreError):
                await store.save_position("a", b"2", expected)
        with pytest.raises(StoreError):
            await store.load_position("a")
        with pytest.raises(StoreError):
            await store.remove_position("a", b"1")
        assert there.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"\n",
        lambda content: content[:40],
        lambda content: b"\0" * len(content),
        lambda content: content.replace(b"data", b"DATA"),
        lambda content: content.replace(b'"a"', b'"b"'),
    ],
    ids=["empty", "cut", "longer", "head", "zeros", "flipped", "renamed"],
)
async def test_a_damaged_position_is_an_error_and_no_other_one_is_concerned(
    tmp_path: Path,
    kind: str,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        for name in ("a", "c"):
            await store.save_position(name, b"data", None)
        file = file_of(kind, path, "a")
        file.write_bytes(damage(file.read_bytes()))
        for expected in (None, b"data", b""):
            with pytest.raises(StoreDamaged, match=file.name):
                await store.save_position("a", b"new", expected)
        with pytest.raises(StoreDamaged, match="remove it"):
            await store.load_position("a")
        assert await store.list_positions() == ["c"]
        assert file.name in caplog.text
        assert await store.save_position("c", b"new", b"data")
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0))
        file.unlink()
        assert await store.save_position("a", b"new", None)


async def test_the_file_of_another_name_is_no_position_of_this_one(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.save_position("a", b"1", None)
        file_of(kind, path, "a").rename(file_of(kind, path, "b"))
        with pytest.raises(StoreDamaged, match="of the name 'a'"):
            await store.load_position("b")


async def test_what_is_no_position_by_its_name_is_not_listed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.save_position("a", b"1", None)
        file = file_of(kind, path, "a")
        for name in ("notes", f"{file.name}.new", "A" * 40, "0" * 39):
            file.with_name(name).write_bytes(file.read_bytes())
        file.with_name("0" * 40).mkdir()
        assert await store.list_positions() == ["a"]
        assert await store.save_position("a", b"2", b"1")
        assert not file.with_name(f"{file.name}.new").exists()


async def test_a_store_that_was_moved_sets_no_position_elsewhere(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0))
        path.rename(tmp_path / "moved")
        with pytest.raises(StoreError, match=r"No such file|was renamed"):
            await store.save_position("a", b"1", None)
        assert not beside(kind, path, ".positions").exists()
        (tmp_path / "moved").rename(path)


async def test_a_position_is_set_whole_or_not_at_all_whatever_fails(
    tmp_path: Path, kind: str
) -> None:
    failed = 0
    for number in range(1, 100):
        path, disk = tmp_path / str(number), Failing()
        async with open_store(kind, path, disk=disk) as store:
            await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0))
            last: bytes | None = None
            has_failed = False
            disk.left = number
            for data in (b"1", b"2", b"3"):
                try:
                    assert await store.save_position("a", data, last)
                except StoreError:
                    failed, has_failed = failed + 1, True
                    found = await store.load_position("a")
                    assert found in (last, data)
                    last = found
                else:
                    last = data
            try:
                assert await store.remove_position("a", last or b"")
            except StoreError:
                failed, has_failed = failed + 1, True
                assert await store.load_position("a") in (last, None)
            disk.left = -1
        if not has_failed:
            break
    assert failed >= 10


def test_a_position_that_was_set_is_there_after_a_power_cut_at_any_call(tmp_path: Path) -> None:
    root, cut = tmp_path / "positions", tmp_path / "cut"
    for place in (root, cut):
        place.mkdir()
    disk = PoweredDisk(root)
    positions = PositionDirectory(disk, root, syncs=True)
    after_a_cut = PositionDirectory(Disk(), cut, syncs=False)
    chance = random.Random(31)
    may_be: set[bytes | None] = {None}
    cuts = 0

    def look(call: str) -> None:
        nonlocal cuts
        for state in disk.states(chance, 12):
            for file in cut.iterdir():
                file.unlink()
            for name, data in state.items():
                (cut / name).write_bytes(data)
            assert after_a_cut.load("a") in may_be, call
            cuts += 1

    disk.watch = look
    last: bytes | None = None
    like = root.stat()
    for number in range(4):
        data = b"%d" % number * 700
        may_be = {last, data}
        assert positions.save("a", data, last, like)
        last, may_be = data, {data}
        look("saved")
    may_be = {last, None}
    assert positions.remove("a", last or b"")
    may_be = {None}
    look("removed")
    assert cuts > 60
