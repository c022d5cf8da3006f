"""Histories that are trimmed in files: whatever interrupts it, they add up to the same."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError
from papyra.persistence import PersistedEvent
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.fsync_policy import Fsync
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.testing.conformance._fixtures import an_event
from papyra.testing.conformance._histories import a_step
from papyra.testing.conformance._histories import history as history_of
from papyra.testing.conformance._snapshots import save
from tests.conftest import event_loops, kind_for
from tests.eventsourcing.accounts import Deposit
from tests.extent import CI, count, some
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.backends.files.power import PoweredDisk, State
from tests.persistence.backends.files.test_disk_faults import FailingDisk
from tests.persistence.backends.trimmed_accounts import (
    ACCOUNTS,
    TRIM,
    Saved,
    fill,
    history,
    looked,
    replayed,
)
from tests.persistence.conftest import FILES

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

#: States that are taken after each call, and of all of them looked at.
STATES, LOOKED_AT = 6, count("PAPYRA_POWER_CUTS", 8, 40)


def open_store(kind: str, root: Path, disk: Disk | None = None) -> FilePersistence:
    # Without a disk of its own, it is only to be filled, or looked at.
    fsync: Fsync = "no" if disk is None else "always"
    if kind == "json":
        return JsonFilePersistence(root / "events.ndjson", fsync=fsync, _disk=disk)
    return RotatingFilePersistence(root / "journal", max_segment_records=7, fsync=fsync, _disk=disk)


@pytest.fixture(params=FILES if CI else None)
def kind(request: pytest.FixtureRequest) -> str:
    return kind_for(request, FILES)


async def test_accounts_are_the_same_before_and_after_their_histories_are_trimmed(
    tmp_path: Path, kind: str
) -> None:
    await fill(open_store(kind, tmp_path))
    assert await replayed(open_store(kind, tmp_path)) == ACCOUNTS
    async with open_store(kind, tmp_path) as store:
        size = (await store.summarize()).stored_bytes or 0
        report = await store.compact(TRIM)
        assert report.histories is not None
        assert (report.histories.trimmed, report.histories.without_snapshots) == (2, 1)
        assert report.histories.events_removed == 5 + 8
        assert ((await store.summarize()).stored_bytes or 0) < size
        assert (await history(store, "ann"))[:2] == [(6, "papyra.base"), (7, "Deposited")]
        assert (await history(store, "cat"))[0] == (1, "Deposited")
    assert await looked(open_store(kind, tmp_path)) == ACCOUNTS
    assert await replayed(open_store(kind, tmp_path)) == ACCOUNTS


async def test_emptied_segments_become_one_tombstone(tmp_path: Path) -> None:
    async with ActorSystem("bank", persistence=open_store("rotating", tmp_path)) as system:
        ann = system.spawn(Saved, name="ann")
        for _ in range(40):
            await ann.ask(Deposit(1))
    async with open_store("rotating", tmp_path) as store:
        assert (await store.summarize()).segments == 7
        await store.compact(TRIM)
        assert (await store.summarize()).segments == 3
        assert (await store.scan()).is_clean
        assert [revision for revision, _ in await history(store, "ann")] == [36, 37, 38, 39, 40]


async def test_a_reader_sees_a_history_that_is_trimmed_beside_it(tmp_path: Path, kind: str) -> None:
    await fill(open_store(kind, tmp_path))
    async with open_store(kind, tmp_path) as store, store.reader() as reader:
        assert len((await reader.read_history("bank/ben")).events) == 14
        await store.compact(TRIM)
        events = (await reader.read_history("bank/ben")).events
        assert [event.revision for event in events] == list(range(9, 15))
        assert events == (await store.read_history("bank/ben")).events


async def test_a_damaged_file_keeps_its_histories_whole(tmp_path: Path, kind: str) -> None:
    await fill(open_store(kind, tmp_path))
    for path in tmp_path.rglob("*.ndjson"):
        path.write_bytes(path.read_bytes().replace(b'"amount":5', b'"amount":6', 1))
    async with open_store(kind, tmp_path) as store:
        with pytest.raises(StoreError, match="recover it before compacting it"):
            await store.compact(TRIM)


class LyingDisk(Disk):
    """Writes less than it says, where it is told to."""

    lies = False

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self.lies and b"papyra.base" in bytes(data):
            data = bytes(data).replace(b"papyra.base", b"papyra.bare")
        return super().write(fd, data, offset)


async def test_a_base_that_is_not_there_when_it_is_read_back_changes_nothing(
    tmp_path: Path, kind: str
) -> None:
    disk = LyingDisk()
    await fill(open_store(kind, tmp_path))
    async with open_store(kind, tmp_path, disk) as store:
        before = await history(store, "ann")
        disk.lies = True
        with pytest.raises(StoreError, match="is not there; nothing was changed"):
            await store.compact(TRIM)
        disk.lies = False
        assert await history(store, "ann") == before
        await store.append(PersistedEvent("s", "s/a", "Happened", 1, 1.0))
        await store.compact(TRIM)
    assert await replayed(open_store(kind, tmp_path)) == ACCOUNTS


# Interruptions


async def is_sound(store: FilePersistence) -> None:
    """See that nothing is lost, and that it goes on from there."""
    assert await replayed(store) == ACCOUNTS
    async with store:
        assert (await store.scan()).is_clean
        await store.compact(TRIM)
        assert (await history(store, "ann"))[0] == (6, "papyra.base")
        assert (await store.scan()).is_clean
    assert await replayed(store) == ACCOUNTS


@pytest.mark.parametrize("code", some([errno.EIO, errno.ENOSPC], every=2))
async def test_a_trimming_that_fails_at_any_call_leaves_every_account_as_it_was(
    tmp_path: Path, kind: str, code: int
) -> None:
    filled = tmp_path / "filled"
    filled.mkdir()
    await fill(open_store(kind, filled))
    for number in range(1, 1000, 3 if CI else 24):
        root, disk = tmp_path / f"{number}", FailingDisk(number, code)
        shutil.copytree(filled, root)
        store, errors = open_store(kind, root, disk), 0
        async with store:
            disk.armed = True
            try:
                await store.compact(TRIM)
            except StoreError:
                errors += 1
            disk.armed = False
            revisions = [revision for revision, _ in await history(store, "ann")]
            assert revisions[-1] == 11
        await is_sound(open_store(kind, root))
        if disk.failed is None:
            break
    else:
        pytest.fail("it never got through")
    assert number > 10
    assert not errors


async def test_a_power_cut_amid_a_trimming_leaves_every_account_as_it_was(
    tmp_path: Path, kind: str
) -> None:
    root, chance = tmp_path / "disk", random.Random(kind)
    (root / "journal").mkdir(parents=True)
    disk = PoweredDisk(root)
    cuts: list[tuple[str, State]] = []

    def look(call: str) -> None:
        cuts.extend((call, state) for state in disk.states(chance, STATES))

    await fill(open_store(kind, root, disk))
    async with open_store(kind, root, disk) as store:
        disk.watch = look
        await store.compact(TRIM)
        disk.watch = lambda call: None
    assert len(cuts) > 20
    trimmed = 0
    for number, (call, state) in enumerate(chance.sample(cuts, min(LOOKED_AT, len(cuts)))):
        left = tmp_path / f"{number}"
        lay_out(left, state)
        store = open_store(kind, left)
        assert await looked(store) == ACCOUNTS, (number, call)
        async with store:
            trimmed += (await history(store, "ann"))[0][1] == "papyra.base"
        await is_sound(open_store(kind, left))
    assert trimmed


async def test_histories_are_those_of_a_list_whatever_is_trimmed_when(
    tmp_path: Path, kind: str
) -> None:
    for seed in range(count("PAPYRA_TRIMMINGS", 1, 10)):
        chance, root = random.Random(f"{kind} {seed}"), tmp_path / f"{seed}"
        root.mkdir()
        last = dict.fromkeys("abc", 0)
        saved: dict[str, list[int]] = {actor: [] for actor in last}
        first = dict.fromkeys(last, 1)
        store = open_store(kind, root)
        for _ in range(60):
            actor = chance.choice(list(last))
            match chance.randrange(6):
                case 0 | 1 | 2:
                    added = range(last[actor] + 1, last[actor] + chance.randint(2, 6))
                    await store.append(*(a_step(actor, revision) for revision in added))
                    last[actor] = added[-1]
                case 3 if last[actor]:
                    await save(store, last[actor], f"s/{actor}")
                    saved[actor] = sorted({*saved[actor], last[actor]})[-2:]
                case 4:
                    policy = RetentionPolicy(max_records=1, trim_histories=chance.random() < 0.7)
                    told = await store.compact(policy, dry_run=True)
                    await store.append(an_event(1), an_event(2))  # nothing of a history is shown
                    report = await store.compact(policy)
                    assert report.histories is None or report.histories.still_shown == 0, seed
                    assert told.supported
                    for each, revisions in saved.items():
                        if policy.trim_histories and len(revisions) == 2:
                            first[each] = revisions[0]
                case 5:
                    await store.aclose()
                    store = open_store(kind, root)
            for each, revision in last.items():
                expected = list(range(first[each], revision + 1))
                assert await history_of(store, each) == expected, seed
            assert (await store.scan()).is_clean, seed
        await store.aclose()


def lay_out(root: Path, state: State) -> None:
    (root / "journal").mkdir(parents=True)
    # A tombstone is younger than what it stands for.
    for name, data in sorted(state.items(), reverse=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
