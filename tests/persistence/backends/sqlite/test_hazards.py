"""Warnings of what may damage a database: a network below it, and others that write it at once."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from papyra.persistence.backends._files import network
from papyra.persistence.backends._files.network import (
    network_file_system,
    network_mount,
    network_type,
)
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.outbox import is_log_sound
from tests.actors import event
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")

#: What Linux says, the optional fields in the middle included.
MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/disk/by-path/pci-0000:00:1f.2-part1 rw,discard
41 27 0:41 / /srv rw,relatime shared:5 master:1 - {kind} {source} rw
42 27 0:42 / /an\040other rw shared:5 - tmpfs tmpfs rw
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


# Networks


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("nfs4", "server:/export"),
        ("nfs", "[fe80::1]:/export"),
        ("cifs", "//server/share"),
        ("smb3", "//server/share"),
        ("fuse.sshfs", "ann@server:"),
        ("fuse.rclone", "bucket:path"),
        ("fuse.vmhgfs-fuse", "vmhgfs-fuse"),
        ("9p", "share"),
        ("virtiofs", "share"),
        ("lustre", "10.0.0.1@tcp:/work"),
    ],
)
def test_what_is_mounted_from_another_machine_is_named(kind: str, source: str) -> None:
    mounts = MOUNTS.format(kind=kind, source=source)
    assert network_mount(mounts, os.makedev(0, 41)) == kind


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("ext4", "/dev/sda1"),
        ("xfs", "/dev/disk/by-path/pci-0000:00:1f.2-part1"),
        ("btrfs", "/dev/sda1"),
        ("zfs", "tank/a:b"),
        ("overlay", "overlay"),
        ("tmpfs", "tmpfs"),
        ("fuse.bindfs", "/home/ann"),
    ],
)
def test_what_is_of_this_machine_is_not(kind: str, source: str) -> None:
    mounts = MOUNTS.format(kind=kind, source=source)
    assert network_mount(mounts, os.makedev(0, 41)) is None


@pytest.mark.parametrize("device", [os.makedev(254, 0), os.makedev(0, 42), os.makedev(7, 7)])
def test_only_the_mount_of_the_device_counts(device: int) -> None:
    assert network_mount(MOUNTS.format(kind="nfs4", source="server:/"), device) is None


@pytest.mark.parametrize("mounts", ["", "\n", "nonsense", " - ", "1 2 0:41", "1 2 0:41 / / - nfs"])
def test_what_nobody_understands_is_no_network(mounts: str) -> None:
    assert network_mount(mounts, os.makedev(0, 41)) is None


def test_macos_says_itself_what_is_not_local() -> None:
    def statfs(flags: int) -> bytes:
        before = bytes(64) + flags.to_bytes(4, sys.byteorder) + bytes(4)
        return before + b"smbfs".ljust(16, b"\0") + b"/Volumes/share".ljust(1024, b"\0")

    assert network_type(statfs(0x00000018)) == "smbfs"
    assert network_type(statfs(0x00001018)) is None


def test_where_this_test_runs_is_told() -> None:
    for directory in (Path("/"), Path("/proc"), Path(__file__).parent, Path("/nowhere at all")):
        assert network_file_system(directory) is None


@contextlib.contextmanager
def a_mount_that_names_a_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Mount something in memory under the name of a server; where that may not be, say so."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "server:/export", str(directory)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        device = directory.stat().st_dev
        line = f"41 27 {os.major(device)}:{os.minor(device)} / / rw - tmpfs server:/export rw\n"
        (tmp_path / "mountinfo").write_text(line)
        monkeypatch.setattr(network, "_MOUNTS", tmp_path / "mountinfo")
        yield
        return
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


async def test_a_database_on_a_network_file_system_is_warned_of_whoever_opens_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "mounted"
    with a_mount_that_names_a_server(directory, monkeypatch, tmp_path):
        for read_only in (False, True):
            caplog.clear()
            async with SQLitePersistence(directory / "shop.db", read_only=read_only) as store:
                await store.list_events()
            (said,) = warnings(caplog)
            assert f"{directory / 'shop.db'} is on a network file system (tmpfs)" in said
        (tmp_path / "link.db").symlink_to(directory / "shop.db")
        caplog.clear()
        async with SQLitePersistence(tmp_path / "link.db"):
            assert "is on a network file system" in warnings(caplog)[0]


async def test_a_database_on_a_disk_of_this_machine_is_not_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLitePersistence(path) as store:
        await store.append(event(1))
    assert warnings(caplog) == []


# Others that write


@pytest.mark.parametrize(
    ("version", "is_sound"),
    [
        ((3, 53, 0), True),
        ((3, 51, 3), True),
        ((3, 51, 2), False),
        ((3, 50, 7), True),
        ((3, 50, 6), False),
        ((3, 45, 0), False),
        ((3, 44, 6), True),
        ((3, 44, 5), False),
        ((3, 40, 1), False),
    ],
)
async def test_tables_of_others_are_warned_of_where_sqlite_may_damage_the_log(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int, int],
    is_sound: bool,
) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE sqlites (name TEXT)")
    assert is_log_sound(version) == is_sound
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    async with SQLitePersistence(path, synchronous="off"):
        said = warnings(caplog)
    assert len(said) == (not is_sound)
    assert is_sound or "holds tables of others (sqlites): where several programs" in said[0]


async def test_a_database_of_one_system_alone_is_not_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    async with SQLitePersistence(path, synchronous="off") as store, store.reader() as reader:
        await reader.list_events()
    assert warnings(caplog) == []
