"""Snapshots of one store: which are saved, which are believed, which are removed."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Protocol, cast

from papyra._safe_repr import shown, text_of, type_and_text
from papyra.exceptions import InvalidRequest, SnapshotsUnsupported
from papyra.persistence.backends.store import (
    MAX_SEQ,
    Histories,
    Identified,
    Snapshots,
    Store,
    StoredSnapshot,
)
from papyra.persistence.bases import event_checksum
from papyra.persistence.messages import (
    LoadedSnapshot,
    LoadSnapshot,
    Read,
    ReadHistory,
    SaveSnapshot,
    SnapshotSaved,
)
from papyra.persistence.records import PersistedEvent
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.snapshots import (
    InvalidSnapshot,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
)

logger = logging.getLogger("papyra")

#: How many snapshots are listed together.
_PAGE = 5_000


class SnapshotStore(Histories, Snapshots, Identified, Protocol):
    """The parts of a store that snapshots need."""


def keeps_snapshots(store: Store) -> bool:
    """Return whether `store` has the parts that snapshots need."""
    return all(isinstance(store, part) for part in (Histories, Snapshots, Identified))


def snapshots_of(store: Store) -> SnapshotStore:
    """Return `store` as one that keeps snapshots; raise `SnapshotsUnsupported` if it does not."""
    if keeps_snapshots(store):
        return cast("SnapshotStore", store)
    raise SnapshotsUnsupported(f"a store of kind {shown(store.name)} keeps no snapshots")


async def all_snapshots(store: Snapshots) -> AsyncGenerator[StoredSnapshot, None]:
    """Yield all that `store` has, by owner and revision, page by page."""
    last: StoredSnapshot | None = None
    while page := await store.list_snapshots(last, _PAGE):
        for stored in page:
            yield stored
        if len(page) < _PAGE:
            return
        last = page[-1]


class SnapshotKeeper:
    """Saves and loads the snapshots of one store, which is open."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def save(self, request: SaveSnapshot) -> SnapshotSaved:
        """Save a snapshot, and remove those of its actor that it makes superfluous."""
        store = snapshots_of(self._store)
        event = await self._event_at(request.seq)
        if event is None or (event.actor_address, event.revision) != (
            request.actor,
            request.revision,
        ):
            raise InvalidRequest(
                f"no snapshot of {shown(request.actor)} was saved: its event of revision "
                f"{request.revision} is not at position {request.seq}"
            )
        snapshot = Snapshot(
            request.actor,
            request.revision,
            request.version,
            await store.store_id(),
            request.seq,
            event_checksum(event),
            request.state,
            request.timestamp,
            request.shape,
            request.bookkeeping,
        )
        data = encode_snapshot(snapshot)
        await store.save_snapshot(request.actor, request.revision, data)
        await self._remove_superfluous(request)
        return SnapshotSaved(request.revision, len(data))

    async def load(self, request: LoadSnapshot) -> LoadedSnapshot:
        """Return the newest snapshot that is to be believed, and what was passed over."""
        passed_over: list[str] = []
        revisions = await snapshots_of(self._store).snapshot_revisions(request.actor)
        before = MAX_SEQ + 1 if request.before_revision is None else request.before_revision
        for revision in sorted(set(revisions), reverse=True):
            if revision >= before:
                continue
            try:
                snapshot = await self._checked(request.actor, revision)
                if snapshot is None:
                    continue  # removed just now
                if snapshot.version != request.version:
                    newer = "newer than" if snapshot.version > request.version else "older than"
                    raise InvalidSnapshot(
                        f"it is of version {snapshot.version}, {newer} {request.version}"
                    )
            except Exception as error:  # noqa: BLE001 - any may be read, or none
                reason = f"snapshot {revision} of {shown(request.actor)}: {why_not(error)}"
                logger.warning("passed over %s", reason)
                passed_over.append(reason)
                continue
            return LoadedSnapshot(snapshot, tuple(passed_over))
        return LoadedSnapshot(None, tuple(passed_over))

    async def check(self, stored: StoredSnapshot) -> Snapshot | None:
        """Return a listed snapshot if everything about it is right, `None` if it is gone.

        Raises `InvalidSnapshot`, or what the store does for one that can't be read.
        """
        store = snapshots_of(self._store)
        data = await store.load_listed(stored)
        return None if data is None else await self._check(data, stored.owner, stored.revision)

    async def good(self, actor: str) -> list[Snapshot]:
        """Return an actor's snapshots of which everything is right, the oldest first."""
        found: list[Snapshot] = []
        for revision in sorted(set(await snapshots_of(self._store).snapshot_revisions(actor))):
            try:
                snapshot = await self._checked(actor, revision)
            except Exception as error:  # noqa: BLE001 - any may be read, or none
                logger.warning(
                    "snapshot %d of %s does not count: %s", revision, shown(actor), why_not(error)
                )
                continue
            if snapshot is not None:
                found.append(snapshot)
        return found

    async def _checked(self, actor: str, revision: int) -> Snapshot | None:
        """Return a snapshot of which everything is right, `None` if there is none; or raise."""
        store = snapshots_of(self._store)
        data = await store.load_snapshot(actor, revision)
        if data is None:
            return None
        return await self._check(data, store.snapshot_owner(actor), revision)

    async def _check(self, data: bytes, owner: str, revision: int) -> Snapshot:
        store = snapshots_of(self._store)
        snapshot = decode_snapshot(data)
        if (store.snapshot_owner(snapshot.actor), snapshot.revision) != (owner, revision):
            raise InvalidSnapshot(
                f"it is that of revision {snapshot.revision} of {shown(snapshot.actor)}"
            )
        if snapshot.store_id != await store.store_id():
            raise InvalidSnapshot("it is of another store, or of one that was made anew")
        event = await self._event(snapshot.actor, revision)
        if event is None or event.seq != snapshot.seq or event_checksum(event) != snapshot.checksum:
            raise InvalidSnapshot("the event that it was taken after is not in the store")
        return snapshot

    async def _remove_superfluous(self, request: SaveSnapshot) -> None:
        """Remove what is older than those to be kept, and what another past has left."""
        store, actor = snapshots_of(self._store), request.actor
        revisions = sorted(set(await store.snapshot_revisions(actor)), reverse=True)
        superfluous = [each for each in revisions if each <= request.revision][request.keep :]
        for revision in revisions:
            if revision > request.revision:
                try:
                    await self._checked(actor, revision)
                except Exception:  # noqa: BLE001 - whatever is there, it is no snapshot
                    superfluous.append(revision)
        for revision in superfluous:
            await store.remove_snapshot(actor, revision)

    async def _event_at(self, seq: int) -> PersistedEvent | None:
        """Return the event at a position, for which no index of actors is needed."""
        if seq > MAX_SEQ:
            return None
        request = Read("event", after=seq - 1, before=seq + 1)
        page = await self._store.read(request, RetentionPolicy(), 0.0)
        event = page.records[0] if page.records else None
        return event if isinstance(event, PersistedEvent) and event.seq == seq else None

    async def _event(self, actor: str, revision: int) -> PersistedEvent | None:
        page = await snapshots_of(self._store).read_history(ReadHistory(actor, revision - 1, 1))
        event = page.events[0] if page.events else None
        return event if event is not None and event.revision == revision else None


def why_not(error: Exception) -> str:
    """Return why a snapshot is not to be believed, by what reading or checking it raised."""
    if isinstance(error, InvalidSnapshot):
        return text_of(error)
    return f"it can't be read: {type_and_text(error)}"
