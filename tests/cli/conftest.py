"""The command as its users have it: a process, piped or on a terminal, and stores of every kind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pexpect
import pytest
from rich.cells import cell_len

import papyra.cli as papyra_cli
from papyra.conf import backend_from_url
from papyra.persistence import PersistedAudit, PersistedDeadLetter, PersistedEvent, Record
from papyra.persistence.backends.base import PersistenceBackend
from tests.cli import calls, forks, halting, many
from tests.conftest import kind_for
from tests.extent import CI
from tests.redis_server import RedisServer, any_binary

#: Of stores. In CI, each test runs on all of them; elsewhere on one, and others on another.
KINDS = ["json", "rotating", "redis"]
#: Of those in files.
FILES = KINDS[:2]
#: Unix time of the first record; 2025-07-01T00:00:00Z.
T0 = 1_751_328_000.0
#: Seconds that a command may take, which takes a fraction of one.
PATIENCE = 60
PROGRAM = [sys.executable, "-m", "papyra.cli"]
#: What variables begin with that change what a command prints.
NOT_PASSED_ON = ("PAPYRA_", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLUMNS", "PYTHONUNBUFFERED")

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-B0-2])")
#: Erases the line that the cursor is on, and the one above.
_ERASE, _ERASE_ABOVE = "\x1b[2K", "\x1b[1A\x1b[2K"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what opens a browser, but in CI, and where its file is named."""
    if CI or any("test_html_page" in argument for argument in config.args):
        return
    left: list[pytest.Item] = []
    kept: list[pytest.Item] = []
    for item in items:
        (left if "browser" in getattr(item, "fixturenames", ()) else kept).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


@dataclasses.dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    out: str
    #: empty on a terminal, where everything goes to one place
    err: str = ""
    #: of many: what has changed in the directory that was watched
    changed: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.lines]

    @property
    def facts(self) -> dict[str, str]:
        return {row[0]: row[1] for row in self.rows if len(row) == 2}

    @property
    def text(self) -> str:
        """What is to be read on a terminal."""
        return _ESCAPE.sub("", _without_erased(self.out)).replace("\r\n", "\n")


def _without_erased(out: str) -> str:
    """Return what is left on a terminal: where a machine is slow, a progress bar comes and goes."""
    if _ERASE not in out:
        return out
    lines: list[str] = []
    for line in out.split("\n"):
        if lines and _ERASE_ABOVE in line:
            lines.pop()
        lines.append(line.rpartition(_ERASE)[2])
    return "\n".join(lines)


