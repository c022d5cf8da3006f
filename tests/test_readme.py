"""What the README says, runs."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.conf import settings
from papyra.testing import CheckedSystem
from papyra.testing._redis_server import RedisServer, any_binary

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
(PRINTED,) = [code for language, code in BLOCKS if language == "text"]
COMMANDS = [code for language, code in BLOCKS if language == "sh"]


def test_the_first_program_prints_what_the_readme_shows() -> None:
    output = subprocess.run(
        [sys.executable, "-c", PYTHON[0]], check=True, capture_output=True, text=True
    ).stdout
    assert output == PRINTED


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run every block but the first, one after the other, and return the names they define."""
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    with settings.override(persistence=None):
        for code in PYTHON[1:]:
            exec(compile(code, "README.md", "exec"), vars(module))
    return vars(module)


async def test_what_the_blocks_define_works(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await names["report"]()
    await names["test_it_keeps_what_it_is_told"]()
    await names["look_into_a_store"]()
    async with CheckedSystem() as system:
        await names["test_a_deposit_is_an_event"](system)
    await names["run_on_a_file"](tmp_path / "events.ndjson")
    await names["test_it_survives_a_full_disk"]()
    await names["test_what_was_acknowledged_is_stored"]()
    await names["test_two_deposits_in_any_order"]()
    printed = capsys.readouterr().out
    assert "True" in printed
    assert "['Deposited', 'ActorStopped']" in printed

    loud = names["LoudPersistence"]()
    async with ActorSystem(persistence=loud) as system:
        assert await system.spawn(names["Warehouse"], name="w").ask(5) >= 1
    assert "records, the first at position" in capsys.readouterr().out
    assert "w/account" in " ".join(event.actor_address for event in loud.events)


async def test_what_it_says_about_redis_works(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = names["config"]
    assert (config.system_id, config.acknowledge) == ("bank", "aof")
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with RedisServer(any_binary(), *options) as server:
        names["config"] = msgspec.structs.replace(config, url=server.url)
        await names["run_on_redis"]()
        for iterate in (names["follow_along"], functools.partial(names["share_the_work"], "a")):
            printed = ""
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(iterate)
                while "ActorStopped" not in printed:
                    await anyio.lowlevel.checkpoint()
                    printed += capsys.readouterr().out
                tasks.cancel_scope.cancel()
            assert "Deposited" in printed


def test_every_block_is_run(names: dict[str, Any]) -> None:
    run = {"report", "look_into_a_store", "run_on_a_file"}
    run |= {"test_it_keeps_what_it_is_told", "test_a_deposit_is_an_event"}
    run |= {"test_it_survives_a_full_disk", "test_what_was_acknowledged_is_stored"}
    run |= {"test_two_deposits_in_any_order"}
    run |= {"run_on_redis", "follow_along", "share_the_work"}
    functions = {
        name
        for name, value in names.items()
        if inspect.iscoroutinefunction(value) and value.__module__ == "readme"
    }
    assert functions == run


def test_there_are_two_commands_each_one_line() -> None:
    assert len(COMMANDS) == 2
    for command, end in zip(COMMANDS, ("examples/quickstart.py", "-m pytest"), strict=True):
        assert command.count("\n") == 1
        assert command.strip().endswith(end)


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script


@pytest.mark.parametrize("path", re.findall(r"\]\(((?:examples|papyra)/[^)]+)\)", README))
def test_what_the_readme_points_to_is_there(path: str) -> None:
    assert (ROOT / path).is_file()
