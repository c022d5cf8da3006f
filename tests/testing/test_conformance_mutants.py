"""A backend for each rule of the conformance suite that breaks it: the rule can fail.

That is, on asyncio; in CI on all event loops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import uuid
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from unittest import mock

import msgspec
import pytest
from anyio.lowlevel import checkpoint
from msgspec import structs

from papyra.exceptions import (
    BackendInUse,
    HistoriesUnsupported,
    PersistenceError,
    RecordTooLarge,
    RevisionConflict,
    SnapshotsUnsupported,
    StoreError,
    UnencodablePayload,
)
from papyra.persistence import (
    AllPage,
    AppendMany,
    Compact,
    CompactionReport,
    EventSkipped,
    HistoryPage,
    Page,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    Read,
    ReadAll,
    ReadHistory,
    Record,
    Restore,
    StoreSummary,
    Summarize,
    codec,
)
from papyra.persistence.backends import group_commit, history_check, inbox, rebasing, snapshots
from papyra.persistence.backends.base import Host, PersistenceBackend
from papyra.persistence.backends.revisions import Revisions
from papyra.persistence.backends.store import MAX_SEQ, Batch, NewBase, StoredSnapshot
from papyra.persistence.backends.summary import summarize
from papyra.persistence.inbox import MAX_POSTED_BYTES
from papyra.persistence.messages import Appended, PositionSaved, SavePosition
from papyra.persistence.positions import MAX_POSITION_BYTES
from papyra.persistence.records import KINDS, Kind, PersistedEvent, kind_of
from papyra.persistence.reports import AnomalyKind, ReportProgress
from papyra.persistence.retention import Limits, RetentionPolicy
from papyra.persistence.snapshots import InvalidSnapshot, Snapshot, decode_snapshot
from papyra.testing.conformance import PersistenceConformance, _following
from tests.conftest import event_loops
from tests.extent import some
from tests.testing.shelf import Disk, Shelf, ShelfStore, ruin

anyio_backend = event_loops("asyncio")

MutantT = TypeVar("MutantT", bound=type[Shelf] | type[ShelfStore])

#: Each mutant, and the name of the rule that has to catch it. Some are broken stores; others are
#: broken facades, as the suite is what holds those, too.
MUTANTS: list[tuple[type[Shelf], str]] = []


def breaks(rule: str) -> Callable[[MutantT], MutantT]:
    def add(mutant: MutantT) -> MutantT:
        MUTANTS.append((mutant if issubclass(mutant, Shelf) else on(mutant), rule))
        return mutant

    return add


def on(store_type: type[ShelfStore]) -> type[Shelf]:
    """Return a sound backend on a broken store."""
    return type(store_type.__name__, (Shelf,), {"store_type": store_type})


# Numbers


@breaks("test_positions_count_one_two_three_across_kinds")
class CountsEachKindByItself(ShelfStore):
    async def append(self, batch: Batch) -> None:
        for record, line in zip(batch.records, batch.encoded, strict=True):
            kind = kind_of(record)
            seq = 1 + sum(kind_of(codec.decode(old, 1)) == kind for _, old in self.disk.lines)
            self.disk.lines.append((seq, line))
        self.disk.last_seq += len(batch.encoded)


@breaks("test_an_append_says_where_its_records_are")
class StoresABatchBackwards(ShelfStore):
    async def append(self, batch: Batch) -> None:
        await super().append(Batch(batch.first_seq, batch.records[::-1], batch.encoded[::-1]))


@breaks("test_an_append_of_nothing_stores_nothing")
class StoresNothingAsSomething(Shelf):
    async def commit(self, requests: Any) -> Any:
        committed = await super().commit(requests)
        self._session.last_seq += any(request == AppendMany(()) for request in requests)
        return committed


@breaks("test_an_append_that_fails_uses_no_positions")
class SkipsAPositionForEachFailure(Shelf):
    async def _handle(self, request: Any) -> object:
        try:
            return await super()._handle(request)
        except PersistenceError:
            self._session.last_seq += 1
            raise


# Appending


@breaks("test_a_batch_is_stored_whole_or_not_at_all")
class StoresWhatIsGoodOfABatch(Shelf):
    async def commit(self, requests: Any) -> Any:
        for request in requests:
            for record in getattr(request, "records", ()):
                with contextlib.suppress(PersistenceError):
                    await self._session.write([record], codec.encode([record]), 0)
        return await super().commit(requests)


@breaks("test_a_bad_record_fails_its_own_caller_only")
class FailsEverybodyForOneBadRecord(Shelf):
    async def commit(self, requests: Any) -> Any:
        replies, errors = await super().commit(requests)
        return ([errors[0]] * len(requests), errors) if errors else (replies, errors)


@breaks("test_a_bad_record_fails_its_own_caller_only")
class CountsNoBadRecords(Shelf):
    async def commit(self, requests: Any) -> Any:
        committed = await super().commit(requests)
        self.metrics.write_errors = 0
        return committed


@breaks("test_a_record_that_is_too_large_fails_its_own_caller_only")
class FailsEverybodyForOneLargeRecord(Shelf):
    async def commit(self, requests: Any) -> Any:
        replies, errors = await super().commit(requests)
        large = [error for error in errors if isinstance(error, RecordTooLarge)]
        return (large[:1] * len(requests), large) if large else (replies, errors)


@breaks("test_a_record_that_is_too_large_fails_its_own_caller_only")
class StoresWhatIsTooLargeAsNothing(Shelf):
    async def commit(self, requests: Any) -> Any:
        replies, errors = await super().commit(requests)
        is_large = [isinstance(reply, RecordTooLarge) for reply in replies]
        kept = [
            Appended(0, 0) if large else reply
            for large, reply in zip(is_large, replies, strict=True)
        ]
        return (kept, ()) if any(is_large) else (replies, errors)


@breaks("test_a_run_of_appends_keeps_the_order_of_the_mailbox")
class SortsARunByKind(ShelfStore):
    async def append(self, batch: Batch) -> None:
        pairs = sorted(
            zip(batch.records, batch.encoded, strict=True), key=lambda pair: kind_of(pair[0])
        )
        await super().append(Batch(batch.first_seq, (), [line for _, line in pairs]))


@breaks("test_a_large_batch_is_stored_whole")
class CutsLargeBatches(ShelfStore):
    async def append(self, batch: Batch) -> None:
        await super().append(Batch(batch.first_seq, batch.records, batch.encoded[:10_000]))


@breaks("test_what_json_has_no_form_for_is_refused_with_its_path")
class StoresAReprInstead(Shelf):
    async def append(self, *records: Any) -> Any:
        try:
            return await super().append(*records)
        except PersistenceError:
            fixed = [msgspec.structs.replace(r, payload=repr(r.payload)) for r in records]
            return await super().append(*fixed)


@breaks("test_what_would_not_come_back_is_refused_with_its_path")
class TakesTheEncoderAtItsWord(Shelf):
    async def append(self, *records: Any) -> Any:
        try:
            return await super().append(*records)
        except UnencodablePayload:
            lines = [msgspec.json.encode(record) for record in records]
            return await self._session.write(records, lines, sum(map(len, lines)))


@breaks("test_what_is_nested_as_deeply_as_may_be_is_read_again")
class ReadsNothingDeep(ShelfStore):
    def _decoded(self, seq: int, line: bytes) -> Record | None:
        return None if line.count(b"[") > 40 else super()._decoded(seq, line)


@breaks("test_a_time_may_be_a_whole_number")
class HasAColumnForTimes(ShelfStore):
    async def append(self, batch: Batch) -> None:
        for record in batch.records:
            array("q" if isinstance(record.timestamp, int) else "d", [record.timestamp])
        await super().append(batch)


@breaks("test_a_record_of_wrong_types_is_refused")
class TakesAnything(Shelf):
    async def append(self, *records: Any) -> Any:
        with contextlib.suppress(PersistenceError):
            return await super().append(*records)


# What is read back


@breaks("test_records_come_back_as_they_were_written")
class ShortensLongPayloads(ShelfStore):
    def _decoded(self, seq: int, line: bytes) -> Record | None:
        record = super()._decoded(seq, line)
        if record is not None and isinstance(record.payload, list):
            return msgspec.structs.replace(record, payload=record.payload[:100])
        return record


@breaks("test_records_come_back_as_they_were_written")
class ForgetsWhoWaitedForAReply(ShelfStore):
    def _decoded(self, seq: int, line: bytes) -> Record | None:
        return super()._decoded(
            seq, line.replace(b'"expects_reply":true', b'"expects_reply":false')
        )


@breaks("test_records_come_back_as_they_were_written")
class KeepsWholeSeconds(ShelfStore):
    def _decoded(self, seq: int, line: bytes) -> Record | None:
        record = super()._decoded(seq, line)
        return record and msgspec.structs.replace(record, timestamp=float(int(record.timestamp)))


@breaks("test_structs_and_dataclasses_come_back_as_plain_data")
class ReturnsWhatWasGiven(ShelfStore):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: dict[int, Record] = {}

    async def append(self, batch: Batch) -> None:
        await super().append(batch)
        for seq, record in enumerate(batch.records, batch.first_seq):
            self.given[seq] = msgspec.structs.replace(record, seq=seq)

    def _decoded(self, seq: int, line: bytes) -> Record | None:
        return self.given.get(seq)


@breaks("test_each_kind_is_read_by_itself")
class TakesDeadLettersForAudits(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        return super()._visible("dead_letter" if kind == "audit" else kind, policy, now)


breaks("test_a_stored_record_does_not_change_with_what_it_was_made_of")(ReturnsWhatWasGiven)


@breaks("test_a_stored_record_does_not_change_with_what_was_read")
class CachesWhatItRead(ShelfStore):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cache: dict[int, Record | None] = {}

    def _decoded(self, seq: int, line: bytes) -> Record | None:
        if seq not in self.cache:
            self.cache[seq] = super()._decoded(seq, line)
        return self.cache[seq]


# Reading


def reads_without(**changes: Any) -> type[ShelfStore]:
    class Ignores(ShelfStore):
        async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
            return await super().read(msgspec.structs.replace(request, **changes), policy, now)

    Ignores.__name__ = f"Ignores{''.join(changes).title()}"
    return Ignores


for ignored in ("since", "until", "limit", "event_type", "actor"):
    breaks("test_reads_obey_every_argument_and_their_combinations")(
        reads_without(**{ignored: None})
    )
breaks("test_reads_obey_every_argument_and_their_combinations")(reads_without(newest=False))


@breaks("test_reads_obey_every_argument_and_their_combinations")
class IncludesAfter(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        after = max(0, request.after - 1)
        return await super().read(msgspec.structs.replace(request, after=after), policy, now)


@breaks("test_reads_obey_every_argument_and_their_combinations")
class IncludesBefore(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        before = None if request.before is None else request.before + 1
        return await super().read(msgspec.structs.replace(request, before=before), policy, now)


@breaks("test_reads_obey_every_argument_and_their_combinations")
class SortsByTime(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        page = await super().read(request, policy, now)
        records = tuple(sorted(page.records, key=lambda record: record.timestamp))
        return msgspec.structs.replace(page, records=records)


@breaks("test_reads_obey_every_argument_and_their_combinations")
class ReturnsTheNewestFirst(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        page = await super().read(request, policy, now)
        return msgspec.structs.replace(page, records=page.records[::-1]) if request.newest else page


@breaks("test_reads_obey_every_argument_and_their_combinations")
class LimitsBeforeItFilters(ShelfStore):
    def _candidates(
        self, request: Read, policy: RetentionPolicy, now: float
    ) -> Iterator[tuple[Record, int]]:
        found = list(super()._candidates(request, policy, now))
        return iter(found if request.limit is None else found[: request.limit])


@breaks("test_since_and_until_include_their_own_moment")
class LeavesOutTheMomentItself(ShelfStore):
    def _candidates(
        self, request: Read, policy: RetentionPolicy, now: float
    ) -> Iterator[tuple[Record, int]]:
        for record, length in super()._candidates(request, policy, now):
            if record.timestamp not in (request.since, request.until):
                yield record, length


class Unbounded(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        found = [record for record, _ in self._candidates(request, policy, now)]
        seqs = [record.seq or 0 for record in found]
        return Page(tuple(found), max(seqs, default=0), False, min(seqs, default=0))


breaks("test_a_page_is_bounded_in_records")(Unbounded)
breaks("test_a_page_is_bounded_in_bytes")(Unbounded)


@breaks("test_a_page_says_whether_there_is_more")
class NeverHasMore(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        return msgspec.structs.replace(await super().read(request, policy, now), more=False)


@breaks("test_a_page_says_whether_there_is_more")
class AlwaysHasMore(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        page = await super().read(request, policy, now)
        return msgspec.structs.replace(page, more=bool(page.records))


@breaks("test_lists_keep_the_newest")
class ListsTheOldest(Shelf):
    async def _list(self, kind: Kind, limit: int | None, since: float | None) -> list[Record]:
        found = await super()._list(kind, None, since)
        return found if limit is None else found[:limit]


@breaks("test_a_stream_walks_all_pages_and_what_is_appended_meanwhile")
class StreamsOnePage(Shelf):
    async def stream(self, kind: Kind, **arguments: Any) -> Any:
        for record in (await self.read(kind, **arguments)).records:
            yield record


@breaks("test_what_was_acknowledged_is_read")
class ReadsAreOneAppendBehind(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        return [
            pair
            for pair in super()._visible(kind, policy, now)
            if pair[0].seq != self.disk.last_seq
        ]


@breaks("test_numbers_may_be_greater_than_any_column_of_a_store")
class CountsIn32Bits(ShelfStore):
    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        array("i", [request.after, request.before or 0])
        return await super().read(request, policy, now)


@breaks("test_a_read_that_makes_no_sense_is_refused")
class ReadsNothingIfInDoubt(Shelf):
    async def read(self, kind: Kind, **arguments: Any) -> Page:
        try:
            return await super().read(kind, **arguments)
        except PersistenceError:
            return Page((), 0, False, 0)


# Retention and compaction


@breaks("test_retention_hides_the_oldest_of_each_kind")
class RetainsAllKindsTogether(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        newest = self.disk.last_seq - (policy.max_records or 10**9)
        return [pair for pair in super()._visible(kind, policy, now) if (pair[0].seq or 0) > newest]


@breaks("test_retention_hides_what_gets_too_old")
class JudgesAgeWhenItOpens(ShelfStore):
    opened_at: float | None = None

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        self.opened_at = now if self.opened_at is None else self.opened_at
        return await super().read(request, policy, self.opened_at)


@breaks("test_retention_counts_encoded_bytes")
class CountsOneByteLess(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        budget = policy.max_total_bytes or 10**9
        shown: list[tuple[Record, int]] = []
        for record, length in reversed(super()._visible(kind, policy, now)):
            budget -= length + 1
            if budget < 0:
                break
            shown.insert(0, (record, length))
        return shown


@breaks("test_retention_counts_encoded_bytes")
class CountsCharacters(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        budget = policy.max_total_bytes or 10**9
        shown: list[tuple[Record, int]] = []
        for record, length in reversed(super()._visible(kind, RetentionPolicy(), now)):
            (line,) = codec.encode([record])
            budget -= len(line.decode())
            if budget < 0:
                break
            shown.insert(0, (record, length))
        return shown


@breaks("test_retention_and_reads_combine")
class RetainsOnlyWhatItReadsFromTheStart(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        everything = super()._visible(kind, RetentionPolicy(), now)
        return super()._visible(kind, policy, now) if len(everything) < 9 else everything


class KnowsGeneralLimitsAlone(ShelfStore):
    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        general = RetentionPolicy(
            max_records=policy.max_records,
            max_age_seconds=policy.max_age_seconds,
            max_total_bytes=policy.max_total_bytes,
        )
        return super()._visible(kind, general, now)


breaks("test_each_kind_may_have_limits_of_its_own")(KnowsGeneralLimitsAlone)
breaks("test_a_compaction_goes_by_the_limits_of_each_kind")(KnowsGeneralLimitsAlone)


def limits_all_as(own: Kind) -> type[ShelfStore]:
    class LimitsAllAsOne(ShelfStore):
        async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
            limits = RetentionPolicy(**structs.asdict(policy.of(own)))
            return await super().read(request, limits, now)

    LimitsAllAsOne.__name__ = f"LimitsAllAs{own.title()}"
    return LimitsAllAsOne


for one_kind in KINDS:
    breaks("test_each_kind_may_have_limits_of_its_own")(limits_all_as(one_kind))


@breaks("test_each_kind_may_have_limits_of_its_own")
class AddsGeneralLimitsToThoseOfAKind(Shelf):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        policy = self.retention
        self._retention = structs.replace(
            policy,
            events=self.with_general(policy.events or Limits()),
            audits=self.with_general(policy.audits or Limits()),
            dead_letters=self.with_general(policy.dead_letters or Limits()),
        )

    def with_general(self, own: Limits) -> Limits:
        return Limits(
            max_records=own.max_records or self.retention.max_records,
            max_age_seconds=own.max_age_seconds or self.retention.max_age_seconds,
            max_total_bytes=own.max_total_bytes or self.retention.max_total_bytes,
        )


@breaks("test_a_compaction_goes_by_the_limits_of_each_kind")
class CompactsAllKindsAsEvents(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        limits = RetentionPolicy(**structs.asdict(policy.of("event")))
        return await super().compact(limits, now, dry_run=dry_run)


@breaks("test_a_compaction_goes_by_the_limits_of_each_kind")
@breaks("test_a_dry_run_says_what_a_compaction_does")
class ForeseesGeneralLimitsAlone(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        knows = KnowsGeneralLimitsAlone(self.disk) if dry_run else ShelfStore(self.disk)
        return await knows.compact(policy, now, dry_run=dry_run)


@breaks("test_compaction_keeps_what_reads_show")
class CompactsOneTooMany(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        report = await super().compact(policy, now, dry_run=dry_run)
        self.disk.lines.pop(0)
        return report


@breaks("test_compaction_keeps_what_reads_show")
class SaysThatItCompacted(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        lines = list(self.disk.lines)
        report = await super().compact(policy, now, dry_run=dry_run)
        self.disk.lines = lines
        return report


def reports(**changes: Any) -> type[ShelfStore]:
    """Return a store whose compaction reports something else."""

    class ReportsOtherwise(ShelfStore):
        async def compact(
            self, policy: RetentionPolicy, now: float, *, dry_run: bool
        ) -> CompactionReport:
            report = await super().compact(policy, now, dry_run=dry_run)
            made = {name: make(report, dry_run) for name, make in changes.items()}
            return structs.replace(report, **made)

    return ReportsOtherwise


SAYS_WHAT_IS_LEFT = breaks("test_a_compaction_says_what_is_left_of_each_kind")
SAYS_WHAT_IS_KEPT = breaks("test_a_compaction_says_how_many_events_it_keeps_for_histories")


def of_other_kinds(report: CompactionReport, _: bool) -> Any:
    return dict(zip(KINDS[::-1], report.kinds.values(), strict=True))


def without_bytes(report: CompactionReport, _: bool) -> Any:
    return {kind: structs.replace(each, bytes_after=0) for kind, each in report.kinds.items()}


SAYS_WHAT_IS_LEFT(reports(kinds=lambda *_: {}))
SAYS_WHAT_IS_LEFT(reports(kinds=lambda report, dry_run: {} if dry_run else report.kinds))
SAYS_WHAT_IS_LEFT(reports(kinds=of_other_kinds))
SAYS_WHAT_IS_LEFT(reports(kinds=without_bytes))
SAYS_WHAT_IS_LEFT(reports(kept_for_histories=lambda report, _: report.records_after))
SAYS_WHAT_IS_KEPT(reports(kept_for_histories=lambda *_: 0))
SAYS_WHAT_IS_KEPT(
    reports(kept_for_histories=lambda report, dry_run: report.kept_for_histories * (not dry_run))
)


@breaks("test_a_compaction_says_how_many_events_it_keeps_for_histories")
class CountsWholeHistoriesAsKept(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        report = await super().compact(policy, now, dry_run=dry_run)
        return structs.replace(report, kept_for_histories=len(list(self._steps())))


@breaks("test_positions_are_not_given_again_after_compaction")
class CountsWhatIsLeft(ShelfStore):
    async def last_seq(self) -> int:
        return max((seq for seq, _ in self.disk.lines), default=0)


# Scan and recovery


@breaks("test_a_scan_of_a_sound_store_is_clean_and_changes_nothing")
class ScansItsLastPageOnly(ShelfStore):
    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        report = await super().scan(report_progress)
        return msgspec.structs.replace(report, records_scanned=min(10, report.records_scanned))


@breaks("test_recovery_of_a_sound_store_removes_nothing")
class RecoversByStartingOver(ShelfStore):
    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        self.disk.lines.clear()
        return await super().recover(config)


@breaks("test_a_scan_finds_damage_and_changes_nothing")
class SeesNoDamage(ShelfStore):
    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        return msgspec.structs.replace(await super().scan(report_progress), anomalies=())


@breaks("test_a_scan_finds_damage_and_changes_nothing")
class MendsWhenItScans(ShelfStore):
    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        report = await super().scan(report_progress)
        self.disk.lines = [pair for pair in self.disk.lines if self._decoded(*pair)]
        return report


@breaks("test_recovery_keeps_every_record_that_can_be_read")
class DropsWhatFollowsTheDamage(ShelfStore):
    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        bad = [seq for seq, line in self.disk.lines if not self._decoded(seq, line)]
        self.disk.lines = [pair for pair in self.disk.lines if not bad or pair[0] <= bad[0]]
        return await super().recover(config)


@breaks("test_recovery_keeps_every_record_that_can_be_read")
class NumbersAnewWhenItRecovers(ShelfStore):
    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        report = await super().recover(config)
        self.disk.lines = [(n, line) for n, (_, line) in enumerate(self.disk.lines, 1)]
        return report


@breaks("test_what_can_not_be_read_is_passed_over")
class EndsWhereItCanNotRead(ShelfStore):
    def _candidates(
        self, request: Read, policy: RetentionPolicy, now: float
    ) -> Iterator[tuple[Record, int]]:
        for seq, line in self.disk.lines:
            codec.decode(line, seq)
        return super()._candidates(request, policy, now)


@breaks("test_a_quarantine_says_where_the_originals_are")
class KeepsNoQuarantine(ShelfStore):
    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        return await super().recover(PersistenceRecoveryConfig())


@breaks("test_recovery_keeps_what_a_newer_version_has_written")
class KnowsNoKindButItsOwn(ShelfStore):
    def _faults(self) -> Iterator[tuple[int, AnomalyKind]]:
        return ((seq, "corrupt") for seq, _ in super()._faults())


@breaks("test_a_report_names_its_store")
class CallsItselfSomethingElse(ShelfStore):
    name = "cupboard"


# Opening, closing, sharing


@breaks("test_a_store_that_is_opened_again_goes_on_where_it_was")
class StartsAgainAtOne(ShelfStore):
    async def last_seq(self) -> int:
        return 0


@breaks("test_a_store_that_is_opened_again_goes_on_where_it_was")
class LosesTheLastRecordWhenItCloses(ShelfStore):
    async def close(self) -> None:
        self.disk.lines.pop()


@breaks("test_a_closed_backend_says_so")
class OpensAgainWhenAsked(Shelf):
    async def _handle(self, request: Any) -> object:
        self._session.reopen()
        return await super()._handle(request)


@breaks("test_a_closed_backend_says_so")
class CanNotBeClosedTwice(Shelf):
    async def aclose(self) -> None:
        if self.is_closed:
            raise ValueError("closed already")
        await super().aclose()


@breaks("test_one_actor_at_a_time_hosts_a_backend")
class TakesAnyHost(Shelf):
    def attach(self, host: Host) -> None:
        self._host = None
        super().attach(host)


@breaks("test_two_tasks_without_a_host_never_meet_in_the_store")
class LetsTasksMeet(Shelf):
    class store_type(ShelfStore):
        async def _write_line(self, seq: int, line: bytes) -> None:
            await checkpoint()
            await super()._write_line(seq, line)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        yield


@breaks("test_two_writers_never_get_the_same_position")
class WritesWhereSomebodyElseDid(ShelfStore):
    def _check_writer(self, batch: Batch) -> None:
        pass


@breaks("test_many_tasks_share_a_hosted_backend")
class AcknowledgesTheWrongPositions(Shelf):
    async def commit(self, requests: Any) -> Any:
        replies, errors = await super().commit(requests)
        return list(replies)[::-1], errors


@breaks("test_a_flush_says_up_to_where")
class FlushesOneLess(Shelf):
    async def flush(self) -> Any:
        flushed = await super().flush()
        return msgspec.structs.replace(flushed, last_seq=max(0, flushed.last_seq - 1))


# Metrics


@breaks("test_metrics_count_what_was_done")
class CountsBytesOfPayloads(Shelf):
    def publish(self, batch: Batch) -> None:
        super().publish(batch)
        self.metrics.bytes_written -= 1


@breaks("test_metrics_count_what_was_done")
class CountsTwice(Shelf):
    def publish(self, batch: Batch) -> None:
        super().publish(batch)
        self.metrics.records_written += len(batch.records)


@breaks("test_subscribers_see_each_batch_when_it_is_stored")
class TellsNobody(Shelf):
    def publish(self, batch: Batch) -> None:
        pass


# Subscriptions


class Follows(Shelf):
    """A backend that changes what those who follow are shown of the store."""

    def changed(self, page: AllPage, request: ReadAll) -> AllPage:
        return page

    async def _read_all(self, request: ReadAll) -> AllPage:
        return self.changed(await super()._read_all(request), request)


@breaks("test_a_subscription_gives_out_what_is_stored_once_and_in_order")
class TellsOfOneBatchLess(Shelf):
    def publish(self, batch: Batch) -> None:
        if batch.first_seq > 10:
            batch = Batch(batch.first_seq - 1, batch.records, batch.encoded)
        super().publish(batch)


@breaks("test_a_subscription_gives_out_what_is_stored_once_and_in_order")
class ShowsAPageBackwards(Follows):
    def changed(self, page: AllPage, request: ReadAll) -> AllPage:
        return structs.replace(page, records=page.records[::-1])


@breaks("test_a_subscription_says_when_it_has_caught_up")
class HasNotBegunAtNothing(Follows):
    def changed(self, page: AllPage, request: ReadAll) -> AllPage:
        return page if page.head else AllPage((), 1, 1)


@breaks("test_a_subscription_moves_on_over_what_it_does_not_select")
class StaysWhereTheLastOneWas(Follows):
    def changed(self, page: AllPage, request: ReadAll) -> AllPage:
        return page if page.records else AllPage((), request.after, request.after)


@breaks("test_a_subscription_moves_on_over_what_it_does_not_select")
class SelectsNothing(Shelf):
    def subscribe(self, **options: Any) -> Any:
        return super().subscribe(after=options.get("after", 0))


@breaks("test_a_subscription_gives_out_what_retention_hides")
class FollowsWhatRetentionShows(Follows):
    def changed(self, page: AllPage, request: ReadAll) -> AllPage:
        limit = self.retention.max_records
        return page if limit is None else structs.replace(page, records=page.records[-limit:])


@breaks("test_a_subscription_goes_on_after_a_compaction")
class BeginsAnewAfterACompaction(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        report = await super().compact(policy, now, dry_run=dry_run)
        self.disk.lines = [(seq - 1, line) for seq, line in self.disk.lines]
        return report


@breaks("test_a_subscription_goes_on_after_a_compaction")
class RemembersWhatWasCompacted(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        with mock.patch.object(self.commits, "overtaken"):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_a_subscription_after_the_end_of_the_store_is_refused")
class FollowsWhatIsNotThere(Shelf):
    async def _read_all(self, request: ReadAll) -> AllPage:
        if request.after > self.last_seq:
            return AllPage((), request.after, request.after)
        return await super()._read_all(request)


@breaks("test_a_reader_follows_beside_the_writer")
class KeepsReadersOut(Shelf):
    def reader(self, **options: Any) -> PersistenceBackend:
        raise BackendInUse("somebody writes it", owner="somebody")


@breaks("test_a_reader_follows_beside_the_writer")
class ShowsAReaderOneLess(Follows):
    def changed(self, page: AllPage, request: ReadAll) -> AllPage:
        return page if self.is_writer else structs.replace(page, records=page.records[1:])


@breaks("test_a_subscription_loses_nothing_when_it_is_cancelled")
class ShowsEachPageOnce(Shelf):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shown = 0

    async def _read_all(self, request: ReadAll) -> AllPage:
        page = await super()._read_all(request)
        records = [record for record in page.records if (record.seq or 0) > self.shown]
        self.shown = max(self.shown, page.next_after)
        await checkpoint()
        return structs.replace(page, records=tuple(records))


# Cancellation


@breaks("test_an_append_cancelled_at_any_await_is_whole_or_nothing")
class CanBeCancelledInTheMiddle(ShelfStore):
    async def append(self, batch: Batch) -> None:
        for seq, line in enumerate(batch.encoded, batch.first_seq):
            await checkpoint()
            self.disk.lines.append((seq, line))
        self.disk.last_seq += len(batch.encoded)


@breaks("test_an_append_cancelled_at_any_await_is_whole_or_nothing")
class LosesCountWhenCancelled(ShelfStore):
    acknowledged = 0

    async def append(self, batch: Batch) -> None:
        await super().append(batch)
        await checkpoint()
        self.acknowledged = batch.first_seq + len(batch.encoded) - 1

    async def claim(self) -> int:
        return self.acknowledged


@breaks("test_a_cancelled_caller_leaves_a_hosted_backend_sound")
class GoesPastItsHost(Shelf):
    store_type = CanBeCancelledInTheMiddle

    async def execute(self, request: Any) -> Any:
        return await self.handle(request)


@breaks("test_a_read_cancelled_at_any_await_leaves_the_backend_usable")
class ForgetsWhereItWasWhenCancelled(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        lines, self.disk.lines = self.disk.lines, []
        await checkpoint()
        self.disk.lines = lines
        return await super().compact(policy, now, dry_run=dry_run)


# Moving


@breaks("test_restored_records_keep_their_positions")
class NumbersRestoredRecordsAnew(ShelfStore):
    async def append(self, batch: Batch) -> None:
        first = self.disk.last_seq + 1
        await super().append(Batch(first, batch.records, batch.encoded))


@breaks("test_positions_that_were_given_are_not_restored")
class RestoresWhatIsThere(Shelf):
    async def _handle(self, request: Any) -> object:
        if isinstance(request, Restore):
            self._session.last_seq = 0
        return await super()._handle(request)


@breaks("test_a_summary_counts_what_is_stored")
class SumsUpEventsAlone(ShelfStore):
    async def summarize(self) -> StoreSummary:
        summary = await summarize(ShelfStore(self.disk))
        return msgspec.structs.replace(summary, records={"event": summary.records["event"]})


@breaks("test_a_summary_counts_what_is_stored")
class SumsUpWithoutTimes(ShelfStore):
    async def summarize(self) -> StoreSummary:
        summary = await summarize(ShelfStore(self.disk))
        return msgspec.structs.replace(summary, oldest=None, newest=None)


@breaks("test_a_summary_counts_what_retention_hides")
class SumsUpWhatReadsShow(Shelf):
    async def _handle(self, request: Any) -> object:
        if isinstance(request, Summarize):
            await super()._handle(Compact())
        return await super()._handle(request)


@breaks("test_a_dry_run_says_what_a_compaction_does")
class CompactsWhenItWasToTell(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        return await super().compact(policy, now, dry_run=False)


@breaks("test_a_dry_run_says_what_a_compaction_does")
class TellsOfNothing(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        report = await super().compact(policy, now, dry_run=dry_run)
        if dry_run:
            report = msgspec.structs.replace(report, records_after=report.records_before)
        return report


@breaks("test_a_compaction_goes_by_the_policy_it_is_given")
class CompactsByItsOwnPolicy(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        return await super()._compact(self.retention, dry_run=dry_run)


@breaks("test_a_reader_sees_what_is_written_and_changes_nothing")
class HasAReaderThatWrites(Shelf):
    def reader(self, *, index_directory: Any = None, opening: Any = None) -> PersistenceBackend:
        return Shelf(self.disk)


# Histories


@breaks("test_a_store_without_histories_refuses_revisions")
class RefusesEveryRevision(Shelf):
    async def commit(self, requests: Any) -> Any:
        error = HistoriesUnsupported("no")
        return [error for _ in requests], [error]


@breaks("test_a_history_holds_the_events_of_one_actor_by_their_revisions")
class LosesTheBeginningOfHistories(ShelfStore):
    async def read_history(self, request: ReadHistory) -> HistoryPage:
        after = max(request.after_revision, 1)
        return await super().read_history(structs.replace(request, after_revision=after))


@breaks("test_a_history_is_read_page_by_page_from_any_revision")
class EndsHistoriesWithTheirFirstPage(ShelfStore):
    async def read_history(self, request: ReadHistory) -> HistoryPage:
        return structs.replace(await super().read_history(request), more=False)


@breaks("test_a_revision_that_does_not_follow_is_refused")
class TakesAnyRevision(Shelf):
    async def commit(self, requests: Any) -> Any:
        with mock.patch.object(Revisions, "advance", return_value=None):
            return await super().commit(requests)


@breaks("test_a_conflict_fails_those_that_follow_it_and_nobody_else")
class FailsAllForOneConflict(Shelf):
    async def commit(self, requests: Any) -> Any:
        with mock.patch.object(group_commit, "_commit_one_by_one", self.refuse_all):
            return await super().commit(requests)

    async def refuse_all(self, requests: Any, *_: Any) -> Any:
        errors = [RevisionConflict("no") for _ in requests]
        self.metrics.write_errors += len(errors)
        return errors, errors


@breaks("test_revisions_go_on_when_the_store_is_opened_again")
class ForgetsRevisionsWhenClosed(ShelfStore):
    async def last_revisions(self, actors: Any) -> dict[str, int]:
        return {}


@breaks("test_versions_and_metadata_of_events_come_back")
class DropsMetadata(ShelfStore):
    async def append(self, batch: Batch) -> None:
        await super().append(
            structs.replace(
                batch,
                encoded=codec.encode(
                    [structs.replace(each, metadata={}) for each in batch.records]
                ),
            )
        )


@breaks("test_retention_hides_nothing_of_a_history")
class HidesHistories(ShelfStore):
    def _steps(self) -> Iterator[tuple[PersistedEvent, int]]:
        return itertools.islice(super()._steps(), 7, None)


@breaks("test_compaction_keeps_histories_whole")
class CompactsHistories(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        report = await super().compact(policy, now, dry_run=dry_run)
        if not dry_run:
            del self.disk.lines[:10]
        return report


@breaks("test_a_scan_finds_what_is_missing_or_doubled_in_a_history")
class SeesNoHoles(ShelfStore):
    def _holes(self) -> list[PersistenceAnomaly]:
        return []


@breaks("test_a_scan_finds_what_is_missing_or_doubled_in_a_history")
class TakesABaseForAHole(ShelfStore):
    def _holes(self) -> list[PersistenceAnomaly]:
        with mock.patch.object(history_check, "BASE_TYPE", "other"):
            return super()._holes()


@breaks("test_a_scan_finds_what_is_missing_or_doubled_in_a_history")
class MendsHolesWithNothing(ShelfStore):
    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        report = await super().recover(config)
        return structs.replace(report, scan=structs.replace(report.scan, anomalies=()))


@breaks("test_restored_events_bring_their_revisions")
class NumbersRestoredHistoriesAnew(ShelfStore):
    async def append(self, batch: Batch) -> None:
        if batch.restored:
            events = [structs.replace(each, revision=None, seq=None) for each in batch.records]
            batch = structs.replace(batch, encoded=codec.encode(events))
        await super().append(batch)


@breaks("test_reads_of_one_actor_find_what_concerns_it")
class HasAStaleIndexByActor(ShelfStore):
    known = 0

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        if request.actor is not None:
            self.known = self.known or self.disk.last_seq
            request = structs.replace(request, before=self.known + 1)
        return await super().read(request, policy, now)


# Beside the records


@breaks("test_a_store_keeps_its_id")
class HasANewIdWheneverItIsOpened(ShelfStore):
    async def open(self) -> None:
        self.disk.store_id = uuid.uuid4().hex


@breaks("test_a_store_keeps_its_id")
class HasANewIdOnceCompacted(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        self.disk.store_id = uuid.uuid4().hex
        return await super().compact(policy, now, dry_run=dry_run)


@breaks("test_a_store_without_snapshots_says_so")
class HasNoneThatWouldBeFound(Shelf):
    async def _load_snapshot(self, request: Any) -> Any:
        raise SnapshotsUnsupported("no")


@breaks("test_snapshots_come_back_newest_first")
class LoadsTheOldestSnapshotFirst(Shelf):
    async def _load_snapshot(self, request: Any) -> Any:
        with mock.patch.object(
            snapshots, "sorted", lambda them, reverse: sorted(them), create=True
        ):
            return await super()._load_snapshot(request)


@breaks("test_snapshots_stay_when_the_store_is_closed_recovered_or_compacted")
class CompactsSnapshots(ShelfStore):
    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        self.disk.snapshots.clear()
        return await super().compact(policy, now, dry_run=dry_run)


@breaks("test_snapshots_stay_when_the_store_is_closed_recovered_or_compacted")
class ForgetsSnapshotsWhenClosed(ShelfStore):
    async def close(self) -> None:
        self.disk.snapshots.clear()


@breaks("test_the_newest_snapshots_are_kept")
class KeepsEverySnapshot(ShelfStore):
    async def remove_snapshot(self, actor: str, revision: int) -> None:
        pass


@breaks("test_the_newest_snapshots_are_kept")
class KeepsOneSnapshot(Shelf):
    async def _save_snapshot(self, request: Any) -> Any:
        return await super()._save_snapshot(structs.replace(request, keep=1))


@breaks("test_what_another_past_has_left_is_removed")
class TakesEverySnapshotForRight(Shelf):
    async def _save_snapshot(self, request: Any) -> Any:
        with mock.patch.object(snapshots.SnapshotKeeper, "_checked"):
            return await super()._save_snapshot(request)


@breaks("test_what_another_past_has_left_is_removed")
class RemovesWhatIsNewer(Shelf):
    async def _save_snapshot(self, request: Any) -> Any:
        error = InvalidSnapshot
        with mock.patch.object(snapshots.SnapshotKeeper, "_checked", side_effect=error):
            return await super()._save_snapshot(request)


@breaks("test_a_snapshot_takes_the_place_of_one_of_the_same_revision")
class KeepsTheFirstOfARevision(ShelfStore):
    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        self.disk.snapshots.setdefault((actor, revision), data)


@breaks("test_a_snapshot_takes_the_place_of_one_of_the_same_revision")
class WritesOverALongerSnapshot(ShelfStore):
    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        rest = self.disk.snapshots.get((actor, revision), b"")[len(data) :]
        self.disk.snapshots[actor, revision] = data + rest


@breaks("test_every_actor_has_its_own_snapshots")
class CutsLongAddresses(ShelfStore):
    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        await super().save_snapshot(actor[:255], revision, data)


@breaks("test_every_actor_has_its_own_snapshots")
class IsBlindToCase(ShelfStore):
    async def snapshot_revisions(self, actor: str) -> list[int]:
        return [n for whose, n in self.disk.snapshots if whose.lower() == actor.lower()]

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        found = [d for (a, n), d in self.disk.snapshots.items() if a.lower() == actor.lower()]
        return found[0]


@breaks("test_all_snapshots_are_listed_page_by_page")
class ListsTheFirstPageOnly(ShelfStore):
    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        return [] if after else await super().list_snapshots(after, limit)


@breaks("test_all_snapshots_are_listed_page_by_page")
class ListsMoreThanItsLimit(ShelfStore):
    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        return await super().list_snapshots(after, limit + 1)


@breaks("test_all_snapshots_are_listed_page_by_page")
class ListsRevisionsAsTheyCome(ShelfStore):
    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        page = await super().list_snapshots(after, limit)
        return sorted(page, key=lambda stored: (stored.owner, str(stored.revision)))


@breaks("test_all_snapshots_are_listed_page_by_page")
class LeavesOutTheRestOfAnOwner(ShelfStore):
    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        if after is not None:
            after = structs.replace(after, revision=MAX_SEQ)
        return await super().list_snapshots(after, limit)


@breaks("test_all_snapshots_are_listed_page_by_page")
class RemovesAllOfAnOwner(ShelfStore):
    async def remove_listed(self, stored: StoredSnapshot) -> None:
        for revision in await self.snapshot_revisions(stored.owner):
            await self.remove_snapshot(stored.owner, revision)


@breaks("test_a_snapshot_of_what_is_not_stored_is_refused")
class BelievesWhoeverSaves(Shelf):
    async def _save_snapshot(self, request: Any) -> Any:
        keeper = snapshots.SnapshotKeeper
        event = PersistedEvent("s", request.actor, "A", 1, 1.0, request.seq, request.revision)
        with mock.patch.object(keeper, "_event_at", return_value=event):
            return await super()._save_snapshot(request)


@breaks("test_a_snapshot_that_is_not_right_is_passed_over")
class BelievesEverySnapshot(Shelf):
    async def _load_snapshot(self, request: Any) -> Any:
        async def load(keeper: Any, actor: str, revision: int) -> Any:
            return decode_snapshot(await self.store.load_snapshot(actor, revision) or b"")

        with mock.patch.object(snapshots.SnapshotKeeper, "_checked", load):
            return await super()._load_snapshot(request)


@breaks("test_a_snapshot_that_is_not_right_is_passed_over")
class BelievesInAnyPast(Shelf):
    async def _load_snapshot(self, request: Any) -> Any:
        with mock.patch.object(snapshots, "event_checksum", return_value="0" * 32):
            return await super()._load_snapshot(request)


@breaks("test_a_damaged_snapshot_is_passed_over")
class BelievesWhatIsDamaged(Shelf):
    async def _load_snapshot(self, request: Any) -> Any:
        async def load(keeper: Any, actor: str, revision: int) -> Any:
            data = await self.store.load_snapshot(actor, revision) or b""
            try:
                return msgspec.json.decode(data[33:], type=Snapshot)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise InvalidSnapshot from None

        with mock.patch.object(snapshots.SnapshotKeeper, "_checked", load):
            return await super()._load_snapshot(request)


# Bases


def trimmed(**changes: Any) -> Any:
    """Return a patch of what is found out about one history before it is trimmed."""
    return mock.patch.object(rebasing, **changes)


@breaks("test_a_store_that_trims_no_histories_says_so")
class SaysNothingOfHistories(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        report = await super()._compact(policy, dry_run=dry_run)
        return structs.replace(report, histories=None)


@breaks("test_histories_are_kept_whole_unless_trimming_is_opted_in")
class TrimsUnasked(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        policy = structs.replace(policy, trim_histories=True)
        report = await super()._compact(policy, dry_run=dry_run)
        return structs.replace(report, histories=None)


class TrimsInItsOwnWay(ShelfStore):
    """Changes which bases are written, and what is left of the lines."""

    def chosen(self, bases: Sequence[NewBase]) -> Sequence[NewBase]:
        return bases

    def left(self, before: list[tuple[int, bytes]], bases: Sequence[NewBase]) -> None:
        pass

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        before = self.disk.lines
        report = await super().compact_histories(self.chosen(bases), policy, now, dry_run=dry_run)
        if not dry_run:
            self.left(before, bases)
        return report


@breaks("test_a_trimmed_history_begins_with_its_base")
class KeepsTheEventInPlaceOfTheBase(TrimsInItsOwnWay):
    def left(self, before: list[tuple[int, bytes]], bases: Sequence[NewBase]) -> None:
        old = dict(before)
        self.disk.lines = [(seq, old[seq]) for seq, _ in self.disk.lines]


@breaks("test_a_trimmed_history_begins_with_its_base")
class TrimsOneTooMany(TrimsInItsOwnWay):
    def left(self, before: list[tuple[int, bytes]], bases: Sequence[NewBase]) -> None:
        gone = {base.seq + 3 for base in bases}
        self.disk.lines = [line for line in self.disk.lines if line[0] not in gone]


@breaks("test_a_trimmed_history_begins_with_its_base")
class TrimsNothing(TrimsInItsOwnWay):
    def chosen(self, bases: Sequence[NewBase]) -> Sequence[NewBase]:
        return ()


@breaks("test_a_trimmed_history_begins_with_its_base")
class TrimsAgainAndAgain(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        with trimmed(attribute="BASE_TYPE", new="other"):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_a_trimmed_history_goes_on")
class LosesTheRevisionOfABase(TrimsInItsOwnWay):
    def chosen(self, bases: Sequence[NewBase]) -> Sequence[NewBase]:
        return [
            structs.replace(base, encoded=base.encoded.replace(b'"revision":8', b'"revision":1'))
            for base in bases
        ]


@breaks("test_a_history_with_one_good_snapshot_is_kept_whole")
class TrimsToTheOnlySnapshot(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        with trimmed(attribute="_ENOUGH", new=1):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_a_history_with_one_good_snapshot_is_kept_whole")
class TrimsToWhatIsNotRight(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        async def load(keeper: Any, actor: str, revision: int) -> Any:
            snapshot = decode_snapshot(await self.store.load_snapshot(actor, revision) or b"")
            return structs.replace(snapshot, actor=actor, revision=revision)

        with mock.patch.object(snapshots.SnapshotKeeper, "_checked", load):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_the_newest_version_of_snapshots_decides_on_the_base")
class TrimsToTheOldestVersion(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        with trimmed(attribute="max", new=lambda them, default: min(them), create=True):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_no_snapshot_is_left_of_what_a_base_stands_for")
class LeavesSnapshotsBeforeTheBase(ShelfStore):
    async def remove_snapshot(self, actor: str, revision: int) -> None:
        pass


@breaks("test_no_snapshot_is_left_of_what_a_base_stands_for")
class RemovesSnapshotsBehindTheBase(TrimsInItsOwnWay):
    def left(self, before: list[tuple[int, bytes]], bases: Sequence[NewBase]) -> None:
        self.disk.snapshots.clear()


@breaks("test_what_retention_shows_of_a_history_is_not_summed_up")
class TrimsWhatReadsShow(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        trim = rebasing._Trimming._trim

        async def trim_all(self: Any, actor: str, first: Any, limit: float) -> None:
            await trim(self, actor, first, float("inf"))

        with mock.patch.object(rebasing._Trimming, "_trim", trim_all):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_a_newer_base_takes_the_place_of_an_older_one")
class KeepsItsFirstBase(TrimsInItsOwnWay):
    def left(self, before: list[tuple[int, bytes]], bases: Sequence[NewBase]) -> None:
        kept = [line for line in before if b'"papyra.base"' in line[1]]
        self.disk.lines = sorted({*self.disk.lines, *kept})


@breaks("test_snapshots_from_the_base_on_stay_good")
class ForgetsWhatABaseStandsFor(TrimsInItsOwnWay):
    def chosen(self, bases: Sequence[NewBase]) -> Sequence[NewBase]:
        return [
            structs.replace(base, encoded=base.encoded.replace(b'"checksum":"', b'"checksum":"-'))
            for base in bases
        ]


@breaks("test_what_was_left_before_a_base_goes_with_the_next_trimming")
class LeavesWhatIsBeforeABase(Shelf):
    async def _compact(self, policy: RetentionPolicy, *, dry_run: bool) -> CompactionReport:
        trim = rebasing._Trimming._trim

        async def trim_new(self: Any, actor: str, first: Any, limit: float) -> None:
            page = await self._histories.read_history(ReadHistory(actor))
            if not any(event.event_type == "papyra.base" for event in page.events):
                await trim(self, actor, first, limit)

        with mock.patch.object(rebasing._Trimming, "_trim", trim_new):
            return await super()._compact(policy, dry_run=dry_run)


@breaks("test_a_restored_base_is_part_of_its_history")
class RestoresNoBase(Shelf):
    async def _handle(self, request: Any) -> Any:
        if isinstance(request, Restore):
            others = [each for each in request.records if "base" not in str(each)]
            request = Restore(tuple(others))
        return await super()._handle(request)


# The writer's inbox


@breaks("test_what_is_posted_reaches_the_writer_and_its_answer_comes_back")
class KeepsRequestsShort(ShelfStore):
    async def post(self, request_id: str, data: bytes) -> None:
        await super().post(request_id, data[:1024])


@breaks("test_what_is_posted_reaches_the_writer_and_its_answer_comes_back")
class KeepsOneRequest(ShelfStore):
    async def post(self, request_id: str, data: bytes) -> None:
        self.disk.requests.clear()
        await super().post(request_id, data)


@breaks("test_what_is_posted_reaches_the_writer_and_its_answer_comes_back")
class TakesItsOwnRequestForTheAnswer(ShelfStore):
    async def answered(self, request_id: str) -> bytes | None:
        return await super().answered(request_id) or self.disk.requests.get(request_id)


@breaks("test_what_is_posted_reaches_the_writer_and_its_answer_comes_back")
class KeepsAnswers(ShelfStore):
    async def answered(self, request_id: str) -> bytes | None:
        return self.disk.answers.get(request_id)


@breaks("test_a_request_is_taken_or_withdrawn_and_never_both")
class TakesWithoutRemoving(ShelfStore):
    async def take(self, request_id: str) -> bytes | None:
        return self.disk.requests.get(request_id)


@breaks("test_a_request_is_taken_or_withdrawn_and_never_both")
class WithdrawsWhatWasTaken(ShelfStore):
    async def withdraw(self, request_id: str) -> bool:
        await super().withdraw(request_id)
        return True


@breaks("test_a_writer_that_has_closed_its_store_is_not_there_any_more")
class IsAttendedForEver(ShelfStore):
    async def is_attended(self) -> bool:
        return True


@breaks("test_the_writer_carries_out_what_is_posted")
class CarriesOutOneAtATime(Shelf):
    async def _handle(self, request: Any) -> Any:
        with mock.patch.object(inbox, "MAX_AT_ONCE", 1):
            return await super()._handle(request)


@breaks("test_the_writer_carries_out_what_is_posted")
class DecidesAgain(Shelf):
    async def _skip_event(self, request: Any) -> Any:
        actor, revision = request.actor, len((await self._history(request.actor)).events) + 1
        await self._append(PersistedEvent("s", actor, "x", {}, 1.0, revision=revision))
        return EventSkipped(revision, request.reason, is_new=True)

    async def _history(self, actor: str) -> HistoryPage:
        return await self.store.read_history(ReadHistory(actor))


@breaks("test_the_writer_sets_a_position_for_others")
class SaysThatItSetsPositions(Shelf):
    async def _carry_out(self, request: Any) -> Any:
        if isinstance(request, SavePosition):
            return PositionSaved(is_saved=True)
        return await super()._carry_out(request)


@breaks("test_what_is_posted_and_makes_no_sense_is_refused")
class GivesOutWhatIsTooLong(ShelfStore):
    async def take(self, request_id: str) -> bytes | None:
        data = self.disk.requests.pop(request_id, None)
        if data is not None and len(data) > MAX_POSTED_BYTES:
            raise StoreError("too long")
        return data


@breaks("test_what_is_posted_and_makes_no_sense_is_refused")
class CarriesOutWhatNobodyWaitsFor(Shelf):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, clock=lambda: 0.0)


@breaks("test_a_summary_counts_snapshots")
class CountsNoSnapshots(Shelf):
    async def _handle(self, request: Any) -> Any:
        reply = await super()._handle(request)
        if isinstance(reply, StoreSummary):
            return structs.replace(reply, snapshots=0, snapshot_bytes=0)
        return reply


@breaks("test_a_scan_finds_every_snapshot_that_is_not_right")
class ScansNoSnapshots(Shelf):
    async def _scan(self, *, records_only: bool) -> PersistenceScanReport:
        return await super()._scan(records_only=True)


@breaks("test_a_scan_finds_every_snapshot_that_is_not_right")
class ScansSnapshotsWhenItIsNotTo(Shelf):
    async def _scan(self, *, records_only: bool) -> PersistenceScanReport:
        return await super()._scan(records_only=False)


@breaks("test_a_scan_finds_every_snapshot_that_is_not_right")
class RemovesWhatAScanFinds(Shelf):
    async def _scan(self, *, records_only: bool) -> PersistenceScanReport:
        report = await super()._scan(records_only=records_only)
        if not records_only:
            await self._recover(PersistenceRecoveryConfig(), records_only=False)
        return report


@breaks("test_a_recovery_removes_every_snapshot_that_is_not_right")
class LeavesBadSnapshots(Shelf):
    async def _recover(
        self, config: PersistenceRecoveryConfig, *, records_only: bool
    ) -> PersistenceRecoveryReport:
        return await super()._recover(config, records_only=True)


@breaks("test_a_recovery_removes_every_snapshot_that_is_not_right")
class RecoversBadSnapshotsWhenItIsNotTo(Shelf):
    async def _recover(
        self, config: PersistenceRecoveryConfig, *, records_only: bool
    ) -> PersistenceRecoveryReport:
        return await super()._recover(config, records_only=False)


@breaks("test_a_recovery_removes_every_snapshot_that_is_not_right")
class RemovesEverySnapshotInARecovery(Shelf):
    async def _recover(
        self, config: PersistenceRecoveryConfig, *, records_only: bool
    ) -> PersistenceRecoveryReport:
        if not records_only:
            self.store.disk.snapshots.clear()
        return await super()._recover(config, records_only=records_only)


@breaks("test_a_quarantine_keeps_every_snapshot_that_is_not_right")
class KeepsNothingInAQuarantine(ShelfStore):
    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        await self.remove_listed(stored)
        return None


@breaks("test_a_quarantine_keeps_every_snapshot_that_is_not_right")
class CopiesForAQuarantineAndLeavesIt(ShelfStore):
    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        return "aside"


# Positions


@breaks("test_a_store_without_positions_says_so")
class HasPositionsThatNobodySaved(ShelfStore):
    async def load_position(self, name: str) -> bytes | None:
        return await super().load_position(name) or b""


@breaks("test_a_position_is_what_was_saved_last")
class TakesNothingForAnEmptyPosition(ShelfStore):
    async def load_position(self, name: str) -> bytes | None:
        return await super().load_position(name) or None


@breaks("test_a_position_is_what_was_saved_last")
class KeepsPositionsAsLines(ShelfStore):
    async def load_position(self, name: str) -> bytes | None:
        data = await super().load_position(name)
        return data and data.rstrip(b"\n")


@breaks("test_a_position_is_what_was_saved_last")
class ForgetsPositionsWhenItIsClosed(ShelfStore):
    async def close(self) -> None:
        await super().close()
        self.disk.positions.clear()


@breaks("test_a_position_is_set_if_it_is_as_expected_and_else_not_changed")
class SetsWhateverIsThere(ShelfStore):
    def _may_change(self, name: str, expected: bytes | None) -> bool:
        return True


@breaks("test_a_position_is_set_if_it_is_as_expected_and_else_not_changed")
class SetsWhatIsSetAlready(ShelfStore):
    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        if self.disk.positions.get(name) == data:
            return True
        return await super().save_position(name, data, expected)


@breaks("test_a_position_is_set_if_it_is_as_expected_and_else_not_changed")
class ExpectsAnythingForNothing(ShelfStore):
    def _may_change(self, name: str, expected: bytes | None) -> bool:
        return expected is None or super()._may_change(name, expected)


@breaks("test_a_position_is_removed_if_it_is_as_expected")
class RemovesWhateverIsThere(ShelfStore):
    async def remove_position(self, name: str, expected: bytes) -> bool:
        return self.disk.positions.pop(name, None) is not None


@breaks("test_a_position_is_removed_if_it_is_as_expected")
class KeepsNothingOfWhatIsRemoved(ShelfStore):
    async def remove_position(self, name: str, expected: bytes) -> bool:
        return self._may_change(name, expected) and await self.save_position(name, b"", expected)


@breaks("test_every_name_has_a_position_of_its_own")
class FoldsTheCaseOfNames(ShelfStore):
    async def load_position(self, name: str) -> bytes | None:
        return await super().load_position(name.lower())

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        return await super().save_position(name.lower(), data, expected)


@breaks("test_every_name_has_a_position_of_its_own")
class EndsNamesAtTheFirstNul(ShelfStore):
    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        return await super().save_position(name.partition("\0")[0], data, expected)


@breaks("test_names_of_positions_are_listed_page_by_page")
class ListsTheFirstNamesOnly(ShelfStore):
    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        return () if after is not None else await super().list_positions(None, limit)


@breaks("test_names_of_positions_are_listed_page_by_page")
class LooksForTheLastOfAPage(ShelfStore):
    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        names = sorted(self.disk.positions)
        start = names.index(after) + 1 if after in names else 0
        return names[start : start + limit]


@breaks("test_positions_are_no_records_and_nothing_takes_them_away")
class GivesAPositionToPositions(ShelfStore):
    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        if name == "a" and expected is None:
            line = codec.encode([PersistedEvent("s", "s/a", "position", {}, 0.0)])[0]
            self.disk.lines.append((self.disk.last_seq + 1, line))
        return await super().save_position(name, data, expected)


@breaks("test_positions_are_no_records_and_nothing_takes_them_away")
class CountsNoPositions(Shelf):
    async def _handle(self, request: Any) -> Any:
        reply = await super()._handle(request)
        if isinstance(reply, StoreSummary):
            return structs.replace(reply, positions=None)
        return reply


@breaks("test_positions_are_no_records_and_nothing_takes_them_away")
class CompactsPositions(ShelfStore):
    async def compact_histories(self, *args: Any, **options: Any) -> CompactionReport:
        self.disk.positions.clear()
        return await super().compact_histories(*args, **options)


@breaks("test_positions_are_no_records_and_nothing_takes_them_away")
class RecoversWithoutPositions(ShelfStore):
    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        self.disk.positions.clear()
        return await super().recover(config)


@breaks("test_a_position_that_can_not_be_kept_is_refused")
class CutsLargePositions(Shelf):
    async def save_position(self, name: str, data: Any, expected: Any) -> bool:
        return await super().save_position(name, data[:MAX_POSITION_BYTES], expected)


@breaks("test_a_reader_sees_positions_and_changes_none")
class HasAReaderOfOldPositions(Shelf):
    class store_type(ShelfStore):
        old: dict[str, bytes] | None = None

        async def load_position(self, name: str) -> bytes | None:
            if self.old is not None:
                return self.old.get(name)
            return await super().load_position(name)

    def reader(self, **_: Any) -> Shelf:
        reader = type(self)(self.store.disk)
        reader.store.old = dict(self.store.disk.positions)  # type: ignore[attr-defined]
        return reader


@breaks("test_a_reader_sees_positions_and_changes_none")
class HasAReaderThatSetsPositions(Shelf):
    def reader(self, **_: Any) -> Shelf:
        return type(self)(self.store.disk)


@breaks("test_a_writer_that_another_has_taken_over_from_changes_no_position")
class SetsPositionsWhenItIsFenced(ShelfStore):
    def _may_change(self, name: str, expected: bytes | None) -> bool:
        return self.disk.positions.get(name) == expected


@breaks("test_a_writer_that_another_has_taken_over_from_changes_no_position")
class TakesOverAgain(ShelfStore):
    async def claim(self) -> int:
        self._is_claimed = False
        return await super().claim()

    def _may_change(self, name: str, expected: bytes | None) -> bool:
        self.disk.writer = self
        return super()._may_change(name, expected)


RULES = sorted(name for name in dir(PersistenceConformance) if name.startswith("test_"))


@dataclasses.dataclass
class Suite(PersistenceConformance):
    """The suite, to be run by hand on one backend."""

    __test__ = False
    disk: Disk = dataclasses.field(default_factory=Disk)

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        ruin(self.disk, seq)

    async def run(self, rule: str, backend: type[Shelf]) -> None:
        await getattr(self, rule)(functools.partial(backend, self.disk))


def test_every_rule_of_the_conformance_suite_has_a_mutant_that_breaks_it() -> None:
    assert {rule for _, rule in MUTANTS} == set(RULES)
    assert len({mutant for mutant, _ in MUTANTS}) >= 30


#: Outside CI, some of them.
CAUGHT = some(MUTANTS, every=2)


@pytest.mark.parametrize("rule", some(RULES, every=5))
async def test_a_sound_backend_passes_every_rule_of_the_conformance_suite(rule: str) -> None:
    await Suite().run(rule, Shelf)


@pytest.mark.parametrize(
    ("mutant", "rule"), CAUGHT, ids=[f"{mutant.__name__}-{rule}" for mutant, rule in CAUGHT]
)
async def test_the_conformance_suite_catches_a_backend_that_breaks_the_rule(
    mutant: type[Shelf], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_following, "_PATIENCE", 2)  # for what never comes
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        await Suite().run(rule, mutant)
    assert not isinstance(caught.value, (NameError, AttributeError, NotImplementedError))


def test_a_conformance_suite_of_a_recoverable_backend_has_to_override_damage() -> None:
    suite = PersistenceConformance()
    with pytest.raises(NotImplementedError, match=r"override PersistenceConformance.damage"):
        suite.damage(Shelf(Disk()), 1).send(None)
