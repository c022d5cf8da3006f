"""A system that takes events over, and appends others, until it is killed before some statement.

``python -m tests.persistence.backends.sqlite.relay PATH LOOP STATEMENTS``
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from itertools import count
from typing import Any

import anyio

from papyra.system import ActorSystem
from tests.actors import event
from tests.conftest import LOOPS

__all__ = ("main",)


class Connection(sqlite3.Connection):
    """Kills the process in front of one of its statements, once the system runs."""

    left = 0

    def execute(self, *args: Any) -> sqlite3.Cursor:
        Connection.left -= 1
        if Connection.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*args)


async def main(path: str, statements: int) -> None:
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **options: connect(  # type: ignore[assignment]
        *args, **options, factory=Connection
    )
    from papyra.persistence.backends.sqlite import SQLitePersistence  # noqa: PLC0415 - see above

    async with ActorSystem("shop", persistence=SQLitePersistence(path)) as system:
        print("ready", flush=True)
        Connection.left = statements
        for number in count():
            # Its own appends go on meanwhile.
            await system.backend.append(
                event(-1 - number, actor_address="shop/own", event_type="Own")
            )
            await system.backend.take_outbox()


if __name__ == "__main__":
    backend, options = LOOPS[sys.argv[2]]
    anyio.run(
        main,
        sys.argv[1],
        int(sys.argv[3]),
        backend=backend,
        backend_options=options,
    )
