"""What the history of one actor is, and what may be added to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from papyra.exceptions import HistoriesUnsupported, InvalidRecord, RevisionConflict
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.persistence.backends.store import Histories
from papyra.persistence.messages import Append, AppendMany
from papyra.persistence.records import PersistedEvent, Record
from papyra.testing._list_model import ListModel
from papyra.testing.conformance._fixtures import (
    T0,
    MakeBackend,
    a_record,
    again,
    an_event,
    everything,
    hosted,
    needs,
    without_seq,
)


def a_step(actor: str, revision: int, **changes: object) -> PersistedEvent:
    """Return an event of an actor's history."""
    fields = {"actor_address": f"s/{actor}", "revision": revision}
    return an_event(revision, **(fields | changes))


async def history(
    backend: PersistenceBackend, actor: str, after: int = 0, limit: int | None = None
) -> list[int | None]:
    """Return the revisions of an actor's history, read page by page."""
    return [event.revision for event in await events_of(backend, actor, after, limit)]


async def events_of(
    backend: PersistenceBackend, actor: str, after: int = 0, limit: int | None = None
) -> list[PersistedEvent]:
    events: list[PersistedEvent] = []
    more = True
    while more:
        page = await backend.read_history(f"s/{actor}", after_revision=after, limit=limit)
        assert limit is None or len(page.events) <= limit
        assert all(event.actor_address == f"s/{actor}" for event in page.events)
        events += page.events
        after, more = page.next_after, page.more
    return events


def keeps_histories(backend: PersistenceBackend) -> bool:
    return isinstance(backend.store, Histories)


def finds_gaps(backend: PersistenceBackend) -> bool:
    return keeps_histories(backend) and backend.capabilities.recovery


def mixed(actors: str, revisions: Iterable[int]) -> list[Record]:
    """Return steps of several actors' histories by turns, and records that are part of none."""
    return [
        record
        for revision in revisions
        for record in (*(a_step(actor, revision) for actor in actors), a_record(revision))
    ]


