"""The trimming of histories: which of them may begin with a base, and what it is made of."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import NamedTuple, cast

import msgspec

from papyra._safe_repr import shown, text_of
from papyra.exceptions import PersistenceError
from papyra.persistence import codec
from papyra.persistence.backends.snapshots import SnapshotKeeper, snapshots_of
from papyra.persistence.backends.store import (
    Histories,
    Identified,
    NewBase,
    Rebasing,
    Snapshots,
    Store,
)
from papyra.persistence.bases import BASE_TYPE, InvalidBase, base_of, read_base
from papyra.persistence.decisions import decisions_after, is_outdated
from papyra.persistence.messages import Read, ReadHistory
from papyra.persistence.records import PersistedEvent
from papyra.persistence.reports import CompactionReport, HistoriesReport
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.snapshots import Snapshot

__all__ = ("compact_and_trim",)

logger = logging.getLogger("papyra")

#: Good snapshots of one version that an actor must have: should the newest turn out to be of no
#: use, there is another one before what is removed.
_ENOUGH = 2
_FOREVER = float("inf")


async def compact_and_trim(
    store: Store, snapshots: SnapshotKeeper, policy: RetentionPolicy, now: float, *, dry_run: bool
) -> CompactionReport:
    """Compact `store`, and have histories begin with a base where `policy` and snapshots allow it.

    This reads all events twice, and holds the states that become bases in memory.
    """
    parts = (Rebasing, Histories, Snapshots, Identified)
    if not all(isinstance(store, part) for part in parts):
        report = await store.compact(policy, now, dry_run=dry_run)
        return msgspec.structs.replace(report, histories=HistoriesReport(False))
    trimming = _Trimming(store, snapshots)
    await trimming.plan(policy, now)
    rebasing = cast("Rebasing", store)
    report = await rebasing.compact_histories(trimming.bases, policy, now, dry_run=dry_run)
    if not dry_run:
        await trimming.remove_outdated_snapshots()
    if report.histories is not None:
        return report
    return msgspec.structs.replace(report, histories=trimming.report)


class _First(NamedTuple):
    """The first event of a history."""

    seq: int
    revision: int
    is_base: bool


class _Trimming:
    """Finds the bases that histories can begin with, and counts the others."""

    def __init__(self, store: Store, snapshots: SnapshotKeeper) -> None:
        self._store = store
        self._histories = snapshots_of(store)
        self._snapshots = snapshots
        self.bases: list[NewBase] = []
        self.report = HistoriesReport(True)

    async def plan(self, policy: RetentionPolicy, now: float) -> None:
        """Look at every history whose beginning `policy` hides at Unix time `now`."""
        firsts: dict[str, _First] = {}
        async for event in self._events(RetentionPolicy(), now):
            place = event.seq or 0, event.revision or 0, event.event_type == BASE_TYPE
            firsts.setdefault(event.actor_address, _First(*place))
        shown_from: dict[str, int] = {}
        async for event in self._events(policy, now):
            shown_from.setdefault(event.actor_address, event.seq or 0)
        for actor, first in firsts.items():
            limit = shown_from.get(actor, _FOREVER)
            if first.seq < limit:
                await self._trim(actor, first, limit)

    async def remove_outdated_snapshots(self) -> None:
        """Remove the snapshots of what is not in the store any more. Nothing depends on it."""
        for base in self.bases:
            for revision in await self._histories.snapshot_revisions(base.actor):
                if revision < base.revision:
                    await self._histories.remove_snapshot(base.actor, revision)

    async def _events(self, policy: RetentionPolicy, now: float) -> AsyncIterator[PersistedEvent]:
        """Yield the events that have a revision, and that `policy` shows."""
        request, more = Read("event"), True
        while more:
            page = await self._store.read(request, policy, now)
            for record in page.records:
                if isinstance(record, PersistedEvent) and record.revision is not None:
                    yield record
            request = msgspec.structs.replace(request, after=page.next_after)
            more = page.more

    async def _trim(self, actor: str, first: _First, limit: float) -> None:
        """Plan for a history that begins before position `limit`, from which on it is shown."""
        good = await self._good(actor)
        if len(good) < _ENOUGH:
            self._count(without_snapshots=1)
            return
        oldest = good[0]
        if oldest.seq >= limit:
            self._count(still_shown=1)
            return
        if oldest.revision == first.revision and (first.is_base or oldest.revision == 1):
            return  # there is nothing before it
        base = await self._base(oldest)
        if base is None:
            self._count(without_snapshots=1)
            return
        self.bases.append(base)
        self._count(trimmed=1, events_removed=await self._count_before(actor, oldest.revision))

    async def _good(self, actor: str) -> list[Snapshot]:
        """Return the snapshots that a recovery would use, of the newest version, oldest first."""
        good = await self._snapshots.good(actor)
        newest = max((snapshot.version for snapshot in good), default=0)
        good = [snapshot for snapshot in good if snapshot.version == newest]
        if not good:
            return good
        decisions = await decisions_after(self._histories.read_history, actor, good[0].revision)
        return [each for each in good if not is_outdated(each.revision, decisions)]

    def _count(self, **counts: int) -> None:
        changes = {name: getattr(self.report, name) + count for name, count in counts.items()}
        self.report = msgspec.structs.replace(self.report, **changes)

    async def _base(self, snapshot: Snapshot) -> NewBase | None:
        """Return the base that `snapshot` makes, or `None` if the state would not come back."""
        actor, revision, seq = snapshot.actor, snapshot.revision, snapshot.seq
        page = await self._histories.read_history(ReadHistory(actor, revision - 1, 1))
        record = msgspec.structs.replace(base_of(page.events[0], snapshot), seq=None)
        try:
            (encoded,) = codec.encode([record])
            again = read_base(cast("PersistedEvent", codec.decode(encoded, seq)))
            if again is None or bytes(again.state) != bytes(snapshot.state):
                raise InvalidBase("its state does not come back as it was")
        except (PersistenceError, InvalidBase) as error:
            logger.warning(
                "the history of %s is not trimmed to revision %d: %s",
                *(shown(actor), revision, text_of(error)),
            )
            return None
        return NewBase(actor, revision, seq, encoded)

    async def _count_before(self, actor: str, revision: int) -> int:
        """Return how many events of an actor's history have a smaller revision."""
        request, count = ReadHistory(actor), 0
        while True:
            page = await self._histories.read_history(request)
            before = [event for event in page.events if (event.revision or 0) < revision]
            count += len(before)
            if len(before) < len(page.events) or not page.more:
                return count
            request = ReadHistory(actor, page.next_after)
