"""The JSON file: what is in it, and what becomes of it when it is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import InvalidPolicy, StoreDamaged, StoreError
from papyra.persistence import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistenceRecoveryConfig,
    Record,
    codec,
)
from papyra.persistence.backends._files import block_index
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.journal_file import JournalFile
from papyra.persistence.backends._files.line_format import _make_line, make_lines
from papyra.persistence.backends._files.repair import repair
from papyra.persistence.backends._files.scan import ScanResult
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from tests.actors import Echo, event
from tests.conftest import event_loops
from tests.extent import STEP, some

anyio_backend = event_loops("asyncio")

AUDIT = PersistedAudit("shop", {"actors": 1}, 5.0)
LETTER = PersistedDeadLetter("shop", "shop/a", "str", "hello", False, 6.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.ndjson"


def open_store(path: Path, **options: Any) -> JsonFilePersistence:
    # No test here pulls the plug: what a sync is for is tested with processes that are killed.
    return JsonFilePersistence(path, **({"fsync": "no"} | options))


async def stored(path: Path) -> list[Record]:
    async with open_store(path) as store:
        found = [r for kind in ("event", "audit", "dead_letter") async for r in store.stream(kind)]
    return sorted(found, key=lambda record: record.seq or 0)


async def fill(path: Path, count: int = 5) -> list[bytes]:
    """Store some records, and return the lines they are on."""
    async with open_store(path) as store:
        await store.append(*(event(number) for number in range(1, count - 1)), AUDIT, LETTER)
    return path.read_bytes().splitlines(keepends=True)


async def kinds_of_anomalies(path: Path) -> list[str]:
    async with open_store(path) as store:
        return [anomaly.kind for anomaly in (await store.scan()).anomalies]


# The format


async def test_a_line_of_a_json_file_is_a_record(path: Path) -> None:
    lines = await fill(path)
    assert json.loads(lines[0]) == {
        "v": 1,
        "seq": 1,
        "crc": json.loads(lines[0])["crc"],
        "kind": "event",
        "system_id": "shop",
        "actor_address": "shop/order-1",
        "event_type": "OrderPlaced",
        "payload": {"order_id": 1},
        "timestamp": 1700000001.0,
    }
    assert [json.loads(line)["kind"] for line in lines] == ["event"] * 3 + ["audit", "dead_letter"]


async def test_jq_reads_a_json_file(path: Path) -> None:
    await fill(path)
    # jq is what people have at hand; where it is missing, python's own reader stands in for it.
    if shutil.which("jq"):
        command = ["jq", "-r", 'select(.kind == "event") | .payload.order_id', str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert output.split() == ["1", "2", "3"]
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


async def test_a_system_keeps_its_facts_in_a_json_file(path: Path) -> None:
    for _ in range(2):
        async with ActorSystem("shop", persistence=JsonFilePersistence(path)) as system:
            await system.spawn(Echo, name="echo").ask("x")
    types = [getattr(record, "event_type", "audit") for record in await stored(path)]
    assert types == ["ActorStarted", "ActorStopped", "audit"] * 2


def test_a_line_of_a_json_file_names_its_predecessor_after_a_gap_in_positions() -> None:
    first, second = map(json.loads, make_lines(7, 4, codec.encode([event(1), event(2)])))
    assert (first["seq"], first["after"]) == (7, 4)
    assert (second["seq"], second.get("after")) == (8, None)


def test_the_index_of_a_json_file_counts_the_bytes_of_records_not_of_lines(path: Path) -> None:
    journal = JournalFile(path, Disk())

    def append(numbers: range) -> None:
        records = [event(number) for number in numbers]
        journal.appender.write(numbers[0], records, codec.encode(records), sync=False)
        journal.commit()

    # Behind a line that is damaged, one says that it follows the one before that.
    append(range(1, 12))
    sound = [event(number) for number in range(1, 12)]
    assert journal.index.sizes["event"] == sum(map(len, codec.encode(sound)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b"shop", b"chop"))
    journal.close()
    journal = JournalFile(path, Disk())
    journal.open()
    assert (journal.last_seq, journal.index.records) == (11, 10)
    append(range(12, 200))
    assert b'"seq":12,"after":10,' in path.read_bytes()
    sound = [event(number) for number in (*range(1, 11), *range(12, 200))]
    assert journal.index.sizes["event"] == sum(map(len, codec.encode(sound)))
    journal.close()


# Damage


async def test_a_json_file_cut_at_any_byte_loses_only_what_was_cut(path: Path) -> None:
    lines = await fill(path)
    whole = await stored(path)
    data = b"".join(lines)
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    for length in range(len(data) - sum(map(len, lines[-3:])), len(data), STEP):
        path.write_bytes(data[:length])
        left = sum(end <= length for end in ends)
        torn = length not in (0, *ends)
        async with open_store(path) as store:
            report = await store.scan()
            assert [anomaly.kind for anomaly in report.anomalies] == ["torn"] * torn
            assert report.records_scanned == left
            assert (await store.append(event(9))).first_seq == left + 1
            assert (await store.scan()).is_clean
        assert (await stored(path))[:-1] == whole[:left]


def test_a_flipped_bit_in_a_json_file_is_noticed_and_costs_one_record(path: Path) -> None:
    records = [event(number) for number in range(1, 5)]
    journal = JournalFile(path, Disk())
    journal.appender.write(1, records, codec.encode(records), sync=False)
    journal.commit()
    journal.close()
    data = bytearray(path.read_bytes())
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    # One in seven is another bit from byte to byte.
    for position, bit in some(product(range(ends[0], ends[1]), range(8)), every=7):
        damaged = data.copy()
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        journal, found = JournalFile(path, Disk()), ScanResult()
        journal.scan(found)
        assert found.anomalies, (position, bit)
        repair(journal)
        found = ScanResult()
        journal.scan(found)
        blocks = range(len(journal.index))
        left = [record.seq for block in blocks for record, _ in journal.records(block)]
        journal.close()
        # A newline that is none any more takes its own line with it, not the next one.
        assert (found.anomalies, left) == ([], [1, 3, 4]), (position, bit)


async def test_a_scan_of_a_json_file_tells_kinds_of_damage_apart(path: Path) -> None:
    lines = await fill(path, 6)

    async def found(*parts: bytes) -> list[str]:
        path.write_bytes(b"".join(parts))
        return await kinds_of_anomalies(path)

    one, two, three, *others = lines
    changed = two.replace(b'"order_id":2', b'"order_id":9')
    newer = two.replace(b'"v":1,', b'"v":2,')
    assert await found(*lines) == []
    assert await found(one, three, *others) == ["gap"]
    assert await found(one, two, two, three, *others) == ["duplicate"]
    assert await found(one, changed, three, *others) == ["checksum"]
    assert await found(one, b"what is this?\n", two, three, *others) == ["corrupt"]
    assert await found(*lines[:-1], lines[-1][:-1]) == ["torn"]
    assert await found(one, newer, three, *others) == ["checksum"]


@pytest.mark.parametrize("text", ["hello", "hello\nworld", "{}", '{"crc'[1:], "\0\0x"])
async def test_a_system_does_not_start_on_a_file_that_is_no_journal(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(StoreDamaged, match=r"corrupt: this is no line of a Papyra journal"):
        async with ActorSystem(persistence=open_store(path)):
            pytest.fail("it started")
    assert path.read_text() == text
    # Asked to, it goes on behind what is there.
    async with open_store(path) as store:
        await store.append(event(1))
        assert [e.payload["order_id"] for e in await store.list_events()] == [1]
    assert path.read_text().startswith(text)
    assert [r.seq for r in await stored(path)] == [text.count("\n") + 2]


async def test_zero_bytes_at_the_end_of_a_json_file_are_a_torn_tail(path: Path) -> None:
    lines = await fill(path)
    for rest in (bytes(5000), lines[0][:30] + bytes(100)):
        path.write_bytes(b"".join(lines) + rest)
        assert await kinds_of_anomalies(path) == ["torn"]
        async with ActorSystem(persistence=open_store(path)):
            pass
        assert await kinds_of_anomalies(path) == []


async def test_a_changed_last_line_of_a_json_file_is_no_torn_tail(path: Path) -> None:
    lines = await fill(path)
    data = b"".join(lines)
    for position in range(len(data) - len(lines[-1]), len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        assert (await kinds_of_anomalies(path))[0] in ("checksum", "corrupt"), position


async def test_an_anomaly_of_a_json_file_says_its_offset_line_and_position(path: Path) -> None:
    lines = await fill(path)
    lines[2] = lines[2].replace(b"shop/order-1", b"shop/order-2")
    path.write_bytes(b"".join(lines))
    async with open_store(path) as store:
        (anomaly,) = (await store.scan()).anomalies
    assert anomaly.location == str(path)
    assert (anomaly.offset, anomaly.line, anomaly.seq) == (len(lines[0]) + len(lines[1]), 3, 3)
    assert "record 3" in anomaly.detail


async def test_a_torn_tail_of_a_json_file_is_cut_off_by_an_append_not_by_a_scan(
    path: Path,
) -> None:
    lines = await fill(path)
    # Longer than what is written over it.
    path.write_bytes(b"".join(lines) + b'{"crc":"12345678","v":1,"seq":6,' + b"x" * 1000)
    before = path.read_bytes()
    async with open_store(path) as store:
        await store.scan()
        await store.list_events()
        assert path.read_bytes() == before
        await store.append(event(6))
    assert await kinds_of_anomalies(path) == []


async def test_recovery_and_compaction_of_a_json_file_keep_lines_of_a_newer_version(
    path: Path,
) -> None:
    lines = await fill(path)
    newer = _make_line(6, 5, b'{"kind":"event","new":true}', 2)
    unknown = _make_line(7, 6, b'{"kind":"memo","text":"later"}', 1)
    path.write_bytes(b"".join(lines) + newer + unknown + b"nonsense\n")
    async with open_store(path, retention_policy=RetentionPolicy(max_records=1)) as store:
        anomalies = (await store.scan()).anomalies
        assert [a.kind for a in anomalies] == ["unknown_kind", "unknown_kind", "corrupt"]
        assert "version 2" in anomalies[0].detail
        await store.recover()
        await store.compact()
        # One number was lost with the nonsense, and is not given again.
        assert (await store.append(event(8))).first_seq == 9
    data = path.read_bytes()
    assert b'"new":true' in data
    assert b'"text":"later"' in data
    assert b"nonsense" not in data


@pytest.mark.parametrize("directory", [None, "aside"])
async def test_a_quarantine_keeps_a_damaged_json_file_as_it_was(
    path: Path, tmp_path: Path, directory: str | None
) -> None:
    lines = await fill(path)
    damaged = b"".join([lines[0], b"xx\n", *lines[2:]])
    path.write_bytes(damaged)
    place = None if directory is None else str(tmp_path / directory)
    async with open_store(path) as store:
        report = await store.recover(PersistenceRecoveryConfig("quarantine", place))
        (copy,) = report.quarantined
        assert Path(copy).read_bytes() == damaged
        assert (report.records_kept, report.records_removed) == (4, 1)
        again = await store.recover(PersistenceRecoveryConfig("quarantine", place))
        assert again.quarantined == ()
    os.replace(copy, path)
    assert await kinds_of_anomalies(path) == ["corrupt"]


async def test_a_damaged_json_file_is_not_compacted(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join([lines[0], b"xx\n", *lines[2:]]))
    before = path.read_bytes()
    async with open_store(path, retention_policy=RetentionPolicy(max_records=1)) as store:
        with pytest.raises(StoreError, match="recover it before compacting it"):
            await store.compact()
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path, path.with_name("events.ndjson.lock")]


async def test_a_json_file_with_missing_records_is_not_compacted(path: Path) -> None:
    lines = await fill(path, 100)
    policy = RetentionPolicy(max_records=60)
    # Before it was opened, and since.
    path.write_bytes(b"".join([*lines[:50], *lines[51:]]))
    async with open_store(path, retention_policy=policy) as store:
        with pytest.raises(StoreError, match="recover it before compacting it"):
            await store.compact()
    path.write_bytes(b"".join(lines))
    async with open_store(path, retention_policy=policy) as store:
        os.truncate(path, len(b"".join(lines[:80])))
        with pytest.raises(StoreError, match="recover it before compacting it"):
            await store.compact()


async def test_a_compacted_json_file_scans_clean(path: Path) -> None:
    async with open_store(path, retention_policy=RetentionPolicy(max_records=2)) as store:
        for number in range(1, 20):
            await store.append(event(number), AUDIT if number % 5 == 0 else LETTER)
        report = await store.compact()
        assert (report.records_before, report.records_after) == (38, 6)
        assert (await store.scan()).is_clean
        await store.append(event(20))
    assert await kinds_of_anomalies(path) == []
    afters = [json.loads(line).get("after") for line in path.read_text().splitlines()]
    assert afters[0] == 0
    assert afters[-1] is None


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (b'"order_id":9', ["checksum"]),
        (b'{"crc"', ["corrupt"]),
        # What it says of itself is all there is to tell that nothing is missing besides.
        (b'"after"', ["checksum", "gap"]),
    ],
)
async def test_a_position_whose_line_in_a_json_file_is_damaged_is_not_given_again(
    path: Path, damage: bytes, found: list[str]
) -> None:
    async with open_store(path, retention_policy=RetentionPolicy(max_records=1)) as store:
        await store.append(event(1), AUDIT, *map(event, range(3, 10)))
        await store.compact()
    audit, last = path.read_bytes().splitlines(keepends=True)
    damaged = last.replace(damage, damage[:-1] + b"x")
    # Whether it is the last line, or another one follows it.
    path.write_bytes(audit + damaged)
    async with open_store(path) as store:
        assert (await store.append(event(10))).first_seq == 10
    path.write_bytes(audit + last)
    async with open_store(path) as store:
        await store.append(event(10))
    path.write_bytes(path.read_bytes().replace(last, damaged))
    assert await kinds_of_anomalies(path) == found


async def test_a_json_file_compacted_to_several_index_blocks_scans_clean(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_index, "BLOCK_BYTES", 300)  # of two records
    async with open_store(path, retention_policy=RetentionPolicy(max_records=6)) as store:
        await store.append(*map(event, range(1, 21)))
        await store.compact()
        assert (await store.scan()).is_clean
        assert [e.seq for e in await store.list_events()] == list(range(15, 21))


async def test_a_compaction_after_a_recovery_counts_each_record_of_a_json_file_once(
    path: Path,
) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join([lines[0], b"xx\n", *lines[2:]]))
    async with open_store(path, retention_policy=RetentionPolicy(max_records=3)) as store:
        await store.append(event(7), event(8))
        assert (await store.recover()).records_kept == 6
        report = await store.compact()
        assert (report.records_before, report.records_after) == (6, 5)


class CountingDisk(Disk):
    """Counts what is read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self.reads += 1
        return super().read(fd, length, offset)


