"""The index by actor: a sorted set that says where in the streams the records of each actor are.

Its members are as ``lua/members.lua`` says: one for each event with a revision, added by the script
that stores it; and one for each other event, and each dead letter, added when somebody first reads
the records of one actor, and then again for what has come since: so appending what has no revision
costs nothing more. The store's hash says how far the index goes, and how many members it has. If it
has others, or ends before the records do, it is made anew, or goes on, before anybody relies on it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import msgspec

from papyra.exceptions import (
    StoreAccessDenied,
    StoreError,
    StoreFull,
    StoreNotWritable,
    StoreWrongType,
)
from papyra.persistence import codec
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import (
    Entry,
    RawEntry,
    id_of,
    raw_entries,
    read,
)
from papyra.persistence.backends._redis.store_state import StoreState, read_state
from papyra.persistence.backends._redis.stream_scan import PAGE_BYTES, PAGE_ENTRIES
from papyra.persistence.backends.paging import MAX_PAGE_RECORDS
from papyra.persistence.records import KINDS, Kind, PersistedDeadLetter, PersistedEvent, Record

__all__ = ("ActorIndex", "Found", "actor_key", "concerned", "member", "revisions_of")

logger = logging.getLogger("papyra")

#: Characters of an address that are part of a member as they are; longer ones are hashed.
LONGEST_ADDRESS = 64
#: Entries that one call fetches by the index, at most: each has to be looked for.
FETCHED_AT_ONCE = 500
#: How many records one read puts into the index, at most, so that none holds others up for long.
LISTED_AT_ONCE = 4 * MAX_PAGE_RECORDS
#: How often the index is tried to be brought up to date while others change the store.
TRIES = 20


class IndexBehind(StoreError):
    """The index can't be brought up to date, as others change the store all the time."""


#: What keeps a reader from the index; one that may not write, most of all.
_REFUSALS = (IndexBehind, StoreAccessDenied, StoreFull, StoreNotWritable, StoreWrongType)


class Found(msgspec.Struct, frozen=True):
    """Entries of one actor."""

    entries: Sequence[RawEntry]
    #: whether there are no more
    is_end: bool
    #: the seq from which to go on
    seq: int


def actor_key(address: str) -> str:
    """Return how members name an actor: without spaces, and no longer than some."""
    if (
        len(address) <= LONGEST_ADDRESS
        and address.isprintable()
        and " " not in address
        and not address.startswith("#")
    ):
        return address
    encoded = address.encode("utf-8", "surrogatepass")
    return "#" + hashlib.blake2b(encoded, digest_size=16).hexdigest()


def revisions_of(records: Sequence[Record]) -> list[tuple[int, str, str]]:
    """Return which of `records`, from 1, have a revision, with their actors' keys and revisions."""
    if [record.revision for record in records].count(None) == len(records):
        return []  # as most often, and this is the quickest way to see it
    return [
        (position, actor_key(record.actor_address), str(record.revision))
        for position, record in enumerate(records, start=1)
        if record.revision is not None and type(record) is PersistedEvent
    ]