class Command:
    """Calls ``papyra``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.program = PROGRAM
        #: words for `tests.cli.halting`, which come before those of the command
        self.told: list[str] = []

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)
        }
        return (
            kept
            | {"XDG_CACHE_HOME": str(self.home / "cache"), "TERM": "xterm-256color"}
            | dict(env)
        )

    def __call__(
        self, *arguments: object, env: Mapping[str, str] | None = None, **options: Any
    ) -> Done:
        """Call it with its output piped, as another program does."""
        if not CI and self.program == PROGRAM and not (env or options) and calls.can_call():
            words = [str(argument) for argument in arguments]
            return Done(*calls.call(words, directory=self.home, env=self.environment({})))
        return self._run(
            [*self.program, *map(str, arguments)],
            env or {},
            preexec_fn=self._fork(arguments, env or {}),
            **options,
        )

    def shell(self, script: str) -> Done:
        """Have a shell carry out what may call it."""
        options = ("--norc", "--noprofile", "-o", "pipefail")
        return self._run(["bash", *options, "-c", script], {})

    def _run(self, command: Sequence[str], env: Mapping[str, str], **options: Any) -> Done:
        settings: dict[str, Any] = {"stdout": subprocess.PIPE, **options}
        if "input" not in options:
            settings["stdin"] = subprocess.DEVNULL
        with forks.forking():
            done = subprocess.run(
                command,
                check=False,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
                cwd=self.home,
                env=self.environment(env),
                **settings,
            )
        return Done(done.returncode, done.stdout or "", done.stderr)

    def _fork(
        self,
        arguments: Sequence[object],
        env: Mapping[str, str],
        program: Callable[[], None] | None = None,
    ) -> Callable[[], None] | None:
        """Return what has a fork become the command, unless that needs a Python of its own."""
        if CI or not (self.program == PROGRAM or self.told) or _is_of_python(env):
            return None
        words = [*self.told, *(str(argument) for argument in arguments)]
        main = halting.main if self.told else papyra_cli.main
        return forks.becoming(program or main, words, self.environment(env))

    def many(self, calls: Sequence[Sequence[object]], watched: Path | None = None) -> list[Done]:
        """Carry out many command lines in one process, which takes a tenth of the time."""
        told = {
            "calls": [list(map(str, call)) for call in calls],
            "watched": watched and str(watched),
        }
        done = self._run(
            [sys.executable, "-m", "tests.cli.many"],
            {"PYTHONPATH": str(Path(__file__).parents[2])},
            input=json.dumps(told),
            preexec_fn=self._fork([], {}, many.main),
        )
        assert done.code == 0, done.err
        return [Done(**json.loads(line)) for line in done.lines]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start it, piped; whoever started it ends it."""
        with forks.forking():
            return subprocess.Popen(
                [*self.program, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                env=self.environment({}),
                cwd=self.home,
                preexec_fn=self._fork(arguments, {}),  # noqa: PLW1509 - see `forking`
            )

    def halting(self, option: str, value: object) -> Command:
        """Return what calls a command that halts where it is told to: see `tests.cli.halting`."""
        made = Command(self.home)
        made.program = [sys.executable, halting.__file__, option, str(value)]
        made.told = [option, str(value)]
        return made

    def terminal(
        self,
        *arguments: object,
        columns: int = 100,
        rows: int = 40,
        env: Mapping[str, str] | None = None,
    ) -> pexpect.spawn[str]:
        """Start it on a terminal."""
        with forks.forking():
            return pexpect.spawn(
                self.program[0],
                [*self.program[1:], *map(str, arguments)],
                dimensions=(rows, columns),
                env=self.environment(env or {}),
                cwd=str(self.home),
                timeout=PATIENCE,
                encoding="utf-8",
                preexec_fn=self._fork(arguments, env or {}),
            )

    def on_terminal(
        self,
        *arguments: object,
        columns: int = 100,
        answers: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Call it on a terminal, and answer its questions."""
        child = self.terminal(*arguments, columns=columns, env=env)
        seen = []
        for answer in answers:
            child.expect(r"\[y/n\]")
            seen.append(f"{child.before}{child.after}")
            child.sendline(answer)
        child.expect(pexpect.EOF)
        seen.append(child.before or "")
        child.close()
        code = child.exitstatus if child.exitstatus is not None else -(child.signalstatus or 0)
        return Done(code, "".join(seen))


def _is_of_python(env: Mapping[str, str]) -> bool:
    """Return whether Python itself goes by these variables, when it starts, and no fork does."""
    return any(name.startswith(("PYTHON", "LC_", "LANG")) for name in env.keys() - forks.OBEYED)


@pytest.fixture(scope="session")
def imported() -> None:
    if not CI:
        forks.import_everything()


@pytest.fixture
def papyra(tmp_path: Path, imported: None) -> Command:
    return Command(tmp_path)


@dataclasses.dataclass(frozen=True)
class Store:
    """One that commands are called on."""

    kind: str
    #: what to call it on the command line
    name: str
    #: of files: what it is in
    path: Path | None = None
    server: RedisServer | None = None
    #: of a store on a server: what its keys begin with
    tag: str = ""

    def backend(self) -> PersistenceBackend:
        """Return what writes it."""
        return backend_from_url(self.url)

    @property
    def url(self) -> str:
        return self.name if self.path is None else f"{self.kind}:{self.path}"

    def append(self, *records: Record) -> None:
        """Write records, and close it."""

        async def write() -> None:
            async with self.backend() as backend:
                for start in range(0, len(records), 5_000):
                    await backend.append(*records[start : start + 5_000])

        anyio.run(write)

    @property
    def file(self) -> Path:
        """The file of its last records."""
        assert self.path is not None
        if self.path.is_dir():
            return max(self.path.glob("*.ndjson"))
        return self.path


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let commands be interrupted, also where a shell has started the tests in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(any_binary()) as server:
        yield server


def new_store(kind: str, directory: Path, server: RedisServer) -> Store:
    name = uuid.uuid4().hex[:8]
    match kind:
        case "json":
            path = directory / f"{name}.ndjson"
            return Store(kind, str(path), path)
        case "rotating":
            path = directory / name
            return Store(kind, f"{path}/", path)
        case "sqlite":
            path = directory / f"{name}.db"
            return Store(kind, str(path), path)
        case _:
            url = f"redis://127.0.0.1:{server.port}/0?prefix=test&system_id={name}"
            return Store(kind, url, server=server, tag=f"{{test:{name}}}")


@pytest.fixture(params=KINDS if CI else None)
def store(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Store:
    """A store of each kind, with nothing in it yet; nor is it there yet."""
    return new_store(kind_for(request, KINDS), tmp_path, redis_server)


@pytest.fixture(params=FILES if CI else None)
def file_store(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Store:
    """A store in files."""
    return new_store(kind_for(request, FILES), tmp_path, redis_server)


def event(number: int, **changes: Any) -> PersistedEvent:
    fields: dict[str, Any] = {
        "system_id": "shop",
        "actor_address": f"shop/{'ab'[number % 2]}",
        "event_type": "Counted",
        "payload": {"n": number},
        "timestamp": T0 + number,
    }
    return PersistedEvent(**(fields | changes))


def audit(number: int) -> PersistedAudit:
    return PersistedAudit("shop", {"actors": number}, T0 + number)


def dead_letter(number: int) -> PersistedDeadLetter:
    return PersistedDeadLetter("shop", "shop/gone", "str", f"m{number}", False, T0 + number)


def life(actor: str, start: float, *steps: tuple[str, dict[str, Any]]) -> list[PersistedEvent]:
    """Return the events of an actor's life, ten seconds apart."""
    return [
        PersistedEvent("shop", actor, event_type, payload, start + 10 * number)
        for number, (event_type, payload) in enumerate(steps)
    ]


#: What the commands that look at a store are shown.
COUNTED = {"records_written": 321, "bytes_written": 65_432, "commits": 77, "write_errors": 2}
AUDITED = {
    "actors": 3,
    "messages_waiting": 12,
    "deepest_mailbox": 9,
    "deepest_actor": "shop/a",
    "persistence_waiting": 1,
    "started": 5,
    "stopped": 2,
    "crashed": 4,
    "restarted": 1,
    "dead_letters": 6,
    "unclaimed_replies": 0,
    "persistence": COUNTED,
}
FAULT = {"error_type": "ValueError", "error": "paper jam", "decision": "restart"}


def by_time(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.timestamp)


#: An hour of a shop: lives of four actors, events, audits and letters that reached nobody.
RECORDS = by_time(
    [
        *life("shop/till", T0, ("ActorStarted", {"actor_type": "Till"})),
        *life(
            *("shop/printer", T0 + 600),
            *(("ActorStarted", {"actor_type": "Printer"}), ("ActorCrashed", FAULT)),
            *(("ActorRestarted", {"restarts": 1}), ("ActorCrashed", FAULT | {"decision": "stop"})),
            ("ActorStopped", {"reason": "failed", "unhandled": 1}),
        ),
        *life(
            *("shop/printer/tray", T0 + 1200),
            *(("ActorStarted", {"actor_type": "Tray"}), ("ActorStopped", {"reason": "stopped"})),
        ),
        *life("shop/lost", T0 + 1800, ("ActorCrashed", FAULT), ("ActorRestarted", {})),
        *(event(n * 10) for n in range(300)),
        *(dead_letter(number) for number in (700, 2000)),
        PersistedDeadLetter("shop", "shop/printer", "Print", {"page": 1}, True, T0 + 800),
        *(audit(number) for number in (60, 1860)),
        PersistedAudit("shop", AUDITED, T0 + 3600),
    ]
)
COUNTS = Counter(type(record) for record in RECORDS)

HOSTILE = "\x1b[31m\x9b2J\u202e\t\n[red]界"
HOSTILE_RECORDS: list[Record] = [
    PersistedEvent(HOSTILE, HOSTILE, "ActorStarted", {"actor_type": HOSTILE}, T0),
    PersistedEvent(HOSTILE, HOSTILE, "ActorCrashed", {"error": HOSTILE, HOSTILE: HOSTILE}, T0 + 1),
    PersistedEvent(HOSTILE, f"{HOSTILE}/b", "ActorStarted", HOSTILE, T0 + 1),
    PersistedEvent(HOSTILE, f"{HOSTILE}/c", HOSTILE, HOSTILE, T0 + 2),
    PersistedDeadLetter(HOSTILE, HOSTILE, HOSTILE, HOSTILE, False, T0 + 3),
    PersistedAudit(HOSTILE, {HOSTILE: HOSTILE, "actors": HOSTILE, "started": 7}, T0 + 4),
]


@pytest.fixture(scope="module", params=KINDS if CI else None)
def shop(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
) -> Store:
    """A store of each kind, which tests only read."""
    store = new_store(kind_for(request, KINDS), tmp_path_factory.mktemp("shop"), redis_server)
    store.append(*RECORDS)
    return store


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Store:
    """The same in a file alone, for what has nothing to do with where it is kept."""
    store = new_store("json", tmp_path_factory.mktemp("ledger"), redis_server)
    store.append(*RECORDS)
    return store


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Store:
    store = new_store("json", tmp_path_factory.mktemp("hostile"), redis_server)
    store.append(*HOSTILE_RECORDS)
    return store


def iso(when: float) -> str:
    return (
        f"{datetime.fromtimestamp(when, UTC).replace(tzinfo=None).isoformat('T', 'milliseconds')}Z"
    )


def encoded(kind: type[Record]) -> int:
    """Return the bytes of the records of a kind, as they are encoded in a store."""
    return sum(len(msgspec.json.encode(record)) for record in RECORDS if isinstance(record, kind))


def stored_bytes(store: Store) -> int:
    """Return what a store takes, as its file system or its server says."""
    if store.path is not None:
        files = [store.path] if store.path.is_file() else store.path.glob("*.ndjson")
        return sum(file.stat().st_size for file in files)
    assert store.server is not None
    keys = store.server.cli("KEYS", f"{store.tag}*").split()
    return sum(int(store.server.cli("MEMORY", "USAGE", key)) for key in keys)


def stream_lengths(store: Store) -> list[int]:
    assert store.server is not None
    keys = store.server.cli("KEYS", f"{store.tag}*").split()
    streams = [key for key in keys if store.server.cli("TYPE", key) == "stream"]
    return sorted(int(store.server.cli("XLEN", key)) for key in streams)


def widest(text: str) -> int:
    return max(cell_len(line) for line in text.split("\n"))


COLOUR = re.compile(r"\x1b\[(\d+;)*([34][0-8]|9[0-7])(;\d+)*m")
LOOKS: list[list[str]] = [["inspect"], ["timeline"], ["metrics"]]
