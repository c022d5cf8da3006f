"""The lock that whoever writes a system has: a file beside the database, one for each system."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from papyra.persistence.backends._files.lock import FileLock

__all__ = ("DEFAULT_SYSTEM", "system_lock")

DEFAULT_SYSTEM = "papyra"


def system_lock(database: Path, system_id: str) -> FileLock:
    """Return the lock of a system, which is not taken yet."""
    system = "" if system_id == DEFAULT_SYSTEM else f".{quote(system_id, safe='')}"
    return FileLock(database.with_name(f"{database.name}{system}.lock"), database)