def concerned(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return how the members of records begin and end; nothing for those that concern no actor."""
    return list(map(_ends_of_member, records))


def _ends_of_member(record: Record) -> tuple[str, str]:
    match record:
        case PersistedEvent(revision=None):
            return f"{actor_key(record.actor_address)} e", ""
        case PersistedEvent():
            return f"{actor_key(record.actor_address)} h", str(record.revision)
        case PersistedDeadLetter():
            return f"{actor_key(record.target)} d", ""
        case _:
            return "", ""


def member(entry: Entry, kind: Kind) -> str | None:
    """Return the member that an entry has; `None` if it concerns no actor."""
    actor, revision = codec.concerned(entry.record)
    if actor is None or kind == "audit":
        return None
    letter = "d" if kind == "dead_letter" else "e" if revision is None else "h"
    ms, seq = id_of(entry.id)
    return f"{actor_key(actor)} {letter}{seq:014}{ms:014}{revision or '' if letter == 'h' else ''}"


class ActorIndex:
    """Finds the records of actors, and brings the index up to date. Runs on asyncio."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keys = client.keys
        self._is_writable = not client.config.read_only
        self._has_warned = False

    async def last_revisions(self, actors: Sequence[str]) -> dict[str, int]:
        """Return the last revision of each of some actors, 0 for none."""
        found: dict[str, int] = {}
        for start in range(0, len(actors), PAGE_ENTRIES):
            part = actors[start : start + PAGE_ENTRIES]
            keys = list(map(actor_key, part))
            reply: list[int] = await self._client.run(scripts.LAST, self._keys.all, *keys)
            tries = 0
            while not reply:
                await self.catch_up("event", "indexed")
                reply = await self._client.run(scripts.LAST, self._keys.all, *keys)
                tries += 1
                if tries > TRIES and not reply:
                    raise self._not_up_to_date()
            found |= zip(part, reply, strict=True)
        return found

    async def history(self, actor: str, after: int, revision: int, count: int) -> Found | None:
        """Return up to `count` events with a revision above one, of those after a seq.

        `None` says that the index is no use, and can't be brought up to date.
        """
        for _ in range(TRIES):
            found = await self._own("event", actor, "h", after, None, False, count, revision)
            if found is not None:
                return found
            if not await self.try_to_catch_up("event", "indexed"):
                return None
        return None

    async def places(
        self, actor: str, revision: int, after: int, count: int
    ) -> tuple[list[tuple[int, bytes]], bool] | None:
        """Return the seqs and ids of up to `count` events of a history, and whether these are all.

        They have a revision above one, and come after a seq. `None` says that the index is not up
        to date, or that a base is among them.
        """
        reply = await self._client.run(
            scripts.STEPS, self._keys.all, actor_key(actor), revision, after, count
        )
        if not reply or reply[1]:
            return None
        start = len(actor_key(actor).encode()) + 2
        try:
            places = [
                (int(each[start : start + 14]), _id_in(each[start : start + 28]))
                for each in reply[2]
            ]
        except ValueError:
            return None  # somebody has put others there
        return places, bool(reply[0])

    async def own(
        self,
        kind: Kind,
        actor: str,
        after: int,
        before: int | None,
        newest: bool,
        count: int,
    ) -> Found:
        """Return up to `count` records of an actor between two seqs, in the direction of a read."""
        letters = "d" if kind == "dead_letter" else "eh"
        found = await self._own(kind, actor, letters, after, before, newest, count, None)
        assert found is not None
        return found

    async def _own(
        self,
        kind: Kind,
        actor: str,
        letters: str,
        after: int,
        before: int | None,
        newest: bool,
        count: int,
        revision: int | None,
    ) -> Found | None:
        reply = await self._client.run(
            scripts.OWN,
            self._keys.all,
            KINDS.index(kind) + 1,
            actor_key(actor),
            letters,
            after,
            "" if before is None else before,
            int(newest),
            max(1, min(count, FETCHED_AT_ONCE)),
            PAGE_BYTES,
            "" if revision is None else revision,
        )
        if not reply:
            return None
        is_end, seq, entries, bases = reply
        return Found(raw_entries(entries, bases), bool(is_end), seq)

    async def listed(self, kind: Kind) -> tuple[int, bool]:
        """Return up to which seq all records of a kind are in the index, and if these are all.

        The index is brought up to date, if this may do so; at least somewhat.
        """
        reply = await self._client.run(scripts.LISTED, self._keys.all, KINDS.index(kind) + 1)
        if not (reply and reply[1]) and await self.try_to_catch_up(kind, "listed", LISTED_AT_ONCE):
            reply = await self._client.run(scripts.LISTED, self._keys.all, KINDS.index(kind) + 1)
        return (reply[0], bool(reply[1])) if reply else (0, False)

    async def try_to_catch_up(self, kind: Kind, field: str, most: int | None = None) -> bool:
        """Bring the index up to date, and return `True`; `False` for one who may not write."""
        if not self._is_writable:
            return False
        try:
            await self.catch_up(kind, field, most)
        except _REFUSALS as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s: the index by actor can't be brought up to date, and is left out: %s",
                    self._keys.index,
                    error,
                )
            return False
        return True

    async def forget(self) -> None:
        """Remove the index, whatever it is, for it to be made anew."""
        for _ in range(TRIES):
            state = await read_state(self._client)
            if await self._client.run(scripts.UNINDEX, self._keys.all, state.mark, 1) >= 0:
                return
        raise self._not_up_to_date()

    async def catch_up(self, kind: Kind, field: str, most: int | None = None) -> None:
        """Add to the index what it lacks of a kind: with a revision (``indexed``), or all.

        In steps of a page, each of which is kept: whoever is interrupted has not to begin anew. Of
        more records than `most`, some are left for the next time. What others add meanwhile may be
        missing.
        """
        target, failures = None, 0
        while failures < TRIES:
            state = await read_state(self._client)
            if not state.index.is_sound or not await self._fits(state, kind, field):
                forced = int(state.index.is_sound)
                await self._client.run(scripts.UNINDEX, self._keys.all, state.mark, forced)
                failures += 1
                continue
            n, done = state.streams[kind].n, self._done(state, kind, field)[0]
            target = min(n, n if target is None else target)
            target = target if most is None else min(target, done + most)
            most = None
            if done >= target:
                return
            failures = 0 if await self._add_page(state, kind, field) else failures + 1
        raise self._not_up_to_date()

    async def _fits(self, state: StoreState, kind: Kind, field: str) -> bool:
        """Return whether what is noted of how far the index goes fits the stream.

        An older program may have taken records back that were in the index already.
        """
        n, seq = self._done(state, kind, field)
        if field == "indexed" or not n:
            return True
        found = await self._client.run(scripts.SEEK, self._keys.all, KINDS.index(kind) + 1, n - 1)
        if not found:
            return n <= state.streams[kind].n
        return bool(found[1] != n or found[2] == seq)

    def _done(self, state: StoreState, kind: Kind, field: str) -> tuple[int, int]:
        """Return the n, and the seq if it is noted, up to which the index goes."""
        return state.index.listed[kind] if field == "listed" else (state.index.indexed, 0)

    async def _add_page(self, state: StoreState, kind: Kind, field: str) -> bool:
        """Add the next page of records; return whether nobody came in between."""
        name = f"{kind}:{field}"
        done, seq = self._done(state, kind, field)
        n = state.streams[kind].n
        page, is_end = await self._page_after(state, kind, done)
        members, reached = [], done
        for raw in page:
            entry, _ = read(raw)
            if entry is None:
                continue
            if entry.n > n:
                is_end = True
                break
            found = member(entry, kind)
            if found is not None and (field == "listed" or _has_revision(found)):
                members.append(found)
            reached, seq = max(reached, entry.n), max(seq, entry.seq)
        reached = n if is_end else reached
        note = f"{reached} {seq}" if field == "listed" else reached
        if reached == done and not is_end:
            raise self._not_up_to_date()
        reply: int = await self._client.run(
            scripts.INDEX,
            self._keys.all,
            state.mark,
            name,
            state.meta.get(name, b""),
            note,
            f"{kind}:trimmed_n",
            state.meta.get(f"{kind}:trimmed_n", b""),
            *members,
        )
        return reply >= 0

    async def _page_after(
        self, state: StoreState, kind: Kind, n: int
    ) -> tuple[Sequence[RawEntry], bool]:
        """Return entries whose n is above a number, and whether there are no more."""
        found = await self._client.run(scripts.SEEK, self._keys.all, KINDS.index(kind) + 1, n)
        if not found:
            return (), True
        average = state.streams[kind].average
        count = max(1, min(PAGE_ENTRIES, PAGE_BYTES // average))
        page = await self._client.entries(self._keys.streams[kind], found[0].decode(), "+", count)
        return page, len(page) < count

    def _not_up_to_date(self) -> IndexBehind:
        return IndexBehind(
            f"{self._client.location}: the index by actor of {self._keys.tag} can't be brought up "
            "to date: recover the store"
        )


def _has_revision(found: str) -> bool:
    return found[found.index(" ") + 1] == "h"


def _id_in(place: bytes) -> bytes:
    """Return the id of an entry of which a member has this seq and these milliseconds."""
    return b"%d-%d" % (int(place[14:]), int(place[:14]))
