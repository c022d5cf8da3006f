"""Stop servers that nobody uses any more, however their users have ended.

``python _postgres_keeper.py DIRECTORY`` waits until no process has a lock on the file ``users``
there, sends every server below it an immediate shutdown, by its process id, and removes it all.
Before that it does so with what earlier test runs have left, whose own keepers were killed.

Each process of a test run starts one: a process may be killed before it has, and a keeper, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ("shut_down",)

_PATIENCE = 20.0

_GONE = "-gone-"
#: What is started there: a server, what makes and starts one, and the shell between these two.
_PROGRAM = re.compile(r"(^|/)(postgres|initdb|pg_ctl|pg_basebackup|cp|sh)( |$)")


def _main(directory: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for all processes of somebody's, mostly
    for other in directory.parent.glob("papyra-postgres-*"):
        if other != directory and _is_alike(other, directory):
            _remove(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _remove(directory, fcntl.LOCK_EX)


def _is_alike(other: Path, directory: Path) -> bool:
    """Return whether another directory is one of the same user's."""
    with contextlib.suppress(OSError):
        found = other.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == directory.stat().st_uid
    return False


def _remove(directory: Path, lock: int) -> None:
    """Stop what runs there and remove it, once nobody uses it; not, if others do so, or have."""
    with contextlib.suppress(OSError), (directory / "users").open("r+") as file:
        fcntl.lockf(file, lock)
        if not os.path.samestat(os.fstat(file.fileno()), (directory / "users").stat()):
            return
        name = directory.name.partition(_GONE)[0]
        # Who waits for the lock now begins a directory anew.
        gone = directory.rename(directory.with_name(f"{name}{_GONE}{os.getpid()}"))
        _stop_all(directory.with_name(name))
        shutil.rmtree(gone, ignore_errors=True)


def _stop_all(directory: Path) -> None:
    """Have what was started in a directory end, which may have started more meanwhile."""
    give_up_at = time.monotonic() + 2 * _PATIENCE
    while (running := list(_started_in(directory))) and time.monotonic() < give_up_at:
        shut_down(running)


def _started_in(directory: Path) -> Iterator[int]:
    for pid, arguments in _all_arguments():
        if f"{directory}/" in arguments and _PROGRAM.search(arguments):
            yield pid


def _all_arguments() -> Iterator[tuple[int, str]]:
    """Yield how each process was called."""
    if Path("/proc/self/cmdline").exists():
        for each in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                yield int(each), _arguments(int(each))
        return
    command = ["ps", "-axo", "pid=,args="]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    for line in done.stdout.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        yield int(pid), arguments


def shut_down(servers: Sequence[int]) -> None:
    """Have servers end at once, without a word to their clients, and wait until they have."""
    for pid in servers:
        _send(pid, signal.SIGQUIT)
        _send(pid, signal.SIGCONT)
    give_up_at = time.monotonic() + _PATIENCE
    while any(map(_is_running, servers)) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    for pid in filter(_is_running, servers):
        _send(pid, signal.SIGKILL)


def _arguments(pid: int) -> str:
    """Return how a process was called; raises `OSError` where it is gone."""
    if Path("/proc/self/cmdline").exists():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return words.replace("\0", " ")
    command = ["ps", "-o", "args=", "-p", str(pid)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout  # noqa: S603


def _is_running(pid: int) -> bool:
    # Of one that has ended, and that nobody has asked how, no arguments are left.
    with contextlib.suppress(OSError):
        return bool(_arguments(pid))
    return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