class OneActor:
    """Part of the conformance suite."""

    async def test_a_store_without_histories_refuses_revisions(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            if isinstance(backend.store, Histories):
                assert (await backend.append(a_step("a", 1))).first_seq == 1
                return
            with pytest.raises(HistoriesUnsupported):
                await backend.append(a_step("a", 1))
            with pytest.raises(HistoriesUnsupported):
                await backend.read_history("s/a")
            assert (await backend.append(an_event(1))).first_seq == 1

    @needs(keeps_histories)
    async def test_a_history_holds_the_events_of_one_actor_by_their_revisions(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            assert await history(backend, "a") == []
            records = mixed("abc", range(1, 8))
            await backend.append(*records)
            await backend.append(*mixed("a", range(8, 10)))
            await backend.append(an_event(0, actor_address="s/a"))
            assert await history(backend, "a") == list(range(1, 10))
            assert await history(backend, "c") == list(range(1, 8))
            assert await history(backend, "nobody") == []
            stored = [without_seq(event) for event in await events_of(backend, "b")]
            assert stored == [record for record in records if _is_of("b", record)]
            seqs = [event.seq or 0 for event in await events_of(backend, "a")]
            assert seqs == sorted(set(seqs))

    @needs(keeps_histories)
    async def test_a_history_is_read_page_by_page_from_any_revision(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*mixed("ab", range(1, 21)))
            for after in (0, 1, 7, 19, 20, 21, 10**9):
                for limit in (None, 1, 3, 20):
                    found = await history(backend, "a", after, limit)
                    assert found == list(range(after + 1, 21)), (after, limit)
            page = await backend.read_history("s/a", limit=0)
            assert (page.events, page.next_after, page.more) == ((), 0, True)
            page = await backend.read_history("s/a", after_revision=18, limit=2)
            assert (page.next_after, page.more) == (20, False)

    @needs(keeps_histories)
    async def test_a_revision_that_does_not_follow_is_refused(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(a_step("a", 1), a_step("b", 1), a_step("a", 2))
            for refused in (
                [a_step("a", 2)],
                [a_step("a", 4)],
                [a_step("c", 2)],
                [a_step("b", 2), a_step("a", 4)],
                [a_step("a", 3), a_step("a", 3)],
                [a_step("a", 3), a_step("a", 5)],
            ):
                with pytest.raises(RevisionConflict) as caught:
                    await backend.append(*refused)
                last = refused[-1]
                assert caught.value.actor == last.actor_address
                assert caught.value.found == last.revision
            assert caught.value.expected == 4
            assert len(await everything(backend)) == 3
            assert await history(backend, "a") == [1, 2]
            appended = await backend.append(a_step("a", 3), a_step("b", 2), a_step("a", 4))
            assert appended.first_seq == 4
            assert await history(backend, "a") == [1, 2, 3, 4]

    async def test_a_conflict_fails_those_that_follow_it_and_nobody_else(
        self, make_backend: MakeBackend
    ) -> None:
        async with hosted(make_backend()) as (backend, ref):
            if not isinstance(backend.store, Histories):
                return
            # Told in a row, they are one commit.
            for request in (
                Append(a_step("a", 1)),
                AppendMany((a_step("a", 2), a_step("b", 2))),  # b's does not follow
                Append(a_step("a", 3)),  # nor does this one, then
                Append(an_event(1)),
                Append(a_step("b", 1)),
                Append(a_step("a", 2)),
                Append(a_step("c", 1, payload=object())),  # it has no form
                Append(a_step("c", 2)),  # so this one does not follow
                Append(a_step("b", 2)),
            ):
                await ref.tell(request)
            await backend.flush()
            assert len(await everything(backend)) == 5
            assert await history(backend, "a") == [1, 2]
            assert await history(backend, "b") == [1, 2]
            assert await history(backend, "c") == []
            assert backend.metrics.write_errors == 4

    async def test_revisions_go_on_when_the_store_is_opened_again(
        self, make_backend: MakeBackend
    ) -> None:
        backend = make_backend()
        if not isinstance(backend.store, Histories):
            return
        for opening in range(3):
            async with backend:
                for actor in "ab":
                    found = await history(backend, actor)
                    assert found == list(range(1, 2 * opening + 1))
                    with pytest.raises(RevisionConflict):
                        await backend.append(a_step(actor, 2 * opening + 2))
                    first = 2 * opening + 1
                    await backend.append(a_step(actor, first))
                    await backend.append(a_step(actor, first + 1), a_record(first))
            if backend.capabilities.durable:
                backend = make_backend()

    async def test_versions_and_metadata_of_events_come_back(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            with pytest.raises(InvalidRecord):
                await backend.append(an_event(1, event_version=0))
            bad: list[Any] = [None, [], {"n": 1}, {1: "n"}, {"n": "x" * 20_000}, {"n": None}]
            for metadata in bad:
                with pytest.raises(InvalidRecord):
                    await backend.append(an_event(1, metadata=metadata))
            for revision in (0, -1, True, 1.0, "1"):
                with pytest.raises(InvalidRecord):
                    await backend.append(an_event(1, revision=revision))
            events = [
                an_event(1, event_version=7),
                an_event(2, metadata={"traceparent": "00-1-2-01", "é\n": ""}),
                an_event(3),
            ]
            if isinstance(backend.store, Histories):
                events.append(a_step("a", 1, event_version=2, metadata={"causation": "x"}))
            await backend.append(*events)
            assert [without_seq(event) for event in await backend.list_events()] == events

    @needs(keeps_histories)
    async def test_retention_hides_nothing_of_a_history(self, make_backend: MakeBackend) -> None:
        policy = RetentionPolicy(max_records=3)
        async with make_backend(retention_policy=policy) as backend:
            await backend.append(*(a_step("a", revision) for revision in range(1, 11)))
            await backend.append(*map(an_event, range(3)))
            assert [event.revision for event in await backend.list_events()] == [None] * 3
            assert await history(backend, "a") == list(range(1, 11))
            await backend.append(a_step("a", 11))

    @needs(keeps_histories)
    async def test_compaction_keeps_histories_whole(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.append(*mixed("ab", range(1, 31)))
            await backend.append(*(an_event(number) for number in range(40)))
            policy = RetentionPolicy(max_records=2)
            told = await backend.compact(policy, dry_run=True)
            report = await backend.compact(policy)
            assert (told.records_after, told.bytes_after) == (
                report.records_after,
                report.bytes_after,
            )
            assert (await backend.scan()).is_clean
        async with again(backend, make_backend) as backend:
            for actor in "ab":
                assert await history(backend, actor) == list(range(1, 31))
                assert await history(backend, actor, after=28) == [29, 30]
                with pytest.raises(RevisionConflict):
                    await backend.append(a_step(actor, 1))
                await backend.append(a_step(actor, 31))
            if backend.capabilities.compaction:
                assert report.records_after == 60 + 2 + 2 + 2
                left = [record for record in await everything(backend) if record.revision is None]
                assert len(left) == 6

    @needs(keeps_histories)
    async def test_a_compaction_says_how_many_events_it_keeps_for_histories(
        self, make_backend: MakeBackend
    ) -> None:
        now = T0 + 40
        async with make_backend(clock=lambda: now) as backend:
            await backend.append(*mixed("ab", range(1, 13)), *map(an_event, range(20, 29)))
            await backend.restore(
                *(a_step("c", revision, seq=90 + revision) for revision in range(30, 33))
            )
            for policy in (
                RetentionPolicy(max_records=2),
                RetentionPolicy(max_records=2, events=Limits(max_records=12)),
                RetentionPolicy(max_age_seconds=32),
                RetentionPolicy(max_age_seconds=5, events=Limits()),
                RetentionPolicy(max_total_bytes=1),
            ):
                model = ListModel(policy)
                model.append(*map(without_seq, await everything(backend)))
                stored = [record for record, _ in model.stored]
                hidden = _count_steps(stored) - _count_steps(model.visible("event", now))
                told = await backend.compact(policy, dry_run=True)
                assert await backend.compact(policy) == told
                kept = hidden if backend.capabilities.compaction else 0
                assert told.kept_for_histories == kept, policy

    @needs(keeps_histories)
    async def test_restored_events_bring_their_revisions(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            steps = [a_step("a", 4), a_step("b", 1), a_step("a", 5), a_step("a", 7)]
            await backend.restore(
                *(msgspec.structs.replace(step, seq=3 * n) for n, step in enumerate(steps, 1))
            )
            assert await history(backend, "a") == [4, 5, 7]
            assert await history(backend, "a", after=4) == [5, 7]
            with pytest.raises(RevisionConflict):
                await backend.append(a_step("a", 6))
            await backend.append(a_step("a", 8), a_step("b", 2))
            assert await history(backend, "a", after=5) == [7, 8]
            assert await history(backend, "b") == [1, 2]

    @needs(finds_gaps)
    async def test_a_scan_finds_what_is_missing_or_doubled_in_a_history(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            steps = [a_step(actor, revision) for revision in range(1, 4) for actor in "ab"]
            steps += [
                a_step("a", 5),
                a_step("b", 3),
                a_step("c", 4),
                a_step("a", 9),
                a_step("a", 10),
            ]
            steps += [a_step("d", 3, event_type="papyra.base"), a_step("d", 4), a_step("d", 6)]
            steps += [a_step("b", 8, event_type="papyra.base"), an_event(1)]
            await backend.restore(
                *(msgspec.structs.replace(step, seq=n) for n, step in enumerate(steps, 1))
            )
            found = (await backend.scan()).anomalies
            wrong = [(each.seq, each.kind, _revisions_in(each.detail)) for each in found]
            assert wrong == [
                (7, "history", [5, 4]),
                (8, "history", [3]),
                (9, "history", [4, 1, 3]),
                (10, "history", [9, 6, 8]),
                (14, "history", [6, 5]),
            ]
            recovered = (await backend.recover()).scan.anomalies
            assert [each.kind for each in recovered] == ["history"] * 5, "nothing can mend it"
            assert await history(backend, "a") == [1, 2, 3, 5, 9, 10]

    async def test_reads_of_one_actor_find_what_concerns_it(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            for number in range(60):
                record = a_record(number)
                if number % 20 == 0:
                    record = an_event(number, actor_address="s/rare")
                await backend.append(record)
                if number % 25 == 0:
                    page = await backend.read("event", actor="s/rare")
                    assert len(page.records) == number // 20 + 1
            for newest in (False, True):
                page = await backend.read("event", actor="s/rare", newest=newest)
                assert [record.seq for record in page.records] == [1, 21, 41]
                page = await backend.read(
                    "event", actor="s/rare", newest=newest, after=1, before=41
                )
                assert [record.seq for record in page.records] == [21]
            page = await backend.read("dead_letter", actor="s/rare")
            assert page.records == ()


def _count_steps(records: Iterable[Record]) -> int:
    return sum(record.revision is not None for record in records)


def _revisions_in(detail: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", detail)))


def _is_of(actor: str, record: Record) -> bool:
    return isinstance(record, PersistedEvent) and (
        record.actor_address == f"s/{actor}" and record.revision is not None
    )
