"""One actor's events are found in files by an index, and the index is never believed over them."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from papyra.exceptions import RevisionConflict, StoreError
from papyra.persistence import PersistedDeadLetter, PersistedEvent, Record
from papyra.persistence.backends._files import actor_index
from papyra.persistence.backends._files.actor_index import ActorIndex
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.records import KINDS
from papyra.testing._list_model import ListModel
from papyra.testing.conformance._fixtures import everything, without_seq
from tests.conftest import event_loops, kind_for
from tests.extent import CI, count
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.conftest import FILES, MakeStore

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


def step(actor: str, revision: int, **changes: Any) -> PersistedEvent:
    fields: dict[str, Any] = {
        "event_type": "Stepped",
        "payload": {"n": revision},
        "timestamp": float(revision),
    }
    return PersistedEvent("s", f"s/{actor}", revision=revision, **(fields | changes))


def plain(actor: str, number: int) -> Record:
    if number % 3:
        return PersistedEvent("s", f"s/{actor}", "Noted", {"n": number}, float(number))
    return PersistedDeadLetter("s", f"s/{actor}", "str", {"n": number}, False, float(number))


async def history(store: FilePersistence, actor: str, after: int = 0) -> list[int | None]:
    page = await store.read_history(f"s/{actor}", after_revision=after)
    assert not page.more
    return [event.revision for event in page.events]


async def concerning(store: FilePersistence, actor: str) -> list[int]:
    """Return the positions of what concerns an actor, of all kinds."""
    pages = [
        await store.read(kind, actor=f"s/{actor}", newest=newest)
        for kind in ("event", "dead_letter")
        for newest in (False, True)
    ]
    oldest, newest = [
        [r.seq or 0 for p in part for r in p.records] for part in (pages[::2], pages[1::2])
    ]
    assert oldest == newest
    return sorted(oldest)


class Model:
    """The same in lists."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.last: dict[str, int] = {}

    def some(self, chance: random.Random, count: int) -> list[Record]:
        made: list[Record] = []
        for _ in range(count):
            actor = f"a{int(chance.random() ** 3 * 12)}"
            if chance.random() < 0.6:
                self.last[actor] = self.last.get(actor, 0) + 1
                made.append(step(actor, self.last[actor]))
            else:
                made.append(plain(actor, len(self.records) + len(made)))
        self.records += made
        return made

    def concerning(self, actor: str) -> list[int]:
        return [
            seq
            for seq, record in enumerate(self.records, 1)
            if getattr(record, "target", getattr(record, "actor_address", "")) == f"s/{actor}"
        ]


async def test_a_reopened_store_shows_at_once_what_concerns_an_actor_and_is_no_part_of_its_history(
    tmp_path: Path,
) -> None:
    def reopened() -> RotatingFilePersistence:
        return RotatingFilePersistence(tmp_path / "store", fsync="no", max_segment_records=4)

    async with reopened() as store:
        for number in range(1, 21):
            await store.append(step("a0", number), plain("a0", 4))
        await store.read_history("s/a0")  # which saves where histories are, beside each segment
    async with reopened() as store:
        page = await store.read("event", actor="s/a0")
        assert [record.seq for record in page.records] == list(range(1, 41))


@pytest.mark.parametrize("seed", range(6))
async def test_histories_in_files_are_those_of_a_list_through_reopening_and_compaction(
    make: MakeStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_index, "_RECENT", 7)
    chance, model, compacted = random.Random(seed), Model(), False
    for _ in range(5):
        async with make() as store:
            for _ in range(chance.randrange(8)):
                match chance.randrange(5):
                    case 0 if chance.random() < 0.3:
                        await store.compact(RetentionPolicy(max_records=10))
                        compacted = True
                    case 1:
                        actor = f"a{chance.randrange(12)}"
                        with pytest.raises(RevisionConflict):
                            await store.append(step(actor, model.last.get(actor, 0) + 2))
                    case _:
                        await store.append(*model.some(chance, chance.randrange(1, 15)))
                for actor in ("a0", f"a{chance.randrange(12)}"):
                    last = model.last.get(actor, 0)
                    assert await history(store, actor) == list(range(1, last + 1))
                    after = chance.randrange(last + 2)
                    assert await history(store, actor, after) == list(range(after + 1, last + 1))
                    found = await concerning(store, actor)
                    assert found == model.concerning(actor) or compacted
            assert (await store.scan()).is_clean


