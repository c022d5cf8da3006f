"""Every backend passes the conformance suite."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.testing import FaultyPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance
from tests.conftest import on_event_loops
from tests.testing.shelf import Disk, Shelf, ruin


class TestInMemoryPersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return InMemoryPersistence


@on_event_loops("asyncio")
class TestShelf(PersistenceConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return functools.partial(Shelf, Disk())

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, Shelf)
        ruin(backend.disk, seq)


class TestJsonFilePersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        # Syncing is tested where it matters; here it would only take its time.
        return functools.partial(JsonFilePersistence, tmp_path / "events.ndjson", fsync="no")

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, JsonFilePersistence)
        lines = backend.path.read_bytes().splitlines(keepends=True)
        lines[seq - 1] = lines[seq - 1].replace(b'"n"', b'"m"')
        backend.path.write_bytes(b"".join(lines))


#: Rules that store thousands of records: a file for every few of them takes them ten times longer.
LARGE = {
    "test_a_large_batch_is_stored_whole",
    "test_a_page_is_bounded_in_records",
    "test_a_stream_walks_all_pages_and_what_is_appended_meanwhile",
}


@on_event_loops("asyncio")
class TestRotatingFilePersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self, request: pytest.FixtureRequest, tmp_path: Path) -> MakeBackend:
        assert {name for name in LARGE if not hasattr(self, name)} == set()
        size = 70_000 if request.function.__name__ in LARGE else 700
        return functools.partial(
            RotatingFilePersistence, tmp_path, max_segment_bytes=size, fsync="no"
        )

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, RotatingFilePersistence)
        (path,) = (
            path
            for path in backend.directory.glob("*.ndjson")
            if b'"seq":%d,' % seq in path.read_bytes()
        )
        data = path.read_bytes()
        start = data.index(b'"n":', data.index(b'"seq":%d,' % seq))
        path.write_bytes(data[:start] + b'"m":' + data[start + 4 :])


@on_event_loops("asyncio")
class TestFaultyPersistence(PersistenceConformance):
    """Without any faults, it is what it wraps."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        disk = Disk()

        def make(**options: Any) -> PersistenceBackend:
            return FaultyPersistence(Shelf(disk, **options))

        return make

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        assert isinstance(backend, FaultyPersistence)
        assert isinstance(backend.wrapped, Shelf)
        ruin(backend.wrapped.disk, seq)


def test_importing_the_conformance_suite_without_pytest_names_the_extra_test() -> None:
    code = """
import sys
sys.modules["pytest"] = None
import papyra.testing
try:
    import papyra.testing.conformance
except ImportError as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.startswith("MissingExtra")
    assert "pip install '.[test]'" in said
