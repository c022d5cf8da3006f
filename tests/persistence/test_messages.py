from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from papyra.exceptions import InvalidRequest
from papyra.persistence import (
    Append,
    Appended,
    AppendMany,
    Attend,
    Attended,
    Compact,
    CompactedKind,
    CompactionReport,
    EventSkipped,
    Flush,
    Flushed,
    GetMetrics,
    Identify,
    Identity,
    ListPositions,
    LoadedPosition,
    LoadedSnapshot,
    LoadPosition,
    LoadSnapshot,
    MetricsSnapshot,
    Migrate,
    MigrationReport,
    OutboxTaken,
    Page,
    PersistenceAnomaly,
    PersistenceRecoveryConfig,
    PersistenceRecoveryReport,
    PersistenceScanReport,
    PositionNames,
    PositionRemoved,
    PositionSaved,
    Read,
    Recover,
    RemovePosition,
    ResetMetrics,
    SavePosition,
    SaveSnapshot,
    Scan,
    SkipEvent,
    Snapshot,
    SnapshotSaved,
    TakeOutbox,
)
from papyra.persistence.messages import AnyRequest
from tests.actors import event

AnyReply = (
    Appended
    | Page
    | MetricsSnapshot
    | PersistenceScanReport
    | PersistenceRecoveryReport
    | CompactionReport
    | Flushed
    | Identity
    | LoadedSnapshot
    | SnapshotSaved
    | LoadedPosition
    | PositionSaved
    | PositionRemoved
    | PositionNames
    | EventSkipped
    | MigrationReport
    | OutboxTaken
    | Attended
)

scan = PersistenceScanReport("memory", 1, 2, (PersistenceAnomaly("torn", "half a line", line=3),))


@pytest.mark.parametrize(
    "message",
    [
        Append(event()),
        AppendMany((event(1), event(2))),
        Read("event", 1, 2.0, 3.0, 4, "OrderPlaced", "shop/a", True, 9),
        GetMetrics(),
        ResetMetrics(),
        Scan(),
        Recover(PersistenceRecoveryConfig("quarantine", "bad")),
        Recover(),
        Compact(),
        Flush(),
        SaveSnapshot("shop/a", 7, 9, msgspec.Raw(b'{"n":1}'), 1.5, 2, 3, "x"),
        LoadSnapshot("shop/a", 2, 7),
        LoadPosition("balances"),
        SavePosition("balances", b"\xff", None),
        SavePosition("balances", b"", b"\0"),
        RemovePosition("balances", b"1"),
        ListPositions("balances", 7),
        SkipEvent("shop/a", 7, "paid twice"),
        Identify(),
        Migrate(dry_run=True),
        TakeOutbox(),
        Attend(),
    ],
)
def test_requests_to_the_persistence_actor_can_be_encoded_and_decoded(message: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(message), type=AnyRequest) == message


@pytest.mark.parametrize(
    "reply",
    [
        Appended(1, 2),
        Page((event(seq=1),), 1, False, 1),
        MetricsSnapshot(records_written=3),
        scan,
        PersistenceRecoveryReport("memory", True, scan, 1, 2, ("x",)),
        CompactionReport("memory", True, 2, 1, 20, 10),
        CompactionReport.of_kinds("json", {"event": CompactedKind(9, 5, 90, 50)}, 4),
        Flushed(7),
        Identity("id"),
        LoadedSnapshot(Snapshot("a", 1, 2, "id", 3, "c", msgspec.Raw(b"1"), 2.0), ("one",)),
        SnapshotSaved(7, 100),
        LoadedPosition(b"\xff"),
        LoadedPosition(None),
        PositionSaved(is_saved=True),
        PositionRemoved(is_removed=False),
        PositionNames(("a", "\0"), more=True),
        EventSkipped(8, "paid twice", is_new=True),
        MigrationReport("sqlite", True, 1, 2, ("add a table",)),
        OutboxTaken(3, more=True),
        Attended(1, 2),
    ],
)
def test_replies_of_the_persistence_actor_can_be_encoded_and_decoded(reply: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(reply), type=AnyReply) == reply


def test_a_compaction_report_of_an_older_version_can_be_decoded() -> None:
    encoded = (
        b'{"type":"CompactionReport","backend":"json","supported":true,"records_before":9,'
        b'"records_after":5,"bytes_before":90,"bytes_after":50}'
    )
    report = msgspec.json.decode(encoded, type=AnyReply)
    assert report == CompactionReport("json", True, 9, 5, 90, 50, kinds={}, kept_for_histories=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "events"},
        {"kind": None},
        {"limit": -1},
        {"limit": 1.5},
        {"limit": True},
        {"limit": "10"},
        {"after": -1},
        {"after": None},
        {"before": -1},
        {"since": "yesterday"},
        {"since": math.nan},
        {"since": True},
        {"since": 10**400},
        {"until": -(10**400)},
        {"until": math.nan},
        {"event_type": 5},
        {"actor": b"shop"},
        {"kind": "audit", "event_type": "A"},
        {"kind": "dead_letter", "event_type": "A"},
        {"kind": "audit", "actor": "shop/a"},
    ],
)
def test_a_read_with_invalid_arguments_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Read(**({"kind": "event"} | arguments))


def test_a_metrics_snapshot_reads_as_a_mapping() -> None:
    snapshot = MetricsSnapshot(records_written=3, bytes_written=300)
    anything: object = snapshot
    assert isinstance(anything, Mapping)
    assert snapshot["records_written"] == snapshot.records_written == 3
    assert dict(snapshot) == {name: snapshot[name] for name in snapshot} == dict(snapshot.items())
    assert len(snapshot) == len(snapshot.keys()) == len(snapshot.values())
    assert "bytes_written" in snapshot
    assert "keys" not in snapshot
    assert snapshot.get("keys", 7) == 7
    with pytest.raises(KeyError):
        snapshot["keys"]


def test_a_scan_report_without_anomalies_is_clean() -> None:
    assert not scan.is_clean
    assert PersistenceScanReport("memory", 1, 2).is_clean
