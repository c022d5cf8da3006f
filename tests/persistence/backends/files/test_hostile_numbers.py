"""Numbers that no store gives, wherever somebody may have put them."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest

from papyra.exceptions import PositionsExhausted, StoreError
from papyra.persistence import PersistedEvent
from papyra.persistence.backends._files.line_format import tombstone
from papyra.persistence.backends.base import MAX_SEQ
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event
from tests.extent import some

#: As they may stand in a line.
NUMBERS = [
    "9" * 5000,
    "1" + "0" * 4299,
    str(2**63 - 1),
    str(2**63),
    str(2**64 - 1),
    str(2**64),
    str(10**14),
    "99999999999999",
    "0",
    "-1",
    "-0",
    "007",
    "3.0",
    "3e0",
    "1e400",
    "true",
    "null",
    '"3"',
    "[3]",
    "",
    " 3",
    "\u0663",
]


@pytest.fixture
def anyio_backend() -> str:
    """What is in a file does not depend on who reads it."""
    return "asyncio"


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.ndjson"
    async with JsonFilePersistence(path, fsync="no") as store:
        for number in range(1, 6):
            await store.append(event(number))
    return path


def with_number(line: bytes, field: str, number: str, *, is_right: bool) -> bytes:
    """Return a line that says another number, with a checksum that is right for it, or not."""
    said, rest = line[18:-1].split(b',"kind"', 1)
    fields = dict(part.split(b":") for part in said.split(b","))
    fields[f'"{field}"'.encode()] = number.encode()
    order = [b'"v"', b'"seq"', b'"after"']
    place = b",".join(name + b":" + fields[name] for name in order if name in fields)
    checked = place + b',"kind"' + rest
    return b'{"crc":"%08x",%b\n' % (crc32(checked) if is_right else 0x12345678, checked)


async def go_on(path: Path, before: set[int]) -> None:
    """Read, recover, append and open again; what was sound is still there."""
    async with JsonFilePersistence(path, fsync="no", read_only=True) as reader:
        await reader.scan()
        await reader.summarize()
    async with JsonFilePersistence(path, fsync="no") as store:
        await store.scan()
        report = await store.recover()
        # What has a right checksum and can't be read is kept: a newer program may have written it.
        assert {a.kind for a in report.scan.anomalies} <= {"unknown_kind"}
        kept = {e.seq or 0 for e in await store.list_events()}
        assert before <= kept
        try:
            for number in range(20):
                await store.append(event(number), event(number))
        except PositionsExhausted:
            assert store.last_seq >= MAX_SEQ - 1
        last_seq = store.last_seq
    async with JsonFilePersistence(path, fsync="no") as store:
        assert {a.kind for a in (await store.scan()).anomalies} <= {"unknown_kind"}
        assert before <= {e.seq or 0 for e in await store.list_events()}
        assert store.last_seq == last_seq


@pytest.mark.parametrize("is_right", [True, False], ids=["right checksum", "wrong checksum"])
@pytest.mark.parametrize("field", ["v", "seq", "after"])
@pytest.mark.parametrize("number", some(NUMBERS, every=5), ids=lambda number: number[:20])
async def test_no_number_in_a_line_keeps_a_file_store_from_being_opened(
    path: Path, number: str, field: str, is_right: bool
) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for position in (2, 4):
        changed = with_number(lines[position], field, number, is_right=is_right)
        path.write_bytes(b"".join([*lines[:position], changed, *lines[position + 1 :]]))
        # A number that may be is believed where the checksum is right: then others are none.
        is_far = (number, field, is_right) == ("99999999999999", "seq", True)
        before = set(range(1, position + 1)) if is_far else set(range(1, 6)) - {position + 1}
        await go_on(path, before)


@pytest.mark.parametrize("number", some(NUMBERS, every=3), ids=lambda number: number[:20])
async def test_a_line_with_a_changed_position_does_not_use_up_the_positions(
    path: Path, number: str
) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for field in ("seq", "after"):
        changed = with_number(lines[4], field, number, is_right=False)
        path.write_bytes(b"".join([*lines[:4], changed]))
        async with JsonFilePersistence(path, fsync="no") as store:
            await store.recover()
            first_seq = (await store.append(event(6))).first_seq
            assert 5 < first_seq < MAX_SEQ // 2


@pytest.mark.parametrize("number", [2**63, 2**64, 10**14, 10**400, MAX_SEQ])
async def test_a_tombstone_with_an_impossible_position_hides_no_segment(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "journal"
    async with RotatingFilePersistence(path, max_segment_records=10, fsync="no") as store:
        for first in range(1, 40, 5):
            await store.append(*map(event, range(first, first + 5)))
    (path / f"{1:020}.ndjson").write_bytes(tombstone(number, 0))
    os.utime(path / f"{1:020}.ndjson")
    async with RotatingFilePersistence(path, max_segment_records=10, fsync="no") as store:
        assert not (await store.scan()).is_clean
        assert [e.seq for e in await store.list_events()] == list(range(11, 41))
        assert (await store.recover()).scan.is_clean
        assert (await store.append(event(41))).first_seq == 41
    assert len(list(path.glob("*.ndjson"))) == 5


@pytest.mark.parametrize("name", ["0" * 20, "9" * 20, f"{2**64}", f"{10**14:020}", "\u0663" * 20])
async def test_a_file_name_with_an_impossible_position_is_foreign_to_a_rotating_store(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "journal"
    async with RotatingFilePersistence(path, max_segment_records=3, fsync="no") as store:
        await store.append(*map(event, range(1, 6)))
        (path / f"{name}.ndjson").touch()
    async with RotatingFilePersistence(path, max_segment_records=3, fsync="no") as store:
        assert [a.kind for a in (await store.scan()).anomalies] == ["foreign_file"]
        assert (await store.append(event(6))).first_seq == 6
        assert len(await store.list_events()) == 6


HOSTILE: list[Any] = [-1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, True, None, "1"]


@pytest.mark.parametrize("number", HOSTILE)
async def test_a_saved_index_of_a_segment_with_a_hostile_number_is_ignored(
    tmp_path: Path, number: object
) -> None:
    path = tmp_path / "journal"
    options: dict[str, Any] = {"max_segment_records": 30, "fsync": "no"}
    async with RotatingFilePersistence(path, **options) as store:
        for n in range(1, 101):
            await store.append(event(n, payload={"order_id": n, "text": "x" * 500}))
    sidecar = path / f"{31:020}.index"
    good = sidecar.read_bytes()
    head = msgspec.json.decode(good[:1024].rstrip().partition(b" ")[2])
    for field in head:
        places = [(head, field)] if not isinstance(head[field], dict) else []
        if isinstance(head[field], dict):
            places = [(head[field], name) for name in head[field]]
        for place, name in places:
            was, place[name] = place[name], number
            said = msgspec.json.encode(head)
            place[name] = was
            line = (b"%08x %b" % (crc32(said), said)).ljust(1023) + b"\n"
            if len(line) == 1024:
                sidecar.write_bytes(line + good[1024:])
                await read_all(path, options, 100)


async def read_all(path: Path, options: dict[str, Any], count: int) -> None:
    async with RotatingFilePersistence(path, **options) as store:
        assert [e.seq for e in await store.list_events(limit=80)] == list(range(21, 101))
        assert [e.seq async for e in store.stream("event")] == list(range(1, count + 1))


async def test_a_saved_index_of_a_segment_with_hostile_columns_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    options: dict[str, Any] = {"max_segment_records": 30, "fsync": "no"}
    async with RotatingFilePersistence(path, **options) as store:
        for n in range(1, 101):
            await store.append(event(n, payload={"order_id": n, "text": "x" * 500}))
    sidecar = path / f"{31:020}.index"
    good = sidecar.read_bytes()
    head = msgspec.json.decode(good[:1024].rstrip().partition(b" ")[2])
    columns = array("Q", good[1024:])
    for position in range(len(columns)):
        for number in (2**64 - 1, 2**63, 2**40, 10**14):
            changed = columns[:]
            changed[position] = number
            data = changed.tobytes()
            head["index_crc"] = crc32(data)
            said = msgspec.json.encode(head)
            line = (b"%08x %b" % (crc32(said), said)).ljust(1023) + b"\n"
            sidecar.write_bytes(line + data)
            async with RotatingFilePersistence(path, **options) as store:
                # The times of a block may be any.
                read = await store.read("event", after=30, limit=30)
                assert len(read.records) == 30 or 2 <= position // (len(columns) // 12) < 4


async def test_a_file_readers_saved_index_with_a_hostile_number_is_ignored(tmp_path: Path) -> None:
    path, kept = tmp_path / "events.ndjson", tmp_path / "kept"
    async with JsonFilePersistence(path, fsync="no") as store:
        records = [event(n, payload={"order_id": n, "text": "x" * 900}) for n in range(100)]
        await store.append(*records)

    async def read() -> list[int | None]:
        reader = JsonFilePersistence(path, read_only=True, index_directory=kept)
        async with reader:
            return [e.seq async for e in reader.stream("event")]

    expected = list(range(1, 101))
    assert await read() == expected
    (file,) = kept.glob("*.recall")
    good = msgspec.msgpack.decode(file.read_bytes()[8:])
    for field in good:
        for number in (*HOSTILE[:5], 1.5, None):
            names = list(good[field]) if isinstance(good[field], dict) else [None]
            for name in names:
                changed = msgspec.msgpack.decode(msgspec.msgpack.encode(good))
                if name is None:
                    changed[field] = number
                else:
                    changed[field][name] = number
                data = msgspec.msgpack.encode(changed)
                file.write_bytes(b"%08x%b" % (crc32(data), data))
                assert await read() == expected, (field, name, number)


def last_one(number: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Counted", {"n": number}, 1.0, seq=number)


@pytest.mark.parametrize("kind", ["memory", "json", "rotating"])
async def test_a_store_whose_positions_are_used_up_refuses_appends(
    tmp_path: Path, kind: str
) -> None:
    def make() -> Any:
        match kind:
            case "memory":
                return InMemoryPersistence()
            case "json":
                return JsonFilePersistence(tmp_path / "events.ndjson", fsync="no")
            case _:
                return RotatingFilePersistence(tmp_path / "journal", fsync="no")

    async with make() as store:
        await store.restore(last_one(MAX_SEQ - 2))
        with pytest.raises(PositionsExhausted, match=f"for 3 records after {MAX_SEQ - 2}"):
            await store.append(event(1), event(2), event(3))
        assert (await store.append(event(1), event(2))).last_seq == MAX_SEQ
        with pytest.raises(PositionsExhausted):
            await store.append(event(4))
        assert store.metrics.write_errors == 2
        assert [e.seq for e in await store.list_events()] == [MAX_SEQ - 2, MAX_SEQ - 1, MAX_SEQ]
        await store.append()
    if kind != "memory":
        async with make() as store:
            assert (await store.scan()).is_clean
            assert store.last_seq == MAX_SEQ
            with pytest.raises(StoreError):
                await store.append(event(4))
