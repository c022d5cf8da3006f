"""``papyra bench``: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command, Store, new_store
from tests.cli.test_checking import contents, fill, jq, one_line
from tests.redis_server import RedisServer

FIGURES = [
    "appends_told",
    "appends_asked",
    "appends_asked_by_100",
    "newest_10_reads",
    "records_read",
    "records_scanned",
]
FEW = ["--records", "100"]

#: What is measured without being asked: what needs no server.
MEASURED = ("memory:", "json", "rotating", "sqlite")


def leftovers(directory: Path, server: RedisServer) -> list[str]:
    """Return everything that a measurement could have left."""
    files = [str(path) for path in directory.rglob("*") if path.name != "cache"]
    return sorted(files + server.cli("KEYS", "*bench*").split())


def identity(store: Store) -> str:
    """Return what is in its name, however that is said."""
    return str(store.path) if store.path is not None else store.tag.strip("{}").partition(":")[2]


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at


def test_papyra_bench_without_a_store_measures_memory_and_files(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    before = leftovers(tmp_path, redis_server)
    done = papyra("bench", *FEW, env=env)
    assert done.code == 0
    assert [row[:2] for row in done.rows] == [
        [store, what] for store in MEASURED for what in FIGURES
    ]
    for store, what, figure in done.rows:
        if (store, what) == ("memory:", "records_scanned"):
            assert figure == "-"
        else:
            assert float(figure) > 0
    said = papyra("bench", *FEW, "--json", env=env)
    assert said.code == 0
    assert len(said.lines) == len(MEASURED)
    for line, name in zip(said.lines, MEASURED, strict=True):
        result = jq(".", line)
        assert result.pop("store") == name
        assert list(result) == FIGURES
        assert [what for what, figure in result.items() if figure is None] == (
            ["records_scanned"] if name == "memory:" else []
        )
        assert all(figure > 0 for figure in result.values() if figure is not None)
    assert leftovers(tmp_path, redis_server) == before


def test_papyra_bench_on_a_terminal_shows_a_column_for_each_store(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    stores = [new_store(kind, tmp_path, redis_server) for kind in ("json", "redis")]
    done = papyra.on_terminal("bench", *(store.name for store in stores), *FEW, columns=300)
    assert done.code == 0
    (head,) = [line for line in done.text.splitlines() if "a second" in line]
    assert all(identity(store) in head for store in stores)
    for title in ("appends told, one task", "appends asked, 100 tasks", "records scanned"):
        (row,) = [line for line in done.text.splitlines() if line.startswith(title)]
        assert len(row.removeprefix(title).split()) == 2
    assert leftovers(tmp_path, redis_server) == []


def test_papyra_bench_does_not_touch_an_existing_store(
    papyra: Command, store: Store, tmp_path: Path, redis_server: RedisServer
) -> None:
    fill(store)
    before, around = contents(store), leftovers(tmp_path, redis_server)
    stood = store.path and store.path.stat().st_mtime_ns
    done = papyra("bench", store.name, *FEW, "--json")
    assert done.code == 0
    assert identity(store) in jq(".store", done.out)
    assert all(figure > 0 for figure in jq("del(.store) | [.[]]", done.out))
    assert contents(store) == before
    assert leftovers(tmp_path, redis_server) == around
    if store.path is not None:
        assert store.path.stat().st_mtime_ns == stood


def test_papyra_bench_does_not_create_a_missing_store(
    papyra: Command, store: Store, tmp_path: Path, redis_server: RedisServer
) -> None:
    assert papyra("bench", store.name, *FEW).code == 0
    assert contents(store) == {}
    assert leftovers(tmp_path, redis_server) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_papyra_bench_that_is_interrupted_leaves_the_store_as_it_was(
    papyra: Command, store: Store, tmp_path: Path, redis_server: RedisServer, number: int
) -> None:
    fill(store)
    before, around = contents(store), leftovers(tmp_path, redis_server)
    with papyra.start("bench", store.name, "--records", "100000000") as process:
        wait_for(lambda: leftovers(tmp_path, redis_server) != around)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in out + err
    assert contents(store) == before
    if number == signal.SIGINT:
        assert leftovers(tmp_path, redis_server) == around


def test_papyra_bench_with_too_few_records_is_wrong_use(papyra: Command) -> None:
    for count in ("99", "0", "-1", "many"):
        done = papyra("bench", "--records", count)
        assert (done.code, done.out) == (2, "")
        one_line(done)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("redis://127.0.0.1:1/0?retry_for=0", "127.0.0.1:1"),
        ("/proc/events.ndjson", "/proc"),
        ("json:", "json"),
    ],
)
def test_papyra_bench_says_where_it_can_create_no_store(
    papyra: Command, name: str, said: str
) -> None:
    done = papyra("bench", name, *FEW)
    assert done.code in {1, 2}
    assert done.out == ""
    assert said in one_line(done)
