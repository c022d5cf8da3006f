"""The snapshots of a store, and its id: what is kept beside the streams.

A hash has the snapshots, and a sorted set their names, in the order of which they are listed: a
hash of the actor's address, as that may be of any length, a colon, and the revision with 14 digits.
What is in a snapshot says whose it is. The writer changes both with one script; where others have
removed one of the two, a snapshot is half gone, which a scan reports.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from typing import cast

from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.fenced_writer import Writer
from papyra.persistence.snapshots import InvalidSnapshot, StoredSnapshot

__all__ = ("RedisSnapshots", "owner_of")

_ID = re.compile(rb"[0-9a-f]{32}")
_NAME = re.compile(rb"([0-9a-f]{40}):(?!0{14})([0-9]{14})")

#: How many names one call of a script looks at, at most.
LISTED_AT_ONCE = 1_000


class RedisSnapshots:
    """The snapshots of one store. Runs on asyncio."""

    def __init__(self, client: RedisClient, writer: Writer) -> None:
        self._client = client
        self._keys = client.keys
        self._writer = writer
        #: how many that are there were listed last, and the names of those that had none then
        self._listed = 0
        self._nameless: set[str] = set()

    async def find_id(self) -> str:
        """Return the id of the store, or the empty string if there is none."""
        found = await self._field(self._keys.meta, "id")
        return found.decode() if found and _ID.fullmatch(found) else ""

    async def ensure_id(self) -> str:
        """Return the id of the store, giving it one if need be; on return it is as an append is."""
        return await self.find_id() or await self._writer.identify(uuid.uuid4().hex)

    async def save(self, owner: str, revision: int, data: bytes) -> None:
        """Save a snapshot, as durably as an append. Raises `StoreFenced` for who writes no more."""
        await self._writer.write_beside(
            scripts.SNAPSHOT, self._keys.beside, _name_of(owner, revision), data
        )

    async def remove(self, owner: str, revision: int) -> None:
        """Remove a snapshot, if it is there; as `save`."""
        await self._writer.write_beside(
            scripts.SNAPSHOT, self._keys.beside, _name_of(owner, revision)
        )

    async def quarantine(self, owner: str, revision: int) -> str:
        """Move a snapshot to the hash for damaged ones, and return that; as `save`."""
        keys = [*self._keys.beside, self._keys.snapshot_quarantine]
        await self._writer.write_beside(scripts.SNAPSHOT, keys, _name_of(owner, revision))
        return self._keys.snapshot_quarantine

    async def load(self, owner: str, revision: int) -> bytes | None:
        """Return a snapshot, or `None`."""
        place = self._keys.snapshots, _name_of(owner, revision)
        [size] = await self._client.replies(("HSTRLEN", *place))
        [data] = await self._client.replies(("HGET", *place), size=size)
        return cast("bytes | None", data)

    async def revisions(self, owner: str) -> list[int]:
        """Return the revisions of an owner's snapshots."""
        found = await self._list(f"[{owner}:", f"({owner};", None)
        return [stored.revision for stored in found]

    async def page(self, after: StoredSnapshot | None, limit: int) -> list[StoredSnapshot]:
        """Return up to `limit` snapshots, by owner and revision.

        Last, and all at once, come those whose names are gone; of one whose data is gone there are
        no bytes.
        """
        if after is None:
            self._listed, self._nameless = 0, set()
        elif _name_of(after.owner, after.revision) in self._nameless:
            return []
        start = "-" if after is None else f"({_name_of(after.owner, after.revision)}"
        found = await self._list(start, "+", limit)
        self._listed += sum(stored.size > 0 for stored in found)
        if len(found) < limit:
            found += await self._without_names()
        return found

    async def _without_names(self) -> list[StoredSnapshot]:
        """Return the snapshots that are in the hash alone, if there are more than were listed."""

        async def fetch(client: AnyClient) -> tuple[list[bytes], list[float | None]]:
            if await client.hlen(self._keys.snapshots) <= self._listed:
                return [], []
            names = sorted(filter(_NAME.fullmatch, await client.hkeys(self._keys.snapshots)))
            scores: list[float | None] = []
            for start in range(0, len(names), LISTED_AT_ONCE):
                part = names[start : start + LISTED_AT_ONCE]
                scores += await client.zmscore(self._keys.snapshot_names, part)
            return names, scores

        names, scores = await self._client.call(fetch)
        nameless = [name for name, score in zip(names, scores, strict=True) if score is None]
        self._nameless = {name.decode() for name in nameless}
        return _stored([word for name in nameless for word in (name, 0)])

    async def load_listed(self, stored: StoredSnapshot) -> bytes | None:
        """Return a snapshot, `None` if it is gone. Raises `InvalidSnapshot` if half of it is."""
        name = _name_of(stored.owner, stored.revision)
        look = (
            ("ZSCORE", self._keys.snapshot_names, name),
            ("HGET", self._keys.snapshots, name),
        )
        score, data = await self._client.replies(*look, size=stored.size)
        if (score is None) != (data is None):
            # It may have been saved, or removed, between the two.
            score, data = await self._client.replies(*look, size=stored.size)
        if (score is None) == (data is None):
            return cast("bytes | None", data)
        half = "name" if score is None else "data"
        raise InvalidSnapshot(f"its {half} is gone from {self._keys.tag}")

    async def _list(self, start: str, stop: str, limit: int | None) -> list[StoredSnapshot]:
        found: list[StoredSnapshot] = []
        keys = self._keys.snapshots, self._keys.snapshot_names
        while limit is None or len(found) < limit:
            count = min(LISTED_AT_ONCE, LISTED_AT_ONCE if limit is None else limit - len(found))
            reply = await self._client.run(scripts.SNAPSHOTS, keys, start, stop, count)
            found += _stored(reply)
            if len(reply) < 2 * count:
                break
            start = b"(" + reply[-2]
        return found

    async def _field(self, key: str, name: str) -> bytes | None:
        async def fetch(client: AnyClient) -> bytes | None:
            value: bytes | None = await client.hget(key, name)
            return value

        return await self._client.call(fetch)


def owner_of(actor: str) -> str:
    """Return how the names of an actor's snapshots begin."""
    address = actor.encode(errors="surrogatepass")
    return hashlib.blake2b(address, digest_size=20).hexdigest()


def _name_of(owner: str, revision: int) -> str:
    return f"{owner}:{revision:014}"


def _stored(reply: Sequence[bytes | int]) -> list[StoredSnapshot]:
    """Return the snapshots of a page, without what others may have put among their names."""
    found: list[StoredSnapshot] = []
    for name, size in zip(reply[::2], reply[1::2], strict=True):
        match = _NAME.fullmatch(name) if isinstance(name, bytes) else None
        if match is not None and isinstance(size, int):
            found.append(StoredSnapshot(match[1].decode(), int(match[2]), max(size, 0)))
    return found
