"""``papyra metrics``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from papyra.persistence import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record
from tests.cli.conftest import (
    AUDITED,
    COUNTED,
    COUNTS,
    HOSTILE,
    HOSTILE_RECORDS,
    RECORDS,
    T0,
    Command,
    Store,
    encoded,
    event,
    iso,
    stored_bytes,
)
from tests.redis_server import RedisServer


def test_papyra_metrics_in_prometheus_format_hold_the_figures_of_the_store(
    papyra: Command, shop: Store
) -> None:
    done = papyra("metrics", shop.name, "--format", "prometheus")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("\n")
    families = {each.name: each for each in text_string_to_metric_families(done.out)}
    value = {
        (sample.name, sample.labels.get("kind")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    kinds: dict[str, type[Record]] = {
        "event": PersistedEvent,
        "audit": PersistedAudit,
        "dead_letter": PersistedDeadLetter,
    }
    for kind, record_type in kinds.items():
        assert value["papyra_store_records", kind] == COUNTS[record_type]
        assert value["papyra_store_record_bytes", kind] == encoded(record_type)
    assert value["papyra_store_stored_bytes", None] == stored_bytes(shop)
    assert value["papyra_store_last_seq", None] == len(RECORDS)
    assert value["papyra_store_oldest_timestamp_seconds", None] == T0
    assert value["papyra_store_newest_timestamp_seconds", None] == T0 + 3600
    assert value["papyra_store_damaged", None] == 0
    for name, count in COUNTED.items():
        assert value[f"papyra_persistence_{name}_total", None] == count
    for name in ("started", "stopped", "crashed", "restarted", "dead_letters"):
        assert families[f"papyra_system_{name}"].type == "counter"
        assert value[f"papyra_system_{name}_total", None] == AUDITED[name]
    for name in ("actors", "messages_waiting", "deepest_mailbox", "persistence_waiting"):
        assert families[f"papyra_system_{name}"].type == "gauge"
        assert value[f"papyra_system_{name}", None] == AUDITED[name]
    assert value["papyra_system_audit_timestamp_seconds", None] == T0 + 3600
    for family in families.values():
        assert family.documentation
        for sample in family.samples:
            assert (shop.tag or str(shop.path)) in sample.labels["store"]
            assert sample.labels.get("system_id", "shop") == "shop"


def test_papyra_metrics_in_json_and_in_a_table_are_the_same_figures(
    papyra: Command, shop: Store
) -> None:
    said = json.loads(papyra("metrics", shop.name, "--json").out)
    assert said == json.loads(papyra("metrics", shop.name, "--format", "json").out)
    assert said["holds"]["records"]["event"] == COUNTS[PersistedEvent]
    assert said["holds"]["stored_bytes"] == stored_bytes(shop)
    assert {name: said["counters"][name] for name in COUNTED} == COUNTED
    assert said["counters"]["scans"] == 0
    assert said["system"]["crashed"] == 4
    assert said["system"]["timestamp"] == T0 + 3600
    table = {(whose, name): value for whose, name, value in papyra("metrics", shop.name).rows}
    assert table["store", "records.event"] == str(COUNTS[PersistedEvent])
    assert table["store", "newest_timestamp"] == iso(T0 + 3600)
    for name, count in said["counters"].items():
        assert table["persistence", name] == str(count)
    assert table["system", "time"] == iso(T0 + 3600)
    assert table["system", "messages_waiting"] == "12"
    text = papyra.on_terminal("metrics", shop.name).text
    assert re.search(r"persistence +bytes_written +65,432", text)


def test_papyra_metrics_with_hostile_names_are_read_back_by_prometheus(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    path = tmp_path / 'a"b\\n\\c\nd{}.ndjson'
    Store("json", str(path), path).append(*HOSTILE_RECORDS)
    done = papyra("metrics", path, "--format", "prometheus")
    assert (done.code, done.err) == (0, "")
    samples = [
        sample for family in text_string_to_metric_families(done.out) for sample in family.samples
    ]
    assert {sample.labels["store"] for sample in samples} == {str(path)}
    # With what a terminal would obey written out.
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\x9b", "\\x9b").replace("\u202e", "\\u202e")
    shown = shown.replace("\t", "\\t")
    assert {s.labels["system_id"] for s in samples if "system_id" in s.labels} == {shown}
    [started] = [sample for sample in samples if sample.name == "papyra_system_started_total"]
    assert started.value == 7


def test_papyra_metrics_of_a_store_without_audits_have_counters_of_zero(
    papyra: Command, store: Store
) -> None:
    store.append(event(1))
    said = json.loads(papyra("metrics", store.name, "--json").out)
    assert said["system"] is None
    assert set(said["counters"].values()) == {0}
    table = papyra("metrics", store.name)
    assert table.code == 0
    assert "system" not in {cells[0] for cells in table.rows}


@pytest.mark.parametrize(
    "payload",
    [None, [], "text", 7, {"persistence": 7}, {"persistence": {"commits": "x"}}, {"actors": 1e300}],
)
def test_papyra_metrics_print_an_audit_of_any_content(
    papyra: Command, tmp_path: Path, payload: Any
) -> None:
    path = tmp_path / "audits.ndjson"
    Store("json", str(path), path).append(PersistedAudit("shop", payload, T0))
    for output in ("table", "prometheus"):
        done = papyra("metrics", path, "--format", output)
        assert (done.code, done.err) == (0, "")
        assert done.out
