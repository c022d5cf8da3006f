"""Streams with copies in them, and with parts of batches that were given up: by a plain list.

``PAPYRA_ORPHANS=600`` makes it a long run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest
import redis

from papyra.persistence import codec
from papyra.persistence.backends._redis import stream_scan
from papyra.persistence.backends._redis.entry_format import checksums
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing.conformance._fixtures import an_event
from tests.conftest import event_loops
from tests.extent import count
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

SEEDS = count("PAPYRA_ORPHANS", 20, 60)


class Entry(msgspec.Struct):
    ms: int
    seq: int
    n: int
    number: int
    encoded: bytes
    total: int

    @property
    def id(self) -> str:
        return f"{self.ms}-{self.seq}"


class Stream:
    """What has been written into a stream, what of it is good, and what is not."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.entries: list[Entry] = []
        self.good: list[Entry] = []
        self.bad: list[str] = []
        self._numbers: Iterator[int] = iter(range(1_000_000))
        self._ms = 1000

    @property
    def _last(self) -> tuple[int, int, int]:
        last = self.good[-1] if self.good else Entry(0, 0, 0, 0, b"", 0)
        return last.seq, last.n, last.total

    def _batch(self) -> list[Entry]:
        seq, n, total = self._last
        batch = []
        for at in range(1, self.chance.randint(1, 9) + 1):
            number = next(self._numbers)
            [encoded] = codec.encode([an_event(number)])
            total += len(encoded)
            self._ms += 1
            batch.append(Entry(self._ms, seq + at, n + at, number, encoded, total))
        return batch

    def append(self) -> None:
        batch = self._batch()
        self.entries += batch
        self.good += batch

    def bring_back(self) -> None:
        """Add a part of a batch that nobody knows of."""
        orphans = self._batch()
        self.entries += orphans
        self.bad += [entry.id for entry in orphans]

    def copy(self) -> None:
        """Add copies of what is there, as somebody may."""
        count = self.chance.randint(1, 4)
        if self.chance.random() < 0.5:
            start = self.chance.randrange(len(self.good))
            originals = self.good[start : start + count]
        else:
            originals = self.chance.sample(self.good, min(count, len(self.good)))
        for original in originals:
            self._ms += 1
            copy = msgspec.structs.replace(original, ms=self._ms)
            self.entries.append(copy)
            self.bad.append(copy.id)

    def store(self, client: redis.Redis, config: RedisStreamsConfig) -> None:
        key = config.keys.streams["event"]
        for entry in self.entries:
            fields: dict[str, str | bytes | int] = {
                "record": entry.encoded,
                "n": entry.n,
                "total": entry.total,
                "crc": checksums([entry.encoded], entry.seq),
            }
            client.xadd(key, fields, id=entry.id)  # type: ignore[arg-type]
        seq, n, total = self._last
        known = {"format": 1, "epoch": 1, "last": seq, "ms": self._ms, "late": 0}
        known |= {"event:n": n, "event:total": total}
        client.hset(config.keys.meta, mapping=known)  # type: ignore[arg-type]


def a_stream(seed: int) -> Stream:
    stream = Stream(random.Random(seed))
    if stream.chance.random() < 0.8:
        stream.append()
    for _ in range(stream.chance.randint(1, 3)):
        for _ in range(stream.chance.randint(0, 2)):
            stream.bring_back()
        stream.append()
        if stream.chance.random() < 0.4:
            stream.copy()
    return stream


async def test_what_is_good_is_told_from_what_is_not(
    server: RedisServer, config: RedisStreamsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_scan, "PAGE_ENTRIES", 3)
    kinds = set()
    with redis.Redis.from_url(server.url) as client:
        for seed in range(SEEDS):
            stream = a_stream(seed)
            kinds.add(bool(stream.bad))
            mine = msgspec.structs.replace(config, system_id=f"{config.system_id}-{seed}")
            stream.store(client, mine)
            async with RedisStreamsPersistence(mine) as store:
                report = await store.scan()
                bad = [anomaly.entry for anomaly in report.anomalies]
                assert sorted(map(str, bad)) == sorted(stream.bad), seed
                assert report.records_scanned == len(stream.good)
                assert report.bytes_scanned == sum(len(entry.encoded) for entry in stream.good)
                recovery = await store.recover()
                assert recovery.scan.is_clean
                found = await store.list_events()
                assert [(event.seq, event.payload["n"]) for event in found] == [
                    (entry.seq, entry.number) for entry in stream.good
                ]
                assert (await store.append(an_event(1))).first_seq == stream.good[-1].seq + 1
            client.delete(*mine.keys.all)
    assert kinds == {True, False}
