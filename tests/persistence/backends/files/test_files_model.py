"""The file backends against a list: appended to, read, reopened, compacted, killed and damaged.

``PAPYRA_EXAMPLES=200`` makes it a long run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from papyra.persistence import PersistenceRecoveryConfig, Read, Record
from papyra.persistence.backends import paging
from papyra.persistence.backends._files import block_index, file_index, line_reader
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.line_format import Line, parse_lines
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.records import KINDS
from papyra.testing._list_model import ListModel, read_to_the_end
from tests.actors import event
from tests.conftest import event_loops
from tests.extent import count, some
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.backends.test_memory_model import NOW, policies, reads, records

anyio_backend = event_loops("asyncio")


class CompactedList(ListModel):
    """A list from which records can be taken out; the numbers go on."""

    last_seq = 0

    def append(self, *records: Record) -> None:
        """Store `records` at the next positions."""
        for record in records:
            self.last_seq += 1
            numbered = msgspec.structs.replace(record, seq=self.last_seq)
            plain = msgspec.convert(msgspec.to_builtins(numbered), type(numbered))
            self.stored.append((plain, len(msgspec.json.encode(record))))

    def compact(self) -> None:
        """Take out what retention hides."""
        shown = {record.seq for kind in KINDS for record in self.visible(kind, NOW)}
        self.stored = [(record, size) for record, size in self.stored if record.seq in shown]

    def lose(self, seqs: set[int]) -> None:
        """Take these out."""
        self.stored = [(record, size) for record, size in self.stored if record.seq not in seqs]


class FileStore(RuleBasedStateMachine):
    """What may happen to a store of files."""

    loop: ClassVar[str]

    def make(
        self, path: Path, *, read_only: bool = False, disk: Disk | None = None
    ) -> FilePersistence:
        """Return a backend on the store there."""
        raise NotImplementedError

    def last_file(self) -> Path:
        """Return the file that is written to."""
        raise NotImplementedError

    def run_in_loop(self, function: Callable[[], Awaitable[Any]]) -> Any:
        # Small enough for every limit to be met.
        with (
            mock.patch.object(block_index, "BLOCK_BYTES", 300),
            mock.patch.object(block_index, "MAX_BLOCKS", 4),
            mock.patch.object(line_reader, "_CHUNK", 700),
            mock.patch.object(file_index, "_PENDING", 5),
            mock.patch.object(paging, "MAX_PAGE_RECORDS", 4),
        ):
            return anyio.run(function, backend=self.loop)

    @initialize(policy=policies)
    def begin(self, policy: RetentionPolicy) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "store-0"
        self.number = 0
        self.policy = policy
        self.model = CompactedList(policy)
        self.store = self.make(self.path)
        self.is_open = True
        self.is_damaged = False
        self.numbers_are_unsure = False
        #: what the last crash has left at the end
        self.begun = b""

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run_in_loop(self.store.aclose)
            shutil.rmtree(self.directory)

    @precondition(lambda self: self.is_open)
    @rule(batch=st.lists(records, max_size=12))
    def append(self, batch: list[Record]) -> None:
        appended = self.run_in_loop(lambda: self.store.append(*batch))
        if self.numbers_are_unsure and batch:
            # What the damaged line said, it may say no more; or it may say a greater number.
            assert appended.first_seq > max([r.seq or 0 for r, _ in self.model.stored], default=0)
            self.model.last_seq = appended.first_seq - 1
            self.numbers_are_unsure = False
        assert appended.first_seq == self.model.last_seq + 1 or self.numbers_are_unsure
        self.model.append(*batch)
        assert appended.last_seq == self.model.last_seq or self.numbers_are_unsure

    @precondition(lambda self: self.is_open)
    @rule(query=reads)
    def read(self, query: dict[str, Any]) -> None:
        request = Read(**query)
        found = self.run_in_loop(lambda: read_to_the_end(self.store, request))
        assert found == self.model.read(request, NOW)

    @rule()
    def close_and_open(self) -> None:
        self.run_in_loop(self.store.aclose)
        self.store = self.make(self.path)
        self.is_open = True

    @rule(torn=st.binary(max_size=30), cut=st.integers(0, 40))
    def crash(self, torn: bytes, cut: int) -> None:
        """Go on with what a killed process would have left, and half a line that it wrote."""
        self.number += 1
        copy = self.directory / f"store-{self.number}"
        if self.path.is_dir():
            shutil.copytree(self.path, copy, ignore=shutil.ignore_patterns(".lock"))
        elif self.path.exists():
            shutil.copy2(self.path, copy)
        self.run_in_loop(self.store.aclose)
        self.path = copy
        if copy.exists() and list(copy.glob("*.ndjson") if copy.is_dir() else [copy]):
            last = self.last_file()
            # Whoever was killed had cut off what was left by one that was killed before.
            data = last.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            data = data.removesuffix(self.begun) if self.begun else data
            begun = (b'{"crc":"12345678","v":1,"seq":' + torn)[:cut].replace(b"\n", b"")
            self.begun = begun
            last.write_bytes((data if self.is_damaged else whole) + begun)
        self.store = self.make(self.path)
        self.is_open = True

    @precondition(lambda self: self.is_open and not self.is_damaged)
    @rule()
    def compact(self) -> None:
        report = self.run_in_loop(self.store.compact)
        assert report.records_before == len(self.model.stored)
        self.model.compact()
        assert report.records_after == len(self.model.stored)
        assert report.bytes_after == sum(size for _, size in self.model.stored)
        # Whatever was torn has been there before, and is no concern of a compaction.
        report = self.run_in_loop(self.store.scan)
        assert {anomaly.kind for anomaly in report.anomalies} <= {"torn"}

    @precondition(lambda self: self.model.stored)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Flip a bit of a line, while the store is closed."""
        seqs = [record.seq or 0 for record, _ in self.model.stored]
        seq = data.draw(st.sampled_from(seqs))
        self.run_in_loop(self.store.aclose)
        files = list(self.path.glob("*.ndjson")) if self.path.is_dir() else [self.path]
        ((path, line),) = (
            (path, line)
            for path in files
            for line in parse_lines(path.read_bytes(), 0)
            if isinstance(line, Line) and line.seq == seq
        )
        content = bytearray(path.read_bytes())
        content[line.offset + data.draw(st.integers(0, line.body + 20))] ^= 2
        path.write_bytes(content)
        self.model.lose({seq})
        self.numbers_are_unsure = True
        self.is_damaged = True
        self.store = self.make(self.path)
        self.is_open = True

    @precondition(lambda self: self.is_open)
    @rule(mode=st.sampled_from(["repair", "quarantine"]))
    def recover(self, mode: Any) -> None:
        report = self.run_in_loop(lambda: self.store.recover(PersistenceRecoveryConfig(mode)))
        assert report.scan.is_clean
        assert report.records_kept == len(self.model.stored)
        self.is_damaged = False

    @precondition(lambda self: self.is_open)
    @rule()
    def look_from_outside(self) -> None:
        """Read with a second backend, which takes no lock, and see the same."""
        self.run_in_loop(self.store.flush)
        reader = self.make(self.path, read_only=True)
        found = self.run_in_loop(lambda: read_to_the_end(reader, Read("event")))
        assert found == self.model.read(Read("event"), NOW)
        self.run_in_loop(reader.aclose)

    @invariant()
    def a_scan_says_whether_it_is_damaged(self) -> None:
        if hasattr(self, "store"):
            report = self.run_in_loop(self.store.scan)
            kinds = {anomaly.kind for anomaly in report.anomalies}
            assert bool(kinds - {"torn"}) == self.is_damaged, report
            assert report.records_scanned == len(self.model.stored)


