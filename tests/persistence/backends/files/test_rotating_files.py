"""The rotating files: when a new one is begun, which are read, and what becomes of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from papyra import ActorSystem
from papyra.exceptions import InvalidPolicy, StoreDamaged, StoreError
from papyra.persistence import (
    PersistedAudit,
    PersistenceRecoveryConfig,
    PersistenceStartupConfig,
    Record,
)
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.line_format import tombstone
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import Echo, event
from tests.conftest import event_loops
from tests.extent import STEP

anyio_backend = event_loops("asyncio")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def open_store(directory: Path, **options: Any) -> RotatingFilePersistence:
    defaults: dict[str, Any] = {"fsync": "no", "max_segment_records": 10}
    return RotatingFilePersistence(directory, **(defaults | options))


def segments(directory: Path) -> dict[int, list[dict[str, Any]]]:
    """Read the lines of each segment, by its number, without Papyra."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(directory.glob("*.ndjson"))
    }


def seqs(directory: Path) -> dict[int, list[int]]:
    return {
        number: [line["seq"] for line in lines] for number, lines in segments(directory).items()
    }


async def fill(directory: Path, count: int, **options: Any) -> None:
    async with open_store(directory, **options) as store:
        for number in range(1, count + 1):
            await store.append(event(number))


def path_of(directory: Path, number: int) -> Path:
    return directory / f"{number:020}.ndjson"


async def stored(directory: Path, **options: Any) -> list[int]:
    async with open_store(directory, **options) as store:
        return [e.payload["order_id"] for e in await store.list_events()]


async def anomalies(directory: Path) -> list[str]:
    async with open_store(directory) as store:
        return [anomaly.kind for anomaly in (await store.scan()).anomalies]


