"""What is beside a database for each system: the lock that its writer has, and its inbox."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from papyra.persistence.backends._files.disk import Disk
from papyra.persistence.backends._files.lock import FileLock
from papyra.persistence.backends._files.request_directory import RequestDirectory

__all__ = ("DEFAULT_SYSTEM", "system_inbox", "system_lock")

DEFAULT_SYSTEM = "papyra"


def system_lock(database: Path, system_id: str) -> FileLock:
    """Return the lock of a system, which is not taken yet."""
    return FileLock(_beside(database, system_id, ".lock"), database)


def system_inbox(database: Path, system_id: str, *, syncs: bool) -> RequestDirectory:
    """Return the directory where requests are left for the writer of a system.

    It is none of the tables: another connection that writes may damage the log of some versions.
    """
    path = _beside(database, system_id, ".requests")
    return RequestDirectory(Disk(), path, database.stat, syncs=syncs)


def _beside(database: Path, system_id: str, suffix: str) -> Path:
    system = "" if system_id == DEFAULT_SYSTEM else f".{quote(system_id, safe='')}"
    return database.with_name(f"{database.name}{system}{suffix}")
