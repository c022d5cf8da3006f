"""Wait until nothing can go on by itself."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from papyra._trio import running_trio

#: How often all tasks of asyncio must be seen to wait, one turn of the loop after the other:
#: what a callback sets off that is no task shows up in the next turn.
_TURNS = 3

#: The tasks that wait here, by event loop, with their cushions.
_waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[asyncio.Task[object], int]] = (
    WeakKeyDictionary()
)


async def wait_until_idle(*, cushion: int = 0) -> None:
    """Return when every other task of the event loop waits for something.

    Of several tasks that call this, those with the smallest `cushion` go first. The idea is
    `trio.testing.wait_all_tasks_blocked`, which is what runs on trio. On asyncio it looks at each
    task in each turn of the loop; anyio's own function sleeps for a tenth of a second in between.
    A task that waits for a thread, or for the network, is waiting too.
    """
    if running_trio() is not None:
        from trio.testing import wait_all_tasks_blocked  # noqa: PLC0415 - where trio runs

        await wait_all_tasks_blocked(cushion / 1_000)
        return
    loop = asyncio.get_running_loop()
    this_task = asyncio.current_task(loop)
    assert this_task is not None
    waiting = _waiting.setdefault(loop, {})
    waiting[this_task] = cushion
    turns = 0
    try:
        while turns < _TURNS:
            await asyncio.sleep(0)
            mine = min(waiting, key=waiting.__getitem__) is this_task
            turns = turns + 1 if mine and _all_blocked(loop, waiting) else 0
    finally:
        del waiting[this_task]


def _all_blocked(loop: asyncio.AbstractEventLoop, waiting: dict[asyncio.Task[object], int]) -> bool:
    for task in asyncio.all_tasks(loop):
        if task not in waiting:
            future = task._fut_waiter  # type: ignore[attr-defined]
            if future is None or future.done():
                return False
    return True
