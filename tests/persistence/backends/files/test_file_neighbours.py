"""A store's folder is not its own alone: what others have put there, and whose files they are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError
from papyra.persistence import Append, PersistenceRecoveryConfig, PersistenceStartupConfig
from papyra.persistence.backends._files import disk as disks
from papyra.persistence.backends._files.disk import Disk
from tests.actors import event
from tests.extent import STEP
from tests.persistence.backends.files.test_file_names import (
    KEEP_TWO,
    files_of,
    kind,
    numbers,
    open_store,
    stored,
)
from tests.persistence.backends.files.test_full_disk import a_small_disk

__all__ = ("kind",)

OTHER = 12345

#: What is in a folder is the same on each event loop: those differ elsewhere.
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Return a file of somebody's, which must stay as it is."""
    path = tmp_path / "precious"
    path.write_text("keep me")
    return path


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def plant(how: str, path: Path, precious: Path) -> None:
    """Put something where a store is about to make a file of its own."""
    path.parent.mkdir(exist_ok=True)
    match how:
        case "link":
            path.symlink_to(precious)
        case "dangling":
            path.symlink_to(precious.with_name("new"))
        case "link to a folder":
            path.symlink_to(precious.parent)
        case "hard link":
            path.hardlink_to(precious)
        case "file":
            path.write_text("mine")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "mine").touch()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
                bound.bind(path.name)


PLANTS = ["link", "dangling", "link to a folder", "hard link", "file", "pipe", "folder", "socket"]


def intact(precious: Path) -> bool:
    return precious.read_text() == "keep me" and not precious.with_name("new").exists()


def as_it_is(path: Path) -> tuple[int, ...]:
    """Return what tells whether something was changed; to read it changes nothing."""
    about = path.lstat()
    return about.st_ino, about.st_mode, about.st_uid, about.st_size, about.st_mtime_ns


# What is planted


@pytest.mark.parametrize("how", PLANTS)
@one_loop
async def test_a_file_store_leaves_a_foreign_file_at_its_lock_path_alone(
    tmp_path: Path, kind: str, precious: Path, how: str
) -> None:
    path = tmp_path / "store"
    lock = tmp_path / "store.lock" if kind == "json" else path / ".lock"
    plant(how, lock, precious)
    before = as_it_is(lock)
    store = open_store(kind, path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"open failed: .*lock"):
            await store.append(event(1))
    assert store.reader() is not store
    assert intact(precious)
    assert as_it_is(lock) == before
    if lock.is_dir() and not lock.is_symlink():
        lock.rename(tmp_path / "elsewhere")
    else:
        lock.unlink()
    assert (await store.append(event(1))).first_seq == 1
    await store.aclose()


@pytest.mark.parametrize("how", PLANTS)
@pytest.mark.parametrize("when", ["before", "after"])
@one_loop
async def test_a_compaction_writes_to_no_foreign_file_named_like_its_new_file(
    tmp_path: Path, kind: str, precious: Path, how: str, when: str
) -> None:
    path = tmp_path / "store"
    name = "store.new" if kind == "json" else f"store/{1:020}.ndjson.new"
    if when == "before":
        plant(how, tmp_path / name, precious)
    async with open_store(kind, path) as store:
        await store.append(*map(event, range(1, 9)))
        if when == "after":
            plant(how, tmp_path / name, precious)
        if how == "folder":
            with pytest.raises(StoreError, match=r"File exists.*\.new"):
                await store.compact(KEEP_TWO)
            assert (tmp_path / name / "mine").exists()
        else:
            await store.compact(KEEP_TWO)
        await store.append(event(9))
        assert (await numbers(store))[-3:] == [7, 8, 9]
    assert intact(precious)
    assert mode_of(precious) == 0o644


