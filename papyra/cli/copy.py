"""``papyra copy``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._exit_codes import ANOMALIES_FOUND, SUCCEEDED, CommandFailed, WrongUse
from papyra.cli._output import AsJson, progress, show_json, tell
from papyra.cli._store_argument import (
    backend_at,
    is_of,
    name_of,
    place_of,
    reading,
    require_durable,
)
from papyra.cli._units import format_count
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.snapshot_check import UNREADABLE
from papyra.persistence.backends.snapshots import (
    SnapshotKeeper,
    all_snapshots,
    keeps_snapshots,
    snapshots_of,
)
from papyra.persistence.backends.store import StoredSnapshot
from papyra.persistence.codec import to_json
from papyra.persistence.messages import SaveSnapshot, Scan
from papyra.persistence.records import KINDS, MAX_VERSION, Kind, Record
from papyra.persistence.reports import (
    BESIDE,
    PersistenceAnomaly,
    PersistenceScanReport,
    ReportProgress,
    ScanProgress,
)
from papyra.persistence.snapshots import Snapshot


def copy(
    source: Annotated[str, Parameter(name="SOURCE", help="Where to read: as STORE.")],
    target: Annotated[str, Parameter(name="TARGET", help="Where to write: as STORE.")],
    /,
    *,
    as_json: AsJson = False,
) -> int:
    """Copy the records of one store to another.

    They keep the positions that they have, and snapshots go with them, but for those that nobody
    may believe. TARGET is empty, is not there yet, or holds a beginning of SOURCE: a copy that was
    interrupted goes on when it is called again. In the end each record is read back and compared.
    What is appended to SOURCE meanwhile waits for the next call. Exits with 3 if SOURCE is damaged.

    Examples
    --------
      papyra copy events.ndjson ./journal/
      papyra copy ./journal/ 'redis://localhost/0?system_id=shop'

    """
    try:
        return anyio.run(_copy, source, target, as_json)
    except KeyboardInterrupt:
        tell("interrupted: the same command goes on from there", "yellow")
        raise


async def _copy(source: str, target: str, as_json: bool) -> int:
    async with reading(source, "copying") as origin:
        destination = backend_at(target)
        require_durable(destination, "copying")
        if name_of(origin) == name_of(destination) or _same_place(origin, destination):
            raise WrongUse("SOURCE and TARGET are the same store")
        with progress("checking the source", in_bytes=place_of(origin) is not None) as advance:
            unwatch = origin.watch_scans(advance)
            report = await origin.execute(Scan(records_only=True))
            unwatch()
        if damage := _damage(report):
            tell(
                f"error: {name_of(origin)} has {len(damage):,} anomalies, and would not be copied "
                "whole: see papyra scan, and papyra recover",
                "bold red",
            )
            return ANOMALIES_FOUND
        began = time.monotonic()
        async with destination:
            await _check_destination(destination)
            there, copied = await _bring_up_to_date(origin, destination)
            snapshots, left_out = await copy_snapshots(origin, destination)
        took = time.monotonic() - began
    if as_json:
        show_json(
            {
                "copied": copied,
                "there_before": there,
                "verified": there + copied,
                "snapshots": snapshots,
                "snapshots_left_out": left_out,
                "seconds": took,
            }
        )
    else:
        rate = format_count(round((there + copied) / max(took, 1e-3)))
        before = f" ({there:,} were there before)" if there else ""
        tell(
            f"{name_of(destination)}: {copied:,} records copied{before}, "
            f"{there + copied:,} verified, {rate} a second",
            "green",
        )
        if snapshots or left_out:
            bad = f"; {left_out:,} were left out, as nobody may believe them" if left_out else ""
            tell(f"{snapshots:,} snapshots are there, too{bad}", "dim")
    return SUCCEEDED


async def _check_destination(destination: PersistenceBackend) -> None:
    """Raise `CommandFailed` for what is damaged, or no store at all: nothing is added to that."""
    if damage := _damage(await destination.execute(Scan(records_only=True))):
        raise CommandFailed(
            f"{name_of(destination)} has {len(damage):,} anomalies, so nothing was copied to it: "
            "see papyra scan"
        )


def _damage(report: PersistenceScanReport) -> list[PersistenceAnomaly]:
    """Return what keeps a store from being copied whole."""
    # What was torn was never acknowledged, or is being written now.
    harmless = BESIDE | {"torn"}
    return [anomaly for anomaly in report.anomalies if anomaly.kind not in harmless]


def _same_place(one: PersistenceBackend, other: PersistenceBackend) -> bool:
    here, there = place_of(one), place_of(other)
    return here is not None and there is not None and (is_of(here, there) or is_of(there, here))


async def _bring_up_to_date(
    origin: PersistenceBackend, destination: PersistenceBackend
) -> tuple[int, int]:
    """Copy missing records and compare all; return how many were there, and how many copied."""
    last = origin.last_seq
    # For a store on a server, this is what it had when it was opened.
    resumed = destination.last_seq
    if resumed > last:
        raise CommandFailed(
            f"{name_of(destination)} has records up to {resumed:,}, and {name_of(origin)} only up "
            f"to {last:,}: that is no copy of it"
        )
    total = (await origin.summarize()).total_records
    with progress("comparing what is there") as advance:
        there = await _compare(origin, destination, 0, resumed, advance, total)
    copied = 0
    with progress("copying") as advance:
        async for records in in_order(origin, resumed, last):
            for start in range(0, len(records), destination.batch_limit):
                part = records[start : start + destination.batch_limit]
                await destination.restore(*part)
                copied += len(part)
                advance(ScanProgress(there + copied, max(total, there + copied)))
    await destination.flush()
    with progress("verifying") as advance:
        verified = await _compare(origin, destination, resumed, last, advance, copied)
    if verified != copied:
        raise CommandFailed(f"{copied:,} records were copied, and {verified:,} are there")
    return there, copied


async def copy_snapshots(
    origin: PersistenceBackend, destination: PersistenceBackend
) -> tuple[int, int]:
    """Copy the snapshots that are to be believed; return how many are there, and how many are not.

    They are saved anew, as the destination's own. Those of events that are not copied yet wait.
    """
    if not (keeps_snapshots(origin.store) and keeps_snapshots(destination.store)):
        return 0, 0
    keeper, copied, left_out = SnapshotKeeper(origin.store), 0, 0
    async with aclosing(all_snapshots(snapshots_of(origin.store))) as snapshots:
        async for stored in snapshots:
            try:
                snapshot = await keeper.check(stored)
            except UNREADABLE:
                left_out += 1
                continue
            if snapshot is not None and snapshot.seq <= destination.last_seq:
                await _copy_snapshot(snapshot, destination)
                copied += 1
    return copied, left_out


async def _copy_snapshot(snapshot: Snapshot, destination: PersistenceBackend) -> None:
    store = snapshots_of(destination.store)
    place = StoredSnapshot(store.snapshot_owner(snapshot.actor), snapshot.revision, 0)
    with contextlib.suppress(*UNREADABLE):
        there = await SnapshotKeeper(destination.store).check(place)
        if there == msgspec.structs.replace(snapshot, store_id=await store.store_id()):
            return
    await destination.execute(
        SaveSnapshot(
            snapshot.actor,
            snapshot.revision,
            snapshot.seq,
            snapshot.state,
            snapshot.timestamp,
            snapshot.version,
            MAX_VERSION,  # all of them are kept
            snapshot.shape,
            snapshot.bookkeeping,
        )
    )


async def _compare(
    origin: PersistenceBackend,
    destination: PersistenceBackend,
    after: int,
    through: int,
    advance: ReportProgress,
    total: int,
) -> int:
    """Return how many records there are in a range; raise `CommandFailed` where they differ."""
    if through <= after:
        return 0
    found: list[Record] = []
    others, count = in_order(destination, after, through), 0
    async for records in in_order(origin, after, through):
        while len(found) < len(records) and (more := await anext(others, None)):
            found += more
        part, found = found[: len(records)], found[len(records) :]
        if to_json(part) != to_json(records):
            raise _difference(records, part, name_of(destination))
        count += len(records)
        advance(ScanProgress(count, max(total, count)))
    if found := found or await anext(others, []):
        raise CommandFailed(
            f"{name_of(destination)} has a record {found[0].seq} that the source has not: "
            "it is no copy of that"
        )
    return count


def _difference(wanted: list[Record], found: list[Record], name: str) -> CommandFailed:
    for position, record in enumerate(wanted):
        if position >= len(found) or to_json(found[position]) != to_json(record):
            return CommandFailed(f"{name} differs from the source at record {record.seq}")
    raise AssertionError("they are the same")


class _Feed:
    """The records of one kind, page by page."""

    def __init__(self, backend: PersistenceBackend, kind: Kind, after: int) -> None:
        self._backend, self._kind = backend, kind
        self._after = after
        self._more = True
        self._records: list[Record] = []

    async def fill(self) -> None:
        """See to it that there are records, if there are any left."""
        while not self._records and self._more:
            page = await self._backend.read(self._kind, after=self._after)
            self._records, self._after, self._more = list(page.records), page.next_after, page.more

    @property
    def known_through(self) -> float:
        """Up to which position it is known what comes."""
        return self._after if self._more else float("inf")

    def take(self, through: float) -> list[Record]:
        """Return the records up to a position."""
        if self._records and (self._records[-1].seq or 0) <= through:
            taken, self._records = self._records, []
            return taken
        count = sum((record.seq or 0) <= through for record in self._records)
        taken, self._records = self._records[:count], self._records[count:]
        return taken


async def in_order(
    backend: PersistenceBackend, after: int, through: int
) -> AsyncIterator[list[Record]]:
    """Yield the records of all kinds in the order of their positions, many at once."""
    feeds = [_Feed(backend, kind, after) for kind in KINDS]
    while True:
        for feed in feeds:
            await feed.fill()
        known = min(feed.known_through for feed in feeds)
        records = [record for feed in feeds for record in feed.take(min(known, through))]
        if records:
            records.sort(key=lambda record: record.seq or 0)
            yield records
        if known >= through:
            return
