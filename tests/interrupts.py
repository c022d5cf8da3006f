"""Ctrl-C at lines of Papyra's code. Trio raises it right there; asyncio does with a second one."""

from __future__ import annotations

import dis
import gc
import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

import papyra
from tests.conftest import LOOPS
from tests.extent import CI

__all__ = ("SHARES", "STRIDE", "at_lines", "run")

#: Every how many-th line is tried, a part of them in each of so many tests.
STRIDE = 40 if "PAPYRA_INTERRUPTS" in os.environ else 1000 if CI else 2000
SHARES = 2 if CI or "PAPYRA_INTERRUPTS" in os.environ else 1

ROOT = str(Path(papyra.__file__).parent)


class InterruptAtLine:
    """Presses Ctrl-C before certain lines of Papyra's code, counted as this thread runs them."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = [*reversed(numbers)]
        self._count = 0
        #: where that was
        self.where: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._numbers or not frame.f_code.co_filename.startswith(ROOT):
            return None
        return self._trace

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._numbers:
            return None
        # Python looks for signals at no such instruction, and no `try` holds its own.
        if event == "line" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            if self._count == self._numbers[-1]:
                self._numbers.pop()
                self.where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                signal.raise_signal(signal.SIGINT)
            self._count += 1
        return self._trace


def run(loop: str, function: Callable[[], Awaitable[object]], interrupt: InterruptAtLine) -> None:
    """Run `function` on an event loop, and raise ``KeyboardInterrupt``, unless one was lost."""
    backend, options = LOOPS[loop]
    # A shell may have started this in the background, where it is ignored.
    handler, tracer = signal.signal(signal.SIGINT, signal.default_int_handler), sys.gettrace()
    sys.settrace(interrupt)
    try:
        anyio.run(function, backend=backend, backend_options=options)
        assert not interrupt.where, f"Ctrl-C at {interrupt.where} was lost"
    finally:
        sys.settrace(tracer)
        signal.signal(signal.SIGINT, handler)
    raise KeyboardInterrupt


def at_lines(
    share: int, stride: int = STRIDE, *, again: Callable[[int], int] | None = None
) -> Iterator[InterruptAtLine]:
    """Yield a Ctrl-C at each `stride`-th line, or a share of them, up to one that never strikes.

    `again` says behind how many more lines the second one of each follows.
    """
    for number in itertools.count(share * stride // SHARES, stride):
        numbers = (number,) if again is None else (number, number + again(number))
        interrupt = InterruptAtLine(*numbers)
        yield interrupt
        if not interrupt.where:
            break
    assert number > stride
    gc.collect()  # what was cut short says so now, and in no other test