@pytest.mark.parametrize("how", PLANTS)
@one_loop
async def test_a_rotating_store_writes_to_no_foreign_file_named_like_its_next_segment(
    tmp_path: Path, precious: Path, how: str
) -> None:
    path = tmp_path / "store"
    async with open_store("rotating", path) as store:
        await store.append(*map(event, range(1, 4)))
        planted = path / f"{4:020}.ndjson"
        plant(how, planted, precious)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"File exists.*04\.ndjson"):
                await store.append(event(4))
        assert intact(precious)
        assert planted.lstat()
        if how != "file":
            planted.rename(tmp_path / "elsewhere")
        else:
            assert planted.read_text() == "mine"
            planted.unlink()
        assert (await store.append(event(4))).first_seq == 4
    assert await stored("rotating", path) == [1, 2, 3, 4]


@pytest.mark.parametrize("how", PLANTS)
@one_loop
async def test_a_rotating_store_writes_to_no_foreign_file_named_like_a_saved_index(
    tmp_path: Path, precious: Path, how: str
) -> None:
    path = tmp_path / "store"
    async with open_store("rotating", path) as store:
        await store.append(event(1))
        plant(how, path / f"{1:020}.index", precious)
        await store.append(*map(event, range(2, 9)))
    async with open_store("rotating", path) as store:
        assert await numbers(store) == [1, 2, 3, 4, 5, 6, 7, 8]
        await store.compact(KEEP_TWO)
        assert await numbers(store) == [7, 8]
        assert {a.kind for a in (await store.scan()).anomalies} <= {"foreign_file"}
    assert intact(precious)


