"""The command as a whole: its help, its errors and exit codes, and which store it means."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from papyra.cli.app import COMMANDS
from tests.cli.conftest import (
    PATIENCE,
    Command,
    Done,
    Store,
    audit,
    dead_letter,
    event,
    life,
    new_store,
)
from tests.extent import some
from tests.redis_server import RedisServer, free_port

SECRET = "hunter2secret"

#: Commands that change nothing, and what they need beside a store.
READ_ONLY: list[list[str]] = [
    ["inspect"],
    ["events"],
    ["audits"],
    ["dead-letters"],
    ["timeline"],
    ["metrics"],
    ["top", "--count", "2", "--interval", "10ms"],
    ["scan"],
    ["recover", "--dry-run"],
    ["compact", "--max-records", "1", "--dry-run"],
]
#: What the README calls looking.
LOOKING = [*READ_ONLY, *(["doctor", "--mode", m] for m in ("fail_on_anomaly", "recover", "ignore"))]


def call(store: object, command: Sequence[str]) -> list[str]:
    name, *options = command
    return [name, str(store), *options]


def is_one_error(done: Done, code: int) -> bool:
    """Return whether it is one line on stderr, and nothing else."""
    assert (done.code, done.out) == (code, ""), done
    [line] = done.err.splitlines()
    assert re.fullmatch(r"error: \S.*", line)
    assert len(line) < 500
    return True


def text(done: Done) -> str:
    """Return what is said, without the frames around it, and on one line."""
    return " ".join(re.sub(r"[│╭╮╰╯─|+]", " ", done.out).split())


# Help


def test_papyra_help_lists_every_command_with_what_it_does(papyra: Command) -> None:
    done = papyra("--help")
    assert (done.code, done.err) == (0, "")
    said = text(done)
    for name, (_, first_line) in COMMANDS.items():
        assert f"{name} {first_line}" in said
    assert "Exit codes: 0 success, 1 failure, 2 wrong use, 3 anomalies found, 4 anomalies" in said
    assert "PAPYRA_PERSISTENCE" in said
    assert "PAPYRA_SETTINGS_MODULE" in said
    assert "redis://host/0?prefix=papyra&system_id=orders" in said
    assert papyra("-h").out == done.out


def test_papyra_without_a_command_prints_its_help(papyra: Command) -> None:
    assert papyra().out == papyra("--help").out


def functions() -> dict[str, object]:
    return {
        name: getattr(importlib.import_module(f"papyra.cli.{module}"), name.replace("-", "_"))
        for name, (module, _) in COMMANDS.items()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_papyra_help_of_a_command_is_its_docstring_with_examples(
    papyra: Command, name: str
) -> None:
    docstring = inspect.getdoc(functions()[name]) or ""
    assert docstring.partition("\n")[0] == COMMANDS[name][1]
    done = papyra(name, "--help")
    assert (done.code, done.err) == (0, "")
    said = text(done)
    assert said.startswith(f"Usage: papyra {name} ")
    assert COMMANDS[name][1] in said
    examples = re.findall(rf"^ +papyra {name}\b.*$", docstring, re.MULTILINE)
    assert len(examples) >= 2
    assert said.count("Examples:") == 1
    for example in examples:
        assert set(example.replace("|", " ").split()) <= set(said.split())
    assert "Exit codes: 0 success, 1 failure, 2 wrong use, 3 anomalies found, 4 anomalies" in said
    # The options of the examples are options that there are.
    parameters, _, shown = done.out.partition("Examples:")
    assert set(re.findall(r"--[a-z-]+", shown)) <= set(re.findall(r"--[a-z-]+", parameters))


@pytest.mark.parametrize("columns", [40, 200])
def test_papyra_help_fits_the_width_of_the_terminal(papyra: Command, columns: int) -> None:
    for arguments in (["--help"], ["events", "--help"]):
        done = papyra.on_terminal(*arguments, columns=columns)
        assert done.code == 0
        assert max(map(len, done.text.splitlines())) <= columns


def test_papyra_help_is_printed_without_colours_and_in_ascii(papyra: Command) -> None:
    done = papyra.on_terminal("--help", env={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[(\d+;)*([34][0-8]|9[0-7])(;\d+)*m", done.out)
    in_ascii = papyra("--help", env={"PYTHONIOENCODING": "ascii"})
    assert (in_ascii.code, in_ascii.err) == (0, "")
    assert in_ascii.out.isascii()


def test_papyra_version_is_that_of_the_package(papyra: Command) -> None:
    assert papyra("--version") == Done(0, f"{version('papyra')}\n")


def test_the_installed_script_papyra_does_what_the_module_papyra_cli_does(papyra: Command) -> None:
    script = Command(papyra.home)
    script.program = [str(Path(sys.executable).with_name("papyra"))]
    assert script("--version") == papyra("--version")
    assert script("--help") == papyra("--help")
    assert script("events", "nowhere.ndjson") == papyra("events", "nowhere.ndjson")


# Wrong use


@pytest.mark.parametrize(
    "arguments",
    [
        ["evnts"],
        ["--nonsense"],
        ["inspect", "--nonsense"],
        ["inspect", "a.ndjson", "b.ndjson"],
        ["events", "--limit", "x"],
        ["events", "--limit", ""],
        ["events", "--limit"],
        ["timeline", "--limit", "-1"],
        ["timeline", "--since", "tomorrow"],
        ["metrics", "--format", "xml"],
        ["metrics", "--json", "--format", "prometheus"],
        ["top", "--interval", "-1s"],
        ["top", "--count", "0"],
        ["recover", "--mode", "magic"],
        ["recover", "--quarantine-dir", "there"],
        ["doctor", "--mode", "magic"],
        ["compact", "--max-bytes", "much"],
        ["compact", "--max-bytes", "9" * 400],
        ["compact", "--max-age", "old"],
        ["compact", "--max-records", "-1"],
        ["copy"],
        ["copy", "a.ndjson"],
        ["bench", "--records", "1"],
        ["completion", "tcsh"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_wrong_use_of_papyra_is_one_line_and_exit_code_2(
    papyra: Command, arguments: list[str]
) -> None:
    assert is_one_error(papyra(*arguments), 2)


def test_an_error_of_papyra_on_a_terminal_is_one_line(papyra: Command) -> None:
    done = papyra.on_terminal("evnts", columns=200)
    assert done.code == 2
    [line] = done.text.splitlines()
    assert line.startswith('error: Unknown command "evnts".')
    assert "events" in line
    missing = papyra.on_terminal("inspect", "nowhere.ndjson")
    assert missing.code == 1
    assert len(missing.text.splitlines()) == 1


def test_an_error_of_papyra_holds_no_control_sequences_of_a_terminal(papyra: Command) -> None:
    for arguments in (
        ["\x1b[31mevnts"],
        ["inspect", "\x1b[2J\x9b31m\n.ndjson"],
        ["events", "-\x1b"],
    ):
        done = papyra(*arguments)
        assert done.code in (1, 2)
        [line] = done.err.splitlines()
        assert line.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{SECRET}@host/db",
        f"ftp://user:{SECRET}@host",
        f"postgres://user:{SECRET}@127.0.0.1:port/db",
        f"postgresql://user:{SECRET}@127.0.0.1:1/db?retry_for=soon",
        f"postgresql://user:{SECRET}@127.0.0.1:1/db?no_such_option=1",
        f"postgresql://user:{SECRET}/x@127.0.0.1:1/db",
        f"redis://user:{SECRET}@127.0.0.1:port/0",
        f"redis://user:{SECRET}@127.0.0.1:1/nothing",
        f"redis://user:{SECRET}@127.0.0.1:1/0?retry_for=soon",
        f"redis://user:{SECRET}@127.0.0.1:1/0?system_id=a%7Bb",
        f"redis://user:{SECRET}@127.0.0.1:1/0?no_such_option=1",
        f"redis://user:{SECRET}/x@127.0.0.1:1/0",
        "memory:something",
        "json:",
        "rotating:?fsync=always",
        "json:events.ndjson?fsync=perhaps",
        "rotating:journal?max_segment_bytes=much",
    ],
)
def test_a_url_that_names_no_store_is_wrong_use_of_papyra(papyra: Command, url: str) -> None:
    for done in (papyra("events", url), papyra("inspect", env={"PAPYRA_PERSISTENCE": url})):
        assert is_one_error(done, 2)
        assert SECRET not in done.err


# No store


def test_papyra_on_a_missing_store_fails_with_one_line(papyra: Command) -> None:
    (papyra.home / "empty").mkdir()
    (papyra.home / "other").mkdir()
    (papyra.home / "other" / "notes.txt").write_text("no journal")
    names = ["nowhere.ndjson", "nowhere/", "nowhere", "empty", "empty/", "other", "json:nowhere"]
    for name, command in zip(names, [*READ_ONLY], strict=False):
        done = papyra(*call(name, command))
        assert is_one_error(done, 1)
        assert name.rstrip("/").removeprefix("json:") in done.err
    for command in READ_ONLY:
        assert is_one_error(papyra(*call("empty", command)), 1)
    assert is_one_error(papyra("copy", "nowhere.ndjson", "new.ndjson"), 1)
    assert sorted(path.name for path in papyra.home.iterdir()) == ["empty", "other"]
    assert list((papyra.home / "empty").iterdir()) == []


def test_papyra_doctor_says_that_a_system_starts_with_a_new_store(papyra: Command) -> None:
    (papyra.home / "empty").mkdir()
    for name in ("nowhere.ndjson", "empty/"):
        done = papyra("doctor", name)
        assert (done.code, done.out) == (0, "")
        assert "no store yet" in done.err
    assert [path.name for path in papyra.home.iterdir()] == ["empty"]


def test_papyra_on_a_path_that_is_no_store_fails_with_one_line(papyra: Command) -> None:
    home = papyra.home
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        before = Path.cwd()
        os.chdir(home)  # the path of a socket is short
        try:
            listener.bind("socket.ndjson")
        finally:
            os.chdir(before)
        os.mkfifo(home / "pipe.ndjson")  # which nobody writes: it is not waited for
        (home / "directory.ndjson").mkdir()
        (home / "file").write_text("")
        (home / "file.ndjson").write_text("")
        for name in (
            "socket.ndjson",
            "pipe.ndjson",
            "directory.ndjson",
            "file/",
            "file.ndjson/x",
            "rotating:file",
        ):
            for command in (["events"], ["inspect"], ["scan"]):
                assert is_one_error(papyra(*call(name, command)), 1), name
        for name in ("socket.ndjson", "pipe.ndjson"):
            # A system would not start with these.
            for more in (["doctor"], ["recover", "--yes"], ["compact", "--max-age", "1d", "--yes"]):
                done = papyra(*call(name, more))
                assert is_one_error(done, 1), name
                assert "no regular file" in done.err
            (home / "source.ndjson").touch()
            done = papyra("copy", "source.ndjson", name)
            assert is_one_error(done, 1)
            assert "no regular file" in done.err


def test_papyra_on_a_single_segment_names_the_journal_it_belongs_to(papyra: Command) -> None:
    store = Store("rotating", "journal/", papyra.home / "journal")
    store.append(event(1))
    done = papyra("events", store.file)
    assert is_one_error(done, 1)
    assert f"{papyra.home}/journal/" in done.err


def test_papyra_reads_an_empty_file_as_a_store_without_records(papyra: Command) -> None:
    (papyra.home / "new.ndjson").touch()
    for command in READ_ONLY:
        done = papyra(*call("new.ndjson", command))
        assert done.code == 0, command
        assert "Traceback" not in done.err
        assert papyra.on_terminal(*call("new.ndjson", command)).code == 0, command


def test_papyra_on_a_redis_server_without_the_store_fails_and_writes_nothing(
    papyra: Command, store: Store
) -> None:
    done = papyra("events", store.name)
    assert is_one_error(done, 1)
    if store.server is not None:
        assert store.server.cli("KEYS", f"{store.tag}*") == ""


def test_papyra_on_a_redis_that_is_down_fails_with_one_line_without_the_password(
    papyra: Command,
) -> None:
    url = f"redis://user:{SECRET}@127.0.0.1:{free_port()}/0?system_id=shop&retry_for=1"
    commands = [*(call(url, command) for command in READ_ONLY), ["doctor", url]]
    commands += [["copy", url, "new.ndjson"], ["events", url, "--follow"], ["bench", url]]
    running = [papyra.start(*command) for command in commands]
    for command, process in zip(commands, running, strict=True):
        out, err = process.communicate(timeout=PATIENCE)
        assert is_one_error(Done(process.returncode, out, err), 1), command
        assert SECRET not in err
        assert "127.0.0.1" in err


def test_papyra_shows_no_password_of_a_redis_url_that_works(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = filled(new_store("redis", tmp_path, redis_server))
    redis_server.cli("ACL", "SETUSER", "boss", "on", f">{SECRET}", "~*", "&*", "+@all")
    url = store.url.replace("redis://", f"redis://boss:{SECRET}@")
    for command in [*READ_ONLY, ["inspect", "--json"], ["metrics", "--format", "prometheus"]]:
        done = papyra(*call(url, command))
        assert done.code == 0, done
        assert SECRET not in done.out + done.err
    wrong = papyra("inspect", url.replace(SECRET, f"{SECRET}x"))
    assert is_one_error(wrong, 1)
    assert SECRET not in wrong.err


# The store left out


def test_papyra_takes_the_store_from_the_environment(papyra: Command, file_store: Store) -> None:
    file_store.append(event(7))
    done = papyra("events", env={"PAPYRA_PERSISTENCE": file_store.url})
    assert (done.code, done.err) == (0, "")
    assert done.rows[0][-1] == '{"n":7}'


def test_papyra_takes_the_store_of_the_settings_after_argument_and_environment(
    papyra: Command,
) -> None:
    for name, number in (("settings", 1), ("environment", 2), ("named", 3)):
        path = papyra.home / f"{name}.ndjson"
        Store("json", str(path), path).append(event(number))
    (papyra.home / "mysettings.py").write_text(
        "from papyra.persistence.backends.json import JsonFilePersistence\n"
        "persistence = JsonFilePersistence('settings.ndjson')\n"
    )
    env = {"PAPYRA_SETTINGS_MODULE": "mysettings"}
    both = env | {"PAPYRA_PERSISTENCE": "json:environment.ndjson"}
    assert papyra("events", env=env).rows[0][-1] == '{"n":1}'
    assert papyra("events", env=both).rows[0][-1] == '{"n":2}'
    assert papyra("events", "named.ndjson", env=both).rows[0][-1] == '{"n":3}'


@pytest.mark.parametrize(
    "module",
    [
        "raise RuntimeError('line one\\nline two')",
        "persistence = 7",
        "import no_such_module_at_all",
        "persistence = (",
        None,
    ],
)
def test_an_invalid_settings_module_is_wrong_use_of_papyra(
    papyra: Command, module: str | None
) -> None:
    if module is not None:
        (papyra.home / "badsettings.py").write_text(module)
    assert is_one_error(papyra("events", env={"PAPYRA_SETTINGS_MODULE": "badsettings"}), 2)


WITHOUT_STORE: list[list[str]] = [
    *READ_ONLY,
    ["doctor"],
    ["recover", "--yes"],
    ["events", "--follow"],
]


@pytest.mark.parametrize("command", WITHOUT_STORE, ids=" ".join)
def test_papyra_without_a_store_named_or_configured_asks_which_store(
    papyra: Command, command: list[str]
) -> None:
    done = papyra(*command)
    assert is_one_error(done, 2)
    assert "which store?" in done.err
    assert "PAPYRA_PERSISTENCE" in done.err
    (papyra.home / "mysettings.py").write_text("persistence = None\n")
    assert is_one_error(papyra(*command, env={"PAPYRA_SETTINGS_MODULE": "mysettings"}), 2)
    assert is_one_error(papyra(command[0], "", *command[1:]), 2)


# In memory


@pytest.mark.parametrize(
    "command",
    [
        *("inspect memory:", "scan memory:", "recover memory: --yes", "recover memory: --dry-run"),
        *("doctor memory:", "doctor memory: --mode recover", "compact memory: --max-records 1 -y"),
        *("copy memory: new.ndjson", "copy events.ndjson memory:"),
    ],
)
def test_papyra_commands_that_need_a_disk_do_nothing_in_memory_and_succeed(
    papyra: Command, command: str
) -> None:
    path = papyra.home / "events.ndjson"
    Store("json", str(path), path).append(event(1))
    for done in (papyra(*command.split()), papyra.on_terminal(*command.split(), columns=200)):
        assert done.code == 0
        assert done.err == ""
        [line] = done.out.splitlines()
        assert "not supported" in line
        assert "nothing to do" in line
    assert not (papyra.home / "new.ndjson").exists()


@pytest.mark.parametrize(
    "command",
    [
        *("events", "audits", "dead-letters", "timeline", "metrics", "metrics --format prometheus"),
        *("events --json", "top --count 1", "bench --records 100"),
    ],
)
def test_papyra_commands_that_need_no_disk_work_in_memory(papyra: Command, command: str) -> None:
    done = papyra(*call("memory:", command.split()))
    assert done.code == 0
    assert len(done.err.splitlines()) <= 1


# Nothing is written


def listing(directory: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return everything in a directory: sizes, times, modes, contents."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [directory, *sorted(directory.rglob("*"))]
    }


def kept_by_server(store: Store) -> dict[str, bytes]:
    assert store.server is not None
    keys = store.server.cli("KEYS", "*").split()
    return {key: store.server.ask("DUMP", key) for key in keys if store.tag in key}


def filled(store: Store) -> Store:
    steps = (("ActorStarted", {"actor_type": "A"}), ("ActorCrashed", {"decision": "restart"}))
    store.append(*(event(n) for n in range(50)), audit(51), dead_letter(52))
    store.append(*life("shop/a", event(53).timestamp, *steps))
    return store


@pytest.mark.parametrize("is_torn", [False, True], ids=["whole", "torn"])
def test_papyra_commands_that_only_read_change_nothing_beside_a_file_store(
    papyra: Command, file_store: Store, is_torn: bool, tmp_path: Path
) -> None:
    filled(file_store)
    assert file_store.path is not None
    if is_torn:
        with file_store.file.open("ab") as file:
            file.write(b'{"crc":"00000000","v":1,"seq":')
    # Elsewhere than what is kept to open it faster the next time.
    place = tmp_path / "place"
    place.mkdir()
    for path in tmp_path.glob(f"{file_store.path.name}*"):
        path.rename(place / path.name)
    before = listing(place)
    assert len(before) >= 2
    for command in LOOKING:
        done = papyra(*call(place / file_store.path.name, command))
        assert listing(place) == before, command
        assert done.code == (3 if is_torn and command[0] in ("scan", "recover") else 0), command


def test_papyra_commands_that_only_read_change_nothing_on_a_redis_server(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = filled(new_store("redis", tmp_path, redis_server))
    before = kept_by_server(store)
    assert len(before) >= 3
    for command in LOOKING:
        assert papyra(*call(store.name, command)).code == 0
        assert kept_by_server(store) == before, command


def test_papyra_commands_that_only_read_work_without_a_writable_cache(
    papyra: Command, file_store: Store
) -> None:
    filled(file_store)
    (papyra.home / "no-directory").touch()
    for command in LOOKING:
        done = papyra(
            *call(file_store.name, command),
            env={"XDG_CACHE_HOME": str(papyra.home / "no-directory" / "cache")},
        )
        assert done.code == 0, done
        assert len(done.err.splitlines()) <= 1
        assert "error" not in done.err


# Outputs that do not take it


def to_nobody(papyra: Command, *arguments: str) -> Done:
    """Call it with nobody who reads what it prints."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        return papyra(*arguments, stdout=write_end)
    finally:
        os.close(write_end)


