"""Calls that need as much of the stack as there is, however deep the caller is in it."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def on_fresh_stack(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` at the bottom of a stack, that of a thread of its own, and wait for it.

    Raises what that raises, and `RecursionError` where no thread can be had.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    # Not threading.Thread, whose start() takes more of the stack than its caller may have left.
    done = _thread.allocate_lock()

    def call() -> None:
        try:
            results.append(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            errors.append(error)
        finally:
            done.release()

    done.acquire()
    try:
        _thread.start_new_thread(call, ())
    except RuntimeError as error:
        raise RecursionError("the stack is used up, and there is no other one") from error
    done.acquire()
    if errors:
        raise errors[0]
    return results[0]
