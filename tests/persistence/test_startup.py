"""What a system does about a damaged store before any actor starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from papyra import ActorSystem
from papyra.exceptions import InvalidPolicy, RecoveryFailed, StoreDamaged
from papyra.persistence import (
    PersistedEvent,
    PersistenceRecoveryConfig,
    PersistenceScanReport,
    PersistenceStartupConfig,
)
from papyra.persistence.backends._files.line_format import _make_line
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence, InjectedFault
from tests.actors import Echo, event
from tests.eventsourcing.accounts import Account, Look
from tests.testing.shelf import Disk, Shelf, ShelfStore, ruin


@pytest.fixture
async def path(tmp_path: Path, anyio_backend: object) -> Path:
    path = tmp_path / "events.ndjson"
    async with JsonFilePersistence(path, fsync="no") as store:
        await store.append(*map(event, range(1, 6)))
    return path


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"order_id":3', b'"order_id":8'))


async def numbers_after_a_start(path: Path, startup: PersistenceStartupConfig | None) -> list[int]:
    store = JsonFilePersistence(path, fsync="no")
    async with ActorSystem(persistence=store, startup=startup) as system:
        await system.spawn(Echo).ask("x")
        events = await store.list_events()
    return [e.payload["order_id"] for e in events if e.event_type == "OrderPlaced"]


async def test_a_system_start_scans_a_sound_store_and_leaves_it_alone(path: Path) -> None:
    before = path.read_bytes()
    store = JsonFilePersistence(path, fsync="no")
    async with ActorSystem(persistence=store, audit_interval=None) as system:
        assert (store.metrics.scans, store.metrics.recoveries) == (1, 0)
        assert system.stored_before == 5
    assert path.read_bytes().startswith(before)


async def test_a_damaged_store_keeps_a_system_from_starting(path: Path) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(
        StoreDamaged, match=r"checksum: the line of record 3 .*events.ndjson, line 3"
    ) as caught:
        await numbers_after_a_start(path, None)
    assert "PersistenceStartupConfig(mode='recover')" in str(caught.value)
    assert isinstance(caught.value.report, PersistenceScanReport)
    assert len(caught.value.report.anomalies) == 1
    assert path.read_bytes() == before


async def test_a_system_start_cuts_off_a_torn_tail_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert await numbers_after_a_start(path, None) == [1, 2, 3, 4]
    assert "a torn end, as a crash leaves it, is cut off" in caplog.text
    caplog.clear()
    assert await numbers_after_a_start(path, None) == [1, 2, 3, 4]
    assert "torn" not in caplog.text


async def test_a_startup_in_mode_recover_repairs_the_store_and_starts(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(path)
    damaged = path.read_bytes()
    aside = tmp_path / "aside"
    recovery = PersistenceRecoveryConfig("quarantine", str(aside))
    startup = PersistenceStartupConfig("recover", recovery)
    assert await numbers_after_a_start(path, startup) == [1, 2, 4, 5]
    (copy,) = aside.iterdir()
    assert copy.read_bytes() == damaged
    assert "5 records kept" not in caplog.text
    assert f"4 records kept, 1 removed; originals: {copy}" in caplog.text


async def test_a_startup_in_mode_recover_starts_on_records_of_a_newer_version(
    path: Path,
) -> None:
    newer = _make_line(6, 5, b'{"kind":"event"}', 2)
    path.write_bytes(path.read_bytes() + newer)
    with pytest.raises(StoreDamaged, match="unknown_kind: written in version 2"):
        await numbers_after_a_start(path, None)
    startup = PersistenceStartupConfig("recover")
    assert await numbers_after_a_start(path, startup) == [1, 2, 3, 4, 5]
    assert newer in path.read_bytes()


async def test_a_startup_in_mode_ignore_does_not_scan(path: Path) -> None:
    damage(path)
    store = JsonFilePersistence(path, fsync="no")
    startup = PersistenceStartupConfig("ignore")
    async with ActorSystem(persistence=store, startup=startup):
        assert store.metrics.scans == 0
    assert await numbers_after_a_start(path, startup) == [1, 2, 4, 5]


async def test_a_startup_whose_recovery_leaves_damage_is_an_error() -> None:
    class Hopeless(ShelfStore):
        async def recover(self, config: PersistenceRecoveryConfig) -> Any:
            report = await super().recover(config)
            ruin(self.disk, 2)
            return type(report)("shelf", True, self._report())

    disk = Disk()
    async with Shelf(disk) as shelf:
        await shelf.append(*map(event, range(4)))
    ruin(disk, 1)
    with pytest.raises(StoreDamaged, match="even after a recovery"):
        async with ActorSystem(
            persistence=PersistenceBackend(Hopeless(disk)),
            startup=PersistenceStartupConfig("recover"),
        ):
            pytest.fail("it started")


@pytest.mark.parametrize("mode", ["fail_on_anomaly", "recover"])
async def test_a_hole_in_a_history_keeps_its_actor_from_starting_and_nobody_else(
    path: Path, mode: Any
) -> None:
    store = JsonFilePersistence(path, fsync="no")
    steps = [
        PersistedEvent("papyra", "papyra/ann", "Deposited", {"amount": 1}, 1.0, seq, seq - 5)
        for seq in (6, 8)
    ]
    async with store:
        await store.restore(*steps)
    async with ActorSystem(persistence=store, startup=PersistenceStartupConfig(mode)) as system:
        assert await system.spawn(Account, name="ben").ask(Look()) == (0, 0)
        with pytest.raises(RecoveryFailed, match="revision 2 is missing"):
            await system.spawn(Account, name="ann").ask(Look())
        (anomaly,) = (await store.scan()).anomalies
        assert (anomaly.kind, anomaly.seq, anomaly.location) == ("history", 8, str(path))
        assert anomaly.detail == "missing before revision 3 of 'papyra/ann': 2"


async def test_a_system_start_does_not_scan_an_in_memory_store() -> None:
    store = InMemoryPersistence()
    async with ActorSystem(persistence=store):
        pass
    assert store.metrics.scans == 0


async def test_a_scan_that_fails_keeps_a_system_from_starting() -> None:
    store = FaultyPersistence(Shelf(Disk()))
    store.fail_next("scan")
    with pytest.raises(InjectedFault):
        async with ActorSystem(persistence=store):
            pytest.fail("it started")
    async with ActorSystem(persistence=store):
        pass


@pytest.mark.parametrize("options", [{"mode": "hope"}, {"mode": None}, {"recovery": "repair"}])
def test_an_invalid_startup_config_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        PersistenceStartupConfig(**options)


def test_a_system_takes_only_a_startup_config_as_its_startup() -> None:
    with pytest.raises(InvalidPolicy, match="startup is a PersistenceStartupConfig"):
        ActorSystem(startup="recover")  # type: ignore[arg-type]
