"""What a program that knows nothing of the index by actor does to a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import redis

from papyra.persistence import codec
from papyra.persistence.backends._redis.entry_format import checksums
from papyra.persistence.backends.redis import RedisStreamsConfig
from papyra.persistence.records import Record, kind_of

#: What stores of older programs do not have in their hash.
FIELDS = ("index:entries", "event:indexed", "event:listed", "dead_letter:listed", "event:kept")


def make_old(client: redis.Redis, config: RedisStreamsConfig) -> None:
    """Make a store look as an older program has left it."""
    client.delete(config.keys.index)
    client.hdel(config.keys.meta, *FIELDS)


def append(client: Any, config: RedisStreamsConfig, records: Sequence[Record]) -> list[str]:
    """Append as an older program does, which takes over first; return the ids."""
    meta = config.keys.meta
    client.hincrby(meta, "epoch", 1)
    ids = []
    for record in records:
        kind = kind_of(record)
        known = {name.decode(): value for name, value in client.hgetall(meta).items()}
        seq, n = int(known["last"]) + 1, int(known[f"{kind}:n"]) + 1
        [encoded] = codec.encode([record])
        total = int(known[f"{kind}:total"]) + len(encoded)
        ms = max(int(known["ms"]), int(record.timestamp * 1000))
        fields = {"record": encoded, "n": n, "total": total, "crc": checksums([encoded], seq)}
        client.xadd(config.keys.streams[kind], fields, f"{ms}-{seq}")
        counted = {"last": seq, "ms": ms, f"{kind}:n": n, f"{kind}:total": total}
        client.hset(meta, mapping=counted)
        client.hset(meta, "writer", f"older:{time.monotonic_ns()}")
        ids.append(f"{ms}-{seq}")
    return ids


def take_back(client: Any, config: RedisStreamsConfig, ids: Sequence[str]) -> None:
    """Take events back, the last ones, as an older program does with what is in doubt."""
    key, meta = config.keys.streams["event"], config.keys.meta
    size = sum(len(client.xrange(key, each, each)[0][1][b"record"]) for each in ids)
    client.xdel(key, *ids)
    client.hincrby(meta, "event:n", -len(ids))
    client.hincrby(meta, "event:total", -size)
    client.hincrby(meta, "epoch", 1)
