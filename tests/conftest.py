"""Every async test runs on asyncio and on trio; in CI on asyncio with uvloop, too.

Some say that they run on uvloop everywhere, and others on less than that where they are slow.

The store of a test is the fixture ``persistence`` of Papyra's own plugin.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Sequence
from typing import Any
from zlib import crc32

import hypothesis
import pytest

from tests.extent import CI

# However long an example takes on a machine that has other things to do.
hypothesis.settings.register_profile(
    "papyra",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    max_examples=100 if CI else 10,
)
hypothesis.settings.load_profile("papyra")

LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def event_loops(*names: str) -> Any:
    """Return the fixture for tests that run on these event loops, and in CI on all of them."""
    chosen = list(LOOPS) if CI else names

    @pytest.fixture(params=[LOOPS[name] for name in chosen], ids=chosen)
    def anyio_backend(request: pytest.FixtureRequest) -> Any:
        return request.param

    return anyio_backend


def on_event_loops(*names: str) -> pytest.MarkDecorator:
    """Have one test run on these event loops, and in CI on all of them."""
    chosen = list(LOOPS) if CI else names
    return pytest.mark.parametrize("anyio_backend", [LOOPS[name] for name in chosen], ids=chosen)


def kind_for(request: pytest.FixtureRequest, kinds: Sequence[str]) -> str:
    """Return the kind of store of a test, or of a module: in CI each, elsewhere always the same."""
    kind: str | None = getattr(request, "param", None)
    return kind or kinds[crc32(request.node.name.encode()) % len(kinds)]


anyio_backend = event_loops("asyncio", "trio")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Have one process more than there are processors: a third of their time, tests wait."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Have no garbage collection go through the tests themselves, which are there to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output: reports travel between processes as UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
