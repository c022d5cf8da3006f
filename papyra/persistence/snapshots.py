"""Snapshots: the state of an actor after one of its events, kept beside the records.

A snapshot is no record: nothing is lost with it but time. So it is believed only if everything
about it is right, which is why it names the place in the store that it belongs to. What is stored
of it is one line::

    c1b6...e0 {"actor":"shop/ann","revision":500,...,"state":{"amount":7}}

The first word is a BLAKE2 hash of all that follows the space, the newline included.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, runtime_checkable

import msgspec

#: Characters of a checksum.
_CHECKSUM = 32


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """The state of an actor after one of its events."""

    #: the actor's address
    actor: str
    #: of the last event that is part of the state
    revision: int
    #: of the state's meaning, as the actor's `SnapshotPolicy` says it
    version: int
    #: the store that this belongs to
    store_id: str
    #: the position of that event
    seq: int
    #: of that event, as it is read; other events may stand there when the last second was lost
    checksum: str
    #: the state as JSON
    state: msgspec.Raw
    #: Unix time in seconds, when it was taken
    timestamp: float
    #: of the state's type, so that a field more or less is noticed
    shape: str = ""
    #: as JSON, what else the events add up to, beside the state that users see
    bookkeeping: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class StoredSnapshot(msgspec.Struct, frozen=True):
    """A snapshot that a store has, by its place; what is in it may be anything."""

    #: whose it is, as `Snapshots.snapshot_owner` makes it of an address, which it need not tell
    owner: str
    revision: int
    #: bytes
    size: int


class InvalidSnapshot(ValueError):
    """Bytes that are no snapshot, or not the one that they were. For those who load it."""


@runtime_checkable
class Snapshots(Protocol):
    """An optional part of a `Store`: bytes beside the records, by actor and revision.

    What is in them, and whether that is right, is checked elsewhere: a store may lose them at any
    time, or give back damaged ones. They are as durable as its records. Any string is an actor's
    address, and any length of it. A recovery and a compaction leave them alone.
    """

    async def save_snapshot(self, actor: str, revision: int, data: bytes) -> None:
        """Store `data`, in place of what was there. Raising, it leaves that, or the new, whole."""

    async def snapshot_revisions(self, actor: str) -> list[int]:
        """Return the revisions of an actor's snapshots, in any order; others cost nothing."""

    async def load_snapshot(self, actor: str, revision: int) -> bytes | None:
        """Return what was stored, or `None` if there is no such snapshot."""

    async def remove_snapshot(self, actor: str, revision: int) -> None:
        """Remove a snapshot, if it is there."""

    def snapshot_owner(self, actor: str) -> str:
        """Return the `owner` that the snapshots of an actor are listed with, and no others."""

    async def list_snapshots(
        self, after: StoredSnapshot | None, limit: int
    ) -> Sequence[StoredSnapshot]:
        """Return up to `limit` of all snapshots, by owner and revision, and read none of them.

        The first page comes after `None`, the next after the last of this one, be that there still
        or not; fewer than `limit` are the last page. A reader lists what it finds.
        """

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return what is stored at a place, or `None`, as `load_snapshot` does."""

    async def remove_listed(self, stored: StoredSnapshot) -> None:
        """Remove what is stored at a place, if it is there."""

    async def quarantine_listed(self, stored: StoredSnapshot, directory: str | None) -> str | None:
        """Move what is stored at a place to where `Store.recover` keeps originals; return where.

        A store that keeps none removes it, and returns `None`.
        """


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return what is stored of `snapshot`."""
    body = msgspec.json.encode(snapshot) + b"\n"
    return b"%b %b" % (checksum(body).encode(), body)


def decode_snapshot(data: bytes) -> Snapshot:
    """Return the snapshot that `data` holds. Raises `InvalidSnapshot` for what is damaged."""
    body = data[_CHECKSUM + 1 :]
    if data[: _CHECKSUM + 1] != b"%b " % checksum(body).encode():
        raise InvalidSnapshot("it is damaged")
    try:
        return msgspec.json.decode(body, type=Snapshot)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSnapshot(f"it can't be read: {error}") from error


def checksum(data: bytes) -> str:
    """Return the checksum of `data`, in hexadecimal."""
    return blake2b(data, digest_size=_CHECKSUM // 2).hexdigest()
