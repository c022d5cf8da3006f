"""The histories and snapshots of a system with telemetry: they say what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from papyra.actor import ActorContext
from papyra.eventsourcing.bookkeeping import Bookkeeping, Note
from papyra.eventsourcing.history import History
from papyra.eventsourcing.snapshots import SnapshotPolicy, Snapshots, StateCodec
from papyra.persistence.codec import fits_in_metadata
from papyra.persistence.timer_changes import TIMER, with_cause
from papyra.ref import Answered
from papyra.telemetry import Operation, Telemetry

StateT = TypeVar("StateT")


class ObservedHistory(History[StateT]):
    """The history of an actor."""

    @property
    def _telemetry(self) -> Telemetry:
        telemetry = self._context.system.telemetry
        assert telemetry is not None  # who makes one has looked
        return telemetry

    async def recover(self, *, from_beginning: bool) -> None:
        """Recover as above, observed."""

        async def recovering() -> int:
            await History.recover(self, from_beginning=from_beginning)
            return self.revision

        address, ahead = self._context.self_ref.address, self._context.ahead
        await self._telemetry.recovery(address, ahead, recovering())

    async def append(
        self,
        events: Sequence[object],
        metadata: Mapping[str, str] | None = None,
        notes: Sequence[Note] = (),
    ) -> None:
        """Append as above, observed."""
        operation = self._begin(events, notes)
        if operation is None:
            await super().append(events, metadata, notes)
            return
        try:
            await super().append(events, *_traced(operation, metadata, notes))
        except BaseException as error:
            operation.end(error)
            raise
        operation.end()

    def append_nowait(
        self,
        events: Sequence[object],
        answered: Answered,
        metadata: Mapping[str, str] | None = None,
        notes: Sequence[Note] = (),
    ) -> None:
        """Append as above, observed."""
        operation = self._begin(events, notes)
        if operation is None:
            super().append_nowait(events, answered, metadata, notes)
            return

        def ended(reply: object, error: Exception | None) -> None:
            operation.end(error)
            answered(reply, error)

        metadata, notes = _traced(operation, metadata, notes)
        try:
            super().append_nowait(events, ended, metadata, notes)
        except BaseException as error:
            operation.end(error)
            raise

    def _begin(self, events: Sequence[object], notes: Sequence[Note]) -> Operation | None:
        records = len(events) + len(notes)
        return self._telemetry.persist(self._context.self_ref.address, records)


class ObservedSnapshots(Snapshots[StateT]):
    """The snapshots of an actor."""

    def __init__(
        self,
        policy: SnapshotPolicy,
        state_codec: StateCodec[StateT],
        context: ActorContext,
        telemetry: Telemetry,
    ) -> None:
        super().__init__(policy, state_codec, context)
        self._telemetry = telemetry
        self._operation: Operation | None = None

    def take(
        self, state: StateT, revision: int, books: Bookkeeping
    ) -> Callable[[int], None] | None:
        """Take a snapshot as above, observed."""
        save = super().take(state, revision, books)
        if save is None:
            return None
        # Here, as it is saved from elsewhere, and the variables are those of the message at hand.
        operation = self._telemetry.snapshot(self._context.self_ref.address, revision)

        def save_observed(seq: int) -> None:
            if not self._is_saving:
                self._operation = operation
            save(seq)

        return save_observed

    def _saved(self, revision: int, error: Exception | None) -> None:
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.end(error)
        super()._saved(revision, error)


def _traced(
    operation: Operation, metadata: Mapping[str, str] | None, notes: Sequence[Note]
) -> tuple[Mapping[str, str], list[Note]]:
    """Return metadata, and notes, by which those who read them find the operation."""
    cause = operation.metadata
    marked = [
        (event_type, with_cause(payload, cause) if event_type == TIMER else payload)
        for event_type, payload in notes
    ]
    return _merged(cause, metadata), marked


def _merged(cause: Mapping[str, str], metadata: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return both, as far as there is room; what the user says goes before."""
    if metadata is None:
        return cause
    both = {**cause, **metadata}
    return both if fits_in_metadata(both) else metadata
