"""What is nested too deeply to be read, wherever it is stored: on asyncio; in CI on all loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal
from zlib import crc32

import msgspec
import pytest

from papyra import ActorSystem
from papyra.exceptions import UnencodablePayload
from papyra.persistence import (
    PersistenceRecoveryConfig,
    PersistenceStartupConfig,
    Read,
    codec,
)
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.index_cache import IndexCache
from papyra.persistence.backends._files.line_format import _make_line
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.saved_index import read_saved_index
from papyra.persistence.backends._redis.entry_format import Entry, check
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from tests.actors import event
from tests.conftest import event_loops
from tests.persistence.conftest import MakeStore

anyio_backend = event_loops("asyncio")

DEPTHS = [1200, 100_000]


def deep_record(depth: int) -> bytes:
    """Return a record that is nested so deeply, as an older program might have written it."""
    (record,) = codec.encode([event(payload="deep")])
    return record.replace(b'"deep"', b'{"a":[' * (depth // 2) + b"]}" * (depth // 2))


def plant(path: Path, seq: int, depth: int) -> None:
    """Write a line with a right checksum behind the last one."""
    last = max(path.glob("*.ndjson")) if path.is_dir() else path
    with last.open("ab") as file:
        file.write(_make_line(seq, seq - 1, deep_record(depth), 1))


@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_line_nested_too_deeply_makes_only_its_own_record_unreadable(
    make: MakeStore, tmp_path: Path, depth: int
) -> None:
    async with make() as store:
        await store.append(*(event(number) for number in range(1, 6)))
    plant(tmp_path / "store", 6, depth)
    async with make() as store:
        assert (await store.append(event(7))).first_seq == 7
    modes: list[Literal["repair", "quarantine"]] = ["repair", "quarantine"]
    for mode in modes:
        async with make() as store:
            report = await store.scan()
            assert [(a.kind, a.seq) for a in report.anomalies] == [("unknown_kind", 6)]
            assert [e.seq for e in await store.list_events()] == [1, 2, 3, 4, 5, 7]
            assert (await store.summarize()).last_seq == 7
            assert (await store.compact(RetentionPolicy(max_records=9), dry_run=True)).supported
            assert (await store.recover(PersistenceRecoveryConfig(mode))).records_removed == 0
    startup = PersistenceStartupConfig("recover")
    async with ActorSystem(persistence=make(), startup=startup) as system:
        page = await system.persistence.ask(Read("event", limit=6))
        assert [e.seq for e in page.records] == [1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("depth", [102, 400, 960])
async def test_a_record_nested_deeper_than_an_append_allows_is_read_and_restored(
    make: MakeStore, tmp_path: Path, depth: int
) -> None:
    async with make() as store:
        await store.append(event(1))
    plant(tmp_path / "store", 2, depth)
    async with make(read_only=True) as store:
        assert (await store.scan()).is_clean
        records = await store.list_events()
        assert [record.seq for record in records] == [1, 2]
        sizes = (await store.summarize()).record_bytes
    copied = InMemoryPersistence()
    await copied.restore(*records)
    found = await copied.list_events()
    assert list(map(codec.to_json, found)) == list(map(codec.to_json, records))
    assert (await copied.summarize()).record_bytes == sizes
    with pytest.raises(UnencodablePayload, match="nested too deeply"):
        await copied.append(*records)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_redis_entry_nested_too_deeply_is_of_unknown_kind(depth: int) -> None:
    record = deep_record(depth)
    checksum = b"%08x" % crc32(record, 7)
    found, wrong = check(Entry(b"1-7", 7, 1, len(record), record, checksum), "event")
    assert found is None
    assert wrong is not None
    assert wrong[0] == "unknown_kind"


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_saved_index_or_lock_note_nested_too_deeply_is_ignored(
    tmp_path: Path, depth: int
) -> None:
    deep = b'{"more":' + b"[" * depth + b"]" * depth + b"}"
    sidecar = tmp_path / "1.index"
    sidecar.write_bytes(b"%08x %b\n" % (crc32(deep), deep))
    assert read_saved_index(Disk(), sidecar) is None
    path = tmp_path / "events.ndjson"
    path.touch()
    lock = tmp_path / "events.ndjson.lock"
    lock.write_bytes(deep)
    assert FileLock(lock, path).holder() is None
    with path.open("rb") as file:
        index_cache = IndexCache(Disk(), tmp_path / "cache", path)
        (tmp_path / "cache").mkdir()
        data = msgspec.msgpack.encode({"more": json.loads("[" * 900 + "]" * 900)})
        data = data.replace(b"\x91" * 800, b"\x91" * depth)
        index_cache._path.write_bytes(b"%08x%b" % (crc32(data), data))
        assert index_cache.read(file.fileno()) is None
