"""What works where POSIX is missing: memory, runtime, testing kit, and the commands that read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.actors import event

#: Takes away what Windows lacks, before anything is imported that could have kept it.
WITHOUT_POSIX = """
import os, signal, sys
import platformdirs  # which goes by sys.platform, and that is this one

MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ImportError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in MODULES:
    sys.modules.pop(name, None)
for name in (
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fchmod fchown fdatasync fork geteuid getgid "
    "getuid getegid lchown mkfifo pread pwrite register_at_fork setuid"
).split():
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGHUP", "SIGWINCH", "SIGUSR1", "SIGQUIT"):
    if hasattr(signal, name):
        delattr(signal, name)

def kill(process, number):
    raise AssertionError("on Windows this ends a process, whatever the number is")

os.kill = kill
"""


def run(code: str, *args: object) -> str:
    command = [sys.executable, "-c", WITHOUT_POSIX + code, *map(str, args)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runtime_in_memory_store_and_testing_kit_work_without_posix() -> None:
    said = run("""
import anyio
import papyra.testing, papyra.testing.conformance, papyra.testing.pytest_plugin
from papyra import Actor, ActorSystem
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import ManualClock, PersistenceProbe, TestProbe, given

class Echo(Actor):
    async def receive(self, message):
        await self.context.persist(("Said", {"it": message}))
        return message

async def main():
    store = InMemoryPersistence()
    async with given([("Said", {"it": 0})], actor="echo", persistence=store) as system:
        probe = PersistenceProbe(system)
        echo = system.spawn(Echo, name="echo")
        assert await echo.ask("x") == "x"
        await probe.expect_event("Said", actor=echo)
    print(len(await store.list_events()))

anyio.run(main)
""")
    assert int(said) == 4


#: The event loop is another process's.
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture(params=["json", "rotating"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / ("store.ndjson" if request.param == "json" else "store")
    backend = (
        JsonFilePersistence(path)
        if request.param == "json"
        else RotatingFilePersistence(path, max_segment_records=3)
    )
    async with backend:
        for number in range(1, 9):
            await backend.append(event(number))
    return path


@one_loop
async def test_file_stores_without_posix_can_be_read_and_refuse_to_be_written(store: Path) -> None:
    run(
        """
import anyio, sys
from papyra.conf import backend_from_url
from papyra.exceptions import InvalidStoreURL, StoreReadOnly, UnsupportedPlatform
from papyra.persistence import PersistedEvent
from papyra.persistence.backends._files.disk import whose
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence

path = sys.argv[1]
make = JsonFilePersistence if path.endswith("n") else RotatingFilePersistence
try:
    make(path)
except UnsupportedPlatform as error:
    assert "fcntl" in str(error) and "read_only=True" in str(error), error
else:
    sys.exit("it can't write, and does not say so")
scheme = "json" if make is JsonFilePersistence else "rotating"
try:
    backend_from_url(f"{scheme}:{path}")
except InvalidStoreURL as error:
    assert "fcntl" in str(error)
else:
    sys.exit("it can't write, and does not say so")

async def main():
    async with make(path, read_only=True) as store:
        assert [e.payload["order_id"] for e in await store.list_events()] == list(range(1, 9))
        assert (await store.scan()).is_clean
        assert (await store.summarize()).total_records == 8
        try:
            await store.append(PersistedEvent("s", "s/a", "A", {}, 1.0))
        except StoreReadOnly:
            pass
    assert "; this process is user " in whose(path)

anyio.run(main)
""",
        store,
    )


READING = [
    ("inspect", "8 events"),
    ("events", "OrderPlaced"),
    ("timeline", "no actor's life"),
    ("metrics", "records.event"),
    ("scan", "nothing is wrong"),
    ("events --limit 2 --json", "OrderPlaced"),
]


@one_loop
async def test_papyra_commands_that_only_read_work_without_posix(store: Path) -> None:
    code = """
import contextlib, io, os, sys
from papyra.cli import main

store = sys.argv[1]
os.environ["XDG_CACHE_HOME"] = sys.argv[2]
os.environ["COLUMNS"] = "200"
for command, expected in eval(sys.argv[3]):
    for name in (store, None):
        if name is None:
            scheme = "json" if store.endswith("n") else "rotating"
            os.environ["PAPYRA_PERSISTENCE"] = f"{scheme}:{store}"
        verb, *options = command.split()
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            sys.argv = ["papyra", verb, *([] if name is None else [name]), *options]
            with contextlib.suppress(SystemExit):
                main()
        said = out.buffer.getvalue().decode()
        assert expected in said, (command, name, said)
        os.environ.pop("PAPYRA_PERSISTENCE", None)
"""
    run(code, store, store.parent / "cache", repr(READING))


def test_papyra_top_takes_no_keys_without_posix() -> None:
    run("""
import sys
from papyra.cli import top

class Terminal:
    def isatty(self):
        return True

sys.stdin = Terminal()
with top._keys() as fd:
    assert fd is None
""")
