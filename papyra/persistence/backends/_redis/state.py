"""What the server keeps about a store besides its records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from papyra.persistence.records import KINDS, Kind

__all__ = ("FORMAT", "Range", "StoreState", "StreamState")

#: The version of what is kept; a greater one is not touched.
FORMAT = 1

#: Records that are no more: the first n, the last, and the totals before and after.
Range: TypeAlias = tuple[int, int, int, int]

_decode_ranges = msgspec.json.Decoder(list[Range]).decode


class StreamState(msgspec.Struct):
    """One kind's stream."""

    #: entries
    length: int = 0
    first_id: bytes = b""
    last_id: bytes = b""
    #: records of this kind that were ever given, and their bytes
    n: int = 0
    total: int = 0
    #: how many of them are gone, from the oldest on, and their bytes
    trimmed_n: int = 0
    trimmed_total: int = 0
    lost: list[Range] = []

    @property
    def held_bytes(self) -> int:
        """Encoded bytes of the records that are there."""
        gone = sum(
            after - max(before, self.trimmed_total)
            for _, last, before, after in self.lost
            if last > self.trimmed_n
        )
        return self.total - self.trimmed_total - gone

    def trimmed_to(self, n: int, total: int) -> StreamState:
        """Return what it would be with records up to the n-th gone, which have so many bytes."""
        left = self.length - self._entries_through(n)
        return msgspec.structs.replace(self, length=left, trimmed_n=n, trimmed_total=total)

    @property
    def agrees(self) -> bool:
        """Whether there are as many entries as the counters say."""
        return self.length == self._entries_through(self.n)

    def _entries_through(self, n: int) -> int:
        """Return how many entries there are of the first n that were given."""
        lost = (min(last, n) - max(first, self.trimmed_n + 1) + 1 for first, last, *_ in self.lost)
        return n - self.trimmed_n - sum(max(0, count) for count in lost)

    @property
    def average(self) -> int:
        """Bytes of a record, about."""
        return self.total // self.n + 1 if self.n else 200


class StoreState(msgspec.Struct):
    """The whole of it."""

    #: whether the hash was there
    known: bool
    format: int
    last: int
    late: int
    epoch: int
    writer: str
    streams: dict[Kind, StreamState]

    @classmethod
    def of(cls, reply: Sequence[Any]) -> StoreState:
        """Return what `scripts.STATE` has replied."""
        flat, *rest = reply
        meta = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
        streams = {}
        for position, kind in enumerate(KINDS):
            length, first_id, last_id = rest[3 * position : 3 * position + 3]
            streams[kind] = StreamState(
                length,
                first_id,
                last_id,
                n=int(meta.get(f"{kind}:n", 0)),
                total=int(meta.get(f"{kind}:total", 0)),
                trimmed_n=int(meta.get(f"{kind}:trimmed_n", 0)),
                trimmed_total=int(meta.get(f"{kind}:trimmed_total", 0)),
                lost=_decode_ranges(meta.get(f"{kind}:lost", b"[]")),
            )
        return cls(
            known="last" in meta,
            format=int(meta.get("format", 1)),
            last=int(meta.get("last", 0)),
            late=int(meta.get("late", 0)),
            epoch=int(meta.get("epoch", 0)),
            writer=meta.get("writer", b"").decode(errors="replace"),
            streams=streams,
        )

    def with_stream(self, kind: Kind, stream: StreamState) -> StoreState:
        """Return this with another stream of a kind."""
        return msgspec.structs.replace(self, streams={**self.streams, kind: stream})

    @property
    def held_bytes(self) -> int:
        """Encoded bytes of all records that are there."""
        return sum(stream.held_bytes for stream in self.streams.values())

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return sum(stream.length for stream in self.streams.values())
