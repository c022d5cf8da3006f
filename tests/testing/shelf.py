"""A second backend, to prove the conformance suite on: durable, mendable, compacting, and plain.

It keeps everything in one list of numbered lines on a "disk" that several backends may share, one
after the other, and looks at all of it for each read.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import ClassVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from papyra.exceptions import StoreError, StoreFenced
from papyra.persistence import (
    CompactedKind,
    CompactionReport,
    HistoryPage,
    Page,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    Read,
    ReadHistory,
    Record,
    codec,
)
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.history_check import HistoryCheck
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.store import (
    Batch,
    Capabilities,
    NewBase,
    StoredSnapshot,
    collect_history,
    collect_page,
)
from papyra.persistence.inbox import MAX_POSTED_BYTES
from papyra.persistence.records import KINDS, Kind, PersistedEvent, kind_of
from papyra.persistence.reports import AnomalyKind, ReportProgress


@dataclasses.dataclass
class Disk:
    """What outlives a backend: numbered lines, and the greatest number ever given."""

    lines: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    last_seq: int = 0
    #: what recoveries have put into quarantine
    aside: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    store_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    snapshots: dict[tuple[str, int], bytes] = dataclasses.field(default_factory=dict)
    positions: dict[str, bytes] = dataclasses.field(default_factory=dict)
    #: the store that has claimed it last
    writer: object = None
    #: requests for the writer, and its answers
    requests: dict[str, bytes] = dataclasses.field(default_factory=dict)
    answers: dict[str, bytes] = dataclasses.field(default_factory=dict)


class ShelfStore:
    """Keeps records as lines on a `Disk`."""

    name = "shelf"
    location = ""
    capabilities = Capabilities(
        durable=True, recovery=True, compaction=True, readable_when_closed=False
    )

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._is_claimed = False

    async def open(self) -> None:
        self._is_claimed = False
        await checkpoint()

    async def last_seq(self) -> int:
        return self.disk.last_seq

    async def claim(self) -> int:
        if self._is_claimed and self.disk.writer is not self:
            raise StoreFenced("somebody else has taken over")
        self._is_claimed, self.disk.writer = True, self
        return await self.last_seq()

    async def close(self) -> None:
        await checkpoint()

    async def append(self, batch: Batch) -> None:
        await checkpoint()
        self._check_writer(batch)
        with anyio.CancelScope(shield=True):
            for seq, line in enumerate(batch.encoded, batch.first_seq):
                await self._write_line(seq, line)
            self.disk.last_seq = batch.first_seq + len(batch.encoded) - 1

    def _check_writer(self, batch: Batch) -> None:
        if batch.first_seq <= self.disk.last_seq:
            raise StoreFenced(f"somebody else wrote up to {self.disk.last_seq}")

    async def _write_line(self, seq: int, line: bytes) -> None:
        if seq % 1000 == 0:
            await checkpoint()
        self.disk.lines.append((seq, line))

    async def flush(self) -> None:
        await checkpoint()

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        await checkpoint()
        if request.newest and request.before is None:
            request = msgspec.structs.replace(request, before=self.disk.last_seq + 1)
        return collect_page(request, self._candidates(request, policy, now))

    async def read_history(self, request: ReadHistory) -> HistoryPage:
        await checkpoint()
        return collect_history(request, self._steps())

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        await checkpoint()
        last = {event.actor_address: event.revision or 0 for event, _ in self._steps()}
        return {actor: revision for actor, revision in last.items() if actor in actors}

    async def store_id(self) -> str:
        await checkpoint()
        return self.disk.store_id

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        await checkpoint()
        self.disk.snapshots[actor, revision] = data

    async def snapshot_revisions(self, actor: str) -> list[int]:
        await checkpoint()
        return [revision for whose, revision in self.disk.snapshots if whose == actor]

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        await checkpoint()
        return self.disk.snapshots.get((actor, revision))

    async def remove_snapshot(self, actor: str, revision: int) -> None:
        await checkpoint()
        self.disk.snapshots.pop((actor, revision), None)

    def snapshot_owner(self, actor: str) -> str:
        return actor

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        await checkpoint()
        last = ("", 0) if after is None else (after.owner, after.revision)
        places = sorted(place for place in self.disk.snapshots if place > last)[:limit]
        return [StoredSnapshot(*place, len(self.disk.snapshots[place])) for place in places]

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        return await self.load_snapshot(stored.owner, stored.revision)

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        await self.remove_snapshot(stored.owner, stored.revision)

    async def load_position(self, name: str) -> bytes | None:
        await checkpoint()
        return self.disk.positions.get(name)

    async def save_position(self, name: str, data: bytes, expected: bytes | None) -> bool:
        await checkpoint()
        if not self._may_change(name, expected):
            return False
        self.disk.positions[name] = data
        return True

    async def remove_position(self, name: str, expected: bytes) -> bool:
        await checkpoint()
        if not self._may_change(name, expected):
            return False
        del self.disk.positions[name]
        return True

    def _may_change(self, name: str, expected: bytes | None) -> bool:
        if self.disk.writer is not self:
            raise StoreFenced("somebody else has taken over")
        return self.disk.positions.get(name) == expected

    async def list_positions(self, after: str | None, limit: int) -> Sequence[str]:
        await checkpoint()
        names = sorted(self.disk.positions)
        return [name for name in names if after is None or name > after][:limit]

    async def post(self, request_id: str, data: bytes) -> None:
        await checkpoint()
        self.disk.requests[request_id] = data

    async def posted(self) -> list[str]:
        await checkpoint()
        return list(self.disk.requests)

    async def take(self, request_id: str) -> bytes | None:
        await checkpoint()
        data = self.disk.requests.pop(request_id, None)
        return data if data is None or len(data) <= MAX_POSTED_BYTES else b""

    async def answer(self, request_id: str, data: bytes) -> None:
        await checkpoint()
        self.disk.answers[request_id] = data

    async def answered(self, request_id: str) -> bytes | None:
        await checkpoint()
        return self.disk.answers.pop(request_id, None)

    async def withdraw(self, request_id: str) -> bool:
        await checkpoint()
        return self.disk.requests.pop(request_id, None) is not None

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        data = await self.load_listed(stored)
        await self.remove_listed(stored)
        self.disk.aside.append((stored.revision, data or b""))
        return f"aside, snapshot {stored.revision}"

    async def is_attended(self) -> bool:
        await checkpoint()
        return False  # nothing tells

    def _steps(self) -> Iterator[tuple[PersistedEvent, int]]:
        """Yield the events that have a revision, in the order of their positions."""
        for seq, line in self.disk.lines:
            record = self._decoded(seq, line)
            if isinstance(record, PersistedEvent) and record.revision is not None:
                yield record, len(line)

    def _candidates(
        self, request: Read, policy: RetentionPolicy, now: float
    ) -> Iterator[tuple[Record, int]]:
        visible = self._visible(request.kind, policy, now)
        for record, length in reversed(visible) if request.newest else visible:
            seq = record.seq or 0
            if seq > request.after and (request.before is None or seq < request.before):
                if request.since is not None and record.timestamp < request.since:
                    continue
                if request.until is not None and record.timestamp > request.until:
                    continue
                yield record, length

    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        kept = [
            (record, len(line))
            for seq, line in self.disk.lines
            if (record := self._decoded(seq, line)) is not None and kind_of(record) == kind
        ]
        limits = policy.of(kind)
        oldest = limits.oldest_time(now)
        shown: list[tuple[Record, int]] = []
        total = 0
        for newer, (record, length) in enumerate(reversed(kept)):
            total += length
            if limits.max_records is not None and newer >= limits.max_records:
                break
            if limits.max_total_bytes is not None and total > limits.max_total_bytes:
                break
            if oldest is None or record.timestamp >= oldest:
                shown.append((record, length))
        return shown[::-1]

    def _decoded(self, seq: int, line: bytes) -> Record | None:
        try:
            return codec.decode(line, seq)
        except StoreError:
            return None

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        await checkpoint()
        return self._report()

    def _report(self) -> PersistenceScanReport:
        bad = list(self._faults())
        return PersistenceScanReport(
            "shelf",
            len(self.disk.lines),
            sum(len(line) for _, line in self.disk.lines),
            (
                *(PersistenceAnomaly(kind, "it can't be read", seq=seq) for seq, kind in bad),
                *self._holes(),
            ),
        )

    def _holes(self) -> list[PersistenceAnomaly]:
        check = HistoryCheck()
        found = [check.take(event, None) for event, _ in self._steps()]
        return [anomaly for anomaly in found if anomaly is not None]

    def _faults(self) -> Iterator[tuple[int, AnomalyKind]]:
        for seq, line in self.disk.lines:
            if self._decoded(seq, line) is None:
                yield seq, "unknown_kind" if codec.may_be_a_record(line) else "corrupt"

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        await checkpoint()
        damaged = {seq for seq, kind in self._faults() if kind == "corrupt"}
        good = [pair for pair in self.disk.lines if pair[0] not in damaged]
        bad = [pair for pair in self.disk.lines if pair[0] in damaged]
        aside = bad if config.mode == "quarantine" else []
        self.disk.lines = good
        self.disk.aside += aside
        places = tuple(f"aside, line {seq}" for seq, _ in aside)
        return PersistenceRecoveryReport("shelf", True, self._report(), len(good), len(bad), places)

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        return await self.compact_histories((), policy, now, dry_run=dry_run)

    async def compact_histories(
        self, bases: Sequence[NewBase], policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        await checkpoint()
        before = self.disk.lines
        visible = {record.seq for kind in KINDS for record, _ in self._visible(kind, policy, now)}
        first = {base.actor: base.revision for base in bases}
        steps = {
            event.seq
            for event, _ in self._steps()
            if (event.revision or 0) >= first.get(event.actor_address, 0)
        }
        new = {base.seq: base.encoded for base in bases}
        left = [
            (seq, new.get(seq, line))
            for seq, line in before
            if seq in visible | steps or not self._decoded(seq, line)
        ]
        if not dry_run:
            self.disk.lines = left
        had, has = self._sizes(before), self._sizes(left)
        kinds = {
            kind: CompactedKind(len(had[kind]), len(has[kind]), sum(had[kind]), sum(has[kind]))
            for kind in KINDS
        }
        return CompactionReport.of_kinds("shelf", kinds, len(steps - visible))

    def _sizes(self, lines: list[tuple[int, bytes]]) -> dict[Kind, list[int]]:
        sizes: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
        for seq, line in lines:
            if (record := self._decoded(seq, line)) is not None:
                sizes[kind_of(record)].append(len(line))
        return sizes


class Shelf(PersistenceBackend):
    """The backend on a `ShelfStore`, or on a broken one."""

    store_type: ClassVar[type[ShelfStore]] = ShelfStore
    store: ShelfStore

    def __init__(
        self,
        disk: Disk,
        *,
        retention_policy: RetentionPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(self.store_type(disk), retention_policy=retention_policy, clock=clock)

    @property
    def disk(self) -> Disk:
        return self.store.disk


def ruin(disk: Disk, seq: int) -> None:
    """Make a line unreadable."""
    disk.lines = [(n, b'{"kind"' if n == seq else line) for n, line in disk.lines]
