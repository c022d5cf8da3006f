"""Imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import papyra

ROOT = Path(papyra.__file__).parent

COMMANDS = {"inspect", "listing", "timeline", "checking", "compact", "copy", "metrics"}
COMMANDS |= {"bench", "completion"}
PARTS = ("appending", "moving", "reading", "recovery", "retention", "sharing")

#: The house, from the ground up. A module may import what stands below it, or in its own row.
LAYERS: list[set[str]] = [
    {"exceptions", "_lazy", "message", "_text", "_stack"},
    {"_seconds"},
    {"address", "clock", "_signal"},
    {"_home_loop"},
    {"_portal"},
    {"persistence.records", "persistence.metrics", "persistence.breaker", "persistence.retention"},
    {"persistence.reports", "persistence._forms"},
    {"persistence.messages", "persistence._payload"},
    {"persistence.codec"},
    {f"persistence.backends.{name}" for name in ("retention", "commit", "page")},
    {"persistence.backends.store"},
    {"persistence.backends.summary", "persistence.backends._session"},
    {"persistence.backends.verbs"},
    {"persistence.backends.base"},
    {"persistence.backends._closed"},
    {
        f"persistence.backends.{name}"
        for name in ("_line", "_disk", "_place", "_thread", "_asyncio", "urls")
    },
    {"persistence.backends._torn"},
    {"persistence.backends._index", "persistence.backends._walk"},
    {"persistence.backends._recall"},
    {"persistence.backends._file"},
    {"persistence.backends._rewrite"},
    {"persistence.backends._journal"},
    {"persistence.backends._sidecar"},
    {"persistence.backends._segments", "persistence.backends._files"},
    {"persistence.backends.memory", "persistence.backends.json"},
    {"persistence.backends.rotating", "persistence.backends"},
    {"persistence.backends._redis"},
    {f"persistence.backends._redis.{name}" for name in ("options", "entries", "scripts")},
    {f"persistence.backends._redis.{name}" for name in ("config", "state")},
    {"persistence.backends._redis.link"},
    {"persistence.backends._redis.writer", "persistence.backends._redis.walk"},
    {"persistence.backends._redis.reader", "persistence.backends._redis.survey"},
    {"persistence.backends._redis.groups"},
    {"persistence.backends.redis"},
    {"persistence.backends.registry"},
    {"mailbox", "supervision", "events", "audit"},
    {"ref"},
    {"actor", "dispatcher"},
    {"_runtime"},
    {"_runtime.cancellation", "_runtime.context_variables", "_runtime.death_watch"},
    {"_runtime.lifecycle", "_runtime.props", "_runtime.recorder", "_runtime.restart_backoff"},
    {"_runtime.children", "_runtime.deadlock_detection", "_runtime.failures"},
    {"_runtime.loop"},
    {"_runtime.cell"},
    {"_runtime.shutdown", "persistence.actor", "persistence.startup", "persistence"},
    {"conf._urls", "conf._settings", "conf"},
    {"system"},
    {""},
    {"testing.idle", "testing.faults", "testing._patterns"},
    {"testing.clock", "testing.faulty", "testing.checked", "testing.given", "testing._model"},
    {"testing._inbox", "testing._schedule", "testing._cancel", "testing._redis_server"},
    {"testing._stores"},
    {"testing.probes", "testing.explore", "testing.crash"},
    {"testing"},
    {"testing.conformance._parts"},
    {f"testing.conformance._{part}" for part in PARTS},
    {"testing.conformance", "testing.pytest_plugin"},
    {"cli._errors", "cli._values", "cli._lives"},
    {"cli._output", "cli._page"},
    {"cli._nothing", "cli._records", "cli._store"},
    {"cli.app"},
    {f"cli.{name}" for name in COMMANDS},
    {"cli.top"},
    {"cli"},
    {"cli.__main__"},
]
HEIGHT = {module: height for height, layer in enumerate(LAYERS) for module in layer}

#: A backend knows nothing of actors, the runtime nothing of backends.
RUNTIME = {"mailbox", "supervision", "events", "audit", "ref", "actor"}
RUNTIME |= {
    "_runtime.recorder",
    "_runtime.lifecycle",
    "_runtime.restart_backoff",
    "_runtime.failures",
    "_runtime.loop",
    "_runtime.props",
    "_runtime.death_watch",
    "_runtime.deadlock_detection",
    "_runtime.children",
    "_runtime.cancellation",
    "_runtime.cell",
    "_home_loop",
    "_runtime.context_variables",
    "_portal",
    "_runtime.shutdown",
    "clock",
    "dispatcher",
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of Papyra that are imported when a module runs.

    What is imported for type checkers only does not run, and may look up.
    """

    class Visitor(ast.NodeVisitor):
        def __init__(self) -> None:
            self.found: list[str] = []

        def visit_If(self, node: ast.If) -> None:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return
            self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            self.found += [alias.name for alias in node.names]

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"a relative import in {path}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                self.found.append(inner if inner in KNOWN else node.module or "")

    visitor = Visitor()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    for name in visitor.found:
        if name == "papyra" or name.startswith("papyra."):
            yield name.removeprefix("papyra").removeprefix(".")


KNOWN = {f"papyra.{name}".rstrip(".") for name, _ in modules()}


def test_every_module_has_its_place() -> None:
    assert {name for name, _ in modules()} == set(HEIGHT)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_go_down_only(name: str, path: Path) -> None:
    for imported in imports_of(path):
        assert HEIGHT[imported] <= HEIGHT[name], f"papyra.{name} imports papyra.{imported}"
        if name.startswith("persistence.backends"):
            assert imported not in RUNTIME, f"papyra.{name} knows the runtime"
        if name in RUNTIME:
            # The verbs are what users call; they know no backend either.
            is_backend = imported.startswith("persistence.backends.")
            is_backend &= imported != "persistence.backends.verbs"
            assert not is_backend, f"papyra.{name} knows backends"


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
        [sys.executable, "-c", IMPORT_EACH, *sorted(KNOWN)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_module_can_be_the_first_to_be_imported(name: str, imported: dict[str, str]) -> None:
    assert imported[name] == "0"


def test_papyra_stands_on_anyio_and_msgspec_alone() -> None:
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


def test_nothing_is_swallowed() -> None:
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.body[0], ast.Pass):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert "Exception" not in caught, f"{path}:{node.lineno} swallows {caught}"
