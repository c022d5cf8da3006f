"""The check of a store before any actor starts, and the recovery of a damaged one."""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias, assert_never

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy, StoreDamaged
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Recover, Scan
from papyra.persistence.reports import (
    BESIDE,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceScanReport,
)

__all__ = ("PersistenceStartupConfig", "StartPlan", "check_store", "plan_start")

logger = logging.getLogger("papyra")

#: What a recovery leaves where it is.
_KEPT = BESIDE | {"unknown_kind", "foreign_file", "history"}
#: What is no reason to do anything: it is not the store's, or its own actor says so when it starts,
#: or it is made anew when it is needed.
_HARMLESS = BESIDE | {"foreign_file", "history"}

#: What a start does: nothing, truncate the torn end, recover, or fail.
StartPlan: TypeAlias = Literal["start", "truncate", "recover", "refuse"]

_MODES = ("ignore", "fail_on_anomaly", "recover")
#: How many anomalies an error or a warning names.
_NAMED = 5


class PersistenceStartupConfig(msgspec.Struct, frozen=True):
    """The startup check of a system: how it starts on a store that can be damaged.

    ``fail_on_anomaly`` scans, and does not start if anything is wrong. There are exceptions, with a
    warning in the log: a torn end, which is what an ordinary crash leaves of one append, is cut
    off, as nothing in it was ever acknowledged; what is foreign in the directory of a store, or
    wrong with an index, stays there; and so does a history in which something is missing: its actor
    says so when it recovers, and nobody else is concerned. Where that would take time, it is not
    even looked for, and snapshots are not: each is checked when it is used. ``recover`` recovers as
    `recovery` says, scans again, and starts if that helped. ``ignore`` does not look.
    """

    mode: Literal["ignore", "fail_on_anomaly", "recover"] = "fail_on_anomaly"
    #: how to recover; used by ``recover``
    recovery: PersistenceRecoveryConfig = PersistenceRecoveryConfig()

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidPolicy(f"mode is one of {', '.join(_MODES)}, not {shown(self.mode)}")
        if not isinstance(self.recovery, PersistenceRecoveryConfig):
            raise InvalidPolicy(
                f"recovery is a PersistenceRecoveryConfig, not {shown(self.recovery)}"
            )


async def check_store(
    backend: PersistenceBackend, config: PersistenceStartupConfig
) -> PersistenceScanReport | None:
    """Scan, decide, recover and scan again, as `config` says; return the last scan.

    `None` says that there was none: in mode ``ignore``, or since nothing can be wrong with such a
    store. Raises `StoreDamaged`.
    """
    if config.mode == "ignore" or not backend.capabilities.recovery:
        return None
    report = await backend.execute(Scan(records_only=True))
    match plan_start(report, config):
        case "start":
            if not report.is_clean:
                logger.warning("not all that is there is right, or the store's: %s", _named(report))
            return report
        case "truncate":
            logger.warning("a torn end, as a crash leaves it, is cut off: %s", _named(report))
            return (await backend.execute(Recover(records_only=True))).scan
        case "refuse":
            raise StoreDamaged(_refusal(report, config), report=report)
        case "recover":
            return await _recover(backend, config, report)
        case plan:
            assert_never(plan)


def plan_start(report: PersistenceScanReport, config: PersistenceStartupConfig) -> StartPlan:
    """Return what a start does about what a scan has found; see `PersistenceStartupConfig`."""
    if config.mode == "ignore" or report.is_clean:
        return "start"
    kinds = {anomaly.kind for anomaly in report.anomalies}
    if kinds <= _HARMLESS:
        return "start"
    if kinds <= _HARMLESS | {"torn"}:
        return "truncate"
    if config.mode == "fail_on_anomaly":
        return "refuse"
    if not report.records_scanned and config.recovery.mode == "repair":
        return "refuse"
    return "recover"


def _refusal(report: PersistenceScanReport, config: PersistenceStartupConfig) -> str:
    if config.mode == "fail_on_anomaly":
        return (
            f"the store is damaged: {_named(report)}. Look at it with scan(), mend it with "
            "recover(), or start with PersistenceStartupConfig(mode='recover')"
        )
    return (
        "there is not one record that can be read, so this may be no store at all: "
        f"{_named(report)}. A recovery with mode='quarantine' keeps what is there"
    )


async def _recover(
    backend: PersistenceBackend, config: PersistenceStartupConfig, report: PersistenceScanReport
) -> PersistenceScanReport:
    logger.warning("the store is damaged, and is recovered: %s", _named(report))
    recovery = await backend.execute(Recover(config.recovery, records_only=True))
    logger.warning(
        "recovered: %d records kept, %d removed; originals: %s",
        recovery.records_kept,
        recovery.records_removed,
        ", ".join(recovery.quarantined) or "none were kept",
    )
    # What a newer program wrote, or somebody else, is kept by every repair, and is no reason not to
    # start.
    if any(anomaly.kind not in _KEPT for anomaly in recovery.scan.anomalies):
        raise StoreDamaged(
            f"the store is damaged even after a recovery: {_named(recovery.scan)}",
            report=recovery.scan,
        )
    return recovery.scan


def _named(report: PersistenceScanReport) -> str:
    named = "; ".join(map(_one, report.anomalies[:_NAMED]))
    more = len(report.anomalies) - _NAMED
    return f"{named}; and {more} more" if more > 0 else named


def _one(anomaly: PersistenceAnomaly) -> str:
    line = "" if anomaly.line is None else f", line {anomaly.line}"
    place = f" ({anomaly.location}{line})" if anomaly.location else ""
    return f"{anomaly.kind}: {anomaly.detail}{place}"