class OneFileStore(FileStore):
    def make(
        self, path: Path, *, read_only: bool = False, disk: Disk | None = None
    ) -> FilePersistence:
        return JsonFilePersistence(
            path,
            fsync="no",
            retention_policy=self.policy,
            clock=lambda: NOW,
            read_only=read_only,
            _disk=disk,
        )

    def last_file(self) -> Path:
        return self.path


class RotatingStore(FileStore):
    def make(
        self, path: Path, *, read_only: bool = False, disk: Disk | None = None
    ) -> FilePersistence:
        return RotatingFilePersistence(
            path,
            fsync="no",
            retention_policy=self.policy,
            clock=lambda: NOW,
            read_only=read_only,
            max_segment_bytes=1500,
            max_segment_records=9,
            _disk=disk,
        )

    def last_file(self) -> Path:
        return max(self.path.glob("*.ndjson"))


@pytest.mark.parametrize("loop", some(["asyncio", "trio"], every=2))
@pytest.mark.parametrize("machine", [OneFileStore, RotatingStore])
def test_a_file_store_holds_what_a_list_would_hold(machine: type[FileStore], loop: str) -> None:
    machine.loop = loop
    test_case = machine.TestCase
    test_case.settings = settings(
        max_examples=count("PAPYRA_EXAMPLES", 6, 25),
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    test_case("runTest").runTest()


class Watched(Disk):
    """Keeps what a process would leave that is killed in the middle of a write."""

    def __init__(self) -> None:
        self.left: list[bytes] = []

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        super().write(fd, data[:40], offset)
        self.left.append(self.read(fd, 1 << 20, 0))
        return super().write(fd, data, offset)


@pytest.mark.parametrize("machine", [OneFileStore, RotatingStore])
async def test_two_crashes_in_a_row_on_a_damaged_file_store_use_up_no_position(
    machine: type[FileStore], tmp_path: Path
) -> None:
    stores = machine()
    stores.policy, stores.path = RetentionPolicy(), tmp_path / "store"
    async with stores.make(stores.path) as store:
        await store.append(*map(event, range(5)))
    last = stores.last_file()
    damaged = last.read_bytes().replace(b'"order_id":3', b'"order_id":7')
    last.write_bytes(damaged + b'{"crc":"12345678","v":1,"seq":6,"kind"')
    disk = Watched()
    async with stores.make(stores.path, disk=disk) as store:
        await store.append(event(5))
    # The second has cut off what the first had begun, and has begun its own.
    (left,) = disk.left
    assert left.startswith(damaged + b'{"crc":"')
    assert left.count(b'{"crc":"') == 6
    last.write_bytes(left)
    async with stores.make(stores.path) as store:
        assert (await store.append()).first_seq == 6
        kinds = [anomaly.kind for anomaly in (await store.scan()).anomalies]
        assert kinds == ["checksum", "torn"]
        assert (await store.append(event(5))).first_seq == 6
