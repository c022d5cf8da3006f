"""Web servers in processes of their own, on a port that is free."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

#: Seconds after which something that has to happen will not.
PATIENCE = 100

_RUNNING = re.compile(r"[Rr]unning on (http://127\.0\.0\.1:\d+)")

#: The commands of servers, which choose a port; each is for an application.
COMMANDS = {
    "uvicorn": ("uvicorn", "--loop", "asyncio", "--port", "0", "--no-access-log"),
    "uvicorn-uvloop": ("uvicorn", "--loop", "uvloop", "--port", "0", "--no-access-log"),
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:0", "--graceful-timeout", "60"),
    "hypercorn-trio": (
        *("hypercorn", "--worker-class", "trio"),
        *("--bind", "127.0.0.1:0", "--graceful-timeout", "60"),
    ),
}


class Served:
    """An application that a server serves, and what the process says."""

    def __init__(
        self, server: str, app: str, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self._command = [sys.executable, "-m", *COMMANDS[server], app]
        self._env = os.environ | env
        self._cwd = cwd
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._env,
            cwd=self._cwd,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.wait_for(_RUNNING.search)[1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        # With the workers, if there are any.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def output(self) -> str:
        """What it has said so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, find: Callable[[str], re.Match[str] | None]) -> re.Match[str]:
        """Return what `find` finds in the output, as soon as it does."""

        def found() -> bool:
            return find("".join(self._lines)) is not None or not self._reader.is_alive()

        with self._changed:
            assert self._changed.wait_for(found, PATIENCE), "".join(self._lines)
            match = find("".join(self._lines))
            assert match is not None, "".join(self._lines)
            return match

    def get(self, path: str) -> httpx.Response:
        return self._request("GET", path)

    def post(self, path: str, json: object = None, **headers: str) -> httpx.Response:
        return self._request("POST", path, json=json, headers=headers)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        # Each on a connection of its own; without certificates, which take long to load.
        return httpx.request(
            method,
            self.url + path,
            timeout=PATIENCE,
            trust_env=False,
            verify=False,
            **options,
        )

    def wait_until_ready(self, ready: bool) -> httpx.Response:
        """Ask on until it says so, and return the answer."""
        return self.wait_until("/ready", lambda answer: (answer.status_code == 200) is ready)

    def wait_until(self, path: str, holds: Callable[[httpx.Response], bool]) -> httpx.Response:
        """Get `path` again and again, until the answer is as it has to be, and return that."""
        end = time.monotonic() + PATIENCE
        while not holds(answer := self.get(path)):
            assert time.monotonic() < end, f"{answer.text}\n{self.output}"
            threading.Event().wait(0.05)
        return answer

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code, and have read all that it has said."""
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
