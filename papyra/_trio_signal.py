"""Signals for tasks of trio's. Only imported where trio runs."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

__all__ = ("TrioSignal",)


class TrioSignal:
    """A `trio.Event` for one task, in the shape of a future."""

    __slots__ = ("_is_done", "_task")

    def __init__(self) -> None:
        self._is_done = False
        self._task: Task | None = None

    @enable_ki_protection
    def set_result(self, _: None, /) -> None:
        self._is_done = True
        if self._task is not None:
            reschedule(self._task)
            self._task = None

    def done(self) -> bool:
        return self._is_done

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait().__await__()

    @enable_ki_protection
    async def _wait(self) -> None:
        if self._is_done:
            await checkpoint()
        else:
            self._task = current_task()
            await wait_task_rescheduled(self._abort)

    @enable_ki_protection
    def _abort(self, _: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED
