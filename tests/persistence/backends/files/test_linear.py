"""Opening, scanning, reading and recovering cost what a file is large, whatever is in it."""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from papyra.persistence import codec
from papyra.persistence.backends._files import checksum, line_format, torn_tail
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.line_format import make_lines
from papyra.persistence.backends.json import JsonFilePersistence
from tests.actors import event

LINES = make_lines(1, 0, codec.encode([event(n) for n in range(1, 500)]), 0)
HEADS = [line[:45] for line in LINES]
NESTED = b'{"crc":"12345678","v":1,"seq":7,"kind":"event","payload":'


def much(of: bytes, size: int) -> bytes:
    return (of * (size // len(of) + 1))[:size]


def some(of: list[bytes], size: int, between: bytes = b"") -> bytes:
    """Return as many of these as fit."""
    data = between.join(of)
    assert len(data) >= size
    return data[:size]


#: What may be in a file, by how many bytes it has.
CONTENTS: dict[str, Callable[[int], bytes]] = {
    "no newline": lambda size: much(b"x", size),
    "zeros": lambda size: much(b"\0", size),
    "zeros and others": lambda size: much(b"\0x", size),
    "newlines": lambda size: much(b"x\n", size),
    "zeros and newlines": lambda size: much(b"\0\n", size),
    "blocks with holes": lambda size: much(b"x" * 512 + bytes(512), size),
    "a hole and blocks": lambda size: bytes(512) + much(b"x" * 511 + b"\n" + bytes(512), size),
    "sound lines": lambda size: some(LINES, size),
    "lines without newlines": lambda size: some([line[:-1] for line in LINES], size),
    "lines for an old Mac": lambda size: some([line[:-1] for line in LINES], size, b"\r"),
    "lines with letters for newlines": lambda size: some([line[:-1] for line in LINES], size, b"x"),
    "beginnings of lines": lambda size: some(HEADS * 5, size),
    "beginnings with commas": lambda size: some(HEADS * 5, size, b","),
    "beginnings with newlines": lambda size: some(HEADS * 5, size, b"\n"),
    "lines in lines": lambda size: much(NESTED, size),
    "lines in lines, ended": lambda size: much(NESTED, size // 2) + much(b"}", size // 2) + b"\n",
    "braces": lambda size: LINES[0][:60] + much(b"{", size),
    "braces closed": lambda size: LINES[0][:60] + much(b"{}", size),
    "quotes": lambda size: LINES[0][:60] + much(b'"', size),
    "backslashes": lambda size: LINES[0][:60] + b'"' + much(b"\\", size),
    "closing braces without a line": lambda size: much(b"}", size),
    "half lines": lambda size: some([line[: len(line) // 2] + b"\n" for line in LINES * 3], size),
    "ends of lines": lambda size: some([line[len(line) // 2 :] for line in LINES * 3], size),
    "the same line": lambda size: much(LINES[0], size),
    "lines in reverse": lambda size: some(LINES[::-1], size),
    "every other line": lambda size: some(LINES[::2] * 2, size),
    "holes between lines": lambda size: some([line + bytes(3) for line in LINES], size),
    "noise": lambda size: random.Random(1).randbytes(size),
}
#: Of which a hundred times the work is a hundred lines' that look at all of it.
SIZE = 15_000


@pytest.fixture
def anyio_backend() -> str:
    """What is in a file does not depend on who reads it."""
    return "asyncio"


class Work(Disk):
    """Counts the bytes that are read and written, and checksummed and searched through."""

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = super().read(fd, length, offset)
        self.bytes += len(data)
        return data

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.bytes += len(data)
        return super().write(fd, data, offset)

    def crc32(self, data: bytes, start: int = 0) -> int:
        self.bytes += len(data)
        return _crc32(data, start)


_crc32 = zlib.crc32


class Watched:
    """A pattern that counts what it has searched through."""

    def __init__(self, pattern: Any, work: Work) -> None:
        self.pattern, self.work = pattern, work
        self.pattern_bytes = pattern.pattern

    def search(self, data: bytes, start: int = 0, stop: int | None = None) -> Any:
        stop = len(data) if stop is None else min(stop, len(data))
        found = self.pattern.search(data, start, stop)
        self.work.bytes += (found.end() if found else stop) - start
        return found

    def finditer(self, data: bytes, start: int = 0) -> Any:
        yield from self.pattern.finditer(data, start)
        self.work.bytes += len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pattern, name)


async def cost(path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the bytes that were looked at."""
    work = Work()
    with monkeypatch.context() as patched:
        patched.setattr(checksum, "crc32", work.crc32)
        for module, name in (
            (line_format, "HEAD"),
            (line_format, "START"),
            (torn_tail, "START"),
            (torn_tail, "_HOLE"),
            (torn_tail, "_TOKEN"),
            (torn_tail, "_CONTROL"),
        ):
            patched.setattr(module, name, Watched(getattr(module, name), work))
        read_only = what in ("read", "scan")
        store = JsonFilePersistence(path, fsync="no", read_only=read_only, _disk=work)
        async with store:
            match what:
                case "read":
                    async for _ in store.stream("event"):
                        pass
                case "scan":
                    await store.scan()
                case "recover":
                    await store.recover()
                case "append":
                    await store.append(event(1))
    return work.bytes


@pytest.mark.parametrize("name", CONTENTS)
async def test_opening_scanning_and_recovering_a_file_take_time_linear_in_its_size(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in ("read", "recover"):
        path = tmp_path / what
        path.write_bytes(CONTENTS[name](SIZE))
        # Opening is a part of each of them, and a recovery is followed by a scan.
        assert await cost(path, what, monkeypatch) <= 45 * SIZE, what
    shutil.rmtree(tmp_path)
