"""The power is cut at any moment: a system starts, and what was acknowledged is there, once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from papyra.exceptions import StoreError
from papyra.persistence import PersistenceStartupConfig
from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.records import PersistedEvent
from papyra.persistence.startup import check_store
from tests.extent import CI
from tests.persistence.backends.files.file_persistence import FilePersistence
from tests.persistence.backends.files.power import PoweredDisk, State

#: Programs, each with another seed; more of them for a long run.
RUNS = int(os.environ.get("PAPYRA_POWER_CUTS", "1"))
#: States that are taken after each call, and of all of them looked at.
STATES, LOOKED_AT = 6, 120 if CI else 30


@pytest.fixture
def anyio_backend() -> str:
    """What is on a disk does not depend on who reads it."""
    return "asyncio"


def an_event(number: int, size: int) -> PersistedEvent:
    return PersistedEvent("s", "s/a", "Counted", {"n": number, "x": "x" * size}, float(number))


class Program:
    """Appends and more, on a disk whose power may be cut at any time."""

    kind = ""

    def __init__(self, directory: Path, kind: str, seed: int) -> None:
        self.kind = kind
        self.root = directory / "disk"
        self.root.mkdir(parents=True)
        self.chance = random.Random(seed)
        self.disk = PoweredDisk(self.root)
        self.disk.watch = self.look
        self.number = 0
        self.acknowledged: list[int] = []
        self.appending: list[int] = []
        #: up to where a compaction may have removed what was acknowledged
        self.hidden = 0
        self.seen: set[tuple[object, ...]] = set()
        #: what a cut leaves, and what must be there then, what may be, and what may be gone
        self.cuts: list[tuple[str, State, list[int], list[int], int]] = []

    def look(self, call: str) -> None:
        for state in self.disk.states(self.chance, STATES):
            key = (*sorted(state.items()), len(self.acknowledged), tuple(self.appending))
            if key not in self.seen:
                self.seen.add(key)
                acknowledged = list(self.acknowledged)
                self.cuts.append((call, state, acknowledged, list(self.appending), self.hidden))

    def store(
        self, root: Path, *, keeps: int | None = None, disk: Disk | None = None
    ) -> FilePersistence:
        policy = RetentionPolicy(max_records=keeps)
        if self.kind == "json":
            return JsonFilePersistence(root / "events.ndjson", retention_policy=policy, _disk=disk)
        return RotatingFilePersistence(
            root / "journal", max_segment_bytes=9000, retention_policy=policy, _disk=disk
        )

    async def append(self, store: FilePersistence) -> None:
        count = self.chance.choice([1, 1, 2, 3, 12])
        size = self.chance.choice([0, 3, 150, 600, 2000])
        self.appending = list(range(self.number, self.number + count))
        self.number += count
        try:
            await store.append(*(an_event(number, size) for number in self.appending))
            self.acknowledged += self.appending
        except StoreError:
            assert not self.disk.failing_syncs
        self.appending = []
        self.look("answered")

    async def run(self) -> None:
        (self.root / "journal").mkdir()
        async with self.store(self.root, keeps=8, disk=self.disk) as store:
            for step in range(14):
                if step == 5:
                    self.disk.failing_syncs = 1
                if step in (8, 12):
                    self.hidden = len(self.acknowledged) - 8
                    await store.compact()
                await self.append(store)


async def numbers(store: FilePersistence) -> list[int]:
    return [event.payload["n"] async for event in store.stream("event")]


def lay_out(root: Path, state: State) -> None:
    (root / "journal").mkdir(parents=True)
    # A tombstone is younger than what it stands for.
    for name, data in sorted(state.items(), reverse=True):
        (root / name).write_bytes(data)


@pytest.mark.parametrize("kind", ["json", "rotating"])
@pytest.mark.parametrize("seed", range(RUNS))
async def test_a_system_starts_after_a_power_cut_with_every_acknowledged_record(
    tmp_path: Path, kind: str, seed: int
) -> None:
    program = Program(tmp_path, kind, seed)
    await program.run()
    assert len(program.cuts) > 80
    cuts = program.chance.sample(program.cuts, min(LOOKED_AT, len(program.cuts)))
    for number, (call, state, acknowledged, appending, hidden) in enumerate(cuts):
        where = (number, call)
        root = tmp_path / f"{number}"
        lay_out(root, state)
        async with program.store(root) as store:
            await check_store(store, PersistenceStartupConfig())
            found = await numbers(store)
            kept = [n for n in found if n in set(acknowledged[hidden:])]
            assert kept == acknowledged[hidden:], where
            others = [n for n in found if n not in set(acknowledged)]
            assert others == appending[: len(others)], where
            assert found == sorted(set(found)), where
            await store.append(an_event(-1, 10), an_event(-2, 10))
            assert await numbers(store) == [*found, -1, -2], where
        async with program.store(root) as store:
            assert (await store.scan()).is_clean, where
            assert await numbers(store) == [*found, -1, -2], where
