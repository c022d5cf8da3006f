"""User code on the event loop: what it raises is a failure of its own, and ends nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from papyra._cancellation import (
    cancelled_by_its_task,
    cancelled_within,
    without_cancellation,
)
from papyra._safe_repr import type_and_text

__all__ = ("user_code",)


@contextlib.contextmanager
def user_code(name: str) -> Iterator[None]:
    """Raise a `RuntimeError` for what the function `name` raises that is no `Exception`.

    So ``sys.exit()`` ends no program in it, as it ends none in a thread, and a cancellation that
    nobody has asked for here, as of a future that it waits for, is a failure like any other. Those
    that strike this task, and ``KeyboardInterrupt``, are raised as they are.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if without_cancellation(error) is None and (cancelled_within() or cancelled_by_its_task()):
            raise
        raise RuntimeError(f"{name} has raised {type_and_text(error)}") from error
