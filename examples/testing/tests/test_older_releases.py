"""What older releases of the shop have stored is read by the classes of today.

With each release, keep one of its stores beside this file, and never change it again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from shop import Desk

from papyra.testing import check_history


@pytest.mark.parametrize("store", sorted(Path(__file__).parent.glob("release-*.ndjson")), ids=str)
async def test_histories_of_an_older_release_are_read(store: Path) -> None:
    checked = await check_history(store, Desk, actors="shop/desk*")
    assert checked.events > 0
