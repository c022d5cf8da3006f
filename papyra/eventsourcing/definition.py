"""The definition of a class of event-sourced actors, checked when the class is made."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, TypeVar

from papyra._safe_repr import shown
from papyra.eventsourcing.schema import Schema, leading_to, upcasters_of
from papyra.eventsourcing.snapshots import SnapshotPolicy, StateCodec, state_type_of
from papyra.eventsourcing.timer_messages import TimerMessages
from papyra.exceptions import InvalidActor, InvalidPolicy, InvalidSchema
from papyra.retry import Retry

#: Idempotency keys that one actor may keep: they are part of each snapshot.
MAX_WINDOW = 100_000


class Definition(NamedTuple):
    """What follows from a class."""

    schema: Schema
    #: `None` for a class that has no snapshots, or is abstract
    state_codec: StateCodec[Any] | None
    timer_messages: TimerMessages


def define(actor_class: type[Any]) -> Definition:
    """Check a class. Raises `InvalidActor`, `InvalidSchema` and `InvalidPolicy`."""
    name = actor_class.__name__
    _check_methods(actor_class)
    for attribute in ("events", "timer_messages"):
        if not isinstance(getattr(actor_class, attribute), (tuple, list)):
            raise InvalidSchema(f"{name}.{attribute} is a tuple of classes")
    window = actor_class.idempotency_window
    if type(window) is not int or not 0 < window <= MAX_WINDOW:
        raise InvalidPolicy(
            f"{name}.idempotency_window is a whole number from 1 to {MAX_WINDOW:,}, "
            f"not {shown(window)}"
        )
    if not isinstance(actor_class.timer_retry, Retry):
        raise InvalidPolicy(f"{name}.timer_retry is a Retry")
    members = {
        name: member
        for each in reversed(actor_class.__mro__)
        for name, member in vars(each).items()
    }
    steps = upcasters_of([*members.values(), *actor_class.upcasters])
    of_events = leading_to(actor_class.events, steps)
    of_messages = leading_to(actor_class.timer_messages, steps)
    # What leads nowhere is found to be so among the events.
    of_events += [each for each in steps if each not in of_events and each not in of_messages]
    return Definition(
        Schema(name, actor_class.events, of_events),
        _state_codec_of(actor_class),
        TimerMessages(name, actor_class.timer_messages, of_messages),
    )


def _check_methods(actor_class: type[Any]) -> None:
    name = actor_class.__name__
    for method in ("initial_state", "apply"):
        if inspect.iscoroutinefunction(getattr(actor_class, method)):
            raise InvalidActor(f"{name}.{method} is pure, so not 'async def'")
    if "on_start" in vars(actor_class):
        raise InvalidActor(
            f"{name} is recovered when it starts: what follows belongs to on_recovered"
        )
    if actor_class.batch_types:
        raise InvalidActor(f"{name} handles its messages one by one: no batch_types")


def _state_codec_of(actor_class: type[Any]) -> StateCodec[Any] | None:
    """Return the codec of an actor's states if it has snapshots.

    Raises `InvalidPolicy`, and `InvalidSchema` for a state that could not be read back.
    """
    policy, name = actor_class.snapshots, actor_class.__name__
    if policy is None:
        return None
    if not isinstance(policy, SnapshotPolicy):
        raise InvalidPolicy(f"{name}.snapshots is a SnapshotPolicy, not {shown(policy)}")
    state_type = state_type_of(actor_class)
    if state_type is not Any and not isinstance(state_type, TypeVar):
        return StateCodec(name, state_type)
    if getattr(actor_class.initial_state, "__isabstractmethod__", False):
        return None  # a subclass is to say it
    raise InvalidSchema(
        f"{name} has snapshots, so it must be known what its state is: say what initial_state "
        "returns, as in 'def initial_state(self) -> Balance'"
    )
