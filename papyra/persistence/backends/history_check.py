"""The check of histories for what is missing in them, or there twice."""

from __future__ import annotations

from papyra._safe_repr import shown
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.records import PersistedEvent, Record
from papyra.persistence.reports import PersistenceAnomaly


class HistoryCheck:
    """Follows the revisions of every actor through a store. It holds about 150 bytes an actor.

    Before a base any event may be missing: it stands for them.
    """

    def __init__(self) -> None:
        #: revision and position of the last event of each actor
        self._last: dict[str, tuple[int, int]] = {}

    def take(
        self, record: Record, location: str | None, entry: str | None = None
    ) -> PersistenceAnomaly | None:
        """Return what is wrong with the place of the next record in its history, if anything."""
        if not isinstance(record, PersistedEvent) or record.revision is None:
            return None
        actor, revision, seq = record.actor_address, record.revision, record.seq or 0
        last, last_seq = self._last.get(actor, (0, 0))
        if seq <= last_seq:
            return None  # a copy of a record, which is another matter
        self._last[actor] = max(last, revision), seq
        if revision == last + 1 or (revision > last and record.event_type == BASE_TYPE):
            return None
        detail = f"revision {revision} of {shown(actor)} is there twice, or too late"
        if revision > last:
            missing = f"{last + 1} to {revision - 1}" if revision > last + 2 else f"{last + 1}"
            detail = f"missing before revision {revision} of {shown(actor)}: {missing}"
        return PersistenceAnomaly("history", detail, location, seq=seq, entry=entry)
