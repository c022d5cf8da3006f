"""The check of all snapshots of a store: a scan reports those that nobody may believe."""

from __future__ import annotations

import logging
from contextlib import aclosing

import msgspec

from papyra.exceptions import StoreAccessDenied, StoreWrongType
from papyra.persistence.backends.snapshots import (
    SnapshotKeeper,
    all_snapshots,
    keeps_snapshots,
    snapshots_of,
    why_not,
)
from papyra.persistence.backends.store import Store, StoredSnapshot
from papyra.persistence.reports import (
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    StoreSummary,
)
from papyra.persistence.snapshots import InvalidSnapshot

logger = logging.getLogger("papyra")

#: What is raised by one that can't be read, or by none of them being readable. Whatever else is
#: raised, a server that is away say, tells nothing about them.
UNREADABLE = (InvalidSnapshot, OSError, StoreAccessDenied, StoreWrongType)


async def with_snapshots(store: Store, report: PersistenceScanReport) -> PersistenceScanReport:
    """Return the report of a scan with the snapshots that are not to be believed."""
    found = [anomaly for _, anomaly in await _bad_snapshots(store)]
    return msgspec.structs.replace(report, anomalies=(*report.anomalies, *found))


async def without_bad_snapshots(
    store: Store, config: PersistenceRecoveryConfig, report: PersistenceRecoveryReport
) -> PersistenceRecoveryReport:
    """Remove the snapshots that are not to be believed; return the report with what is left."""
    places: dict[str, None] = {}
    left: list[PersistenceAnomaly] = []
    for stored, anomaly in await _bad_snapshots(store):
        if stored is None:
            left.append(anomaly)
        elif config.mode != "quarantine":
            await snapshots_of(store).remove_listed(stored)
        elif place := await snapshots_of(store).quarantine_listed(stored, config.quarantine_dir):
            places[place] = None
    scan = msgspec.structs.replace(report.scan, anomalies=(*report.scan.anomalies, *left))
    return msgspec.structs.replace(report, scan=scan, quarantined=(*report.quarantined, *places))


async def counting_snapshots(store: Store, summary: StoreSummary) -> StoreSummary:
    """Return the summary with the number of snapshots, which are listed and not read."""
    if not keeps_snapshots(store):
        return summary
    count = size = 0
    try:
        async with aclosing(all_snapshots(snapshots_of(store))) as snapshots:
            async for stored in snapshots:
                count, size = count + 1, size + stored.size
    except UNREADABLE:
        return summary  # a scan says why
    return msgspec.structs.replace(summary, snapshots=count, snapshot_bytes=size)


async def _bad_snapshots(store: Store) -> list[tuple[StoredSnapshot | None, PersistenceAnomaly]]:
    """Return each snapshot that is not to be believed; `None` if not even their list can be read.

    They are read one at a time.
    """
    found: list[tuple[StoredSnapshot | None, PersistenceAnomaly]] = []
    if not keeps_snapshots(store):
        return found
    keeper = SnapshotKeeper(store)
    try:
        async with aclosing(all_snapshots(snapshots_of(store))) as snapshots:
            async for stored in snapshots:
                try:
                    await keeper.check(stored)
                except UNREADABLE as error:
                    detail = f"snapshot {stored.revision}: {why_not(error)}"
                    place = f"{stored.owner}/{stored.revision}"
                    found.append((stored, _anomaly(detail, place)))
    except StoreAccessDenied as error:
        # As for a recovery, which does without them then.
        logger.warning("the snapshots are not looked at: %s", error)
    except UNREADABLE as error:
        found.append((None, _anomaly(f"snapshots: {why_not(error)}", None)))
    return found


def _anomaly(detail: str, place: str | None) -> PersistenceAnomaly:
    return PersistenceAnomaly("snapshot", f"{detail}; nothing is lost with it but time", place)