PRINTING: list[list[str]] = [
    ["--help"],
    ["--version"],
    ["events", "--help"],
    ["completion", "bash"],
    ["inspect", "memory:"],
    ["inspect", "memory:", "--json"],
    *(
        call("shop.ndjson", command)
        for command in READ_ONLY
        if command[0] not in ("scan", "recover")
    ),
    ["scan", "shop.ndjson", "--json"],
    ["recover", "shop.ndjson", "--dry-run", "--json"],
    ["metrics", "shop.ndjson", "--format", "prometheus"],
    ["timeline", "shop.ndjson", "--json"],
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_papyra_succeeds_on_a_closed_pipe_and_fails_with_one_line_on_a_full_disk(
    papyra: Command, arguments: list[str]
) -> None:
    path = papyra.home / "shop.ndjson"
    filled(Store("json", str(path), path))
    expected = papyra(*arguments)
    assert expected.code == 0
    assert expected.out
    done = to_nobody(papyra, *arguments)
    assert (done.code, done.err) == (0, expected.err)
    with open("/dev/full", "w") as full:
        done = papyra(*arguments, stdout=full)
    assert done.code == 1
    assert done.err.removeprefix(expected.err) == "error: No space left on device\n"


def test_papyra_with_closed_standard_streams_prints_no_traceback(papyra: Command) -> None:
    path = papyra.home / "shop.ndjson"
    filled(Store("json", str(path), path))
    program = " ".join(papyra.program)
    redirections = (">&-", "2>&-", ">&- 2>&-", "<&-")
    commands = ("events shop.ndjson", "inspect shop.ndjson", "events nowhere.ndjson")
    # Every fifth is one of each redirection but one, and of each command.
    for redirection, arguments in some(itertools.product(redirections, commands), every=5):
        done = subprocess.run(
            ["bash", "-c", f"{program} {arguments} {redirection}"],
            check=False,
            capture_output=True,
            text=True,
            env=papyra.environment({}),
            cwd=papyra.home,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr, (arguments, redirection)
        assert done.returncode in (0, 1)
        if "nowhere" in arguments:
            assert done.returncode == 1


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("cyclopts", "cli", ["--version"]),
        ("platformdirs", "cli", ["events"]),
        ("prometheus_client", "prometheus", ["metrics", "--format", "prometheus"]),
        ("rich", "cli", ["timeline"]),
    ],
)
def test_papyra_names_a_missing_package_and_the_extra_that_brings_it(
    tmp_path: Path, missing: str, extra: str, arguments: list[str]
) -> None:
    (tmp_path / "events.ndjson").touch()
    code = """
import sys
sys.modules[sys.argv.pop(1)] = None
from papyra.cli import main
main()
"""
    command = [sys.executable, "-c", code, missing, *arguments]
    env = {**os.environ, "PAPYRA_PERSISTENCE": f"json:{tmp_path}/events.ndjson"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert missing in line
    assert f"extra '{extra}' brings: pip install '.[{extra}]'" in line
