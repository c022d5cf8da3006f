"""PostgreSQL servers that tests stop, kill, pause and look into."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from papyra.testing import _postgres_server
from papyra.testing._postgres_server import (
    NO_SYNC,
    any_installation,
    installations,
    own_database,
    shared_server,
)
from papyra.testing._servers import PATIENCE, NoServer

__all__ = (
    "NO_SYNC",
    "PATIENCE",
    "NoServer",
    "PostgresServer",
    "any_installation",
    "installations",
    "own_database",
    "query",
    "shared_server",
)


def query(url: str, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """Return the rows of one statement, in a connection and a transaction of its own.

    This is how tests look into a database: with nothing of Papyra's.
    """
    with psycopg.connect(url, autocommit=True, connect_timeout=int(PATIENCE)) as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


class PostgresServer(_postgres_server.PostgresServer):
    """A server in processes of its own, which can be stopped, killed, paused and asked."""

    def query(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of one statement in the database ``postgres``."""
        return query(self.url, statement, *values)

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def processes(self) -> Sequence[int]:
        """Return the process ids of the postmaster and of its children, it first."""
        return [self.pid, *_children(self.pid)]

    def new_standby(self, *settings: str) -> PostgresServer:
        """Return a standby of it, which is not started yet, and has what it has by now."""
        standby = PostgresServer(self.installation, *settings)
        where = ("-h", str(self.directory), "-p", str(self.port), "-U", "postgres")
        self.run("pg_basebackup", *where, "-D", str(standby.data), "-R", "-c", "fast")
        return standby

    def promote(self) -> None:
        """Make a standby the primary, and wait until it takes writes."""
        assert self.query("SELECT pg_promote(true, 20)") == [(True,)]

    def backends(self) -> list[int]:
        """Return the process ids of those that serve clients, but for this question's own."""
        rows = self.query(
            "SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return [pid for (pid,) in rows]

    def kill(self) -> None:
        """Kill all of it at once, as a machine that stops, and wait until nothing of it is left."""
        if self._process is not None:
            children = self._halt()
            for pid in (*children, self.pid):
                _send(pid, signal.SIGKILL)
            self._ended(children)

    def kill_postmaster(self) -> None:
        """Kill the postmaster alone: the others see that, and end; wait until they have."""
        children = self._halt()
        _send(self.pid, signal.SIGKILL)
        self._ended(children)

    def kill_backend(self, pid: int) -> None:
        """Kill one process that serves a client: the postmaster ends all others, and starts anew.

        Wait until it has, and takes clients.
        """
        before = set(_children(self.pid)) - {pid}
        _send(pid, signal.SIGKILL)
        while before & set(_children(self.pid)):
            pass
        while not self._takes_clients():
            pass

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Have it end, and wait until it has: it breaks connections off, and saves what it has.

        With ``SIGTERM`` it waits for its clients to go, with ``SIGQUIT`` it saves nothing.
        """
        _send(self.pid, how)
        self._ended()

    def pause(self) -> None:
        """Let all of it stand still; connections stay open."""
        for pid in self.processes():
            _send(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        for pid in reversed(self.processes()):
            _send(pid, signal.SIGCONT)

    def _takes_clients(self) -> bool:
        try:
            return self.query("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def _halt(self) -> Sequence[int]:
        """Have the postmaster stand still: it starts nobody anew; return its children."""
        _send(self.pid, signal.SIGSTOP)
        while dict(_all_processes())[self.pid][0] not in "TZ":
            pass
        return _children(self.pid)

    def _ended(self, children: Sequence[int] = ()) -> None:
        """Wait until it has ended, and its children: one that is left has its shared memory."""
        process, self._process = self._process, None
        if process is not None:
            process.wait(PATIENCE)
        while any(map(_is_running, children)):
            pass


def _children(parent: int) -> list[int]:
    return [pid for pid, (_, its_parent) in _all_processes() if its_parent == parent]


def _all_processes() -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield the state and the parent of each process, by its id."""
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                # The name before may hold spaces and brackets.
                state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
                yield int(directory.name), (state, int(parent))


def _is_running(pid: int) -> bool:
    return any(each == pid and state != "Z" for each, (state, _) in _all_processes())


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
