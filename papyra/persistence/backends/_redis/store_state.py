"""The state of a store beside its records: its hash of counters, and the ends of its streams."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import RedisClient, ServerInfo
from papyra.persistence.backends._redis.entry_format import LATEST_MS, MOST_BYTES, id_of, whole
from papyra.persistence.records import KINDS, Kind

__all__ = ("FORMAT", "IndexState", "Kept", "Range", "StoreState", "StreamState", "read_state")

#: The version of what is kept; a greater one is not touched. A store is of the first one until a
#: compaction has kept events of histories, and of the second one until histories begin with bases.
FORMAT = 3

#: Records that are no more: the first n, the last, and the totals before and after.
Range: TypeAlias = tuple[int, int, int, int]


#: Fields of the hash that every writer has set.
_KEPT = ("format", "epoch", "last", "ms", "late")


_KEPT_EVENTS = re.compile(rb"([0-9]{1,14}) ([0-9]{1,14}) ([0-9]{1,14}-[0-9]{1,14})")

_decode_ranges = msgspec.json.Decoder(list[Range]).decode


class Kept(msgspec.Struct, frozen=True):
    """What compactions have left among what they removed: events that have a revision."""

    count: int = 0
    #: encoded bytes
    size: int = 0
    #: the id up to which they looked
    upto: bytes = b"0-0"

    @property
    def written(self) -> bytes:
        """What is noted of it; nothing, if there is none."""
        return b"%d %d %b" % (self.count, self.size, self.upto) if self.count else b""


class StreamState(msgspec.Struct):
    """One kind's stream."""

    #: entries
    length: int = 0
    first_id: bytes = b""
    last_id: bytes = b""
    #: whether nothing can be added, because of an id that is there no more
    is_blocked: bool = False
    #: the last id that was ever given: what comes has a later one
    generated_id: bytes = b""
    #: records of this kind that were ever given, and their bytes
    n: int = 0
    total: int = 0
    #: up to which of them they are gone, and the bytes of these; but for those that are kept
    trimmed_n: int = 0
    trimmed_total: int = 0
    lost: list[Range] = []
    kept: Kept = Kept()

    @property
    def held_bytes(self) -> int:
        """Encoded bytes of the records that are there."""
        gone = sum(
            after - max(before, self.trimmed_total)
            for _, last, before, after in self.lost
            if last > self.trimmed_n
        )
        return max(0, self.total - self.trimmed_total - gone + self.kept.size)

    def trimmed_to(self, n: int, total: int) -> StreamState:
        """Return what it would be with records up to the n-th gone, which have so many bytes."""
        left = self.length - self._entries_through(n)
        return msgspec.structs.replace(self, length=left, trimmed_n=n, trimmed_total=total)

    @property
    def agrees(self) -> bool:
        """Whether there are as many entries as the counters say."""
        return self.length == self.expected

    @property
    def expected(self) -> int:
        """The number of entries by the counters."""
        return self._entries_through(self.n)

    def _entries_through(self, n: int) -> int:
        """Return how many entries there are of the first n that were given."""
        lost = (min(last, n) - max(first, self.trimmed_n + 1) + 1 for first, last, *_ in self.lost)
        return n - self.trimmed_n - sum(max(0, count) for count in lost) + self.kept.count

    @property
    def average(self) -> int:
        """Bytes of a record, about."""
        return self.total // self.n + 1 if self.n else 200


class IndexState(msgspec.Struct, frozen=True):
    """The index by actor."""

    #: its members; -1 if the server does not say
    size: int
    #: how many there should be
    noted: int
    #: the n of the event up to which it has all with a revision
    indexed: int
    #: for each kind the n, and the seq, of the record up to which it has all
    listed: dict[Kind, tuple[int, int]]

    @property
    def is_sound(self) -> bool:
        """Whether nobody else has changed how many members there are."""
        return self.size == self.noted