@pytest.mark.parametrize("how", PLANTS)
@one_loop
async def test_a_quarantine_of_files_takes_a_name_that_is_free(
    tmp_path: Path, kind: str, precious: Path, how: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(*map(event, range(1, 6)))
    file = files_of(kind, path)[0]
    damaged = file.read_bytes().replace(b'"order_id":2', b'"order_id":9')
    file.write_bytes(damaged)
    file.chmod(0o600)
    plant(how, tmp_path / "store.damaged-1", precious)
    async with open_store(kind, path) as store:
        report = await store.recover(PersistenceRecoveryConfig("quarantine"))
        (aside,) = report.quarantined
        assert "store.damaged-2" in aside
        assert Path(aside).read_bytes() == damaged
        assert mode_of(Path(aside)) == 0o600
        assert report.scan.is_clean
    assert intact(precious)


@pytest.mark.parametrize("how", PLANTS)
@one_loop
async def test_a_file_readers_saved_index_is_not_written_through_a_link(
    tmp_path: Path, precious: Path, how: str
) -> None:
    path, cache = tmp_path / "store", tmp_path / "cache"
    async with open_store("json", path) as store:
        await store.append(*(event(n, payload={"order_id": n, "x": "x" * 900}) for n in range(99)))
    async with open_store("json", path, read_only=True, index_directory=cache) as store:
        assert len(await numbers(store)) == 99
    (kept,) = cache.iterdir()
    kept.unlink()
    for name in (kept.name, f"{kept.stem}.{os.getpid()}"):
        plant(how, cache / name, precious)
    async with open_store("json", path, read_only=True, index_directory=cache) as store:
        assert len(await numbers(store)) == 99
    assert intact(precious)


# What is foreign


def fill_with_foreign_things(path: Path, precious: Path) -> int:
    """Put into a folder what may be in one, and return how much of that is worth a word."""
    path.mkdir(exist_ok=True)
    (path / "lost+found").mkdir(mode=0o700)
    (path / "notes.txt").write_text("mine")
    (path / ".hidden").write_text("mine")
    (path / os.fsdecode(b"\xff\xfe\n\x1b[31m")).write_text("mine")
    (path / f"{0:020}.ndjson").write_text("mine")  # no record has this number
    (path / ("9" * 20 + ".ndjson")).write_text("mine")
    (path / ("\N{ARABIC-INDIC DIGIT ONE}" * 20 + ".ndjson")).write_text("mine")
    (path / "link").symlink_to(precious)
    (path / "dangling").symlink_to("nowhere")
    plant("socket", path / "socket", precious)
    plant("pipe", path / "pipe", precious)
    (path / f"{500:020}.ndjson").mkdir()
    (path / f"{501:020}.ndjson").symlink_to(precious)
    (path / f"{502:020}.index").mkdir()
    (path / f"{503:020}.ndjson.new").mkdir()
    plant("pipe", path / f"{504:020}.ndjson", precious)
    return 15


@one_loop
@pytest.mark.parametrize("mode", ["fail_on_anomaly", "recover", "ignore"])
@pytest.mark.parametrize("recovery", ["repair", "quarantine"])
@pytest.mark.parametrize("torn", [False, True])
async def test_foreign_files_in_a_rotating_store_keep_no_system_from_starting(
    tmp_path: Path, precious: Path, mode: Any, recovery: Any, torn: bool
) -> None:
    path = tmp_path / "store"
    count = fill_with_foreign_things(path, precious)
    aside = str(tmp_path / "aside")
    startup = PersistenceStartupConfig(mode, PersistenceRecoveryConfig(recovery, aside))
    before = sorted(path.iterdir())
    for number in (1, 2):
        store = open_store("rotating", path)
        async with ActorSystem("s", persistence=store, startup=startup) as system:
            await system.persistence.ask(Append(event(number)))
            report = await store.scan()
            assert [a.kind for a in report.anomalies] == ["foreign_file"] * count
            json.dumps([a.location for a in report.anomalies], ensure_ascii=False).encode()
        if torn:
            last = path / f"{1:020}.ndjson"
            last.write_bytes(last.read_bytes() + b'{"crc":"')
    assert set(before) <= set(path.iterdir()), "all of it is still there"
    assert intact(precious)


@one_loop
async def test_a_quarantine_moves_foreign_files_and_leaves_directories_and_links(
    tmp_path: Path, precious: Path
) -> None:
    path = tmp_path / "store"
    fill_with_foreign_things(path, precious)
    async with open_store("rotating", path) as store:
        await store.append(event(1))
        report = await store.recover(PersistenceRecoveryConfig("quarantine"))
        assert all(Path(moved).read_text() == "mine" for moved in report.quarantined)
        assert len(report.quarantined) == 5
        assert {a.kind for a in report.scan.anomalies} == {"foreign_file"}
        assert await numbers(store) == [1]
    assert (path / "lost+found").is_dir()
    assert intact(precious)


@one_loop
async def test_a_segment_removed_while_a_reader_lists_the_directory_is_no_anomaly(
    tmp_path: Path,
) -> None:
    class Late(Disk):
        """Lists what a compaction has removed by the time that it is looked at."""

        def list(self, path: Path) -> list[str]:
            return [*super().list(path), f"{3:020}.ndjson", f"{3:020}.index"]

    path = tmp_path / "store"
    async with open_store("rotating", path) as store:
        await store.append(event(1))
        async with open_store("rotating", path, read_only=True, _disk=Late()) as reader:
            assert (await reader.scan()).is_clean
            assert await numbers(reader) == [1]


@one_loop
async def test_a_segment_that_is_a_symbolic_link_is_foreign_and_its_records_are_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    async with open_store("rotating", path) as store:
        await store.append(*map(event, range(1, 9)))
    moved = tmp_path / "moved"
    (path / f"{4:020}.ndjson").rename(moved)
    (path / f"{4:020}.ndjson").symlink_to(moved)
    async with open_store("rotating", path) as store:
        anomalies = (await store.scan()).anomalies
        assert [a.kind for a in anomalies] == ["missing_segment", "foreign_file"]
        assert "is a link or no file" in anomalies[1].detail


# Whose it is


@one_loop
async def test_a_file_rewritten_by_compaction_or_recovery_keeps_its_mode(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    async with open_store(kind, path) as store:
        await store.append(*map(event, range(1, 5)))
        for file in files_of(kind, path):
            file.chmod(0o640)
        await store.append(*map(event, range(5, 12)))
        await store.compact(KEEP_TWO)
        await store.append(event(12))
    made = [p for p in path.iterdir() if p.name[0] != "."] if kind == "rotating" else [path]
    assert {mode_of(file) for file in made} == {0o640}
    damaged = files_of(kind, path)[-1]
    damaged.write_bytes(b"xx\n" + damaged.read_bytes())
    async with open_store(kind, path) as store:
        assert (await store.recover()).scan.is_clean
    assert {mode_of(file) for file in files_of(kind, path)} == {0o640}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@one_loop
async def test_a_new_store_has_the_mode_that_the_umask_leaves(
    tmp_path: Path, kind: str, mask: int, mode: int
) -> None:
    path = tmp_path / "store"
    with umask(mask):
        async with open_store(kind, path) as store:
            await store.append(*map(event, range(1, 5)))
        assert {mode_of(file) for file in files_of(kind, path)} == {mode}
        lock = tmp_path / "store.lock" if kind == "json" else path / ".lock"
        assert mode_of(lock) == mode


AS_ANOTHER = """
import anyio, os, sys
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence

kind, path, uid, verb = sys.argv[1:]
# What is imported later may be where the other user can't read.
anyio.run(anyio.lowlevel.checkpoint)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))

async def main():
    store = (
        JsonFilePersistence(path)
        if kind == "json"
        else RotatingFilePersistence(path, max_segment_records=3)
    )
    async with store:
        for number in range(1, 6):
            await store.append(
                PersistedEvent("s", "s/a", "A", {"order_id": number}, float(number))
            )
        if verb == "compact":
            await store.compact(RetentionPolicy(max_records=2))

try:
    anyio.run(main)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def do_as(uid: int, kind: str, path: Path, verb: str = "append") -> str:
    """Write to a store as another user, if this process may; return what went wrong."""
    command = [sys.executable, "-c", AS_ANOTHER, kind, str(path), str(uid), verb]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or done.stderr
    return done.stderr.strip()


def give(path: Path, uid: int) -> None:
    """Give it to another user, if this process may; else it stays one's own."""
    if os.geteuid() == 0:
        os.chown(path, uid, uid)


def owners(path: Path) -> set[tuple[int, int]]:
    return {(p.stat().st_uid, p.stat().st_gid) for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that another user may reach, and has, if there is another."""
    made = subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True)
    path = Path(made.stdout.strip())
    path.chmod(0o755)
    give(path, OTHER)
    try:
        yield path
    finally:
        subprocess.run(["rm", "-rf", str(path)], check=True)


@one_loop
async def test_a_file_store_rewritten_by_root_still_belongs_to_its_owner(
    folder: Path, kind: str
) -> None:
    path = folder / "store"
    with umask(0o077):
        assert do_as(OTHER, kind, path) == ""
    whose = owners(folder)
    assert len(whose) == 1
    async with open_store(kind, path) as store:
        await store.append(*map(event, range(6, 16)))
        await store.compact(KEEP_TWO)
        await store.append(event(16))
    damaged = files_of(kind, path)[-1]
    damaged.write_bytes(b"xx\n" + damaged.read_bytes())
    async with open_store(kind, path) as store:
        assert (await store.recover(PersistenceRecoveryConfig("quarantine"))).scan.is_clean
    assert owners(folder) == whose
    assert {mode_of(p) for p in folder.rglob("*") if p.is_file()} == {0o600}
    assert do_as(OTHER, kind, path) == ""


@one_loop
async def test_a_lock_file_made_by_root_keeps_no_other_user_out_of_a_file_store(
    folder: Path, kind: str
) -> None:
    path = folder / "store"
    assert do_as(OTHER, kind, path) == ""
    lock = folder / "store.lock" if kind == "json" else path / ".lock"
    # Made by a version that gave it to nobody.
    lock.unlink()
    lock.touch(0o644)
    assert do_as(OTHER, kind, path) == ""
    async with open_store(kind, path) as store:
        await store.list_events()
        assert f"BackendInUse: process {os.getpid()} on" in do_as(OTHER, kind, path)
    lock.chmod(0)
    said = do_as(OTHER, kind, path)
    assert said.startswith("StoreAccessDenied: open failed: ")
    assert f"{lock} belongs to user {os.geteuid()}, " in said
    assert "mode 0000; this process is user" in said


@one_loop
async def test_an_error_on_a_file_store_without_write_access_names_its_owner(
    folder: Path, kind: str
) -> None:
    path = folder / "store"
    async with open_store(kind, path) as store:
        await store.append(event(1))
    for place in (path, *path.glob("*.ndjson")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    file = files_of(kind, path)[-1]
    said = do_as(OTHER, kind, path)
    assert said.startswith("StoreAccessDenied: open failed: ")
    assert f"belongs to user {os.geteuid()}, " in said
    assert str(file if kind == "json" else path) in said
    path.chmod(0o755)


@one_loop
async def test_a_user_who_may_not_keep_the_owner_of_a_file_cannot_compact_it(
    folder: Path, kind: str
) -> None:
    """To rewrite a file is to make one of one's own: whoever may not give it back may not."""
    path = folder / "store"
    async with open_store(kind, path) as store:
        await store.append(event(1))
    places = [folder, path, *path.glob("*"), folder / "store.lock", path / ".lock"]
    for place in filter(Path.exists, places):
        place.chmod(0o777 if place.is_dir() else 0o666)
    said = do_as(OTHER, kind, path, "compact")
    if os.geteuid() == 0:
        assert "StoreAccessDenied" in said
        assert "only user 0, to whom the file belongs, can have it rewritten" in said
    assert files_of(kind, path)[0].stat().st_uid == os.geteuid()
    assert not list(folder.rglob("*.new"))


# Errors while it is opened


class Failing:
    """Lets the `number`-th call to the system fail, of all that open and lock a store."""

    NAMES = ("open", "close", "fstat", "stat", "lstat", "ftruncate", "pwrite", "pread", "fsync")

    def __init__(self, number: int, code: int) -> None:
        self.left = number
        self.code = code
        self.failed = ""

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left:
                return function(*args, **kwargs)
            self.failed = name
            if name == "close":
                function(*args, **kwargs)
            raise OSError(self.code, os.strerror(self.code))

        return call


@contextmanager
def failing(number: int, code: int) -> Iterator[Failing]:
    fails = Failing(number, code)
    with pytest.MonkeyPatch.context() as patch:
        for name in Failing.NAMES:
            patch.setattr(os, name, fails.wrap(name, getattr(os, name)))
        for name in ("flock",):
            patch.setattr(fcntl, name, fails.wrap(name, getattr(fcntl, name)))
        yield fails


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_file_store_whose_opening_fails_can_be_opened_again(
    tmp_path: Path, kind: str, code: int, is_new: bool
) -> None:
    for number in range(1, 1000, min(STEP, 4)):
        path = tmp_path / f"store-{number}"
        if not is_new:
            store = open_store(kind, path)
            store.store.blocking.open()
            store.store.blocking.close()
        store = open_store(kind, path)
        before = open_descriptors()
        with failing(number, code) as fails:
            try:
                store.store.blocking.open()
                is_open = True
            except OSError:
                is_open = False
                assert fails.failed
        if is_open:
            store.store.blocking.close()
        assert open_descriptors() == before, fails.failed
        for _ in range(2):
            store.store.blocking.open()
            store.store.blocking.close()
        if not fails.failed:
            break
    assert number > 10


@one_loop
async def test_a_file_store_on_a_full_disk_can_be_opened_once_there_is_room(
    tmp_path: Path, kind: str
) -> None:
    disk = tmp_path / "disk"
    with a_small_disk(disk) as free:
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 1000)
                file.flush()
        store = open_store(kind, disk / "store", fsync="always")
        for _ in range(2):
            with contextlib.suppress(StoreError):
                await store.append(event(1, payload={"order_id": 1, "x": "x" * 15_000}))
        free()
        filler.unlink()
        await store.append(event(1))
        await store.aclose()
        async with open_store(kind, disk / "store") as store:
            assert await numbers(store) == [1]


@one_loop
async def test_a_file_store_opens_once_file_descriptors_are_free_again(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    store = open_store(kind, path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The event loop and the thread have what they need.
    async with open_store(kind, tmp_path / "first") as first:
        await first.append(event(1))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() or 3, limits[1]))
        try:
            with pytest.raises(StoreError, match="Too many open files"):
                await store.append(event(1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (await store.append(event(1))).first_seq == 1
        await store.aclose()


# A fork

FORKED = """
import anyio, os, sys
from papyra.exceptions import BackendInUse, StoreForked
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence

kind, path = sys.argv[1:]

def make():
    if kind == "json":
        return JsonFilePersistence(path)
    return RotatingFilePersistence(path, max_segment_records=3)

def a_fact(number):
    return PersistedEvent("s", "s/a", "A", {"order_id": number}, float(number))

async def open_again():
    async with store:
        assert (await store.append(a_fact(3))).first_seq == 3

store = make()
anyio.run(store.append, a_fact(1))
ends, goes_on = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    for verb in (lambda: store.append(a_fact(2)), store.list_events, store.scan, store.flush):
        try:
            anyio.run(verb)
        except StoreForked as error:
            assert str(os.getppid()) in str(error) and str(os.getpid()) in str(error), error
        else:
            os._exit(1)
    try:
        anyio.run(make().append, a_fact(2))
    except BackendInUse as error:
        assert error.owner.startswith(f"process {os.getppid()} on"), error
    else:
        os._exit(2)
    try:
        anyio.run(store.aclose)
    except StoreForked:
        pass
    os.write(ends[1], b"x")
    os.read(goes_on[0], 1)
    # The parent has closed it, which this process does not keep open for it.
    anyio.run(open_again)
    os._exit(0)
os.read(ends[0], 1)
assert anyio.run(store.append, a_fact(2)).first_seq == 2
try:
    anyio.run(make().append, a_fact(9))
except BackendInUse:
    pass
else:
    sys.exit("the child has let go of the parent's lock")
anyio.run(store.aclose)
os.write(goes_on[1], b"x")
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@one_loop
async def test_a_forked_child_does_not_write_to_its_parents_file_store(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    subprocess.run([sys.executable, "-c", FORKED, kind, str(path)], check=True, timeout=60)
    assert await stored(kind, path) == [1, 2, 3]


ORPHANING = """
import anyio, os, sys
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence

kind, path = sys.argv[1:]
store = JsonFilePersistence(path) if kind == "json" else RotatingFilePersistence(path)
anyio.run(store.append, PersistedEvent("s", "s/a", "A", {"order_id": 1}, 1.0))
if os.fork() == 0:
    print("here", flush=True)
    sys.stdin.read()
os._exit(0)  # as one that was killed, which closes nothing
"""


@one_loop
async def test_a_forked_child_does_not_hold_the_lock_of_its_parents_file_store(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "store"
    command = [sys.executable, "-c", ORPHANING, kind, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.wait(60) == 0
        assert parent.stdout is not None
        assert parent.stdout.readline() == "here\n"
        async with open_store(kind, path) as store:
            assert (await store.append(event(2))).first_seq == 2


# Syncs


@pytest.mark.parametrize("supported", [True, False])
def test_a_file_store_makes_a_full_fsync_where_the_system_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    """As macOS has it, whose `fsync` leaves the data in the cache of the device."""
    calls: list[str] = []

    def full(fd: int, command: int) -> int:
        calls.append("full")
        assert command == 51
        if not supported:
            raise OSError(errno.ENOTSUP, "not on this file system")
        return 0

    monkeypatch.setattr(disks, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(disks, "_fdatasync", lambda fd: calls.append("data"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("names"))
    disk = Disk()
    fd = disk.create(tmp_path / "file")
    disk.sync(fd)
    disk.sync_directory(tmp_path)
    disk.close(fd)
    assert calls == (["full"] * 2 if supported else ["full", "data", "full", "names"])


def test_a_full_fsync_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, command: int) -> int:
        raise OSError(errno.EIO, "the device is gone")

    monkeypatch.setattr(disks, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", full)
    disk = Disk()
    fd = disk.create(tmp_path / "file")
    with pytest.raises(OSError, match="the device is gone"):
        disk.sync(fd)
    disk.close(fd)
