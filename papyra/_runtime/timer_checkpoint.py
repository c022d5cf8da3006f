"""The checkpoint of the index of timers, so that a start reads what came after it, and no more.

It is a snapshot of a history of its own, so it is believed, copied and checked as any other. The
events of that history say that there is one, and hold on to the place in the store: a checkpoint is
of the timers that were pending right after such an event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec
from anyio.lowlevel import checkpoint

from papyra._runtime.timer_index import IndexedTimer, TimerIndex
from papyra._safe_repr import text_of
from papyra.clock import Clock
from papyra.exceptions import ActorStopped, PapyraError, SnapshotsUnsupported
from papyra.persistence.messages import (
    Append,
    Appended,
    HistoryPage,
    LoadSnapshot,
    ReadHistory,
    SaveSnapshot,
)
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import TIMER_INDEX
from papyra.persistence.timer_checkpoints import (
    CHECKPOINT_VERSION,
    Checkpoint,
    Kept,
    checkpoint_in,
    index_address,
)
from papyra.persistence.verbs import PersistenceVerbs
from papyra.ref import ActorRef

logger = logging.getLogger("papyra")

#: Changes of timers from one checkpoint to the next, at least; as many as are pending, if that is
#: more, so that saving them costs each change the same.
SAVE_EVERY = 5_000
#: Records of any kind from one checkpoint to the next, at most: a start reads them all.
READ_AT_MOST = 50_000
#: How many timers are encoded before others have their turn.
_SLICE = 500


class TimerCheckpoint:
    """Loads the checkpoint of one system, and saves another one when it is time."""

    def __init__(
        self,
        system_id: str,
        clock: Clock,
        index: TimerIndex,
        store: Callable[[], ActorRef],
        wake: Callable[[], None],
    ) -> None:
        """Make one that calls `wake` when it has something to write."""
        self._system_id = system_id
        self._address = index_address(system_id)
        self._clock = clock
        self._index = index
        self._store = store
        self._wake = wake
        #: whether there was one, be it good or not: so there have been timers
        self.exists = False
        #: of the last event of its history, as far as is known
        self._revision = 0
        self._is_revision_known = False
        #: the position that it is of, and the changes that were known there
        self._position = self._changes = 0
        self._is_saving = False
        self._is_supported = True
        #: of the event that was stored last, and what was pending then
        self._taken: tuple[int, Sequence[IndexedTimer]] | None = None
        #: the same, once it is known to be the one of this revision
        self._to_write: tuple[int, Sequence[IndexedTimer]] | None = None

    async def load(self, backend: PersistenceVerbs) -> int:
        """Fill the index from the newest checkpoint that can be believed; return its position.

        That is 0 if there is none. Raises `PersistenceError`.
        """
        try:
            loaded = await backend.execute(LoadSnapshot(self._address, CHECKPOINT_VERSION))
        except SnapshotsUnsupported:
            self._is_supported = False
            return 0
        self.exists = loaded.snapshot is not None or bool(loaded.passed_over)
        if loaded.snapshot is None:
            return 0
        self._revision = loaded.snapshot.revision
        try:
            kept = checkpoint_in(loaded.snapshot)
        except msgspec.DecodeError as error:
            logger.warning("passed over the index of timers: %s", text_of(error))
            return 0
        self._index.restore(kept.timers)
        self._index.is_alone = kept.is_alone
        self._position = kept.position
        return kept.position

    def take(self, seq: int) -> None:
        """Take note of what is pending, as the event at this position says that it is saved."""
        self._taken = seq, self._index.all()

    def is_own(self, record: PersistedEvent) -> bool:
        """Return whether an event says that the index is saved."""
        return record.event_type == TIMER_INDEX and record.actor_address == self._address

    def is_due(self, head: int) -> bool:
        """Return whether it is time to save one, at this end of the store."""
        changes = self._index.changes - self._changes
        if self._is_saving or not self._is_supported or not (changes or self._revision):
            return False
        return (
            (changes >= SAVE_EVERY and changes >= len(self._index))
            or head - self._position >= READ_AT_MOST
            or not self._revision
        )

    def save_if_due(self, head: int) -> None:
        """Save one if it is time. Does not wait; what fails is logged, and is due as much later."""
        if not self.is_due(head):
            return
        self._position, self._changes = head, self._index.changes
        self._is_saving = True
        if self._is_revision_known:
            self._save()
        else:
            self._find_revision()

    def _find_revision(self) -> None:
        """Find the last event of the history, as one may have been stored without its snapshot."""
        self._request(ReadHistory(self._address, self._revision), self._found_revision)

    def _found_revision(self, reply: object, error: Exception | None) -> None:
        if error is not None or not isinstance(reply, HistoryPage):
            self._saved(None, error)
            return
        self._revision = reply.next_after
        if reply.more:
            self._find_revision()
        else:
            self._is_revision_known = True
            self._save()

    def _save(self) -> None:
        revision = self._revision + 1
        event = PersistedEvent(
            *(self._system_id, self._address, TIMER_INDEX, {"pending": len(self._index)}),
            self._clock.time(),
            revision=revision,
        )
        self._request(Append(event), self._appended)

    def _appended(self, reply: object, error: Exception | None) -> None:
        taken, self._taken = self._taken, None
        if error is not None or not isinstance(reply, Appended):
            self._is_revision_known = False
            self._saved(None, error)
            return
        self._revision += 1
        if taken is None or taken[0] != reply.last_seq:
            self._saved(None, None)  # the index was not up to date just then
            return
        self._to_write = taken
        self._wake()

    async def write_if_due(self) -> None:
        """Encode what is to be written, slice by slice, and have it saved."""
        if self._to_write is None:
            return
        (seq, timers), self._to_write = self._to_write, None
        state = await encoded_checkpoint(seq, timers, is_alone=self._index.is_alone)
        request = SaveSnapshot(
            *(self._address, self._revision, seq, state, self._clock.time(), CHECKPOINT_VERSION)
        )
        self._request(request, self._saved)

    def _saved(self, reply: object, error: Exception | None) -> None:
        del reply
        self._is_saving = False
        if error is not None and not isinstance(error, ActorStopped):
            logger.warning("the index of timers was not saved: %s", text_of(error))

    def _request(
        self, request: object, answered: Callable[[object, Exception | None], None]
    ) -> None:
        try:
            self._store().request(request, answered)
        except PapyraError as error:
            self._saved(None, error)


async def encoded_checkpoint(
    position: int, timers: Sequence[IndexedTimer], *, is_alone: bool
) -> msgspec.Raw:
    """Return the checkpoint of some timers. Others have their turn between its slices."""
    encoded = bytearray(msgspec.json.encode(Checkpoint(position, is_alone)).removesuffix(b"]}"))
    for begin in range(0, len(timers), _SLICE):
        part = [kept_of(each) for each in timers[begin : begin + _SLICE]]
        encoded += b"," if begin else b""
        encoded += msgspec.json.encode(part)[1:-1]
        await checkpoint()
    return msgspec.Raw(bytes(encoded + b"]}"))


def kept_of(timer: IndexedTimer) -> Kept:
    """Return what is kept of a timer."""
    return Kept(
        *(timer.owner.address, timer.name, timer.generation, timer.due, timer.attempts),
        timer.comes_at if timer.comes_at > timer.due else None,
    )
