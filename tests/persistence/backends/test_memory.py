"""What the in-memory backend promises, statement by statement."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from papyra.exceptions import BackendClosed, InvalidRecord
from papyra.persistence import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistenceRecoveryConfig,
)
from papyra.persistence.backends import memory, paging
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.metrics import PersistenceMetricsMixin
from tests.actors import event

AUDIT = PersistedAudit("shop", {"actors": 1}, 5.0)
LETTER = PersistedDeadLetter("shop", "shop/a", "str", "hello", False, 6.0)


async def test_an_in_memory_store_keeps_events_audits_and_dead_letters_apart(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.record_event(event())
    await persistence.record_audit(AUDIT)
    await persistence.record_dead_letter(LETTER)
    assert [type(record).__name__ for record in await persistence.list_events()] == [
        "PersistedEvent"
    ]
    assert [record.payload for record in await persistence.list_audits()] == [{"actors": 1}]
    assert [record.payload for record in await persistence.list_dead_letters()] == ["hello"]
    assert (
        persistence.events[0].seq,
        persistence.audits[0].seq,
        persistence.dead_letters[0].seq,
    ) == (1, 2, 3)


async def test_record_verbs_of_a_backend_take_their_own_kind_only(
    persistence: InMemoryPersistence,
) -> None:
    wrong: list[tuple[Any, Any]] = [
        (persistence.record_event, AUDIT),
        (persistence.record_audit, LETTER),
        (persistence.record_dead_letter, event()),
        (persistence.record_event, "a string"),
    ]
    for verb, record in wrong:
        with pytest.raises(InvalidRecord, match="the record must be a Persisted"):
            await verb(record)
    assert persistence.metrics.snapshot().records_written == 0


async def test_positions_count_across_kinds_and_batches(persistence: InMemoryPersistence) -> None:
    assert (await persistence.append(event())).last_seq == 1
    appended = await persistence.append(AUDIT, event(), LETTER)
    assert (appended.first_seq, appended.last_seq) == (2, 4)
    assert (await persistence.append()).last_seq == 4
    assert [e.seq for e in await persistence.list_events()] == [1, 3]


async def test_an_in_memory_batch_is_stored_whole_or_not_at_all(
    persistence: InMemoryPersistence,
) -> None:
    with pytest.raises(InvalidRecord):
        await persistence.append(event(1), event(2, payload=object()), event(3))
    assert persistence.events == ()
    assert (await persistence.append(event())).first_seq == 1


async def test_a_batch_that_runs_out_of_memory_leaves_nothing_in_an_in_memory_store(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    await persistence.append(event(1), AUDIT)
    add = memory._Collection.add

    def fail_at_four(self: Any, seq: int, time: float, encoded: bytes) -> None:
        add(self, seq, time, encoded)
        if seq == 5:
            raise MemoryError

    monkeypatch.setattr(memory._Collection, "add", fail_at_four)
    with pytest.raises(Exception, match="write failed: MemoryError"):
        await persistence.append(event(2), AUDIT, event(3))
    monkeypatch.undo()
    assert (await persistence.append(event(4))).first_seq == 3
    assert [e.payload["order_id"] for e in await persistence.list_events()] == [1, 4]
    assert len(persistence.audits) == 1


async def test_an_in_memory_record_does_not_change_with_the_payload_it_was_made_of(
    persistence: InMemoryPersistence,
) -> None:
    payload = {"items": ["tea"]}
    await persistence.append(event(payload=payload))
    payload["items"].append("cups")
    (stored,) = await persistence.list_events()
    assert stored.payload == {"items": ["tea"]}
    stored.payload["items"].append("kettle")
    assert (await persistence.list_events())[0].payload == {"items": ["tea"]}


async def test_list_events_with_a_limit_lists_the_newest_and_with_since_the_younger(
    persistence: InMemoryPersistence,
) -> None:
    for number in range(10):
        await persistence.append(event(number, timestamp=float(number)))

    async def listed(**arguments: Any) -> list[int]:
        return [e.payload["order_id"] for e in await persistence.list_events(**arguments)]

    assert await listed() == list(range(10))
    assert await listed(limit=3) == [7, 8, 9]
    assert await listed(limit=0) == []
    assert await listed(since=7) == [7, 8, 9]
    assert await listed(since=7, limit=1) == [9]
    assert await listed(since=99) == []


async def test_in_memory_reads_are_right_when_times_are_out_of_order(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_BLOCK", 16)
    times = [float(number) for number in range(200)]
    random.Random(1).shuffle(times)
    for time in times:
        await persistence.append(event(int(time), timestamp=time))
    for since in (0, 50.5, 150, 199, 200):
        expected = [time for time in times if time >= since]
        assert [e.timestamp for e in await persistence.list_events(since=since)] == expected
        newest = expected[max(0, len(expected) - 7) :]
        assert [e.timestamp for e in await persistence.list_events(since=since, limit=7)] == newest
    await persistence.append(event(0, timestamp=1e12))
    assert [e.timestamp for e in await persistence.list_events(since=200)] == [1e12]


async def test_a_page_of_records_is_bounded_and_says_where_to_go_on(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_PAGE_RECORDS", 4)
    await persistence.append(*(event(number) for number in range(10)))
    page = await persistence.read("event", limit=100)
    assert ([r.seq for r in page.records], page.next_after, page.more) == ([1, 2, 3, 4], 4, True)
    page = await persistence.read("event", after=8)
    assert ([r.seq for r in page.records], page.next_after, page.more) == ([9, 10], 10, False)
    page = await persistence.read("event", newest=True)
    assert ([r.seq for r in page.records], page.next_before, page.more) == ([7, 8, 9, 10], 7, True)
    page = await persistence.read("event", newest=True, before=3)
    assert ([r.seq for r in page.records], page.next_before, page.more) == ([1, 2], 1, False)
    assert len(await persistence.list_events()) == 10
    assert [r.seq async for r in persistence.stream("event", after=3)] == [4, 5, 6, 7, 8, 9, 10]


async def test_a_page_of_an_in_memory_store_is_bounded_in_bytes(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_PAGE_BYTES", 250)
    await persistence.append(*(event(number) for number in range(10)))
    page = await persistence.read("event")
    assert 1 < len(page.records) < 10
    assert page.more
    assert len(await persistence.list_events()) == 10


async def test_a_read_selects_records_by_type_and_actor(persistence: InMemoryPersistence) -> None:
    await persistence.append(
        event(1, event_type="A", actor_address="s/x"),
        event(2, event_type="B", actor_address="s/x"),
        event(3, event_type="A", actor_address="s/y"),
        LETTER,
    )
    by_type = (await persistence.read("event", event_type="A")).records
    by_actor = (await persistence.read("event", actor="s/x", newest=True, limit=1)).records
    by_both = [r async for r in persistence.stream("event", event_type="A", actor="s/y")]
    assert [[r.seq for r in found] for found in (by_type, by_actor, by_both)] == [[1, 3], [2], [3]]
    assert len((await persistence.read("dead_letter", actor="shop/a")).records) == 1
    assert (await persistence.read("dead_letter", actor="shop/b")).records == ()


async def test_a_filtered_page_of_records_may_be_empty_and_not_the_last(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_PAGE_RECORDS", 4)
    await persistence.append(*(event(n, event_type="AB"[n == 9]) for n in range(10)))
    page = await persistence.read("event", event_type="B")
    assert (page.records, page.next_after, page.more) == ((), 4, True)
    assert [r.seq async for r in persistence.stream("event", event_type="B")] == [10]


async def test_an_in_memory_backends_metrics_count_its_operations(
    persistence: InMemoryPersistence,
) -> None:
    assert isinstance(persistence, PersistenceMetricsMixin)
    await persistence.append(event(1), event(2))
    await persistence.append(event(3))
    with pytest.raises(InvalidRecord):
        await persistence.append("no record")  # type: ignore[arg-type]
    await persistence.list_events()
    await persistence.scan()
    await persistence.recover()
    await persistence.compact()
    size = (await persistence.scan()).bytes_scanned
    snapshot = persistence.metrics.snapshot()
    assert dict(snapshot) == {
        "records_written": 3,
        "bytes_written": size,
        "commits": 2,
        "reads": 1,
        "scans": 2,
        "anomalies_detected": 0,
        "recoveries": 0,
        "compactions": 0,
        "records_dropped": 0,
        "write_errors": 1,
        "read_errors": 0,
        "scan_errors": 0,
        "recovery_errors": 0,
        "compaction_errors": 0,
        "snapshots_saved": 0,
        "snapshots_loaded": 0,
        "snapshots_passed_over": 0,
        "snapshot_errors": 0,
        "outbox_taken": 0,
        "outbox_refused": 0,
        "projection_handled": 0,
        "projection_retries": 0,
        "projection_skipped": 0,
        "projection_parked": 0,
        "projection_pauses": 0,
    }
    persistence.metrics.reset()
    assert set(persistence.metrics.snapshot().values()) == {0}
    assert snapshot.records_written == 3


async def test_bytes_written_to_memory_are_those_of_the_encoded_records(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.append(event())
    assert persistence.metrics.snapshot().bytes_written == len(msgspec.json.encode(event()))


async def test_a_scan_of_an_in_memory_store_is_always_clean(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.append(event(), AUDIT, LETTER)
    report = await persistence.scan()
    assert report.is_clean
    assert report.anomalies == ()
    assert report.records_scanned == 3


@pytest.mark.parametrize(
    "arguments", [(), (None,), (PersistenceRecoveryConfig("quarantine", "nowhere"),)]
)
async def test_a_recovery_of_an_in_memory_store_is_a_no_op_that_succeeds(
    persistence: InMemoryPersistence, arguments: tuple[Any, ...]
) -> None:
    await persistence.append(event())
    report = await persistence.recover(*arguments)
    assert not report.supported
    assert report.scan.is_clean
    assert (report.records_kept, report.records_removed, report.quarantined) == (1, 0, ())


async def test_an_in_memory_store_writes_nothing_to_disk(
    persistence: InMemoryPersistence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await persistence.append(event())
    await persistence.recover(PersistenceRecoveryConfig("quarantine", "bad"))
    await persistence.compact()
    await persistence.flush()
    await persistence.aclose()
    assert os.listdir(tmp_path) == []


async def test_clearing_an_in_memory_store_forgets_everything_but_the_last_position(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.append(event(), AUDIT, LETTER)
    persistence.clear()
    assert (persistence.events, persistence.audits, persistence.dead_letters) == ((), (), ())
    assert (await persistence.append(event())).first_seq == 4


async def test_collections_of_an_in_memory_store_are_read_only(
    persistence: InMemoryPersistence,
) -> None:
    for name in ("events", "audits", "dead_letters"):
        with pytest.raises(AttributeError):
            setattr(persistence, name, [])


async def test_records_of_a_closed_in_memory_store_stay_readable(
    persistence: InMemoryPersistence,
) -> None:
    await persistence.append(event())
    await persistence.aclose()
    await persistence.aclose()
    assert len(await persistence.list_events()) == 1
    assert (await persistence.scan()).is_clean
    with pytest.raises(BackendClosed, match="this InMemoryPersistence is closed"):
        await persistence.append(event())
    async with persistence:
        assert (await persistence.append(event())).first_seq == 2
    with pytest.raises(BackendClosed):
        await persistence.flush()