class StoreState(msgspec.Struct):
    """The counters of a store, and the state of its streams."""

    #: whether the hash was there
    known: bool
    format: int
    last: int
    late: int
    epoch: int
    writer: str
    #: the fields of the hash whose values can't be right, and these
    wrong: dict[str, bytes]
    #: fields that are gone, while others are there
    missing: list[str]
    #: what changes when entries are taken back that somebody may have read
    mark: bytes
    #: of the keys, in milliseconds, where somebody has said that they end
    expiries: dict[str, int]
    streams: dict[Kind, StreamState]
    #: the fields of the hash
    meta: dict[str, bytes]
    index: IndexState

    @classmethod
    def of(cls, reply: Sequence[Any]) -> StoreState:
        """Return what `scripts.STATE` has replied."""
        flat, *rest = reply
        meta = {flat[i].decode(errors="replace"): flat[i + 1] for i in range(0, len(flat), 2)}
        fields = _Fields(meta)
        last = fields.number("last", LATEST_MS)
        fields.number("ms", LATEST_MS)
        most = fields.known("last", last)
        streams = {}
        for position, kind in enumerate(KINDS):
            length, first_id, last_id, generated_id = rest[4 * position : 4 * position + 4]
            n = fields.number(f"{kind}:n", most)
            total = fields.number(f"{kind}:total", n * MOST_BYTES)
            trimmed_n = fields.number(f"{kind}:trimmed_n", fields.known(f"{kind}:n", n))
            trimmed_total = fields.number(
                f"{kind}:trimmed_total", fields.known(f"{kind}:total", total)
            )
            lost = fields.ranges(f"{kind}:lost", fields.known(f"{kind}:n", n))
            streams[kind] = StreamState(
                length,
                first_id,
                last_id,
                _is_after(generated_id, most) and not _is_after(last_id, most),
                generated_id,
                n,
                total,
                trimmed_n,
                trimmed_total,
                lost,
                fields.kept(f"{kind}:kept", fields.known(f"{kind}:trimmed_n", trimmed_n)),
            )
        *left_ms, index_size = rest[4 * len(KINDS) :]
        expiries = zip(("meta", *KINDS), left_ms, strict=True)
        return cls(
            known=any(name in meta for name in _KEPT),
            format=_format(fields),
            last=last,
            late=fields.number("late", LATEST_MS, LATEST_MS),
            epoch=fields.number("epoch", LATEST_MS - 1),
            writer=meta.get("writer", b"").decode(errors="replace"),
            wrong=fields.wrong,
            missing=[name for name in _KEPT if name not in meta],
            mark=b"/".join(meta.get(name, b"") for name in ("epoch", "settled")),
            expiries={name: left for name, left in expiries if left >= 0},
            streams=streams,
            meta=meta,
            index=IndexState(
                index_size,
                fields.number("index:entries", LATEST_MS, -1),
                fields.number("event:indexed", LATEST_MS),
                {kind: fields.listed(f"{kind}:listed") for kind in KINDS},
            ),
        )

    @property
    def wrong_in_words(self) -> list[str]:
        """The fields of the hash that are gone, or can't be right, in words."""
        found = [
            f"{name} is {value[:40]!r}, which it can't be" for name, value in self.wrong.items()
        ]
        if self.known:
            found += [f"{name} is missing" for name in self.missing]
        elif self.entries:
            found.append("what is known about the streams is missing")
        return found

    @property
    def losses(self) -> list[str]:
        """Signs that the server has lost something of the store, in words."""
        found = self.wrong_in_words
        for kind, stream in self.streams.items():
            missing = stream.expected - stream.length
            if self.known and not self.wrong and missing > 0:
                found.append(f"{missing} of the {stream.expected} {kind} records are missing")
        return found

    def threats(self, server: ServerInfo) -> list[str]:
        """Return what will make the server lose the store, in words."""
        found = [f"the {name} key expires in {left} ms" for name, left in self.expiries.items()]
        policy = server.eviction_policy
        if policy.startswith("allkeys") or (policy.startswith("volatile") and found):
            found.append(
                f"with maxmemory-policy {policy} the server may evict the store: "
                "it wants noeviction"
            )
        return found

    @property
    def has_no_histories(self) -> bool:
        """Whether no event has a revision, by the index."""
        index = self.index
        return not index.size and not index.noted and index.indexed >= self.streams["event"].n

    def with_stream(self, kind: Kind, stream: StreamState) -> StoreState:
        """Return this with another stream of a kind."""
        return msgspec.structs.replace(self, streams={**self.streams, kind: stream})

    @property
    def held_bytes(self) -> int:
        """Encoded bytes of all records that are there."""
        return sum(stream.held_bytes for stream in self.streams.values())

    @property
    def entries(self) -> int:
        """The number of entries of all streams."""
        return sum(stream.length for stream in self.streams.values())


