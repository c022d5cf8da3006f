"""The rules of retention and compaction."""

from __future__ import annotations

from typing import Any

import msgspec

from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.persistence.messages import Read
from papyra.persistence.records import KINDS
from papyra.testing._list_model import read_to_the_end
from papyra.testing.clock import ManualClock
from papyra.testing.conformance._fixtures import (
    T0,
    MakeBackend,
    a_record,
    again,
    an_event,
    everything,
    fill,
    reads,
)


class Retention:
    """Part of the conformance suite."""

    async def test_retention_hides_the_oldest_of_each_kind(self, make_backend: MakeBackend) -> None:
        policy = RetentionPolicy(max_records=3)
        async with make_backend(retention_policy=policy) as backend:
            assert backend.retention == policy
            await backend.append(*map(a_record, range(15)))
            for kind in KINDS:
                seqs = [record.seq for record in await read_to_the_end(backend, Read(kind))]
                assert len(seqs) == 3
            assert [event.payload["n"] for event in await backend.list_events()] == [6, 9, 12]
            assert (await backend.append(an_event(15))).first_seq == 16

    async def test_retention_hides_what_gets_too_old(self, make_backend: MakeBackend) -> None:
        clock = ManualClock(T0)
        policy = RetentionPolicy(max_age_seconds=10)
        async with make_backend(retention_policy=policy, clock=clock.time) as backend:
            await backend.append(*(an_event(n, timestamp=T0 + n) for n in range(5)))
            left = []
            for _ in range(3):
                left.append([event.payload["n"] for event in await backend.list_events()])
                await clock.advance(6)
            assert left == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [2, 3, 4]]
            await clock.advance(100)
            assert await backend.list_events() == []

    async def test_retention_counts_encoded_bytes(self, make_backend: MakeBackend) -> None:
        text = "尺寸"  # of two characters, and six bytes
        events = [an_event(number, payload=text) for number in range(1, 8)]
        size = len(msgspec.json.encode(events[0]))
        for budget, kept in ((3 * size, 3), (3 * size - 1, 2), (size - 1, 0)):
            policy = RetentionPolicy(max_total_bytes=budget)
            async with make_backend(retention_policy=policy) as backend:
                await backend.append(*events)
                assert len(await backend.list_events()) == kept, budget

    async def test_retention_and_reads_combine(self, make_backend: MakeBackend) -> None:
        policy = RetentionPolicy(max_records=7, max_age_seconds=12, max_total_bytes=900)
        now = T0 + 30
        async with make_backend(retention_policy=policy, clock=lambda: now) as backend:
            model = await fill(backend, 30, policy)
            for request in reads(
                {
                    "after": [0, 20],
                    "since": [None, T0 + 22],
                    "until": [None, T0 + 27],
                    "limit": [None, 2],
                    "actor": [None, "s/b"],
                    "newest": [False, True],
                }
            ):
                found = await read_to_the_end(backend, request)
                assert found == model.read(request, now), request

    async def test_each_kind_may_have_limits_of_its_own(self, make_backend: MakeBackend) -> None:
        now = T0 + 30
        for policy in (
            RetentionPolicy(events=Limits(max_records=3)),
            RetentionPolicy(audits=Limits(max_age_seconds=12)),
            RetentionPolicy(dead_letters=Limits(max_total_bytes=300)),
            RetentionPolicy(max_records=2, max_age_seconds=25, audits=Limits()),
            RetentionPolicy(max_records=2, events=Limits(max_age_seconds=14)),
            RetentionPolicy(
                events=Limits(max_records=7, max_total_bytes=900),
                audits=Limits(max_records=1),
                dead_letters=Limits(max_age_seconds=20),
            ),
        ):
            async with make_backend(retention_policy=policy, clock=lambda: now) as backend:
                if not (await backend.summarize()).total_records:
                    model = await fill(backend, 30)
                model.policy = policy
                for request in reads({"limit": [None, 2], "newest": [False, True]}):
                    found = await read_to_the_end(backend, request)
                    assert found == model.read(request, now), (policy, request)

    async def test_a_compaction_goes_by_the_limits_of_each_kind(
        self, make_backend: MakeBackend
    ) -> None:
        policy = RetentionPolicy(max_records=4, events=Limits(max_records=7), audits=Limits())
        async with make_backend(retention_policy=policy) as backend:
            await backend.append(*map(a_record, range(30)))
            before = await everything(backend)
            assert len(before) == 7 + 10 + 4
            told = await backend.compact(dry_run=True)
            assert (await backend.scan()).records_scanned == 30
            assert await backend.compact() == told
            assert await everything(backend) == before
            if backend.capabilities.compaction:
                assert told.records_after == (await backend.scan()).records_scanned == 21
            # With limits for one kind, the others are kept whole.
            report = await backend.compact(RetentionPolicy(audits=Limits(max_records=2)))
            gone = 8 if backend.capabilities.compaction else 0
            assert report.records_before - report.records_after == gone
            assert len(await backend.list_events()) == 7
            assert len(await backend.list_audits()) == 10 - gone
            assert len(await backend.list_dead_letters()) == 4

    async def test_compaction_keeps_what_reads_show(self, make_backend: MakeBackend) -> None:
        policy = RetentionPolicy(max_records=4)
        async with make_backend(retention_policy=policy) as backend:
            await backend.append(*map(a_record, range(30)))
            before = await everything(backend)
            held = (await backend.scan()).records_scanned
            report = await backend.compact()
            assert await everything(backend) == before
            assert report.supported == backend.capabilities.compaction
            assert report.records_before == held
            after = await backend.scan()
            assert after.is_clean
            assert report.records_after == after.records_scanned
            if backend.capabilities.compaction:
                assert (report.records_before, report.records_after) == (30, 12)
                assert report.bytes_after < report.bytes_before
            else:
                assert report.records_after == report.records_before
                assert report.bytes_after == report.bytes_before

    async def test_a_compaction_says_what_is_left_of_each_kind(
        self, make_backend: MakeBackend
    ) -> None:
        policy = RetentionPolicy(max_records=4, audits=Limits(max_records=7))
        async with make_backend(retention_policy=policy) as backend:
            await backend.append(*map(a_record, range(33)), *map(an_event, range(33, 40)))
            held = await backend.summarize()
            told = await backend.compact(dry_run=True)
            report = await backend.compact()
            left = await backend.summarize()
            assert told == report
            assert set(report.kinds) == set(KINDS)
            for kind, each in report.kinds.items():
                assert (each.records_before, each.bytes_before) == (
                    held.records[kind],
                    held.record_bytes[kind],
                )
                assert (each.records_after, each.bytes_after) == (
                    left.records[kind],
                    left.record_bytes[kind],
                )
            assert report.records_before == held.total_records
            assert report.records_after == left.total_records
            assert report.bytes_before == held.total_bytes
            assert report.bytes_after == left.total_bytes
            assert report.kept_for_histories == 0

    async def test_positions_are_not_given_again_after_compaction(
        self, make_backend: MakeBackend
    ) -> None:
        clock = ManualClock(T0)
        policy = RetentionPolicy(max_age_seconds=5)
        options: dict[str, Any] = {"retention_policy": policy, "clock": clock.time}
        backend = make_backend(**options)
        async with backend:
            await backend.append(*(an_event(number, timestamp=T0) for number in range(6)))
            await clock.advance(60)
            await backend.compact()
            assert await backend.list_events() == []
        async with again(backend, make_backend, **options) as backend:
            assert (await backend.append(an_event(7, timestamp=T0 + 60))).first_seq == 7
            assert [event.seq for event in await backend.list_events()] == [7]
