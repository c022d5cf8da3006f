"""The trimming of histories: which of them may begin with a base, and what it is made of."""

from __future__ import annotations

import logging
from array import array
from collections.abc import AsyncIterator
from typing import cast

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

logger = logging.getLogger("papyra")

#: Good snapshots of one version that an actor must have: should the newest turn out to be of no
#: use, there is another one before what is removed.
_ENOUGH = 2
_FOREVER = float("inf")


async def compact_and_trim(
    store: Store, snapshots: SnapshotKeeper, policy: RetentionPolicy, now: float, *, dry_run: bool
) -> CompactionReport:
    """Compact `store`, and have histories begin with a base where `policy` and snapshots allow it.

    This reads all events twice, and holds in memory the states that become bases, and eight bytes
    for each event of a history.
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


class _History:
    """The places of the events of a history: eight bytes each."""

    def __init__(self, first: PersistedEvent) -> None:
        self.first_seq = first.seq or 0
        self.begins_with_base = first.event_type == BASE_TYPE
        self.revisions = array("Q")

    def count_before(self, revision: int) -> int:
        """Return how many of the events have a smaller revision."""
        return sum(each < revision for each in self.revisions)


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
        found: dict[str, _History] = {}
        async for event in self._events(RetentionPolicy(), now):
            history = found.get(event.actor_address)
            if history is None:
                history = found[event.actor_address] = _History(event)
            history.revisions.append(event.revision or 0)
        shown_from: dict[str, int] = {}
        async for event in self._events(policy, now):
            shown_from.setdefault(event.actor_address, event.seq or 0)
        for actor, history in found.items():
            limit = shown_from.get(actor, _FOREVER)
            if history.first_seq < limit:
                await self._trim(actor, history, limit)

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

    async def _trim(self, actor: str, history: _History, limit: float) -> None:
        """Plan for a history that begins before position `limit`, from which on it is shown."""
        good = await self._good(actor)
        if len(good) < _ENOUGH:
            self._count(without_snapshots=1)
            return
        oldest = good[0]
        if oldest.seq >= limit:
            self._count(still_shown=1)
            return
        removed = history.count_before(oldest.revision)
        if not removed and (history.begins_with_base or oldest.revision == 1):
            return  # there is nothing before it
        base = await self._base(oldest)
        if base is None:
            self._count(without_snapshots=1)
            return
        self.bases.append(base)
        self._count(trimmed=1, events_removed=removed)

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
            if again.bookkeeping != snapshot.bookkeeping:
                raise InvalidBase("what goes along with its state does not come back as it was")
        except (PersistenceError, InvalidBase) as error:
            logger.warning(
                "the history of %s is not trimmed to revision %d: %s",
                *(shown(actor), revision, text_of(error)),
            )
            return None
        return NewBase(actor, revision, seq, encoded)
