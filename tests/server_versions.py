"""On which version of a server a test runs, where more than one can be started here.

Elsewhere than in CI each test runs on one version, and others on others. In CI the conformance
suite runs on every version and every event loop, and any other test on every event loop, with one
version after another. With ``PAPYRA_EVERY_SERVER=1`` all of them run on all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import pytest

from tests.extent import CI

__all__ = ("leave_to_other_versions",)

EVERY_SERVER = bool(os.environ.get("PAPYRA_EVERY_SERVER"))


def leave_to_other_versions(
    config: pytest.Config, items: list[pytest.Item], folder: Path, versions: Mapping[str, int]
) -> None:
    """Deselect those tests of a folder whose turn is on another version of their server.

    `versions` are the fixtures that start a server, with how many versions each has. A test that is
    named with its parameters runs as it is named.
    """
    if EVERY_SERVER or any("[" in argument for argument in config.args):
        return
    left: list[pytest.Item] = []
    kept: list[pytest.Item] = []
    for item in items:
        turn = not item.path.is_relative_to(folder) or _is_its_turn(item, versions)
        (kept if turn else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def _is_its_turn(item: pytest.Item, versions: Mapping[str, int]) -> bool:
    callspec = getattr(item, "callspec", None)
    if callspec is None or (CI and item.path.stem == "test_conformance"):
        return True
    chosen: dict[str, int] = dict(callspec.indices)
    loop = chosen.pop("anyio_backend", 0)
    servers = {name: chosen.pop(name) for name in versions if name in chosen}
    test = f"{item.nodeid.partition('[')[0]} {sorted(chosen.items())}"
    first = crc32(test.encode())
    return all(index == (first + loop) % versions[name] for name, index in servers.items())