async def test_the_first_scan_of_a_json_file_does_not_read_again_what_opening_has_read(
    path: Path,
) -> None:
    await fill(path)
    os.utime(path, (1.0, 1.0))
    disk = CountingDisk()
    async with open_store(path, _disk=disk) as store:
        counts = [disk.reads]
        for _ in range(3):
            report = await store.scan()
            assert (report.records_scanned, report.is_clean) == (5, True)
            counts.append(disk.reads)
    assert counts[0] == counts[1] < counts[2] < counts[3]


@pytest.mark.parametrize("how", ["as anybody does it", "at the same time", "by appending"])
async def test_a_scan_reads_a_json_file_again_that_was_changed_since_opening(
    path: Path, how: str
) -> None:
    await fill(path)
    # Changed long ago, or only just; the clock of a file system may be late or early.
    os.utime(path, (1.0, 1.0) if how != "at the same time" else (2.0**32, 2.0**32))
    before = path.stat()
    async with open_store(path) as store:
        if how == "by appending":
            await store.append(event(7))
            assert (await store.scan()).records_scanned == 6
        else:
            path.write_bytes(path.read_bytes().replace(b"shop", b"chop", 1))
        if how == "at the same time":
            # As coarse as that clock is, this can be.
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if how != "by appending":
            assert not (await store.scan()).is_clean


