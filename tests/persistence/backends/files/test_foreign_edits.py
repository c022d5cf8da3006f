"""Files that others have touched: what was acknowledged is never cut off."""

from __future__ import annotations

import base64
import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreDamaged
from papyra.persistence import PersistenceScanReport, PersistenceStartupConfig, codec
from papyra.persistence.backends._files.line_format import make_lines
from papyra.persistence.backends.json import JsonFilePersistence
from tests.actors import event
from tests.extent import some

COUNT = 60


async def written(path: Path, *, together: bool, count: int = COUNT) -> bytes:
    """Store records, in one append or in as many as there are, and return the file."""
    records = [event(n, payload={"order_id": n, "text": "x}{" * (n % 50)}) for n in range(count)]
    async with JsonFilePersistence(path, fsync="no") as store:
        if together:
            await store.append(*records)
        else:
            for record in records:
                await store.append(record)
    return path.read_bytes()


def half(data: bytes, number: int) -> bytes:
    """Return a line's first half, without a newline."""
    line = data.splitlines(keepends=True)[number]
    return line[: len(line) // 2]


def torn(data: bytes) -> bytes:
    """Return data and the beginning of the line that would follow."""
    lines = make_lines(COUNT + 1, COUNT, codec.encode([event(99)]))
    return data + lines[0][:70]


def line_of(data: bytes, number: int) -> tuple[int, int]:
    """Return where a line begins and ends."""
    ends = [match.end() for match in re.finditer(rb"\n", data)]
    return (ends[number - 1] if number else 0), ends[number]


def edit_line(data: bytes, number: int, edit: Callable[[bytes], bytes]) -> bytes:
    start, end = line_of(data, number)
    return data[:start] + edit(data[start:end]) + data[end:]


def zero_sector(data: bytes, sector: int) -> bytes:
    return data[: 512 * sector] + bytes(512) + data[512 * (sector + 1) :]


#: What becomes of a file, by what was done to it.
EDITS: dict[str, Callable[[bytes], bytes]] = {
    "old Mac": lambda data: data.replace(b"\n", b"\r"),
    "spaces": lambda data: data.replace(b"\n", b" "),
    "tabs": lambda data: data.replace(b"\n", b"\t"),
    "Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "no newlines": lambda data: data.replace(b"\n", b""),
    "zeros for newlines": lambda data: data.replace(b"\n", b"\0"),
    "a JSON array": lambda data: b"[" + data.strip().replace(b"\n", b",") + b"]\n",
    "a JSON array without brackets": lambda data: data.replace(b"\n", b","),
    "line separators": lambda data: data.replace(b"\n", "\u2028".encode()),
    "form feeds": lambda data: data.replace(b"\n", b"\f"),
    "Windows, torn": lambda data: torn(data).replace(b"\n", b"\r\n"),
    "old Mac, torn": lambda data: torn(data).replace(b"\n", b"\r"),
    "no newlines, torn": lambda data: torn(data).replace(b"\n", b""),
    "old Mac, the last line before a torn end": lambda data: torn(data[:-1] + b"\r"),
    "no newline before a torn end": lambda data: torn(data[:-1]),
    "a letter for the newline before a torn end": lambda data: torn(data[:-1] + b"x"),
    "a zero for the newline before a torn end": lambda data: torn(data[:-1] + b"\0"),
    "an old Mac's last line": lambda data: data[:-1] + b"\r",
    "a space at the end": lambda data: data[:-1] + b" ",
    "a newline lost in the middle": lambda data: edit_line(data, 20, lambda line: line[:-1]),
    "half a line in the middle": lambda data: edit_line(data, 20, lambda line: line[:40]),
    "half a line twice": lambda data: data + half(data, 20),
    "a line of its own": lambda data: data + half(data, 0),
    "changed and without newline": lambda data: data[:-1].replace(
        b'"order_id":59', b'"order_id":1'
    ),
    "a closing brace lost": lambda data: data[:-2],
    "an end cut off, and bytes that are no text": lambda data: data[:-2] + b"6\xdf\xf7U\xb2\xa7",
    "an end cut off before a torn one": lambda data: torn(data[:-2])[: len(data) + 28],
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-16 LE": lambda data: data.decode().encode("utf-16-le"),
    "UTF-16 BE": lambda data: data.decode().encode("utf-16-be"),
    "UTF-32": lambda data: data.decode().encode("utf-32"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "twice": lambda data: data * 2,
    "behind another's beginning": lambda data: data[:3000] + data,
    "with another's beginning": lambda data: data + data[:3030],
    "garbage": lambda data: data + b"the end",
    "garbage and zeros": lambda data: data + b"the end" + bytes(1000),
    "a brace": lambda data: data + b"{",
    "shell output": lambda data: data + b"cat: no such file\n",
    "indented": lambda data: data.replace(b"{", b"{\n "),
    "spaces after colons": lambda data: data.replace(b":", b": "),
    "blank lines": lambda data: data.replace(b"\n", b"\n\n"),
    "zeros where no block is": lambda data: data[:1000] + bytes(77) + data[1077:],
    "zeros in the last line": lambda data: data[:-40] + bytes(20) + data[-20:],
    "base64": base64.encodebytes,
    "gzip": gzip.compress,
    "a quote lost, and old Mac": lambda data: data.replace(b'"', b"'", 21)[::1].replace(
        b"\n", b"\r"
    ),
}
#: What is like a torn end, byte for byte.
LIKE_TORN = {"a closing brace lost", "a brace"}


@pytest.fixture
def anyio_backend() -> str:
    """What is in a file does not depend on who reads it."""
    return "asyncio"


async def scanned(path: Path) -> PersistenceScanReport:
    async with JsonFilePersistence(path, read_only=True) as store:
        return await store.scan()


@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
@pytest.mark.parametrize("name", some(EDITS, every=2))
async def test_a_system_start_changes_no_byte_of_a_file_that_others_have_edited(
    tmp_path: Path, name: str, together: bool
) -> None:
    path = tmp_path / "events.ndjson"
    edited = EDITS[name](await written(path, together=together))
    path.write_bytes(edited)
    try:
        async with ActorSystem("shop", persistence=JsonFilePersistence(path, fsync="no")):
            pass
    except StoreDamaged:
        assert path.read_bytes() == edited
    else:
        assert name in LIKE_TORN


async def test_a_zeroed_block_among_acknowledged_lines_is_no_torn_tail(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.ndjson"
    data = await written(path, together=False)
    for sector in range(len(data) // 512):
        edited = zero_sector(data, sector)
        path.write_bytes(edited)
        kinds = [anomaly.kind for anomaly in (await scanned(path)).anomalies]
        is_last = b"\n" not in edited[512 * (sector + 1) :].strip(b"\n")
        assert "torn" not in kinds or is_last, sector


READABLE = ["old Mac", "spaces", "tabs", "Windows", "no newlines", "zeros for newlines"]


@pytest.mark.parametrize("name", READABLE)
async def test_records_whose_newlines_were_changed_are_still_there(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(EDITS[name](await written(path, together=True)))
    expected = list(range(COUNT))
    async with JsonFilePersistence(path, fsync="no") as store:
        report = await store.scan()
        (anomaly,) = report.anomalies
        assert (anomaly.kind, report.records_scanned) == ("line_ending", COUNT)
        assert f"newlines of {COUNT} lines" in anomaly.detail
        assert [e.payload["order_id"] for e in await store.list_events()] == expected
        assert [e.seq for e in await store.list_events(limit=7)] == list(range(54, 61))
        # They go on where they are, and a recovery writes them as they were.
        assert (await store.append(event(60))).first_seq == COUNT + 1
        assert [e.payload["order_id"] for e in await store.list_events()] == [*expected, 60]
        assert (await store.recover()).scan.is_clean
    assert path.read_bytes().count(b"\n") == COUNT + 1
    async with JsonFilePersistence(path) as store:
        assert [e.payload["order_id"] for e in await store.list_events()] == [*expected, 60]
        assert (await store.scan()).is_clean


async def test_a_scan_of_a_file_names_windows_newlines_and_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(EDITS["Windows"](await written(path, together=False)))
    (anomaly,) = (await scanned(path)).anomalies
    assert "the newlines of 60 lines, from record 1 on, became CRLF" in anomaly.detail
    assert (anomaly.line, anomaly.seq, anomaly.offset) == (1, 1, 0)
    path.write_bytes(EDITS["UTF-16"](path.read_bytes()))
    assert "UTF-16" in (await scanned(path)).anomalies[0].detail


@pytest.mark.parametrize("name", EDITS)
async def test_a_recovery_of_an_edited_file_gives_no_position_twice_and_leaves_it_clean(
    tmp_path: Path, name: str
) -> None:
    path, copy = tmp_path / "events.ndjson", tmp_path / "copy.ndjson"
    path.write_bytes(EDITS[name](await written(path, together=False)))
    shutil.copy(path, copy)
    async with JsonFilePersistence(path, fsync="no") as store:
        kept = [e.seq or 0 for e in await store.list_events()]
        report = await store.recover()
        assert report.scan.is_clean
        again = [e.seq or 0 for e in await store.list_events()]
        assert set(kept) <= set(again), "whatever could be read still can"
        first = (await store.append(event(1))).first_seq
        assert first > max(again, default=0)
        assert (await store.scan()).is_clean
    startup = PersistenceStartupConfig("fail_on_anomaly")
    store = JsonFilePersistence(path, fsync="no")
    async with ActorSystem("shop", persistence=store, startup=startup):
        pass


async def test_a_recovery_drops_a_torn_tail_behind_other_damage_of_a_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.ndjson"
    records = [event(n, payload={"x": "x" * 400}) for n in range(30)]
    async with JsonFilePersistence(path) as store:
        await store.append(*records[:10])
        acknowledged = path.stat().st_size
        await store.append(*records[10:])
    data = path.read_bytes()
    sector = acknowledged // 512 + 1
    # As a crash leaves it whose write has lost a block, of a store that was edited before.
    remains = tmp_path / "remains.ndjson"
    remains.write_bytes(zero_sector(data.replace(b'"x":"xx', b'"x":"yx', 1), sector))
    kinds = [anomaly.kind for anomaly in (await scanned(remains)).anomalies]
    assert kinds == ["checksum", "torn"]
    async with JsonFilePersistence(remains) as store:
        assert (await store.recover()).scan.is_clean
        seqs = [e.seq or 0 for e in await store.list_events()]
        assert seqs == [n for n in range(2, 12) if n * 500 < sector * 512][: len(seqs)]
        assert (await store.append(event(99))).first_seq == seqs[-1] + 1
        assert (await store.scan()).is_clean
