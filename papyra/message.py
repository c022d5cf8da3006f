"""Messages that say what their reply is."""

from __future__ import annotations

from typing import Generic, TypeVar

ReplyT = TypeVar("ReplyT")
ReplyT_co = TypeVar("ReplyT_co", covariant=True)


class Message(Generic[ReplyT_co]):
    """A base for messages: ``class Withdraw(msgspec.Struct, Message[int])`` is asked for an int.

    It is for type checkers, who know then what `ActorRef.ask` returns, and goes with structs,
    dataclasses and plain classes alike. Nobody has to use it: anything can be a message.
    """

    __slots__ = ()