@pytest.mark.parametrize("seed", range(count("PAPYRA_KEPT", 2, 4)))
async def test_a_compaction_of_files_tells_before_and_after_what_it_keeps_for_histories(
    make: MakeStore, seed: int
) -> None:
    """Of many blocks, of which some are hidden, some are not, and some are in part."""
    chance, model = random.Random(seed), Model()
    async with make(clock=lambda: 60.0) as store:
        for _ in range(6):
            await store.append(*model.some(chance, 150))
            await store.append(*(plain("b", number) for number in range(100)))
            policy = RetentionPolicy(
                max_records=chance.choice([None, 1, 40, 300]),
                max_age_seconds=chance.choice([None, 1.0, 30.0]),
                events=chance.choice([None, Limits(), Limits(max_total_bytes=20_000)]),
            )
            stored = ListModel(policy)
            stored.append(*map(without_seq, await everything(store)))
            shown = {kind: stored.visible(kind, 60.0) for kind in KINDS}
            told = await store.compact(policy, dry_run=True)
            assert await store.compact(policy) == told
            steps = sum(record.revision is not None for record, _ in stored.stored)
            kept = steps - sum(record.revision is not None for record in shown["event"])
            assert told.kept_for_histories == kept
            for kind in KINDS:
                left = len(shown[kind]) + (kept if kind == "event" else 0)
                assert told.kinds[kind].records_after == left


class Counting(Disk):
    """Counts the bytes that are read, and the files that are opened for that."""

    def __init__(self) -> None:
        self.bytes_read = self.opened = 0

    def open(self, path: Path, flags: int) -> int:
        self.opened += 1
        return super().open(path, flags)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = super().read(fd, length, offset)
        self.bytes_read += len(data)
        return data


