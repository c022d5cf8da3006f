"""Runs commands in forks of a process that has imported them: ``python -m tests.cli.forks FD``.

A command is a process all the same, with pipes, an environment and an exit code of its own; what
it saves is the start and the end of Python, which take longer than most commands. With
``PAPYRA_CI=1`` each has a Python of its own.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import papyra.cli
import papyra.persistence

__all__ = ("Forks",)

#: Bytes that a request may have.
_LARGEST = 1 << 17
#: What commands import when they need it.
_LATER = ("anyio._backends._asyncio", "redis.asyncio", "rich.console", "rich.live", "rich.table")


class Forks:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.forks", str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """Let the process end."""
        self._line.close()
        self._process.wait()

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> tuple[int, str, str]:
        """Run ``papyra`` with its output piped; return its exit code, output and errors."""
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": dict(env)}).encode()
        assert len(request) < _LARGEST
        nothing = os.open(os.devnull, os.O_RDONLY)
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        socket.send_fds(self._line, [request], [nothing, their_out, their_err])
        for descriptor in (nothing, their_out, their_err):
            os.close(descriptor)
        pid = self._answer()
        try:
            written = _read_all((out, err), pid, timeout)
        finally:
            code = self._answer()
        texts = [io.TextIOWrapper(io.BytesIO(data), "utf-8").read() for data in written]
        return code, texts[0], texts[1]

    def _answer(self) -> int:
        answer = self._line.recv(64)
        assert answer, "the process that forks has ended"
        return int(answer)


def _read_all(pipes: Sequence[int], pid: int, timeout: float) -> list[bytes]:
    """Return what comes out of pipes until they are closed, and close them."""
    written = dict.fromkeys(pipes, b"")
    give_up_at = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0, give_up_at - time.monotonic()))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"no end in {timeout} seconds: {written}")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                written[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return list(written.values())


def _become_a_command(line: socket.socket) -> None:
    """Fork for each request, until no more come; return in the fork, as a process just started."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(line, _LARGEST, 3)
        if not data:
            sys.exit()
        pid = os.fork()
        if pid == 0:
            line.close()
            _set_up(json.loads(data), descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        line.send(str(os.waitstatus_to_exitcode(status)).encode())


def _set_up(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv = ["papyra", *request["arguments"]]
    sys.path[0] = request["cwd"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _open(number)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _open(number: int) -> io.TextIOWrapper:
    """Open a standard stream as Python does when it starts."""
    raw = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115
    errors = "backslashreplace" if number == 2 else "strict"
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=number == 2 or os.isatty(number))


def _import_everything() -> None:
    for package in (papyra.cli, papyra.persistence):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in _LATER:
        importlib.import_module(name)


def _run_the_command() -> None:
    try:
        runpy.run_module("papyra.cli", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if not isinstance(leaving.code, int):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        # Python would take down, one by one, all the modules that were imported: for longer than
        # most commands take.
        os._exit(leaving.code)


if __name__ == "__main__":
    _import_everything()
    gc.freeze()
    _become_a_command(socket.socket(fileno=int(sys.argv[1])))
    _run_the_command()
