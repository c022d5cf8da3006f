"""Redis servers that tests stop, pause and look into."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import BinaryIO

from papyra.testing import _redis_server
from papyra.testing._redis_server import any_binary, server_binaries
from papyra.testing._servers import PATIENCE, free_port

__all__ = ("PATIENCE", "RedisServer", "any_binary", "free_port", "server_binaries")


class RedisServer(_redis_server.RedisServer):
    """A server in a process of its own, which can be stopped, paused and asked."""

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        process = self._let_go()
        if process is not None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()

    def pause(self) -> None:
        """Let it stand still; connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def cli(self, *words: str) -> str:
        """Return what it answers to a command, a line each, as ``redis-cli`` prints it in a pipe.

        Without that program, which not every package with a server has. An error is an answer.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(_redis_server.request(words))
            with connection.makefile("rb") as answer:
                return "\n".join(_lines(answer)).strip()


def _lines(answer: BinaryIO) -> Iterator[str]:
    """Yield the values of one answer, however deep they are in arrays."""
    said = answer.readline().decode().rstrip("\r\n")
    match said[:1]:
        case "*":
            for _ in range(int(said[1:])):
                yield from _lines(answer)
        case "$":
            size = int(said[1:])
            yield answer.read(size + 2)[:-2].decode() if size >= 0 else ""
        case _:
            yield said[1:]
