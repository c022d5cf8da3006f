"""Taking over what applications hand over: each event once, in the transaction that removes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from papyra._safe_repr import text_of
from papyra.exceptions import InvalidRecord, PersistenceError, StoreDamaged
from papyra.persistence.backends._session import StoreSession
from papyra.persistence.backends.group_commit import MAX_COMMIT_BYTES
from papyra.persistence.backends.store import Outbox, Store
from papyra.persistence.messages import OutboxTaken
from papyra.persistence.metrics import PersistenceMetrics
from papyra.persistence.outbox import HandedOver, event_of
from papyra.persistence.records import PersistedEvent
from papyra.persistence.reports import PersistenceAnomaly, PersistenceScanReport

__all__ = ("OutboxKeeper", "with_outbox")

logger = logging.getLogger("papyra")

#: Events that are logged one by one when many are set aside at once.
_LOGGED = 10
#: Characters of a reason.
_LONGEST = 4_000


class _Taken(NamedTuple):
    handed: HandedOver
    event: PersistedEvent
    encoded: bytes


class _Refused(NamedTuple):
    handed: HandedOver
    reason: str


class OutboxKeeper:
    """Takes events out of the outbox of one store, for its writer."""

    def __init__(
        self,
        store: Store,
        session: StoreSession,
        metrics: PersistenceMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._session = session
        self._metrics = metrics
        self._clock = clock
        self._is_failing = False

    async def look(self) -> int | None:
        """Take some over, as `take` does; return how many, `None` where that has failed.

        That is logged once, and writing goes on as if there were no outbox.
        """
        try:
            count = (await self.take()).count
        except PersistenceError as error:
            if not self._is_failing:
                logger.warning("events in the outbox can't be taken over: %s", error)
            self._is_failing = True
            return None
        self._is_failing = False
        return count

    async def take(self) -> OutboxTaken:
        """Take over the oldest that wait, as one commit, and set aside what can't be."""
        if not isinstance(self._store, Outbox):
            return OutboxTaken(0, more=False)
        size = MAX_COMMIT_BYTES
        handed = await self._session.attempt("read", self._store.handed_over, None, size)
        checked = [_checked(each) for each in handed]
        if refused := [each for each in checked if isinstance(each, _Refused)]:
            await self._set_aside(self._store, refused)
        await self._append(self._store, [each for each in checked if isinstance(each, _Taken)])
        return OutboxTaken(len(checked) - len(refused), more=bool(handed))

    async def _append(self, outbox: Outbox, taken: Sequence[_Taken]) -> None:
        if not taken:
            return
        handed, events, encoded = zip(*taken, strict=True)
        take_over = partial(outbox.take_over, handed)
        try:
            await self._session.write(events, encoded, sum(map(len, encoded)), take_over)
        except PersistenceError:
            self._metrics.write_errors += 1
            raise
        self._metrics.outbox_taken += len(events)

    async def _set_aside(self, outbox: Outbox, refused: Sequence[_Refused]) -> None:
        await self._session.attempt("write", outbox.set_aside, refused, self._clock())
        self._metrics.outbox_refused += len(refused)
        for handed, reason in refused[:_LOGGED]:
            logger.error("event %d of the outbox was set aside: %s", handed.id, reason)
        if len(refused) > _LOGGED:
            logger.error("%d more events of the outbox were set aside", len(refused) - _LOGGED)


def _checked(handed: HandedOver) -> _Taken | _Refused:
    try:
        return _Taken(handed, *event_of(handed.data))
    except InvalidRecord as error:
        reason = text_of(error)[:_LONGEST]
        return _Refused(handed, reason.encode(errors="backslashreplace").decode())


async def with_outbox(store: Store, report: PersistenceScanReport) -> PersistenceScanReport:
    """Return the report of a scan with what is wrong in the outbox, and what was set aside."""
    if not isinstance(store, Outbox):
        return report
    found: list[PersistenceAnomaly] = []
    try:
        await _check_waiting(store, found)
        await _check_refused(store, found)
    except StoreDamaged as error:
        found.append(PersistenceAnomaly("outbox", f"not all of it can be read: {error}"))
    return msgspec.structs.replace(report, anomalies=(*report.anomalies, *found))


async def _check_waiting(outbox: Outbox, found: list[PersistenceAnomaly]) -> None:
    after: int | None = None
    while handed := await outbox.handed_over(after, MAX_COMMIT_BYTES):
        after = handed[-1].id
        for each in handed:
            refused = _checked(each)
            if isinstance(refused, _Refused):
                detail = f"event {each.id} of the outbox will be set aside: {refused.reason}"
                found.append(PersistenceAnomaly("outbox", detail, "papyra_outbox"))


async def _check_refused(outbox: Outbox, found: list[PersistenceAnomaly]) -> None:
    after: int | None = None
    while refused := await outbox.refused(after):
        after = refused[-1].id
        for each in refused:
            detail = f"event {each.id} was set aside: {each.reason}"
            found.append(PersistenceAnomaly("outbox", detail, "papyra_outbox_refused"))
