"""Looking at a store as a whole, and moving what it holds to another one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from papyra.exceptions import InvalidRequest, StoreReadOnly
from papyra.persistence import codec
from papyra.persistence.records import Record, kind_of
from papyra.persistence.retention import Limits, RetentionPolicy
from papyra.testing.conformance._fixtures import (
    T0,
    MakeBackend,
    a_record,
    again,
    an_event,
    everything,
    hosted,
    without_seq,
)


def numbered(*seqs: int) -> list[Record]:
    """Return records of all kinds, at these positions."""
    return [msgspec.structs.replace(a_record(seq), seq=seq) for seq in seqs]


class Moving:
    """Part of the conformance suite."""

    async def test_restored_records_keep_their_positions(self, make_backend: MakeBackend) -> None:
        first, then = numbered(3, 4, 5, 9), numbered(10, 11, 40, 41, 42, 50)
        backend = make_backend()
        async with backend:
            appended = await backend.restore(*first)
            assert (appended.first_seq, appended.last_seq) == (3, 9)
            await backend.restore(*then)
            assert await everything(backend) == first + then
            assert backend.last_seq == 50
            assert backend.metrics.records_written == 10
        async with again(backend, make_backend) as backend:
            assert await everything(backend) == first + then
            assert (await backend.append(an_event(1))).first_seq == 51
            report = await backend.scan()
            assert report.is_clean, report.anomalies
            for after in (0, 4, 9, 20, 41, 50, 51):
                page = await backend.read("event", after=after)
                wanted = [r.seq or 0 for r in first + then if kind_of(r) == "event"] + [51]
                assert [r.seq for r in page.records] == [seq for seq in wanted if seq > after]

    async def test_positions_that_were_given_are_not_restored(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*map(a_record, range(3)))
            before = await everything(backend)
            bad: Any
            for bad in (
                numbered(3),
                numbered(1, 7),
                numbered(7, 7),
                numbered(8, 7),
                [an_event(1)],
                [msgspec.structs.replace(an_event(1), seq="4")],
            ):
                with pytest.raises(InvalidRequest):
                    await backend.restore(*bad)
            assert await everything(backend) == before
            appended = await backend.restore()
            assert (appended.first_seq, appended.last_seq) == (4, 3)

    async def test_a_summary_counts_what_is_stored(self, make_backend: MakeBackend) -> None:
        records = [a_record(number) for number in range(40)]
        backend = make_backend()
        async with hosted(backend):
            empty = await backend.summarize()
            assert (empty.total_records, empty.oldest) == (0, None)
            await backend.append(*records)
            summary = await backend.summarize()
            assert summary.last_seq == 40
            assert summary.records == Counter(map(kind_of, records))
            sizes: Counter[str] = Counter()
            for record, encoded in zip(records, codec.encode(records), strict=True):
                sizes[kind_of(record)] += len(encoded)
            assert summary.record_bytes == sizes
            assert (summary.oldest, summary.newest) == (T0, T0 + 39)
            assert not summary.damaged

    async def test_a_summary_counts_what_retention_hides(self, make_backend: MakeBackend) -> None:
        own = Limits(max_records=1)
        policy = RetentionPolicy(max_records=2, max_age_seconds=1, audits=own)
        async with make_backend(retention_policy=policy, clock=lambda: T0 + 40) as backend:
            await backend.append(*map(a_record, range(40)))
            summary = await backend.summarize()
            assert summary.total_records == 40
            assert (summary.oldest, summary.newest) == (T0, T0 + 39)

    async def test_a_dry_run_says_what_a_compaction_does(self, make_backend: MakeBackend) -> None:
        async with make_backend(clock=lambda: T0 + 40) as backend:
            await backend.append(*map(a_record, range(40)))
            for policy in (
                RetentionPolicy(),
                RetentionPolicy(max_age_seconds=25),
                RetentionPolicy(max_records=9, max_total_bytes=700),
                RetentionPolicy(max_records=2, events=Limits(max_records=1), audits=Limits()),
            ):
                before = await everything(backend)
                told = await backend.compact(policy, dry_run=True)
                assert await everything(backend) == before
                assert await backend.compact(policy) == told

    async def test_a_compaction_goes_by_the_policy_it_is_given(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend(retention_policy=RetentionPolicy(max_records=20)) as backend:
            await backend.append(*map(an_event, range(30)))
            await backend.compact(RetentionPolicy(max_records=5))
            left = [event.payload["n"] for event in await backend.list_events()]
            first = 25 if backend.capabilities.compaction else 10
            assert left == list(range(first, 30))

    async def test_a_reader_sees_what_is_written_and_changes_nothing(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            reader = backend.reader()
            if reader is backend:
                return  # there is no other way to it
            await backend.append(*map(a_record, range(6)))
            async with reader:
                assert await everything(reader) == await everything(backend)
                await backend.append(a_record(6))
                found = await everything(reader)
                assert list(map(without_seq, found)) == list(map(a_record, range(7)))
                with pytest.raises(StoreReadOnly):
                    await reader.append(a_record(7))
                with pytest.raises(StoreReadOnly):
                    await reader.recover()
                with pytest.raises(StoreReadOnly):
                    await reader.compact()
            await backend.append(a_record(7))
            assert len(await everything(backend)) == 8
