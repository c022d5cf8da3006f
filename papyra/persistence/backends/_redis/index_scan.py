"""The scan of the index by actor: whether it has all that it should have, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import StoreAccessDenied
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import member
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import RawEntry, raw_entries, read
from papyra.persistence.backends._redis.store_state import StoreState
from papyra.persistence.backends._redis.stream_scan import PAGE_ENTRIES, Findings
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("IndexScan",)

_TYPES = (b"none", b"zset")


class _Missing(msgspec.Struct, frozen=True):
    """A record that the index lacks."""

    kind: Kind
    id: bytes
    member: str


class IndexScan:
    """Compares the index with the records, page by page, as they are scanned. Runs on asyncio.

    How many members were found is compared with how many there are. Only if these are two numbers,
    the index is read as well, to name those that lead nowhere.
    """

    def __init__(self, client: RedisClient, state: StoreState, found: Findings) -> None:
        self._client = client
        self._keys = client.keys
        self._state = state.index
        self._found = found
        self._present = 0
        self._missing: list[_Missing] = []

    async def check(self, kind: Kind, page: Sequence[RawEntry]) -> None:
        """Look for the members of the records of a page."""
        places: list[tuple[_Missing, bool]] = []
        for raw in page:
            entry, _ = read(raw)
            if entry is None or not self._may_have_member(kind, entry.record):
                continue
            expected = member(entry, kind)
            if expected is not None:
                has_revision = expected[expected.index(" ") + 1] == "h"
                is_due = entry.n <= self._state.listed[kind][0] or (
                    has_revision and entry.n <= self._state.indexed
                )
                places.append((_Missing(kind, raw[0], expected), is_due))
        if not places:
            return
        words = [word for place, _ in places for word in (place.member, place.id)]
        reply: list[int] = await self._client.run(
            scripts.MISSING, self._keys.all, KINDS.index(kind) + 1, *words
        )
        for (place, is_due), answer in zip(places, reply, strict=True):
            self._present += answer == 1
            if is_due and answer == 0:
                self._missing.append(place)

    def _may_have_member(self, kind: Kind, record: bytes) -> bool:
        if kind == "audit" or self._state.size < 0:
            return False
        return self._state.listed[kind][0] > 0 or (kind == "event" and b'"revision":' in record)

    async def finish(self) -> None:
        """Report what is missing, and what is too much."""
        for place in self._missing:
            if place.id not in self._found.bad[place.kind]:
                self._note(f"record {place.id.decode()} of {_whose(place.member)} is not in it")
        if self._state.size < 0:
            await self._check_type()
            return
        if not self._state.is_sound:
            noted = "a number that can't be right" if self._state.noted < 0 else self._state.noted
            self._note(f"it has {self._state.size} members, and should have {noted}")
        if self._present != self._state.size:
            await self._look_for_strangers()

    async def _check_type(self) -> None:
        async def look(client: AnyClient) -> bytes:
            found: bytes = await client.type(self._keys.index)
            return found

        try:
            found = await self._client.call(look)
        except StoreAccessDenied:
            return  # nor may it be used
        if found not in _TYPES:
            self._note(f"it is a {found.decode()}, not a sorted set")

    async def _look_for_strangers(self) -> None:
        """Read the index, and report members that lead nowhere, or to another record."""
        start = b"-"
        while page := await self._members_after(start):
            start = b"(" + page[-1]
            places = [(each, *_place(each)) for each in page]
            words = [
                word for each, kind, at in places for word in (KINDS.index(kind) + 1, each, at)
            ]
            reply = await self._client.run(scripts.PLACED, self._keys.all, *words)
            for (each, kind, _), answer in zip(places, reply, strict=True):
                if answer == 0 or (answer != 1 and self._leads_to(answer, each, kind)):
                    continue
                where = "no record" if answer == 1 else "another record"
                self._note(f"a member of {_whose(each.decode(errors='replace'))} leads to {where}")

    def _leads_to(self, answer: Sequence[bytes | Sequence[bytes]], each: bytes, kind: Kind) -> bool:
        """Return whether an entry has a member, or can't be read, which is said elsewhere."""
        identifier, fields = answer
        assert isinstance(identifier, bytes)
        [raw] = raw_entries([(identifier, fields)])
        entry, _ = read(raw)
        expected = None if entry is None else member(entry, kind)
        return expected is None or expected.encode() == each

    async def _members_after(self, start: bytes) -> Sequence[bytes]:
        async def fetch(client: AnyClient) -> Sequence[bytes]:
            members: Sequence[bytes] = await client.zrangebylex(
                self._keys.index, start, "+", 0, PAGE_ENTRIES
            )
            return members

        return await self._client.call(fetch)

    def _note(self, detail: str) -> None:
        self._found.index_is_wrong = True
        self._found.anomalies.append(
            PersistenceAnomaly("corrupt", f"the index by actor: {detail}", self._keys.index)
        )


def _place(found: bytes) -> tuple[Kind, str]:
    """Return the kind, and the id, of the record to which a member leads."""
    _, _, rest = found.rpartition(b" ")
    kind: Kind = "dead_letter" if rest.startswith(b"d") else "event"
    seq, ms = rest[1:15], rest[15:29]
    if not (seq.isdigit() and ms.isdigit()):
        return kind, "0-1"  # nowhere
    return kind, f"{int(ms)}-{int(seq)}"


def _whose(found: str) -> str:
    """Return in words whose a member is."""
    actor, _, rest = found.rpartition(" ")
    revision = f", revision {rest[29:]}" if rest.startswith("h") else ""
    return f"{shown(actor)}{revision}"