@pytest.fixture(params=FILES if CI else None)
def make_large(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Return a function that makes a store for so many records, in a few segments at most."""
    kind = kind_for(request, FILES)

    def make_store(records: int, **options: Any) -> FilePersistence:
        if kind == "json":
            return JsonFilePersistence(tmp_path / "store", fsync="no", **options)
        return RotatingFilePersistence(
            tmp_path / "store", fsync="no", max_segment_records=records // 4, **options
        )

    return make_store


@pytest.mark.parametrize("others", [1_000, 40_000])
async def test_reading_one_actors_history_reads_no_more_of_a_larger_store(
    make_large: MakeStore, others: int
) -> None:
    spread = others // 20
    async with make_large(others) as store:
        for number in range(20):
            first = number * spread
            batch = [step(f"x{n % 50}", (first + n) // 50 + 1) for n in range(spread)]
            await store.append(step("rare", number + 1), *batch)
    disk = Counting()
    async with make_large(others, _disk=disk) as store:
        await store.flush()
        await history(store, "nobody")  # what was saved of histories is in memory now
        before = disk.bytes_read
        assert await history(store, "rare") == list(range(1, 21))
        assert disk.bytes_read - before < 200_000
        await store.append(step("rare", 21))


def rotating(directory: Path, **options: Any) -> RotatingFilePersistence:
    return RotatingFilePersistence(directory, fsync="no", max_segment_records=10, **options)


async def filled(directory: Path) -> None:
    async with rotating(directory) as store:
        for revision in range(1, 18):
            await store.append(*(step(actor, revision) for actor in "abc"))


def spoil(how: str, indexes: list[Path]) -> None:
    for number, path in enumerate(indexes):
        data = path.read_bytes()
        match how:
            case "gone":
                path.unlink()
            case "cut":
                path.write_bytes(data[:-9])
            case "flipped":
                path.write_bytes(data[:-3] + bytes([data[-3] ^ 64]) + data[-2:])
            case "of a neighbour" if number:
                shutil.copy(indexes[number - 1], path)
            case "of an older version":
                path.write_bytes(data[: 1024 + 64])
            case _:
                path.write_bytes(b"")


@pytest.mark.parametrize(
    "how", ["gone", "cut", "flipped", "of a neighbour", "of an older version", "empty"]
)
async def test_an_index_that_is_not_right_is_made_again_from_the_lines(
    tmp_path: Path, how: str
) -> None:
    await filled(tmp_path / "store")
    indexes = sorted((tmp_path / "store").glob("*.index"))
    assert len(indexes) >= 4
    spoil(how, indexes)
    for _ in range(2):
        async with rotating(tmp_path / "store") as store:
            for actor in "abc":
                assert await history(store, actor) == list(range(1, 18))
                with pytest.raises(RevisionConflict):
                    await store.append(step(actor, 17))
    assert (tmp_path / "store").glob("*.index")


async def scanned(store: FilePersistence) -> set[tuple[str, str | None]]:
    return {(each.kind, each.location) for each in (await store.scan()).anomalies}


def forged(data: bytes, **changes: Any) -> bytes:
    """Return a saved index with other words in its head, and the checksum of these."""
    head = json.loads(data[:1024].partition(b" ")[2])
    words = json.dumps(head | changes).encode()
    return (b"%08x %b" % (crc32(words), words)).ljust(1023) + b"\n" + data[1024:]


@pytest.mark.parametrize(
    "how", ["gone", "cut", "flipped", "of a neighbour", "of an older version", "empty"]
)
async def test_a_scan_finds_each_index_that_is_not_right_and_a_recovery_makes_it_anew(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "store"
    await filled(path)
    indexes = sorted(path.glob("*.index"))
    whole = [index.read_bytes() for index in indexes]
    spoil(how, indexes)
    now = [index.read_bytes() if index.exists() else None for index in indexes]
    wrong = {
        ("index", str(index))
        for index, before, after in zip(indexes, whole, now, strict=True)
        if after not in (before, None)
    }
    assert len(wrong) == (0 if how == "gone" else len(indexes))
    async with rotating(path) as store:
        for _ in range(2):
            assert await scanned(store) == wrong
        assert [index.read_bytes() if index.exists() else None for index in indexes] == now
        report = await store.recover()
        assert report.scan.is_clean
        assert report.records_removed == 0
        assert await scanned(store) == set()
        for actor in "abc":
            assert await history(store, actor) == list(range(1, 18))
    if how != "gone":
        assert [index.read_bytes() for index in indexes] == whole


async def test_an_index_whose_words_are_another_segments_is_found_whatever_its_checksums_say(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    await filled(path)
    indexes = sorted(path.glob("*.index"))
    whole = [index.read_bytes() for index in indexes]
    head = json.loads(whole[1][:1024].partition(b" ")[2])
    entries = bytearray(whole[1][1024 + head["index_bytes"] :])
    entries[3] ^= 1  # of where a line begins
    forgeries = [
        forged(whole[1], modified_ns=head["modified_ns"] + 1),
        forged(whole[1], counts={**head["counts"], "audit": 0, "event": 0}),
        forged(whole[1], newest=head["newest"] + 1),
        forged(whole[1][: 1024 + head["index_bytes"]], history_bytes=0, history_crc=0),
        forged(whole[1][: 1024 + head["index_bytes"]] + entries, history_crc=crc32(entries)),
    ]
    for forgery in forgeries:
        indexes[1].write_bytes(forgery)
        async with rotating(path) as store:
            assert await scanned(store) == {("index", str(indexes[1]))}, forgery
            assert (await store.recover()).scan.is_clean
            assert await history(store, "a") == list(range(1, 18))
        assert indexes[1].read_bytes() == whole[1]
    indexes[1].write_bytes(forged(whole[1], history_bytes=None))  # as older programs write it
    async with rotating(path) as store:
        assert await scanned(store) == set()


#: A segment and its index, as they were written before there were histories.
OLD_MODIFIED_NS = 1795782291903783645
OLD_SEGMENT = b"""\
{"crc":"785fda94","v":1,"seq":1,"kind":"event","system_id":"s","actor_address":"s/a","event_type":\
"x","payload":null,"timestamp":0.0}
{"crc":"d98fc3ac","v":1,"seq":2,"kind":"event","system_id":"s","actor_address":"s/a","event_type":\
"x","payload":null,"timestamp":1.0}
"""
OLD_HEAD = b"""\
9d2760aa {"size":268,"modified_ns":1795782291903783645,"counts":{"event":2,"audit":0,"dead_letter":\
0,"other":0},"sizes":{"event":204,"audit":0,"dead_letter":0,"other":0},"oldest":0.0,"newest":1.0,\
"block_bytes":8192,"index_bytes":96,"index_crc":3802818614,"version":1,"order":"little"}"""
#: Numbers of eight bytes: where the block begins, its first position, the oldest time, the newest.
OLD_BLOCK = struct.pack("<QQdd64x", 0, 1, 0.0, 1.0)


async def test_an_index_of_before_there_were_histories_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with RotatingFilePersistence(path, max_segment_records=2) as store:
        await store.append(*(plain("a", number) for number in (1, 2, 4)))
    segment, index = path / f"{1:020}.ndjson", path / f"{1:020}.index"
    segment.write_bytes(OLD_SEGMENT)
    os.utime(segment, ns=(OLD_MODIFIED_NS, OLD_MODIFIED_NS))
    index.write_bytes(OLD_HEAD.ljust(1023) + b"\n" + OLD_BLOCK)
    for read_only in (True, False):
        async with RotatingFilePersistence(path, read_only=read_only) as store:
            assert await scanned(store) == set()
            assert [event.seq for event in await store.list_events()] == [1, 2, 3]
    assert len(index.read_bytes()) > 1024 + len(OLD_BLOCK)  # made anew by the writer
    index.write_bytes(OLD_HEAD.replace(b"268", b"269").ljust(1023) + b"\n" + OLD_BLOCK)
    async with RotatingFilePersistence(path) as store:
        assert await scanned(store) == {("index", str(index))}


async def test_the_index_of_a_segment_that_begins_with_a_tombstone_is_right(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    async with rotating(path) as store:
        await store.append(PersistedEvent("s", "s/z", "x", None, 0.0))
        await store.compact(RetentionPolicy(max_total_bytes=1))
    await filled(path)
    async with rotating(path) as store:
        assert await scanned(store) == set()
    segment = min(path.glob("*.ndjson"))
    assert b"tombstone" in segment.read_bytes().splitlines()[0]
    assert segment.with_suffix(".index").exists()


async def test_a_reader_takes_no_index_for_wrong_that_may_be_being_written(tmp_path: Path) -> None:
    path = tmp_path / "store"
    await filled(path)
    first, *others = sorted(path.glob("*.index"))
    spoil("cut", [first, *others])
    for file in (first, first.with_suffix(".ndjson")):
        os.utime(file, (1.0, 1.0))
    async with rotating(path) as store, store.reader() as reader:
        assert {(each.kind, each.location) for each in (await reader.scan()).anomalies} == {
            ("index", str(first))
        }


async def test_of_a_damaged_segment_a_scan_reports_the_damage_and_not_the_index(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    await filled(path)
    segment = sorted(path.glob("*.ndjson"))[1]
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"kind"', b'"kinD"', 1))
    async with rotating(path) as store:
        assert {kind for kind, _ in await scanned(store)} == {"checksum", "history"}
        left = (await store.recover()).scan.anomalies
        assert {each.kind for each in left} == {"history"}


async def test_a_sealed_segment_is_not_read_through_for_a_history_once_that_is_saved(
    tmp_path: Path,
) -> None:
    await filled(tmp_path / "store")
    spoil("gone", sorted((tmp_path / "store").glob("*.index")))
    async with rotating(tmp_path / "store") as store:
        await history(store, "a")
    disk = Counting()
    async with rotating(tmp_path / "store", _disk=disk) as store:
        await store.flush()
        before = disk.bytes_read
        assert await history(store, "nobody") == []
        files = [path.stat().st_size for path in (tmp_path / "store").glob("*.ndjson")]
        assert disk.bytes_read - before < sum(files) + 5 * 1024 * 10
        heads = disk.bytes_read - before
        assert await history(store, "nobody") == []
        assert disk.bytes_read - before == heads


async def test_a_history_in_many_segments_is_read_on_by_opening_few_of_them(tmp_path: Path) -> None:
    segments, last = 60, 300
    async with rotating(tmp_path / "store") as store:
        for revision in range(1, last + 1):
            await store.append(*(step(actor, revision) for actor in "ab"))
    disk = Counting()
    async with (
        rotating(tmp_path / "store", _disk=disk) as store,
        rotating(tmp_path / "store", _disk=disk, read_only=True) as reader,
    ):
        for each in (store, reader):
            await history(each, "nobody")  # what was saved of histories is in memory now
        for each, after, most in (
            *((store, last - 3, 1), (store, last // 2, 12), (store, 7, 12)),
            *((reader, last - 3, 1), (reader, last // 2, 12), (reader, 7, 12)),
        ):
            before = disk.opened
            page = await each.read_history("s/a", after_revision=after, limit=3)
            assert [event.revision for event in page.events] == [after + 1, after + 2, after + 3]
            assert disk.opened - before <= most
        before = disk.opened
        assert await history(store, "a") == list(range(1, last + 1))
        assert disk.opened - before <= segments


async def test_a_history_is_read_on_in_whichever_segments_others_have_its_hash(
    tmp_path: Path,
) -> None:
    one, other = colliding()
    chance = random.Random("segments")
    revisions = dict.fromkeys((one, other), 0)
    async with rotating(tmp_path / "store") as store:
        for _ in range(40):
            actor = chance.choice((one, other))
            for _ in range(chance.randrange(1, 30)):
                revisions[actor] += 1
                await store.append(step(actor, revisions[actor]))
    async with rotating(tmp_path / "store") as store:
        for actor, last in revisions.items():
            for after in range(0, last + 2, 3 if CI else 23):
                assert await history(store, actor, after) == list(range(after + 1, last + 1))


def colliding() -> tuple[str, str]:
    """Return two actors whose addresses have the same hash."""
    known: dict[int, str] = {}
    for number in itertools.count():
        actor = f"n{number}"
        hashed = crc32(f"s/{actor}".encode()) & 0xFFFFFF
        if hashed in known:
            return known[hashed], actor
        known[hashed] = actor
    raise AssertionError


async def test_actors_whose_hashes_are_the_same_have_histories_of_their_own(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_index, "_RECENT", 3)
    one, other = colliding()
    async with make() as store:
        for revision in range(1, 31):
            await store.append(step(one, revision), plain(other, revision))
            if revision % 3 == 0:
                await store.append(step(other, revision // 3))
    for _ in range(2):
        async with make() as store:
            assert await history(store, one) == list(range(1, 31))
            assert await history(store, other) == list(range(1, 11))
            for after in (1, 9, 15, 29):
                assert await history(store, one, after) == list(range(after + 1, 31))
            assert len(await concerning(store, other)) == 40


async def test_a_damaged_line_leaves_a_hole_in_its_history_that_a_scan_finds(
    tmp_path: Path,
) -> None:
    await filled(tmp_path / "store")
    path = sorted((tmp_path / "store").glob("*.ndjson"))[1]
    lines = path.read_bytes().splitlines(keepends=True)
    (number,) = [n for n, line in enumerate(lines) if b's/b"' in line and b'"revision":5' in line]
    lines[number] = lines[number].replace(b"Stepped", b"Stopped")
    path.write_bytes(b"".join(lines))
    async with rotating(tmp_path / "store") as store:
        assert await history(store, "b") == [n for n in range(1, 18) if n != 5]
        assert await history(store, "a") == list(range(1, 18))
        kinds = [anomaly.kind for anomaly in (await store.scan()).anomalies]
        assert kinds == ["checksum", "history"]
        (left,) = (await store.recover()).scan.anomalies
        assert left.detail == "missing before revision 6 of 's/b': 5"
        assert await history(store, "b") == [n for n in range(1, 18) if n != 5]
        await store.append(step("b", 18))


class FullAtTimes(Disk):
    """Fails to write when it is told to."""

    fails = False

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self.fails:
            super().write(fd, data[: len(data) // 2], offset)
            raise OSError(28, os.strerror(28))
        return super().write(fd, data, offset)


async def test_an_append_that_fails_leaves_no_step_in_its_history(make: MakeStore) -> None:
    disk = FullAtTimes()
    async with make(_disk=disk) as store:
        for revision in range(1, 26):
            await history(store, "a")
            disk.fails = True
            with pytest.raises(StoreError):
                await store.append(step("a", revision), step("b", revision))
            disk.fails = False
            assert await history(store, "a") == list(range(1, revision))
            await store.append(step("a", revision), step("b", revision))
        assert await history(store, "b") == list(range(1, 26))


async def test_a_reader_of_files_sees_a_history_grow_and_be_compacted(make: MakeStore) -> None:
    async with make() as store:
        await store.append(step("a", 1))
        async with store.reader() as reader:
            for revision in range(2, 40):
                assert [
                    event.revision for event in (await reader.read_history("s/a")).events
                ] == list(range(1, revision))
                await store.append(step("a", revision), plain("b", revision))
                if revision % 13 == 0:
                    await store.compact(RetentionPolicy(max_records=3))


@pytest.mark.parametrize("recent", [1, 5, 1 << 16])
def test_an_actor_index_finds_what_was_added_to_it(
    recent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_index, "_RECENT", recent)
    monkeypatch.setattr(actor_index, "_LONGEST", 100)
    index, expected = ActorIndex(), dict[str, list[int]]()
    chance = random.Random(recent)
    for offset in range(0, 30_000, 10):
        actor = f"a{chance.randrange(200)}"
        index.add(actor, offset)
        expected.setdefault(actor, []).append(offset)
    assert len(index) == 3_000
    loaded = ActorIndex.load(index.dump())
    for actor, offsets in expected.items():
        assert list(index.offsets(actor)) == list(loaded.offsets(actor)) == offsets
        found = index.offsets(actor)
        assert len(found) == len(offsets)
        assert (found[0], found[-1], found[:]) == (offsets[0], offsets[-1], offsets)
        start, stop = sorted(chance.choices(range(-3, len(offsets) + 3), k=2))
        assert found[start:stop] == offsets[start:stop]
        assert found[::-1] == list(reversed(found)) == offsets[::-1]
        with pytest.raises(IndexError):
            found[len(offsets)]
    with pytest.raises(ValueError, match="rise"):
        ActorIndex.load(index.dump()[::-1])
