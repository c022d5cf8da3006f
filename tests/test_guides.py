"""The code blocks of every README file run, and the links in them lead somewhere."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest

from papyra.conf import settings
from papyra.persistence.backends.redis import RedisStreamsConfig
from papyra.testing import CheckedSystem
from tests.guides import BLOCKS, GUIDES, README, ROOT, Block, blocks, files, name, prose
from tests.redis_server import RedisServer, any_binary

#: What a block may be, and who runs it: this module, `.ci/run`, `tests/cli/test_sessions.py`, and
#: `tests/persistence/backends/sqlite/test_outbox.py`.
LANGUAGES = {"python", "text", "sh", "console", "sql"}
#: Followed by what they print, these run by themselves, too; all of a guide runs in one module.
PROGRAMS = [block for block in BLOCKS if block.language == "python" and block.printed is not None]
#: What a program starts with.
START = "anyio.run(main)\n"
#: They go on until somebody stops them: that is once they have printed the last event.
ENDLESS = {"follow_along", "share_the_work"}
LAST_EVENT = "ActorStopped"

COMMANDS = [block.code for block in BLOCKS if block.language == "sh"]
#: The arguments of `pip install`: `.`, or `'.[extra]'`.
FROM_THE_CHECKOUT = re.compile(r"(?:-\w )*(?:\.|'\.\[(?P<extras>[\w,]+)\]')[ .:)]")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

Run = Callable[..., Coroutine[Any, Any, None]]


# Code blocks


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.place)
def test_a_program_prints_what_its_guide_shows(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr == ""
    assert done.stdout == block.printed


class Guide(NamedTuple):
    """What the blocks of a guide define, one after the other."""

    names: dict[str, Any]
    functions: list[Run]


@pytest.fixture
def read(guide: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Guide]:
    """Run the blocks of a guide, but for the calls that start its programs."""
    module = types.ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)
    monkeypatch.chdir(tmp_path)
    functions: dict[Run, None] = {}
    with settings.override(persistence=None):
        for block in blocks(guide):
            if block.language == "python":
                exec(block.compile(without=START), vars(module))
                functions |= dict.fromkeys(filter(is_of_the_guide, vars(module).values()))
        yield Guide(vars(module), list(functions))


def is_of_the_guide(value: object) -> bool:
    return inspect.isfunction(value) and value.__module__ == "guide"


@pytest.fixture
async def redis_url(read: Guide) -> AsyncIterator[None]:
    """Have a configuration that a guide makes name a server that is there."""
    config = read.names.get("config")
    if not isinstance(config, RedisStreamsConfig):
        yield
        return
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with RedisServer(any_binary(), *options) as server:
        read.names["config"] = msgspec.structs.replace(config, url=server.url)
        yield


@pytest.mark.parametrize("guide", GUIDES, ids=name)
@pytest.mark.usefixtures("redis_url")
async def test_every_function_of_a_guide_runs(
    read: Guide, capsys: pytest.CaptureFixture[str]
) -> None:
    async with CheckedSystem() as system:
        given = {"actor_system": system, "name": "a"}
        for function in read.functions:
            assert inspect.iscoroutinefunction(function), f"nobody calls {function.__name__}"
            run = functools.partial(function, *(given[each] for each in needed(function)))
            if function.__name__ in ENDLESS:
                assert "Deposited" in await run_until_printed(run, LAST_EVENT, capsys)
            else:
                await run()


def needed(function: Run) -> list[str]:
    """Return the names of the parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is inspect.Parameter.empty]


async def run_until_printed(run: Run, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    printed = ""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        while text not in printed:
            await anyio.lowlevel.checkpoint()
            printed += capsys.readouterr().out
        tasks.cancel_scope.cancel()
    return printed


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_every_code_block_of_a_guide_is_in_a_language_that_the_tests_run(guide: Path) -> None:
    found = blocks(guide)
    for block in found:
        assert block.language in LANGUAGES, block.place
    fences = re.findall(r"^\s*(?:```|~~~)", guide.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(found), "each begins with its language and ends with its fence"


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_output_in_a_guide_is_shown_below_the_program_that_prints_it(guide: Path) -> None:
    shown = [block.code for block in blocks(guide) if block.language == "text"]
    assert shown == [block.printed for block in PROGRAMS if block.guide == guide]


def test_the_readme_has_one_command_to_see_papyra_work_and_one_to_test_it() -> None:
    in_the_readme = [block.code for block in blocks(README) if block.language == "sh"]
    assert in_the_readme == COMMANDS
    assert len(COMMANDS) == 2
    for command, end in zip(
        COMMANDS, ("examples/quickstart.py", "-m pytest -n auto --dist worksteal"), strict=True
    ):
        assert command.count("\n") == 1
        assert command.strip().endswith(end)


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script


# The guides as a whole


def test_the_readme_has_no_more_than_250_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_every_link_in_a_guide_leads_to_a_file_or_a_heading(guide: Path) -> None:
    for link in LINK.findall(prose(guide)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, heading = link.partition("#")
        target = (guide.parent / path).resolve() if path else guide
        assert target.is_relative_to(ROOT.resolve()), link
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(guide: Path) -> list[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(guide), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("guide", GUIDES[1:], ids=name)
def test_the_readme_links_to_every_guide(guide: Path) -> None:
    assert name(guide) in LINK.findall(prose(README))


# Installation


def test_every_shown_pip_install_installs_papyra_from_the_checkout() -> None:
    """By its name, the package index has another project."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    sources = [*files(ROOT / "papyra", "*.py"), *files(ROOT / "examples", "*.*")]
    lines = [
        (name(path), arguments + " ")
        for path in [*sources, *GUIDES]
        for arguments in re.findall(r"pip install ([^&|`\n]*)", path.read_text(encoding="utf-8"))
    ]
    assert len(lines) >= 4
    for place, arguments in lines:
        match = FROM_THE_CHECKOUT.match(arguments)
        assert match, f"{place}: pip install {arguments}"
        assert set((match["extras"] or "test").split(",")) <= extras.keys(), place


def test_no_extra_is_shown_as_one_of_papyra_on_the_package_index() -> None:
    for path in [*files(ROOT / "papyra", "*.py"), *files(ROOT / "examples", "*.*"), *GUIDES]:
        assert "papyra" + "[" not in path.read_text(encoding="utf-8"), name(path)
