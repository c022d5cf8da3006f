"""Resumption: a command that was cut short is taken up again, where it is repeated by its key.

It has stored events and not replied, that is known of: the process ended between the two, it
crashed, or the answer of the store got lost. So it is handled once more, with the state that it had
the first time. What it persists then is there already, and is not stored again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from papyra.eventsourcing.bookkeeping import KEY, NOTES
from papyra.eventsourcing.schema import Schema
from papyra.exceptions import ReplyNotKept
from papyra.persistence import codec
from papyra.persistence.records import PersistedEvent

StateT = TypeVar("StateT")


class Past(NamedTuple, Generic[StateT]):
    """The state at one revision of a history."""

    state: StateT
    revision: int


class Resumption(Generic[StateT]):
    """A command that is handled once more."""

    def __init__(self, idempotency_key: str, before: Past[StateT], schema: Schema) -> None:
        self._key = idempotency_key
        self._schema = schema
        self._stored: deque[PersistedEvent] = deque()
        #: before the first event of the command
        self.before = before
        #: of the first event, or note, that the command has stored; 0 if there is none
        self.first_revision = 0
        #: why it does something else than the first time, if it does
        self.divergence: ReplyNotKept | None = None

    def add(self, record: PersistedEvent) -> None:
        """Add an event that was stored since, the next one, if it is one of the command's."""
        if record.metadata.get(KEY) != self._key:
            return
        self.first_revision = self.first_revision or record.revision or 0
        if record.event_type not in NOTES:
            self._stored.append(record)

    @property
    def is_through(self) -> bool:
        """Whether everything that the command had stored was persisted again."""
        return not self._stored

    def meet(self, events: Sequence[object]) -> tuple[list[object], int]:
        """Take what is stored for `events`: the same events, and the revision of the last.

        Raises `ReplyNotKept` if the command had stored something else.
        """
        if len(events) > len(self._stored):
            raise self.diverge()
        records = [self._stored.popleft() for _ in events]
        decoded = [event for record in records for event in self._schema.decode(record)]
        if self._encoded(decoded) != self._encoded(events):
            raise self.diverge()
        return decoded, records[-1].revision or 0

    def diverge(self) -> ReplyNotKept:
        """Note that the command does something else than the first time, and return the error."""
        self.divergence = ReplyNotKept(
            "this command was begun before, and cut short: what it has stored is there. Handled "
            "once more, it persists something else, so its reply is not known"
        )
        return self.divergence

    def _encoded(self, events: Iterable[object]) -> list[tuple[object, bytes]]:
        return [
            (event_type, codec.encode_payload(payload))
            for event_type, payload in map(self._schema.encode, events)
        ]
