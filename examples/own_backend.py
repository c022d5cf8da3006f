"""A backend of one's own: a directory with one file for each commit.

Line i of a file is the record at position `first + i`, `first` being the file's name; a line that
is empty was removed. A file appears whole, and under a name that is free, or not at all: so a
commit is all or nothing, and of two writers one fails. Every read goes through everything, and the
event loop waits for the disk: where that matters, a store has an index, and a thread.

`python examples/own_backend.py` shows it at work. Installed with these lines in its pyproject.toml,
it works wherever a store is named, such as in `papyra inspect commits:/var/lib/app/orders`, and for
tests with PAPYRA_TEST_STORE=commits:

    [project.entry-points."papyra.backends"]
    commits = "own_backend:REGISTRATION"
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import anyio

from papyra.exceptions import StoreError, StoreReadOnly
from papyra.persistence import (
    CompactedKind,
    CompactionReport,
    Page,
    PersistedEvent,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    Read,
    Record,
    ScanProgress,
    codec,
)
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.registry import Registration
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.store import Batch, Capabilities, collect_page
from papyra.persistence.backends.urls import path_and_options
from papyra.persistence.records import KINDS, Kind, kind_of
from papyra.persistence.reports import ReportProgress


class CommitFiles:
    name = "commits"
    capabilities = Capabilities(
        durable=True, recovery=True, compaction=True, readable_when_closed=False
    )

    def __init__(self, directory: str | Path, *, read_only: bool = False) -> None:
        self.location = str(directory)
        self.directory = Path(directory)
        self.read_only = read_only

    async def open(self) -> None:
        if not self.read_only:
            self.directory.mkdir(parents=True, exist_ok=True)

    async def last_seq(self) -> int:
        return max((first + len(lines) - 1 for first, lines in self._commits()), default=0)

    async def claim(self) -> int:
        self._must_write()
        return await self.last_seq()

    async def append(self, batch: Batch) -> None:
        # Nothing is awaited, so nobody can cancel it half-way. To link fails where there is a file.
        self._put(batch.first_seq, batch.encoded, os.link)

    async def flush(self) -> None:
        """Do nothing: each commit is on the disk."""

    async def close(self) -> None:
        """Do nothing: no file is kept open."""

    async def read(self, request: Read, policy: RetentionPolicy, now: float) -> Page:
        visible = self._visible(request.kind, policy, now)
        return collect_page(
            request,
            (
                (record, size)
                for record, size in (visible if request.newest else reversed(visible))
                if (record.seq or 0) > request.after
                and (request.before is None or (record.seq or 0) < request.before)
                and (request.since is None or record.timestamp >= request.since)
                and (request.until is None or record.timestamp <= request.until)
            ),
        )

    async def scan(self, report_progress: ReportProgress) -> PersistenceScanReport:
        commits = list(self._commits())
        records = size = 0
        anomalies = []
        for done, (first, lines) in enumerate(commits, 1):
            for seq, line in enumerate(lines, first):
                records, size = records + bool(line), size + len(line)
                if line and decoded(seq, line) is None:
                    kind = fault_of(line)
                    path = str(self._path(first))
                    anomalies.append(PersistenceAnomaly(kind, "it can't be read", path, seq=seq))
            report_progress(ScanProgress(done, len(commits)))
        return PersistenceScanReport(self.name, records, size, tuple(anomalies))

    async def recover(self, config: PersistenceRecoveryConfig) -> PersistenceRecoveryReport:
        self._must_write()
        found = (await self.scan(lambda _: None)).anomalies
        bad = {anomaly.seq for anomaly in found if anomaly.kind == "corrupt"}
        aside = config.quarantine_dir or str(self.directory / "quarantine")
        copies = self._drop(bad, aside if config.mode == "quarantine" else None)
        scan = await self.scan(lambda _: None)
        kept = scan.records_scanned
        return PersistenceRecoveryReport(self.name, True, scan, kept, len(bad), tuple(copies))

    async def compact(
        self, policy: RetentionPolicy, now: float, *, dry_run: bool
    ) -> CompactionReport:
        shown = {r.seq for kind in KINDS for r, _ in self._visible(kind, policy, now)}
        there: dict[Kind, dict[int | None, int]] = {kind: {} for kind in KINDS}
        for first, lines in self._commits():
            for seq, line in enumerate(lines, first):
                if record := decoded(seq, line):
                    there[kind_of(record)][seq] = len(line)
        hidden = {seq for sizes in there.values() for seq in sizes if seq not in shown}
        if not dry_run:
            self._must_write()
            self._drop(hidden, None)
        kinds = {}
        for kind, sizes in there.items():
            left = [size for seq, size in sizes.items() if seq in shown]
            kinds[kind] = CompactedKind(len(sizes), len(left), sum(sizes.values()), sum(left))
        return CompactionReport.of_kinds(self.name, kinds)

    def _must_write(self) -> None:
        if self.read_only:
            raise StoreReadOnly(f"{self.location} was opened to be read only")

    def _path(self, first_seq: int) -> Path:
        return self.directory / f"{first_seq:020}"

    def _commits(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the first position, and the lines, of each file, oldest first."""
        for path in sorted(self.directory.iterdir()):
            if path.name.isdecimal():
                yield int(path.name), path.read_bytes().split(b"\n")[:-1]

    def _visible(self, kind: Kind, policy: RetentionPolicy, now: float) -> list[tuple[Record, int]]:
        """Return the records of a kind that a policy shows, newest first, and their sizes."""
        limits = policy.of(kind)
        oldest, total, count = limits.oldest_time(now), 0, 0
        shown: list[tuple[Record, int]] = []
        for first, lines in reversed(list(self._commits())):
            for seq, line in reversed(list(enumerate(lines, first))):
                record = decoded(seq, line)
                if record is None or kind_of(record) != kind:
                    continue
                total, count = total + len(line), count + 1
                if count > (limits.max_records or count):
                    return shown
                if total > (limits.max_total_bytes or total):
                    return shown
                if oldest is None or record.timestamp >= oldest:
                    shown.append((record, len(line)))
        return shown

    def _drop(self, seqs: set[int | None], aside: str | None) -> list[str]:
        """Empty the lines of these positions; return the copies of what they were in."""
        copies = []
        commits = list(self._commits())
        for first, lines in commits:
            left = [b"" if seq in seqs else line for seq, line in enumerate(lines, first)]
            if left != lines and aside is not None:
                os.makedirs(aside, exist_ok=True)
                copies.append(shutil.copy2(self._path(first), aside))
            if not any(left) and first != commits[-1][0]:  # that one says where the store ends
                self._path(first).unlink()
            elif left != lines:
                self._put(first, left, os.replace)
        return copies

    def _put(
        self, first_seq: int, lines: Sequence[bytes], move: Callable[[Path, Path], None]
    ) -> None:
        new = self.directory / f"new-{os.getpid()}"
        try:
            with open(new, "wb") as file:
                file.writelines(line + b"\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            move(new, self._path(first_seq))
        finally:
            new.unlink(missing_ok=True)
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def decoded(seq: int, line: bytes) -> Record | None:
    try:
        return codec.decode(line, seq) if line else None
    except StoreError:
        return None


def fault_of(line: bytes) -> Literal["corrupt", "unknown_kind"]:
    """Return what is wrong with a line; a newer version may have written what can't be decoded."""
    return "unknown_kind" if codec.may_be_a_record(line) else "corrupt"


def from_url(url: str, *, read_only: bool) -> PersistenceBackend:
    path, _ = path_and_options(url, {})
    return PersistenceBackend(CommitFiles(path, read_only=read_only))


REGISTRATION = Registration(
    label="commit files",
    from_url=from_url,
    for_test=lambda directory, options: PersistenceBackend(CommitFiles(directory()), **options),
)


async def main() -> None:
    event = PersistedEvent("shop", "shop/desk", "OrderPlaced", {"order_id": 1}, 1_700_000_000.0)
    with tempfile.TemporaryDirectory() as directory:
        async with PersistenceBackend(CommitFiles(directory)) as persistence:
            await persistence.append(event, event)
            await persistence.append(event)
        async with PersistenceBackend(CommitFiles(directory)) as persistence:
            for stored in await persistence.list_events():
                print(stored.seq, stored.event_type, stored.payload)


if __name__ == "__main__":
    anyio.run(main)
