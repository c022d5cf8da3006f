"""Every async test runs on asyncio, on asyncio with uvloop, and on trio.

The store of a test is the fixture ``persistence`` of Papyra's own plugin.
"""

from __future__ import annotations

from typing import Any

import pytest

LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param
