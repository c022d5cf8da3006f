"""There is no memory at some step of an append: it is stored and acknowledged, or it is neither."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest

from papyra.persistence import codec
from papyra.persistence.backends._files import file_index
from papyra.persistence.backends._files.block_index import SparseIndex
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends.base import Batch, PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.records import PersistedEvent
from tests.actors import event
from tests.extent import STEP
from tests.persistence.backends.files.file_persistence import FilePersistence


@pytest.fixture
def anyio_backend() -> str:
    """It is the thread of the store that has no memory."""
    return "asyncio"


def make(kind: str, path: Path) -> FilePersistence:
    if kind == "json":
        return JsonFilePersistence(path)
    return RotatingFilePersistence(path, max_segment_records=7)


class NoMemory:
    """Raises `MemoryError` when the store's code calls its `number`-th function."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, what: str, argument: object) -> Any:
        if what == "call" and "persistence/backends" in frame.f_code.co_filename:
            self.left -= 1
            if not self.left:
                raise MemoryError(frame.f_code.co_name)
        return None


def append(journal: Journal, records: list[PersistedEvent], trace: NoMemory | None = None) -> bool:
    """Append at the journal's own end, and return whether that was acknowledged."""
    batch = Batch(journal.last_seq + 1, records, codec.encode(records))
    sys.settrace(trace)
    try:
        journal.append(batch, lambda: None, sync=True)
    except MemoryError:
        return False
    finally:
        sys.settrace(None)
    return True


async def numbers(store: PersistenceBackend) -> list[int]:
    return [e.payload["order_id"] async for e in store.stream("event")]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("kind", ["json", "rotating"])
async def test_an_append_to_files_that_runs_out_of_memory_leaves_nothing(
    tmp_path: Path, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "_PENDING", 4)
    refused = 0
    for step in range(1, 800, STEP):
        path, trace = tmp_path / str(step), NoMemory(step)
        store = make(kind, path)
        async with store:
            journal = store.store.journal
            stored = [0, 1, 2]
            assert append(journal, [event(n) for n in stored])
            more = list(range(10, 10 + count))
            if append(journal, [event(n) for n in more], trace):
                stored += more
            else:
                refused += 1
            # As a process that ends here would leave it.
            if trace.left <= 0:
                reader = store.reader()
                assert isinstance(reader, FilePersistence)
                assert await numbers(reader) == stored, step
                assert (await reader.scan()).is_clean, step
                await reader.aclose()
            for number in (50, 51):
                assert append(journal, [event(number)])
                stored.append(number)
            assert await numbers(store) == stored, step
            assert [e.seq async for e in store.stream("event")] == list(range(1, len(stored) + 1))
        async with make(kind, path) as store:
            assert await numbers(store) == stored, step
            assert (await store.scan()).is_clean, step
        if trace.left > 0:
            break
    else:
        pytest.fail("it never got through")
    assert refused > 20 // STEP


@pytest.mark.parametrize("kind", ["json", "rotating"])
@pytest.mark.parametrize("name", ["extend", "_take", "_begin"])
async def test_an_index_of_a_file_store_that_runs_out_of_memory_is_built_later(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "_PENDING", 3)

    def fail(*arguments: object) -> None:
        raise MemoryError

    async with make(kind, tmp_path / "store") as store:
        with monkeypatch.context() as patched:
            await store.append(event(0))
            patched.setattr(SparseIndex, name, fail)
            for number in range(1, 6):
                assert (await store.append(event(number))).first_seq == number + 1
        assert await numbers(store) == list(range(6))
        assert (await store.summarize()).records["event"] == 6
        assert (await store.scan()).is_clean
    with anyio.fail_after(60):
        async with make(kind, tmp_path / "store") as store:
            assert await numbers(store) == list(range(6))
