"""A system that tells what its test left behind, without pytest."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from papyra.exceptions import AskTimeout, InvalidPolicy
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import CheckedSystem, FaultyPersistence, wait_until_idle
from tests.actors import Echo, Gate, event


async def test_a_checked_system_that_leaves_nothing_behind_passes() -> None:
    async with CheckedSystem("shop") as system:
        assert await system.spawn(Echo).ask("x") == "x"
    system.check()


async def test_a_checked_system_names_everything_left_behind_at_once() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    with pytest.raises(AssertionError) as caught:
        async with CheckedSystem("shop", persistence=store, shutdown_timeout=0.01) as system:
            gate = system.spawn(Gate, name="gate")
            entered, release = anyio.Event(), anyio.Event()
            with pytest.raises(AskTimeout):
                await gate.ask((entered, release), timeout=0)
            await gate.tell((entered, anyio.Event()))
            release.set()
            await wait_until_idle()
            store.fail_every(1)
    lines = str(caught.value).splitlines()
    assert lines[0] == "'shop' left behind:"
    assert lines[1].startswith("actors that did not stop: shop/gate (allow them with")
    assert lines[2].startswith("replies that nobody waited for, 1 of them: shop/gate to tuple (")
    assert lines[3].startswith("appends that failed, ")


async def test_a_checked_system_ignores_append_errors_from_before_it() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    store.fail_next(times=2)
    for _ in range(2):
        with pytest.raises(Exception, match="on purpose"):
            await store.append(event(1))
    for reset in (False, True):
        async with CheckedSystem(persistence=store) as system:
            if reset:
                system.backend.metrics.reset()
            await system.backend.append(event(1))


async def test_a_checked_system_whose_block_raises_is_not_checked() -> None:
    with pytest.raises(KeyError):
        async with CheckedSystem(shutdown_timeout=0) as system:
            await system.spawn(Gate).tell((anyio.Event(), anyio.Event()))
            await wait_until_idle()
            raise KeyError


@pytest.mark.parametrize("allowed", ["leaks", "", None])
def test_a_checked_system_refuses_to_allow_an_unknown_leftover(allowed: Any) -> None:
    with pytest.raises(InvalidPolicy, match="what can be allowed is"):
        CheckedSystem(allow=[allowed])
