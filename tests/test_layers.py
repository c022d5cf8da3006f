"""Imports go down only, those for type checkers included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import papyra
from tests.extent import STEP

ROOT = Path(papyra.__file__).parent
GRAPH = grimp.build_graph("papyra", cache_dir=None)
MODULES = sorted(GRAPH.modules)
#: Outside CI, a share of them: none imports itself through others, which is tested of all.
FIRST = MODULES[::STEP]


def test_the_import_contracts_in_pyproject_are_kept() -> None:
    code = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_through_others() -> None:
    circles = [
        GRAPH.find_shortest_chain(imported, name)
        for name in MODULES
        for imported in GRAPH.find_modules_directly_imported_by(name)
    ]
    assert [circle for circle in circles if circle] == []


#: Imports each module that it is told in a fork, which knows none of Papyra's yet.
IMPORT_EACH = """
import importlib, os, sys, traceback
import anyio, anyio._backends._asyncio, cyclopts, msgspec, pytest, redis.asyncio, rich
assert not any(name.startswith("papyra") for name in sys.modules)
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(name, os.waitstatus_to_exitcode(status))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, str]:
    """Return the exit code of a process that imports it first, of each module."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *FIRST],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", FIRST)
def test_every_module_can_be_the_first_to_be_imported(name: str, imported: dict[str, str]) -> None:
    assert imported[name] == "0"


def test_papyra_imports_no_third_party_package_but_anyio_and_msgspec() -> None:
    code = """
import sys, anyio, msgspec
import asyncio  # what anyio's own backend will import
before = {name.partition(".")[0] for name in sys.modules}
import papyra, papyra.persistence
after = {name.partition(".")[0] for name in sys.modules}
# sniffio is anyio's own, where it is there at all
print(*sorted(after - before - set(sys.stdlib_module_names) - {"papyra", "sniffio"}))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert output.split() == []


def test_no_handler_in_papyra_swallows_every_exception() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.body[0], ast.Pass):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert "Exception" not in caught, f"{path}:{node.lineno} swallows {caught}"
