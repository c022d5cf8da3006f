"""An event that costs nothing before somebody waits for it."""

from __future__ import annotations

import anyio

from papyra._signal import Latch
from papyra.testing import wait_until_idle


async def test_all_that_wait_for_a_latch_go_on_when_it_is_set() -> None:
    latch, passed = Latch(), 0

    async def pass_it() -> None:
        nonlocal passed
        await latch.wait()
        passed += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pass_it)
        tasks.start_soon(pass_it)
        await wait_until_idle()
        assert (latch.is_set(), passed) == (False, 0)
        latch.set()
    assert (latch.is_set(), passed) == (True, 2)


async def test_a_latch_that_was_set_lets_everybody_pass() -> None:
    latch = Latch()
    latch.set()
    with anyio.fail_after(60):
        await latch.wait()
        await latch.wait()


async def test_a_task_that_was_cancelled_at_a_latch_leaves_the_others_waiting() -> None:
    latch, passed = Latch(), anyio.Event()

    async def pass_it() -> None:
        await latch.wait()
        passed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pass_it)
        with anyio.move_on_after(0) as scope:
            await latch.wait()
        assert scope.cancelled_caught
        await wait_until_idle()
        assert not passed.is_set()
        latch.set()
    assert passed.is_set()
