"""A backend of somebody else's, as the example shows it, works wherever Papyra's own do.

That is, on asyncio; in CI on all event loops.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples import own_backend
from examples.own_backend import CommitFiles
from papyra.conf import backend_from_url
from papyra.exceptions import InvalidStoreURL, StoreError, StoreReadOnly
from papyra.persistence import PersistenceRecoveryConfig
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend
from papyra.testing.conformance import MakeStore, PersistenceConformance
from tests.actors import event
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")


class TestCommitFiles(PersistenceConformance):
    @pytest.fixture
    def make_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
        monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug of a test
        return lambda: CommitFiles(tmp_path / "store")

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        files = sorted(Path(backend.location).iterdir())
        file = max(file for file in files if int(file.name) <= seq)
        lines = file.read_bytes().split(b"\n")
        lines[seq - int(file.name)] = b'{"kind"'
        file.write_bytes(b"\n".join(lines))


async def test_a_second_writer_of_the_example_backend_makes_an_append_of_the_first_fail(
    tmp_path: Path,
) -> None:
    first, second = (PersistenceBackend(CommitFiles(tmp_path)) for _ in range(2))
    async with first, second:
        await first.append(event(1), event(2))
        await second.append(event(3))
        with pytest.raises(StoreError, match="FileExistsError"):
            await first.append(event(4))
        assert (await first.append(event(4))).first_seq == 4
        assert [e.payload["order_id"] for e in await second.list_events()] == [1, 2, 3, 4]


async def test_a_quarantine_of_the_example_backend_keeps_the_original(tmp_path: Path) -> None:
    async with PersistenceBackend(CommitFiles(tmp_path)) as backend:
        await backend.append(event(1))
        file = tmp_path / f"{1:020}"
        file.write_bytes(b"no record\n")
        report = await backend.recover(PersistenceRecoveryConfig("quarantine"))
        assert (report.records_removed, report.scan.is_clean) == (1, True)
        assert [Path(each).read_bytes() for each in report.quarantined] == [b"no record\n"]
        assert (await backend.append(event(2))).first_seq == 2


async def test_a_read_only_example_backend_writes_nothing(tmp_path: Path) -> None:
    reader = own_backend.from_url(f"commits:{tmp_path}/none", read_only=True)
    with pytest.raises(StoreError, match="FileNotFoundError"):
        await reader.list_events()
    reader = own_backend.from_url(f"commits:{tmp_path}", read_only=True)
    with pytest.raises(StoreReadOnly):
        await reader.append(event(1))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of packages in which the example is installed, as pip does it."""
    packages = tmp_path / "packages"
    metadata = packages / "own_backend-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(own_backend.__file__, packages)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-backend\nVersion: 1.0\n")
    section = (own_backend.__doc__ or "").partition("[project.entry-points.")[2].splitlines()
    (name, _, target) = section[1].strip().replace('"', "").partition(" = ")
    assert section[0] == f'"{registry.GROUP}"]'
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {target}\n")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    return packages


def papyra(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "papyra.cli", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.usefixtures("installed")
async def test_papyra_commands_work_on_a_registered_third_party_backend(tmp_path: Path) -> None:
    async with PersistenceBackend(CommitFiles(tmp_path / "store")) as backend:
        await backend.append(*map(event, range(5)))
    url = f"commits:{tmp_path}/store"
    summary = json.loads(papyra("inspect", url, "--json"))
    assert (summary["backend"], summary["records"]["event"]) == ("commits", 5)
    assert "commit files" in papyra("inspect", url)
    assert json.loads(papyra("scan", url, "--json"))["records_scanned"] == 5
    for source, target in [
        (url, f"json:{tmp_path}/a.ndjson"),
        (f"json:{tmp_path}/a.ndjson", f"commits:{tmp_path}/b"),
    ]:
        copied = json.loads(papyra("copy", source, target, "--json"))
        assert (copied["copied"], copied["verified"]) == (5, 5)
    assert json.loads(papyra("scan", f"commits:{tmp_path}/b", "--json"))["records_scanned"] == 5


@pytest.mark.usefixtures("installed")
async def test_papyra_compact_says_that_a_backend_can_not_trim_histories(tmp_path: Path) -> None:
    async with PersistenceBackend(CommitFiles(tmp_path / "store")) as backend:
        await backend.append(*map(event, range(5)))
    options = ("--max-records", "1", "--trim-histories", "--dry-run")
    done = subprocess.run(
        [sys.executable, "-m", "papyra.cli", "compact", f"commits:{tmp_path}/store", *options],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "this store keeps every history whole" in done.stderr


MEASURED = """
import dataclasses
import sys
import own_backend

def from_url(url, *, read_only):
    print("made", url, file=sys.stderr)
    return own_backend.from_url(url, read_only=read_only)

REGISTRATION = dataclasses.replace(
    own_backend.REGISTRATION, from_url=from_url, file_name="a commit/"
)
"""


def test_what_is_measured_by_its_kind_is_of_that_kind(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed / "measured.py").write_text(MEASURED)
    (entries,) = installed.glob("*/entry_points.txt")
    entries.write_text(f"[{registry.GROUP}]\ncommits = measured:REGISTRATION\n")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "papyra.cli", "bench", "commits", "--records", "100"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"made commits://{tmp_path}/papyra-bench-" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [installed.name]


def test_the_pytest_plugin_runs_tests_on_a_registered_third_party_backend(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed / "test_it.py").write_text(
        "def test_it(persistence):\n    assert persistence.store.name == 'commits'\n"
    )
    monkeypatch.setenv("PAPYRA_TEST_STORE", "commits")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=installed)
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def test_a_registered_third_party_backend_is_listed_behind_papyras_own(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "commits" not in registry.names()
    monkeypatch.syspath_prepend(installed)
    own = ["memory", "sqlite", "rotating", "json", "redis", "postgres"]
    assert registry.names() == [*own, "commits"]
    assert registry.is_known("commits")
    backend = backend_from_url("commits:somewhere")
    assert backend.location == "somewhere"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere_at_all:REGISTRATION", "'commits' is at nowhere_at_all:.*can't be imported"),
        ("own_backend:MISSING", "'commits' is at own_backend:MISSING, which can't be imported"),
        ("own_backend:CommitFiles", "where there is no Registration"),
    ],
)
def test_a_backend_entry_point_that_leads_nowhere_is_an_error_that_names_it(
    installed: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    (entries,) = installed.glob("*/entry_points.txt")
    entries.write_text(f"[{registry.GROUP}]\ncommits = {target}\n")
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(InvalidStoreURL, match=said):
        backend_from_url("commits:somewhere")
    # It has no say in what others are.
    assert registry.backend_at("a.ndjson").store.name == "json"


def test_no_third_party_backend_takes_the_name_of_papyras_own(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entries,) = installed.glob("*/entry_points.txt")
    entries.write_text(f"[{registry.GROUP}]\njson = own_backend:REGISTRATION\n")
    monkeypatch.syspath_prepend(installed)
    assert backend_from_url("json:a.ndjson").store.name == "json"
