"""Context variables: capture those of a message's sender, and set them while it is handled."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextvars import Context, ContextVar, Token, copy_context
from typing import Any, TypeVar

from papyra.ref import Values

ReplyT = TypeVar("ReplyT")

_UNSET: Any = object()


def captured(variables: Iterable[ContextVar[Any]]) -> Values:
    """Return those of `variables` that are set here, with their values."""
    values = [(variable, variable.get(_UNSET)) for variable in variables]
    return [(variable, value) for variable, value in values if value is not _UNSET]


def carrying(
    variables: Sequence[ContextVar[Any]],
    values: Values,
    handling: Coroutine[Any, Any, ReplyT],
    observe: Callable[[Coroutine[Any, Any, ReplyT]], Coroutine[Any, Any, ReplyT]] | None = None,
) -> Coroutine[Any, Any, ReplyT]:
    """Return what awaits `handling` with `values` set, and with the rest of `variables` unset.

    They are set from now on, so it has to be awaited next. `observe` is called with them set, and
    returns what is to be awaited instead.
    """
    if not values and len(variables) == 1 and variables[0].get(_UNSET) is _UNSET:
        return handling
    to_unset = [v for v in variables if v.get(_UNSET) is not _UNSET]
    if to_unset and values:
        brought = {variable for variable, _ in values}
        to_unset = [v for v in to_unset if v not in brought]
    if to_unset:
        # The actor has set them for itself.
        handling = _without(to_unset, handling)
    if not values:
        return handling
    tokens = [(variable, variable.set(value)) for variable, value in values]
    return _resetting(tokens, handling if observe is None else observe(handling))


async def _resetting(
    tokens: Sequence[tuple[ContextVar[Any], Token[Any]]], handling: Coroutine[Any, Any, ReplyT]
) -> ReplyT:
    try:
        return await handling
    finally:
        for variable, token in tokens:
            variable.reset(token)


async def _without(
    variables: Sequence[ContextVar[Any]], handling: Coroutine[Any, Any, ReplyT]
) -> ReplyT:
    # No variable can be unset but by who has set it. So `handling` runs in a copy of the context
    # that lacks them, and what it sets otherwise is set here afterwards.
    before, inside = copy_context(), Context()
    for variable, value in before.items():
        if variable not in variables:
            inside.run(variable.set, value)
    try:
        return await run_in(inside, handling)
    finally:
        for variable, value in inside.items():
            if variable not in variables and before.get(variable, _UNSET) is not value:
                variable.set(value)


@types.coroutine
def run_in(context: Context, coroutine: Coroutine[Any, Any, ReplyT]) -> Generator[Any, Any, ReplyT]:
    """Await `coroutine` in `context`, in the task that this is awaited in."""
    try:
        waits_for = context.run(coroutine.send, None)
        while True:
            try:
                value = yield waits_for
            except GeneratorExit:
                context.run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001 - thrown into the coroutine
                waits_for = context.run(coroutine.throw, error)
            else:
                waits_for = context.run(coroutine.send, value)
    except StopIteration as stop:
        reply: ReplyT = stop.value
        return reply
