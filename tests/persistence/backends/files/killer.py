"""Kills a process at every step of what it does to a store, and looks what is left each time.

``python -m tests.persistence.backends.files.killer json|rotating OPERATION DIRECTORY``

It says which was the last step: in CI of all of them, elsewhere of one in `STEP`. A step is a call
that the store makes to the system; the process is killed before it, and, where it writes, in the
middle of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from papyra.persistence import codec
from papyra.persistence.backends._files.compaction import Hidden
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.journal import Journal
from papyra.persistence.backends._files.rotation import SegmentLimits
from papyra.persistence.backends._files.segmented_journal import SegmentedJournal
from papyra.persistence.backends._files.single_file_journal import SingleFileJournal
from papyra.persistence.backends._files.trimming import Bases
from papyra.persistence.backends.base import Batch
from papyra.persistence.backends.store import NewBase
from papyra.persistence.records import KINDS, Kind
from papyra.persistence.reports import PersistenceRecoveryConfig
from tests.actors import event
from tests.extent import STEP

__all__ = ("OPERATIONS",)

#: Records that are there before, and the one of them that is damaged where there is damage.
BEFORE, DAMAGED = 23, 7
#: Records that a compaction keeps.
KEPT = 8
#: The revision of the base that a history begins with once it is trimmed.
BASE = 14
CALLS = {name for name in vars(Disk) if not name.startswith("_")}


class KillingDisk(Disk):
    """Kills this process before its `number`-th call."""

    def __init__(self, number: int, *, in_the_middle: bool) -> None:
        self.left = number
        self.in_the_middle = in_the_middle

    def __getattribute__(self, name: str) -> Any:
        if name in CALLS:
            self.left -= 1
            if self.left == 0 and not (self.in_the_middle and name == "write"):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write it, or half of it."""
        if self.left == 0:
            os.pwrite(fd, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(fd, data, offset)


def open_journal(name: str, path: Path, disk: Disk) -> Journal:
    limits = SegmentLimits(max_bytes=10_000, max_records=5, max_age=None)
    journal: Journal
    if name == "json":
        journal = SingleFileJournal(path, disk=disk)
    else:
        journal = SegmentedJournal(path, limits, disk=disk)
    journal.prepare()
    journal.open()
    return journal


def append(journal: Journal, first_seq: int, count: int, *, steps: bool = False) -> None:
    records = [event(number) for number in range(first_seq, first_seq + count)]
    if steps:
        records = [replace(each, revision=n) for n, each in enumerate(records, first_seq)]
    journal.append(Batch(first_seq, records, codec.encode(records)), lambda: None, sync=True)


def numbers(journal: Journal) -> list[tuple[int | None, int]]:
    """Return position and order of every event, as they are read."""
    return [
        (record.seq, record.payload["order_id"])
        for file in journal.files(newest=False)
        for block in range(len(file.index))
        for record, _ in file.records(block)
    ]


def do_append(journal: Journal) -> None:
    for _ in range(4):
        append(journal, journal.last_seq + 1, 3)


def do_compact(journal: Journal) -> None:
    hidden: dict[Kind, Hidden] = dict.fromkeys(KINDS, Hidden(BEFORE - KEPT, 0.0))
    journal.drop_hidden(hidden)


def do_recover(journal: Journal) -> None:
    aside = str(journal.path.parent / "aside")
    journal.recover(PersistenceRecoveryConfig("quarantine", aside))


def do_trim(journal: Journal) -> None:
    base = replace(event(BASE), event_type="papyra.base", revision=BASE)
    (encoded,) = codec.encode([base])
    journal.trim(Bases([NewBase(base.actor_address, BASE, BASE, encoded)]))


OPERATIONS: Mapping[str, Callable[[Journal], None]] = {
    "append": do_append,
    "compact": do_compact,
    "recover": do_recover,
    "trim": do_trim,
}


def prepare(name: str, path: Path, operation: str) -> None:
    journal = open_journal(name, path, Disk())
    append(journal, 1, BEFORE, steps=operation == "trim")
    journal.close()
    if operation == "recover":
        files = [path] if path.is_file() else list(path.glob("*.ndjson"))
        for file in files:
            data = file.read_bytes()
            damaged = data.replace(b'"order_id":%d}' % DAMAGED, b'"order_id":0}')
            if damaged != data:  # what is written anew has another time than its index says
                file.write_bytes(damaged)


def check(name: str, path: Path, operation: str) -> None:
    """See that the old store is there, or the new one, and that it can be used."""
    journal = open_journal(name, path, Disk())
    found = {anomaly.kind for anomaly in journal.scan().anomalies}
    expected = [(number, number) for number in range(1, BEFORE + 1)]
    if operation == "recover":
        assert found <= {"checksum"}, found
        expected.remove((DAMAGED, DAMAGED))
        journal.recover(PersistenceRecoveryConfig())
    else:
        assert found <= {"torn"}, found
        journal.recover(PersistenceRecoveryConfig())
    assert not journal.scan().anomalies
    stored = numbers(journal)
    if operation == "append":
        assert stored == [(number, number) for number in range(1, len(stored) + 1)]
        assert len(stored) >= BEFORE
    elif operation == "compact":
        # In several files, some may have been compacted, and others not.
        assert stored[-KEPT:] == expected[-KEPT:]
        assert set(stored) <= set(expected)
        do_compact(journal)
        assert numbers(journal) == expected[-KEPT:]
    elif operation == "trim":
        left = len(stored) - (BEFORE - BASE + 1)
        assert stored == [*expected[:left], *expected[BASE - 1 :]], "there is no hole but before it"
        assert left == BASE - 1 or b"papyra.base" in contents(path)
        do_trim(journal)
        assert numbers(journal) == expected[BASE - 1 :]
    else:
        assert stored == expected
        assert journal.last_seq == BEFORE
    before = journal.last_seq
    append(journal, before + 1, 2)
    journal.close()
    journal = open_journal(name, path, Disk())
    assert not journal.scan().anomalies
    assert numbers(journal)[-2:] == [(before + 1, before + 1), (before + 2, before + 2)]
    journal.close()


def contents(path: Path) -> bytes:
    files = [path] if path.is_file() else sorted(path.glob("*.ndjson"))
    return b"".join(file.read_bytes() for file in files)


def kills(name: str, operation: str, directory: Path) -> Iterator[int]:
    """Yield the number of each step at which it was killed."""
    for number in range(1, 1000, STEP):
        ended = set()
        for in_the_middle in (False, True):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            path = directory / "store"
            prepare(name, path, operation)
            child = os.fork()
            if child == 0:
                disk = KillingDisk(number, in_the_middle=in_the_middle)
                OPERATIONS[operation](open_journal(name, path, disk))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            ended.add(os.waitstatus_to_exitcode(status))
            check(name, path, operation)
        if ended == {0}:
            return
        assert ended <= {-signal.SIGKILL, 0}, ended
        yield number


if __name__ == "__main__":
    print(max(kills(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
