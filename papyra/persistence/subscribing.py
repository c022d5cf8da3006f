"""Subscriptions of actors: what is stored comes to them as messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from papyra.actor import Actor
from papyra.address import ActorAddress
from papyra.message import Message
from papyra.persistence.records import Kind
from papyra.ref import ActorRef

__all__ = ("Subscribe", "Subscribed", "SubscriptionEnded", "Unsubscribe")


class Subscribed(NamedTuple):
    """The items of this subscription come from now on."""

    subscription: int


@dataclasses.dataclass(frozen=True, slots=True)
class Subscribe(Message[Subscribed]):
    """Ask a persistence actor to send an actor what is stored after a position, and what comes.

    The items are those of `ActorSystem.subscribe`, which selects in the same way: records, or
    `Received` where there are classes, `CaughtUp` and `FellBehind`. Each is a message of its own,
    in order. No more than 32 wait in the mailbox, whatever its capacity; the next come when these
    are handled, so a slow actor holds nobody up. What `receive` returns for one goes nowhere.

    It ends with this life of the subscriber: when that stops, falls asleep, or restarts, and what
    waits in the mailbox is dropped then. So subscribe in `Actor.on_start`, after the `seq` that the
    actor has kept of the last record handled. An `Unsubscribe` ends it, too. Where nothing more can
    come, so after an error of the store that stays, or for an event that can't be decoded, the last
    message is a `SubscriptionEnded`.

    Raises `InvalidRequest`, `InvalidSchema` for classes that are no events, and `ActorStopped` for
    a subscriber that has stopped, or sleeps.
    """

    #: gets the items; in an actor, ``self.context.self_ref``
    subscriber: ActorRef
    _: dataclasses.KW_ONLY
    #: only records with a greater `seq`
    after: int = 0
    kinds: Sequence[Kind] = ("event",)
    #: names of events, or classes that they are decoded into; `None` for all
    types: Iterable[str | type] | None = None
    #: only what concerns this actor
    actor: ActorRef | ActorAddress | str | None = None
    #: only what concerns entities of this class
    entity: type[Actor] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Unsubscribe(Message[None]):
    """Ask for no more items. Once it is answered, none comes; one that has ended is none."""

    subscription: int


class SubscriptionEnded(NamedTuple):
    """No more items come to this actor."""

    subscription: int
    #: why, if it is not that the persistence actor has stopped
    error: Exception | None
