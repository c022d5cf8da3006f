"""The rules of the bases of histories: what may be removed of one, and what is left then."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from papyra.exceptions import RevisionConflict
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.store import Rebasing
from papyra.persistence.records import PersistedEvent
from papyra.persistence.reports import CompactionReport, HistoriesReport
from papyra.testing.conformance._fixtures import (
    T0,
    MakeBackend,
    again,
    an_event,
    everything,
    needs,
)
from papyra.testing.conformance._histories import a_step, events_of, history
from papyra.testing.conformance._snapshots import (
    BOOKS,
    a_history,
    keeps_snapshots,
    loaded,
    rewrite,
    save,
)

#: Hides every step of `a_history`, and lets the beginnings of histories be removed.
TRIM = RetentionPolicy(max_records=1, trim_histories=True)


def trims(backend: PersistenceBackend) -> bool:
    return keeps_snapshots(backend) and isinstance(backend.store, Rebasing)


async def trim(backend: PersistenceBackend, policy: RetentionPolicy = TRIM) -> HistoriesReport:
    """Compact, as a dry run has said, and return what became of the histories."""
    before = await everything(backend)
    told = await backend.compact(policy, dry_run=True)
    assert await everything(backend) == before, "a dry run changes nothing"
    report = await backend.compact(policy)
    assert report == told
    await check_counts(backend, report)
    assert report.histories is not None
    return report.histories


async def check_counts(backend: PersistenceBackend, report: CompactionReport) -> None:
    found = await backend.scan()
    wrong = [each for each in found.anomalies if each.kind != "snapshot"]
    assert not wrong, wrong
    summary = await backend.summarize()
    assert report.records_after == found.records_scanned == summary.total_records
    assert report.bytes_after == summary.total_bytes


async def bases_of(backend: PersistenceBackend, actor: str) -> list[tuple[int | None, Any]]:
    """Return the revisions and payloads of the bases in a history."""
    events = await events_of(backend, actor)
    return [(each.revision, each.payload) for each in events if each.event_type == "papyra.base"]


class Trimming:
    """Part of the conformance suite."""

    async def test_a_store_that_trims_no_histories_says_so(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            assert (await backend.compact(RetentionPolicy(max_records=1))).histories is None
            report = await backend.compact(TRIM)
            assert report.histories == HistoriesReport(trims(backend))

    @needs(trims)
    async def test_histories_are_kept_whole_unless_trimming_is_opted_in(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 5)
            await save(backend, 8)
            report = await backend.compact(RetentionPolicy(max_records=1))
            assert report.histories is None
            assert await history(backend, "a") == list(range(1, 10))

    @needs(trims)
    async def test_a_trimmed_history_begins_with_its_base(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 5, version=3, shape="o", timestamp=T0 + 99, bookkeeping=BOOKS)
            await save(backend, 8, version=3)
            before = await events_of(backend, "a")
            others = await events_of(backend, "b")
            histories = await trim(backend)
            assert histories == HistoriesReport(True, 1, 4, without_snapshots=1)
        async with again(backend, make_backend) as backend:
            base, *rest = await events_of(backend, "a")
            assert rest == before[5:], "what follows is as it was"
            assert await events_of(backend, "b") == others, "and so is who has no snapshots"
            stands_in_for = before[4]
            assert base == msgspec.structs.replace(
                stands_in_for, event_type="papyra.base", payload=base.payload
            )
            assert base.payload.pop("checksum")
            assert base.payload == {
                "state": 5,
                "version": 3,
                "shape": "o",
                "timestamp": T0 + 99,
                "bookkeeping": msgspec.json.decode(BOOKS),
            }
            assert await history(backend, "a", after=7) == [8, 9]
            assert await history(backend, "a", limit=2) == [5, 6, 7, 8, 9]
            assert (await trim(backend)).trimmed == 0, "once is enough"

    @needs(trims)
    async def test_a_trimmed_history_goes_on(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            for revision in (8, 9):
                await save(backend, revision)
            await trim(backend)
            with pytest.raises(RevisionConflict):
                await backend.append(a_step("a", 2))
            await backend.append(a_step("a", 10), a_step("b", 10), an_event(1))
        async with again(backend, make_backend) as backend:
            assert await history(backend, "a") == [8, 9, 10]
            with pytest.raises(RevisionConflict):
                await backend.append(a_step("a", 12))
            await backend.append(a_step("a", 11))
            assert (await backend.scan()).is_clean

    @needs(trims)
    async def test_a_history_with_one_good_snapshot_is_kept_whole(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            store = await a_history(backend)
            assert await trim(backend) == HistoriesReport(True, without_snapshots=2)
            await save(backend, 8)
            assert await trim(backend) == HistoriesReport(True, without_snapshots=2)
            whole = await store.load_snapshot("s/a", 8) or b""
            bad: list[dict[str, Any]] = [
                {"actor": "s/b"},
                {"revision": 3},
                {"version": 2},
                {"store_id": "0" * 32},
                {"seq": 1},
                {"checksum": "0" * 32},
            ]
            for changes in bad:
                await save(backend, 5)
                await rewrite(backend, 5, **changes)
                assert await trim(backend) == HistoriesReport(True, without_snapshots=2), changes
            for data in (b"", whole, whole[:-2], whole[:50] + b"?" + whole[51:]):
                await store.save_snapshot("s/a", 5, data)
                assert await trim(backend) == HistoriesReport(True, without_snapshots=2), data
            assert await history(backend, "a") == list(range(1, 10))

    @needs(trims)
    async def test_the_newest_version_of_snapshots_decides_on_the_base(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            for revision, version in ((2, 1), (4, 1), (6, 2), (8, 2)):
                await save(backend, revision, version=version, keep=9)
            await trim(backend)
            (found,) = await bases_of(backend, "a")
            assert (found[0], found[1]["version"]) == (6, 2)

    @needs(trims)
    async def test_no_snapshot_is_left_of_what_a_base_stands_for(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            for revision in (2, 4, 6, 8):
                await save(backend, revision, version=1 + revision // 6, keep=9)
            await trim(backend)
            assert (await backend.scan()).is_clean
            assert await loaded(backend, version=2) == ([8, 6], 0)

    @needs(trims)
    async def test_what_retention_shows_of_a_history_is_not_summed_up(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend(clock=lambda: T0 + 20) as backend:
            await a_history(backend)
            for actor, first in (("s/a", 3), ("s/b", 6)):
                await save(backend, first, actor)
                await save(backend, 8, actor)
            # Of the times, 5 and what follows are shown.
            policy = RetentionPolicy(max_age_seconds=15, trim_histories=True)
            assert await trim(backend, policy) == HistoriesReport(True, 1, 2, still_shown=1)
            assert await history(backend, "a") == list(range(3, 10))
            assert await history(backend, "b") == list(range(1, 10))

    @needs(trims)
    async def test_a_newer_base_takes_the_place_of_an_older_one(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            for revision in (3, 5, 7, 9):
                await save(backend, revision)
                await trim(backend)
            assert await history(backend, "a") == [7, 8, 9]
            (found,) = await bases_of(backend, "a")
            assert (found[0], found[1]["state"]) == (7, 7)

    @needs(trims)
    async def test_snapshots_from_the_base_on_stay_good(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            for revision in (5, 7, 9):
                await save(backend, revision, keep=3)
            await trim(backend)
            assert await loaded(backend) == ([9, 7, 5], 0)
            await save(backend, 5, keep=3)
            assert await loaded(backend) == ([9, 7, 5], 0)

    @needs(trims)
    async def test_what_was_left_before_a_base_goes_with_the_next_trimming(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 5)
            await save(backend, 8)
            events = await events_of(backend, "a")
            await trim(backend)
            base, *rest = await events_of(backend, "a")
            # As an interruption leaves it.
            left = [each for each in events if (each.revision or 0) < 4]
            await restored_anew(backend, [*left, base, *rest], actor="s/c")
            assert await history(backend, "c") == [1, 2, 3, *range(5, 10)]
            assert (await backend.scan()).is_clean
            await save(backend, 5, "s/c")
            await save(backend, 8, "s/c")
            assert (await trim(backend)).events_removed == 3
            assert await history(backend, "c") == [5, 6, 7, 8, 9]

    @needs(trims)
    async def test_a_restored_base_is_part_of_its_history(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 5)
            await save(backend, 8)
            await trim(backend)
            events = await events_of(backend, "a")
            copies = await restored_anew(backend, events, actor="s/c")
            assert await events_of(backend, "c") == copies
            assert (await backend.scan()).is_clean
            await backend.append(a_step("c", 10))


async def restored_anew(
    backend: PersistenceBackend, events: list[PersistedEvent], actor: str
) -> list[PersistedEvent]:
    """Restore `events` behind all that is stored, as the history of `actor`; return them."""
    first = (await backend.flush()).last_seq + 1
    copies = [
        msgspec.structs.replace(event, actor_address=actor, seq=seq)
        for seq, event in enumerate(events, first)
    ]
    await backend.restore(*copies)
    return copies
