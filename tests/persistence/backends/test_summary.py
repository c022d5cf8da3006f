"""What stores hold, summed up: after everything that can be done to them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from papyra.exceptions import InvalidRecord, InvalidRequest
from papyra.persistence import Append, PersistedEvent, Restore
from papyra.persistence.backends.base import MAX_SEQ, PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence


def an_event(number: int, timestamp: float | None = None) -> PersistedEvent:
    time = float(number) if timestamp is None else timestamp
    return PersistedEvent("s", "s/a", "Counted", {"n": number}, time)


@pytest.mark.parametrize("segments", [5, 40])
async def test_a_summary_of_a_rotating_store_passes_over_dropped_segments(
    tmp_path: Path, segments: int
) -> None:
    async with RotatingFilePersistence(tmp_path, max_segment_records=10, fsync="no") as store:
        for first in range(0, segments * 10, 10):
            await store.append(*map(an_event, range(first, first + 10)))
        await store.compact(RetentionPolicy(max_records=(segments - 2) * 10))
        async with store.reader() as reader:
            for backend in (store, reader):
                summary = await backend.summarize()
                assert summary.total_records == (segments - 2) * 10
                assert summary.oldest == 20


@pytest.mark.parametrize("times", [[1e308, -1e308, 0.0], [5e-324, 0.0], [-3.5], [7.0, 7.0]])
async def test_a_summary_takes_records_of_any_time(tmp_path: Path, times: list[float]) -> None:
    stores: list[PersistenceBackend] = [
        InMemoryPersistence(),
        JsonFilePersistence(tmp_path / "events.ndjson", fsync="no"),
        RotatingFilePersistence(tmp_path / "journal", fsync="no"),
    ]
    for store in stores:
        async with store:
            await store.append(*(an_event(n, time) for n, time in enumerate(times)))
            summary = await store.summarize()
            assert (summary.oldest, summary.newest) == (min(times), max(times))
            assert summary.total_records == len(times)


async def test_a_restore_refuses_a_position_that_no_store_could_write(tmp_path: Path) -> None:
    last = msgspec.structs.replace(an_event(1), seq=MAX_SEQ)
    for store in (InMemoryPersistence(), JsonFilePersistence(tmp_path / "e.ndjson", fsync="no")):
        async with store:
            for seq in (MAX_SEQ + 1, 2**64, 10**400):
                with pytest.raises(InvalidRequest, match="positions only rise"):
                    await store.restore(msgspec.structs.replace(last, seq=seq))
            await store.restore(last)
            assert [event.seq for event in await store.list_events()] == [MAX_SEQ]
            assert store.metrics.write_errors == 3


@pytest.mark.parametrize("records", [None, an_event(1), [1], Append(an_event(1))])
async def test_a_restore_refuses_what_is_no_record(records: object) -> None:
    store = InMemoryPersistence()
    with pytest.raises(InvalidRecord):
        await store.execute(Restore(records))  # type: ignore[arg-type]
    assert store.metrics.write_errors == 1