class Reading(Disk):
    """Notes which files are opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, path: Path, flags: int) -> int:
        self.opened.append(path.name.lstrip("0"))
        return super().open(path, flags)

    def segments(self) -> list[str]:
        """Return which segments were opened since this was asked last."""
        opened, self.opened = self.opened, []
        return sorted({name for name in opened if name.endswith(".ndjson")})


# Rolling


async def test_a_segment_is_named_by_its_first_record(directory: Path) -> None:
    await fill(directory, 25)
    assert seqs(directory) == {
        1: list(range(1, 11)),
        11: list(range(11, 21)),
        21: list(range(21, 26)),
    }
    assert await anomalies(directory) == []
    assert await stored(directory) == list(range(1, 26))


async def test_a_batch_larger_than_a_segment_is_divided_among_several(directory: Path) -> None:
    async with open_store(directory) as store:
        await store.append(*map(event, range(1, 5)))
        appended = await store.append(*map(event, range(5, 36)))
        assert (appended.first_seq, appended.last_seq) == (5, 35)
        assert [e.payload["order_id"] for e in await store.list_events()] == list(range(1, 36))
    assert [len(lines) for lines in seqs(directory).values()] == [10, 10, 10, 5]
    assert await anomalies(directory) == []


@pytest.mark.parametrize("together", [True, False])
async def test_no_segment_is_larger_than_allowed(directory: Path, together: bool) -> None:
    options = {"max_segment_bytes": 1000, "max_segment_records": None}
    async with open_store(directory, **options) as store:
        records = [event(n, payload={"order_id": n, "x": "x" * (n * 7 % 90)}) for n in range(100)]
        if together:
            await store.append(*records)
        else:
            for record in records:
                await store.append(record)
    sizes = [path.stat().st_size for path in sorted(directory.glob("*.ndjson"))]
    assert max(sizes) <= 1000
    assert min(sizes[:-1]) > 600, "and none is begun without need"
    assert await stored(directory) == list(range(100))


async def test_a_record_that_is_too_large_has_a_segment_of_its_own(directory: Path) -> None:
    options = {"max_segment_bytes": 500, "max_segment_records": None}
    async with open_store(directory, **options) as store:
        large = event(2, payload={"order_id": 2, "x": "x" * 2000})
        await store.append(event(1), large, event(3))
    assert list(seqs(directory).values()) == [[1], [2], [3]]


async def test_a_segment_spans_no_more_time_than_allowed(directory: Path) -> None:
    options = {"max_segment_age": 60, "max_segment_records": None}
    times = [0, 10, 60, 61, 62, 30, 121, 500]
    async with open_store(directory, **options) as store:
        for number, time in enumerate(times):
            await store.append(event(number, timestamp=float(time)))
    found = [[line["timestamp"] for line in lines] for lines in segments(directory).values()]
    assert found == [[0, 10, 60], [61, 62, 30], [121], [500]]


async def test_a_reopened_rotating_store_goes_on_in_its_last_segment(directory: Path) -> None:
    for number in range(1, 26):
        async with open_store(directory) as store:
            assert (await store.append(event(number))).first_seq == number
    assert [len(lines) for lines in seqs(directory).values()] == [10, 10, 5]


@pytest.mark.parametrize(
    "options",
    [
        {"max_segment_bytes": 0},
        {"max_segment_bytes": None},
        {"max_segment_records": 0},
        {"max_segment_records": 1.5},
        {"max_segment_age": 0},
        {"max_segment_age": float("inf")},
        {"fsync": "sometimes"},
    ],
)
def test_an_invalid_limit_of_segments_is_an_error(directory: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidPolicy, match=name):
        open_store(directory, **options)
    assert not directory.exists()


async def test_a_system_keeps_its_facts_in_a_rotating_store(directory: Path) -> None:
    for _ in range(2):
        async with ActorSystem("shop", persistence=RotatingFilePersistence(directory)) as system:
            await system.spawn(Echo, name="echo").ask("x")
    async with open_store(directory) as store:
        types = [e.event_type for e in await store.list_events()]
    assert types == ["ActorStarted", "ActorStopped"] * 2


# What is read


async def test_a_read_of_a_rotating_store_opens_only_the_segments_it_needs(directory: Path) -> None:
    await fill(directory, 100)
    disk = Reading()
    async with open_store(directory, _disk=disk) as store:
        assert disk.segments() == ["91.ndjson"]
        assert len(await store.list_events(limit=5)) == 5
        assert disk.segments() == []
        assert len(await store.list_events(limit=15)) == 15
        assert disk.segments() == ["81.ndjson"]
        since = event(38).timestamp
        assert len(await store.list_events(since=since, limit=None)) == 63
        assert "21.ndjson" not in disk.segments()
        page = await store.read("event", after=14, limit=3)
        assert [record.seq for record in page.records] == [15, 16, 17]
        assert disk.segments() == ["11.ndjson"]
        page = await store.read("event", until=event(3).timestamp)
        assert [record.seq for record in page.records] == [1, 2, 3]
        assert disk.segments() == ["1.ndjson"]
        assert (await store.read("audit")).records == ()
        assert disk.segments() == []


async def test_retention_in_a_rotating_store_opens_only_the_segments_it_shows(
    directory: Path,
) -> None:
    await fill(directory, 100)
    policy = RetentionPolicy(max_records=15)
    disk = Reading()
    async with open_store(directory, retention_policy=policy, _disk=disk) as store:
        assert [e.seq for e in await store.list_events()] == list(range(86, 101))
        assert disk.segments() == ["81.ndjson", "91.ndjson"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
async def test_a_missing_or_damaged_index_of_a_segment_is_rebuilt(
    directory: Path, damage: bytes | None
) -> None:
    await fill(directory, 45)
    for path in list(directory.glob("*.index")):
        if damage is None:
            data = bytearray(path.read_bytes())
            data[40] ^= 1
            path.write_bytes(data)
        elif damage:
            path.write_bytes(damage)
        else:
            path.unlink()
    async with open_store(directory) as store:
        assert [e.seq for e in await store.list_events(limit=30)] == list(range(16, 46))
        # Nobody has asked for the first one.
        left = [] if damage == b"" else ["index"]
        assert [anomaly.kind for anomaly in (await store.scan()).anomalies] == left
        assert (await store.recover()).scan.is_clean
    assert (directory / f"{21:020}.index").exists()
    assert await stored(directory) == list(range(1, 46))


async def test_a_segment_changed_since_its_index_was_saved_is_read_anew(directory: Path) -> None:
    await fill(directory, 25)
    lines = path_of(directory, 1).read_bytes().splitlines(keepends=True)
    path_of(directory, 1).write_bytes(b"".join(lines[:3] + lines[5:]))
    assert await stored(directory) == [1, 2, 3, *range(6, 26)]


async def test_few_segments_are_kept_open(directory: Path) -> None:
    await fill(directory, 300)
    async with open_store(directory) as store:
        for number in range(0, 300, 7):
            page = await store.read("event", after=number, limit=1)
            assert [record.seq for record in page.records] == [number + 1]
        loaded = [s for s in store.store.journal.files(newest=False) if s.is_loaded]
        assert len(loaded) <= 9


# Damage


async def test_a_scan_of_a_rotating_store_tells_missing_segments_from_gaps_and_foreign_files(
    directory: Path, tmp_path: Path
) -> None:
    await fill(directory, 45)
    original = tmp_path / "original"
    shutil.copytree(directory, original)

    def anew() -> None:
        shutil.rmtree(directory)
        shutil.copytree(original, directory)

    path_of(directory, 11).unlink()
    assert await anomalies(directory) == ["missing_segment"]
    anew()
    path_of(directory, 1).unlink()
    assert await anomalies(directory) == ["missing_segment"]
    anew()
    path_of(directory, 41).unlink()
    assert await anomalies(directory) == ["missing_segment"]
    anew()
    (directory / "notes.txt").write_text("mine")
    assert await anomalies(directory) == ["foreign_file"]
    anew()
    lines = path_of(directory, 11).read_bytes().splitlines(keepends=True)
    path_of(directory, 11).write_bytes(b"".join(lines[:-2]))
    assert await anomalies(directory) == ["gap"]
    path_of(directory, 11).write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert await anomalies(directory) == ["torn", "gap"]
    path_of(directory, 11).write_bytes(b"".join([*lines[:5], lines[4], *lines[5:]]))
    assert await anomalies(directory) == ["duplicate"]
    path_of(directory, 11).write_bytes(b"".join([*lines, tombstone(45, 20)]))
    assert await anomalies(directory) == ["duplicate"]


@pytest.mark.parametrize("mode", ["repair", "quarantine"])
@pytest.mark.parametrize("number", [1, 11, 21])
async def test_a_segment_cut_anywhere_loses_only_what_was_cut(
    directory: Path, tmp_path: Path, mode: Any, number: int
) -> None:
    await fill(directory, 25)
    original = tmp_path / "original"
    shutil.copytree(directory, original)
    data = path_of(directory, number).read_bytes()
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    first, count = number, len(ends)
    for length in range(ends[-4], len(data), STEP * (5 if number == 11 else 29)):
        shutil.rmtree(directory)
        shutil.copytree(original, directory)
        path_of(directory, number).write_bytes(data[:length])
        left = sum(end <= length for end in ends)
        expected = [n for n in range(1, 26) if not first + left <= n < first + count]
        async with open_store(directory) as store:
            # At the very end of the store, a record that was cut off whole leaves no trace.
            at_the_end = number == 21 and length in ends
            assert (await store.scan()).is_clean == at_the_end
            report = await store.recover(PersistenceRecoveryConfig(mode))
            assert report.scan.is_clean
            assert report.records_kept == len(expected)
            assert len(report.quarantined) == (mode == "quarantine" and not at_the_end)
            assert [e.payload["order_id"] for e in await store.list_events()] == expected
            await store.append(event(26))
        assert await anomalies(directory) == []
        assert await stored(directory) == [*expected, 26]


@pytest.mark.parametrize("number", [1, 11, 21, 31])
async def test_a_missing_segment_costs_what_was_in_it(directory: Path, number: int) -> None:
    await fill(directory, 35)
    path_of(directory, number).unlink()
    async with open_store(directory) as store:
        report = await store.recover()
        assert report.scan.is_clean
    expected = [n for n in range(1, 36) if not number <= n < number + 10]
    assert await stored(directory) == expected
    assert await anomalies(directory) == []


async def test_a_missing_segment_keeps_a_system_from_starting(directory: Path) -> None:
    await fill(directory, 35)
    path_of(directory, 11).unlink()
    with pytest.raises(StoreDamaged, match=r"missing_segment: .* the records 11 to 20"):
        async with ActorSystem("shop", persistence=open_store(directory)):
            pytest.fail("it started")
    (directory / "notes.txt").write_text("mine")
    startup = PersistenceStartupConfig("recover")
    async with ActorSystem("shop", persistence=open_store(directory), startup=startup):
        pass
    assert (directory / "notes.txt").read_text() == "mine"


async def test_a_quarantined_segment_can_be_put_back(directory: Path, tmp_path: Path) -> None:
    await fill(directory, 35)
    path = path_of(directory, 11)
    damaged = path.read_bytes().replace(b'"order_id":15', b'"order_id":99')
    path.write_bytes(damaged)
    (directory / "notes.txt").write_text("mine")
    config = PersistenceRecoveryConfig("quarantine", str(tmp_path / "aside"))
    async with open_store(directory) as store:
        report = await store.recover(config)
        assert report.scan.is_clean
        assert (report.records_kept, report.records_removed) == (34, 1)
        copy, notes = map(Path, report.quarantined)
        assert copy.parent == notes.parent == tmp_path / "aside" / "journal.damaged-1"
        assert copy.read_bytes() == damaged
        assert notes.read_text() == "mine"
        assert not (directory / "notes.txt").exists()
    shutil.copy(copy, path)
    assert await anomalies(directory) == ["checksum"]


async def test_a_recovery_quarantines_a_segment_that_holds_the_lines_of_another(
    directory: Path,
) -> None:
    await fill(directory, 35)
    shutil.copy(path_of(directory, 1), path_of(directory, 11))
    async with open_store(directory) as store:
        assert {a.kind for a in (await store.scan()).anomalies} == {"duplicate", "gap"}
        report = await store.recover()
        assert report.scan.is_clean
        (aside,) = report.quarantined
        assert Path(aside).read_bytes() == path_of(directory, 1).read_bytes()
    assert await stored(directory) == [*range(1, 11), *range(21, 36)]


# Compaction


async def test_compaction_of_a_rotating_store_drops_whole_segments_and_rewrites_one(
    directory: Path,
) -> None:
    await fill(directory, 100)
    untouched = path_of(directory, 81).stat()
    async with open_store(directory, retention_policy=RetentionPolicy(max_records=25)) as store:
        report = await store.compact()
        assert (report.records_before, report.records_after) == (100, 25)
        assert report.bytes_after < report.bytes_before / 3
        assert (await store.scan()).is_clean
        assert (await store.append(event(101))).first_seq == 101
        assert (await store.compact()).records_after == 25
    assert seqs(directory) == {
        1: [70],  # a tombstone
        71: list(range(77, 81)),
        81: list(range(81, 91)),
        91: list(range(91, 101)),
        101: [101],
    }
    now = path_of(directory, 81).stat()
    assert (now.st_ino, now.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)
    assert await anomalies(directory) == []
    assert await stored(directory) == list(range(77, 102))


async def test_compaction_of_a_rotating_store_may_remove_every_record(directory: Path) -> None:
    await fill(directory, 35)
    policy = RetentionPolicy(max_age_seconds=1)
    for number in (36, 37):
        async with open_store(directory, retention_policy=policy) as store:
            assert (await store.compact()).records_after == 0
            assert (await store.scan()).is_clean
            assert (await store.append(event(number))).first_seq == number
    assert await stored(directory) == [37]
    assert await anomalies(directory) == []


async def test_compaction_of_a_rotating_store_limits_each_kind_by_itself(directory: Path) -> None:
    records: list[Record] = []
    for number in range(1, 61):
        audit = PersistedAudit("shop", {"n": number}, float(number))
        records.append(audit if number % 15 == 0 else event(number))
    policy = RetentionPolicy(max_records=3)
    async with open_store(directory, retention_policy=policy) as store:
        for record in records:
            await store.append(record)
        before = await store.list_events(), await store.list_audits()
        report = await store.compact()
        assert report.records_after == 6
        assert (await store.list_events(), await store.list_audits()) == before
        assert (await store.scan()).is_clean
    assert await anomalies(directory) == []
    assert seqs(directory) == {
        1: [20],
        21: [30],
        31: [40],
        41: [45, 50],
        51: [57, 58, 59, 60],
    }


async def test_a_rotating_store_finishes_an_interrupted_drop_of_segments_when_opened(
    directory: Path,
) -> None:
    await fill(directory, 45)
    # As a crash leaves it, between the tombstone and the removal of what it stands for.
    path_of(directory, 1).write_bytes(tombstone(30, 0))
    assert await stored(directory) == list(range(31, 46))
    assert sorted(seqs(directory)) == [1, 31, 41]
    assert await anomalies(directory) == []


async def test_a_dropped_segment_that_is_put_back_is_foreign_and_not_removed(
    directory: Path, tmp_path: Path
) -> None:
    await fill(directory, 45)
    backup = tmp_path / "backup"
    shutil.copytree(directory, backup)
    async with open_store(directory, retention_policy=RetentionPolicy(max_records=15)) as store:
        await store.compact()
    path = path_of(directory, 11)
    assert not path.exists()
    shutil.copy2(backup / path.name, path)
    assert await anomalies(directory) == ["foreign_file"]
    assert await stored(directory) == list(range(31, 46))
    assert path.exists()
    config = PersistenceRecoveryConfig("quarantine", str(tmp_path / "aside"))
    async with open_store(directory) as store:
        report = await store.recover(config)
        assert report.scan.is_clean
        (aside,) = report.quarantined
        assert Path(aside).read_bytes() == (backup / path.name).read_bytes()


async def test_a_damaged_segment_is_not_compacted(directory: Path) -> None:
    await fill(directory, 45)
    path = path_of(directory, 31)
    path.write_bytes(path.read_bytes().replace(b'"order_id":33', b'"order_id":99'))
    async with open_store(directory, retention_policy=RetentionPolicy(max_records=10)) as store:
        with pytest.raises(StoreError, match="recover it before compacting it"):
            await store.compact()
    assert b'"order_id":99' in path.read_bytes()


@pytest.mark.parametrize("content", [None, b""], ids=["gone", "emptied"])
async def test_a_recovery_goes_on_behind_several_segments_that_are_missing(
    directory: Path, content: bytes | None
) -> None:
    await fill(directory, 45)
    for first in (31, 41):
        path_of(directory, first).unlink()
    if content is not None:
        path_of(directory, 31).write_bytes(content)
    assert "missing_segment" in await anomalies(directory)
    async with open_store(directory) as store:
        assert (await store.recover()).scan.is_clean
        first = (await store.append(event(1))).first_seq
    assert first == 31
    assert await anomalies(directory) == []


async def test_an_append_goes_on_in_an_emptied_segment_whose_successor_is_missing(
    directory: Path,
) -> None:
    await fill(directory, 45)
    path_of(directory, 41).unlink()
    path_of(directory, 31).write_bytes(b"")
    async with open_store(directory) as store:
        assert (await store.append(event(1), event(2))).first_seq == 31
    assert await anomalies(directory) == ["missing_segment"]
    async with open_store(directory) as store:
        assert (await store.append(event(3))).first_seq == 33
        assert [e.seq for e in await store.list_events()][-3:] == [31, 32, 33]