async def test_the_new_file_that_an_unfinished_compaction_left_is_removed(path: Path) -> None:
    await fill(path)
    left = path.with_name("events.ndjson.new")
    left.write_bytes(b"half of it")
    assert len(await stored(path)) == 5
    assert not left.exists()


async def test_the_index_of_a_large_json_file_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_index, "BLOCK_BYTES", 300)
    monkeypatch.setattr(block_index, "MAX_BLOCKS", 8)
    async with open_store(path) as store:
        for number in range(200):
            await store.append(event(number, timestamp=float(number % 50)), AUDIT)
            (file,) = store.store.journal.files(newest=True)
            assert len(file.index) <= 8
        events = [event(number, timestamp=float(number % 50)) for number in range(200)]
        for since in (0, 25, 49):
            expected = [e.payload for e in events if e.timestamp >= since]
            assert [e.payload for e in await store.list_events(since=since)] == expected
            newest = [e.payload for e in await store.list_events(limit=3, since=since)]
            assert newest == expected[-3:]
            older = [e.payload async for e in store.stream("event", until=float(since))]
            assert older == [e.payload for e in events if e.timestamp <= since]


async def test_a_json_file_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "events.ndjson", tmp_path):
        with pytest.raises(StoreError, match="open failed"):
            await open_store(path).append(event(1))


@pytest.mark.parametrize("fsync", ["sometimes", True, None])
def test_fsync_of_a_json_file_is_one_of_always_everysec_and_no(path: Path, fsync: Any) -> None:
    with pytest.raises(InvalidPolicy, match="fsync is one of always, everysec, no"):
        JsonFilePersistence(path, fsync=fsync)


async def test_bytes_written_to_a_json_file_are_those_of_the_encoded_records(path: Path) -> None:
    async with open_store(path) as store:
        await store.append(event(1))
        assert store.metrics.bytes_written == len(msgspec.json.encode(event(1)))


async def test_a_json_file_that_is_no_regular_file_is_refused(path: Path) -> None:
    """And not waited for, as reading a pipe would be."""
    os.mkfifo(path)
    for store in (open_store(path), open_store(path, read_only=True), open_store(path).reader()):
        with pytest.raises(StoreError, match="no regular file"):
            await store.list_events()
