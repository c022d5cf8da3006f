"""The fsync policy: when the records that are appended are synced to the device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.persistence.backends.store import Batch

Fsync: TypeAlias = Literal["always", "everysec", "no"]

#: Seconds between two syncs with ``fsync="everysec"``.
SYNC_INTERVAL = 1.0


class FsyncPolicy:
    """Sync before a record is acknowledged, every second, or only at a flush and the closing.

    Raises `InvalidPolicy` for anything else.
    """

    def __init__(self, fsync: Fsync) -> None:
        if fsync not in get_args(Fsync):
            raise InvalidPolicy(f"fsync is one of {', '.join(get_args(Fsync))}, not {shown(fsync)}")
        self._fsync = fsync
        self._closing: threading.Event | None = None

    def syncs(self, batch: Batch) -> bool:
        """Return whether a batch is synced before it is acknowledged, unless more follows."""
        return self._fsync == "always" and not batch.more

    @property
    def syncs_at_all(self) -> bool:
        """Whether anything is synced before a flush."""
        return self._fsync != "no"

    def start(self, name: str, sync: Callable[[], object]) -> None:
        """Begin to call `sync` every second, in a thread of that name, if that is the policy."""
        if self._fsync == "everysec":
            self._closing = threading.Event()
            arguments = self._closing, sync
            threading.Thread(target=_sync_often, args=arguments, name=name, daemon=True).start()

    def stop(self) -> None:
        """Call `sync` no more."""
        if self._closing is not None:
            self._closing.set()


def _sync_often(closing: threading.Event, sync: Callable[[], object]) -> None:
    while not closing.wait(SYNC_INTERVAL):
        sync()