class _Fields:
    """The fields of the hash, and which of them others have changed."""

    def __init__(self, meta: Mapping[str, bytes]) -> None:
        self._meta = meta
        self.wrong: dict[str, bytes] = {}

    def number(self, name: str, greatest: int, otherwise: int = 0) -> int:
        """Return a number; `otherwise` for what can be none, and 0 for what is not there."""
        text = self._meta.get(name)
        if text is None:
            return 0
        number = whole(text)
        if number is None or number > greatest:
            self.wrong[name] = text
            return otherwise
        return number

    def known(self, name: str, number: int) -> int:
        """Return a number that is there; the greatest there is, where it is not."""
        return LATEST_MS if name in self.wrong or name not in self._meta else number

    def kept(self, name: str, greatest: int) -> Kept:
        """Return what is noted of events that compactions have left."""
        text = self._meta.get(name)
        if text is None:
            return Kept()
        found = _KEPT_EVENTS.fullmatch(text)
        count, size = (whole(found[1]), whole(found[2])) if found else (None, None)
        if found is None or not count or size is None or count > greatest:
            self.wrong[name] = text
            return Kept()
        return Kept(count, size, found[3])

    def listed(self, name: str) -> tuple[int, int]:
        """Return how far the index goes, for records of a kind."""
        text = self._meta.get(name, b"0 0")
        n, _, seq = text.partition(b" ")
        place = whole(n), whole(seq)
        if None in place:
            self.wrong[name] = text
            return 0, 0
        return place[0] or 0, place[1] or 0

    def ranges(self, name: str, greatest: int) -> list[Range]:
        """Return what is noted as lost: of those up to a number."""
        text = self._meta.get(name, b"[]")
        try:
            ranges = _decode_ranges(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            ranges = [(0, -1, 0, 0)]
        # Versions before have noted of no records that they are lost.
        ranges = [each for each in ranges if each[0] != each[1] + 1 or not each[0]]
        if all(
            0 <= first <= last <= greatest and 0 <= before <= after <= LATEST_MS
            for first, last, before, after in ranges
        ):
            return ranges
        self.wrong[name] = text
        return []


def _format(fields: _Fields) -> int:
    """Return the version: a greater number than any that is known says no more than that."""
    text = fields._meta.get("format", b"1")
    if re.fullmatch(rb"[1-9][0-9]*", text) and text not in {b"1", b"2", b"3"}:
        return FORMAT + 1
    return fields.number("format", FORMAT, FORMAT) if "format" in fields._meta else FORMAT


def _is_after(identifier: bytes, last: int) -> bool:
    """Return whether an id leaves none for the positions after the last one."""
    return bool(identifier) and id_of(identifier) > (LATEST_MS, last)


async def read_state(client: RedisClient, *, tries: int = 1) -> StoreState:
    """Return the counters and the ends of the streams, as the server has them now."""
    return StoreState.of(await client.run(scripts.STATE, client.keys.all, tries=tries))
