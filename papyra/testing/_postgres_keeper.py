"""Stop servers that nobody uses any more, however their users have ended.

``python _postgres_keeper.py DIRECTORY`` waits until no process has a lock on the file ``users``
there, sends every server below it an immediate shutdown, by its process id, and removes it all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ("postmaster", "shut_down")

_PATIENCE = 20.0


def _main(directory: Path) -> None:
    with (directory / "users").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        running = [pid for data in directory.glob("*/data") if (pid := postmaster(data))]
        # Who waits for the lock now begins a directory anew.
        gone = directory.rename(directory.with_name(f"{directory.name}-gone"))
        shut_down(running)
        shutil.rmtree(gone, ignore_errors=True)


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


def postmaster(data: Path) -> int | None:
    """Return the process id of the server on a data directory, if it runs.

    A server that was killed leaves its number behind, which may be another process's by now.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        if str(data) in _arguments(pid):
            return pid
    return None


def _arguments(pid: int) -> str:
    """Return how a process was called; raises `OSError` where it is gone."""
    if Path("/proc/self/cmdline").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
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
