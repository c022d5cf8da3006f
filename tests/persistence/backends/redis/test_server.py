"""The servers that the tests of Redis start are gone with them, however these end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]

START = """
import sys
from papyra.testing._redis_server import shared_server

server = shared_server()
print(server._process.pid, server.directory, flush=True)
sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    arguments = Path(f"/proc/{pid}/cmdline")
    return arguments.exists() and bool(arguments.read_bytes())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=str)
def test_a_redis_server_ends_with_who_has_started_it_however_that_ends(
    how: signal.Signals | None,
) -> None:
    command = [sys.executable, "-c", START]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said, directory = process.stdout.readline().split()
        server = int(said)
        assert is_running(server)
        if how is not None:
            # Paused, too.
            os.kill(server, signal.SIGSTOP)
            process.send_signal(how)
        process.communicate()
    while is_running(server) or Path(directory).exists():
        pass
