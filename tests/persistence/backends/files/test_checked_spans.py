"""Long histories are looked at in spans, and given out as if every line had been looked at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast
from zlib import crc32

import pytest

from papyra.persistence import PersistedEvent, codec
from papyra.persistence.backends._files import checked_spans, line_format, line_reader
from papyra.persistence.backends._files.checked_spans import CheckedSpans, Span
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.messages import EncodedHistory, HistoryPage, ReadEncodedHistory
from tests.conftest import event_loops
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.conftest import MakeStore

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")


def step(actor: str, revision: int) -> PersistedEvent:
    payload = {"n": "x" * (revision % 50)}
    return PersistedEvent("s", f"s/{actor}", "Stepped", payload, 1.0, revision=revision)


async def encoded(
    store: FilePersistence, actor: str, after: int = 0, limit: int = 100
) -> tuple[list[PersistedEvent], bool]:
    """Return an actor's events in an encoded page, and whether there may be more."""
    request = ReadEncodedHistory(f"s/{actor}", after, limit)
    page = cast("HistoryPage | EncodedHistory", await store.execute(request))
    if isinstance(page, HistoryPage):
        return list(page.events), page.more
    lines = [run.data.split(b"\n") for run in page.runs]
    assert [run.count for run in page.runs] == list(map(len, lines))
    records = [record for run in lines for record in codec.decode_numbered(run)]
    assert page.last_seq == (records[-1].seq if records else 0)
    found = [each for each in records if isinstance(each, PersistedEvent)]
    return [each for each in found if each.actor_address == f"s/{actor}"], page.more


def spans_of(spans: CheckedSpans, end: int) -> Sequence[Span]:
    found: list[Span] = []
    while (span := spans.from_on(found[-1].end if found else 0)) is not None:
        found.append(span)
    assert not found or found[-1].end <= end
    return found


@pytest.mark.parametrize("seed", range(6))
def test_spans_hold_all_lines_that_were_added_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_spans, "SPAN_BYTES", 64)
    chance, spans = random.Random(seed), CheckedSpans()
    data, added = b"", b""
    for _ in range(30):
        lines = b"".join(b"y" * chance.randrange(100) + b"\n" for _ in range(chance.randrange(9)))
        if chance.random() < 0.8:
            spans.add(len(data), lines)
            added += lines
        data += lines
    found = spans_of(spans, len(data))
    assert b"".join(data[span.start : span.end] for span in found) == added
    for span in found:
        part = data[span.start : span.end]
        assert (span.lines, span.checksum) == (part.count(b"\n"), crc32(part))
        assert span.is_right(part)
        assert not span.is_right(part[:-1] + b"\r")
        assert len(part) <= 64 + len(part.split(b"\n")[-2]) + 1
    assert all(one.end <= following.start for one, following in pairwise(found))


@pytest.mark.parametrize("seed", range(3))
async def test_an_encoded_history_is_the_history_wherever_spans_begin_and_end(
    make: MakeStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_spans, "SPAN_BYTES", 1_000)
    chance, last = random.Random(seed), {"a": 0, "b": 0}
    for _ in range(4):
        async with make() as store:
            for _ in range(chance.randrange(1, 5)):
                share = chance.choice([0.0, 0.02, 0.5])
                batch = []
                for _ in range(chance.choice([1, 10, 60])):
                    actor = "b" if chance.random() < share else "a"
                    last[actor] += 1
                    batch.append(step(actor, last[actor]))
                await store.append(*batch)
            if chance.random() < 0.3:
                await store.append(PersistedEvent("s", "s/a", "Noted", 1, 2.0))
                await store.compact(RetentionPolicy(max_records=5))
            for actor, newest in last.items():
                after, limit = chance.randrange(newest + 1), chance.randrange(1, 80)
                page = await store.read_history(f"s/{actor}", after_revision=after, limit=limit)
                found, more = await encoded(store, actor, after, limit)
                assert found == list(page.events)[: len(found)]
                assert found == list(page.events) or more
                assert found or not page.events
                whole, more = await encoded(store, actor, limit=1_000)
                assert [each.revision for each in whole] == list(range(1, newest + 1))
                assert not more


@pytest.mark.parametrize("kind", [JsonFilePersistence, RotatingFilePersistence])
async def test_most_of_a_long_history_is_not_looked_at_line_by_line(
    kind: type[FilePersistence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[bytes] = []

    def noting(some: Sequence[bytes]) -> bool:
        lines.extend(some)
        return line_format.are_whole(some)

    monkeypatch.setattr(line_reader, "are_whole", noting)
    async with kind(tmp_path / "store", fsync="no") as store:
        for first in range(1, 2_001, 50):
            await store.append(*(step("a", first + number) for number in range(50)))
        after, more = 0, True
        while more:
            found, more = await encoded(store, "a", after, limit=400)
            assert [each.revision for each in found] == list(
                range(after + 1, after + 1 + len(found))
            )
            after += len(found)
        assert after == 2_000
        assert len(lines) < 300


async def test_a_line_that_changes_under_an_open_store_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_spans, "SPAN_BYTES", 2_000)
    path = tmp_path / "store"
    async with JsonFilePersistence(path, fsync="no") as store:
        await store.append(*(step("a", number) for number in range(1, 61)))
        data = path.read_bytes()
        for revision in (1, 17, 60):
            place = data.index(b'"revision":%d}' % revision) - 12
            changed = bytes([data[place] ^ 1])
            with path.open("r+b") as file:
                file.seek(place)
                file.write(changed)
            found, _ = await encoded(store, "a")
            assert [each.revision for each in found] == [n for n in range(1, 61) if n != revision]
            path.write_bytes(data)  # the same file, as it was
            assert len((await encoded(store, "a"))[0]) == 60
