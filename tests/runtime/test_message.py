"""A message may say what its reply is; the type checker reads that, and nothing else changes."""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
from typing import Any, Generic, TypeVar, assert_type

import msgspec
import pytest

from papyra import Actor, ActorSystem, Message
from papyra.persistence import Append, Appended, GetMetrics
from papyra.persistence.messages import Request
from papyra.persistence.metrics import MetricsSnapshot
from tests.actors import event

T = TypeVar("T")


class Frozen(msgspec.Struct, Message[int], frozen=True):
    amount: int


class Tagged(msgspec.Struct, Message[int], frozen=True, tag=True, gc=False, array_like=True):
    amount: int


class Mutable(Message[int], msgspec.Struct):
    amount: int


@dataclasses.dataclass
class Data(Message[int]):
    amount: int


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Message[int]):
    amount: int


class Plain(Message[int]):
    __match_args__ = ("amount",)

    def __init__(self, amount: int) -> None:
        self.amount = amount


class Key(msgspec.Struct, Generic[T], frozen=True):
    key: str


class Lookup(Key[T], Message[T], frozen=True):
    amount: int


class Deeper(Frozen, frozen=True):
    """Has its reply from its base."""


class Words(Message[str], enum.Enum):
    HELLO = "hello"


MESSAGES = [
    Frozen(1),
    Tagged(1),
    Mutable(1),
    Data(1),
    Slotted(1),
    Plain(1),
    Lookup[int]("key", 1),
    Deeper(1),
]


class Doubles(Actor):
    async def receive(self, message: Any) -> Any:
        match message:
            case Lookup(_, amount):
                return 2 * amount
            case Words.HELLO:
                return message.value
            case _:
                return 2 * message.amount


async def test_ask_returns_the_type_that_the_message_declares() -> None:
    async with ActorSystem() as system:
        ref = system.spawn(Doubles)
        assert_type(await ref.ask(Frozen(1)), int)
        assert_type(await ref.ask(Tagged(1), timeout=5), int)
        assert_type(await ref.ask(Mutable(1)), int)
        assert_type(await ref.ask(Data(1)), int)
        assert_type(await ref.ask(Slotted(1)), int)
        assert_type(await ref.ask(Plain(1)), int)
        assert_type(await ref.ask(Lookup[int]("key", 1)), int)
        assert_type(await ref.ask(Deeper(1)), int)
        assert_type(await ref.ask(Words.HELLO), str)


async def test_requests_to_the_persistence_actor_declare_the_types_of_their_replies() -> None:
    assert issubclass(Request, Message)
    async with ActorSystem() as system:
        appended = await system.persistence.ask(Append(event()))
        assert_type(appended, Appended)
        snapshot = await system.persistence.ask(GetMetrics())
        assert_type(snapshot, MetricsSnapshot)
        assert (appended.last_seq, snapshot.records_written) == (1, 1)


async def test_an_object_that_declares_no_reply_is_a_message_with_a_reply_of_any_type() -> None:
    class Echo(Actor):
        async def receive(self, message: Any) -> Any:
            return message

    async with ActorSystem() as system:
        ref = system.spawn(Echo)
        assert_type(await ref.ask("x"), Any)
        assert_type(await ref.ask({"amount": 1}, timeout=None), Any)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
async def test_every_kind_of_class_can_be_a_message_with_a_declared_reply(message: Any) -> None:
    async with ActorSystem() as system:
        assert await system.spawn(Doubles).ask(message) == 2
    assert issubclass(type(message), Message)
    for twin in (copy.copy(message), pickle.loads(pickle.dumps(message))):
        assert twin.amount == 1
        assert isinstance(message, Plain) or twin == message


@pytest.mark.parametrize("message", [Frozen(1), Tagged(1), Mutable(1), Data(1), Slotted(1)])
def test_a_message_with_a_declared_reply_is_encoded_like_any_other_object(message: Any) -> None:
    encoded = msgspec.json.encode(message)
    assert encoded == (b'["Tagged",1]' if isinstance(message, Tagged) else b'{"amount":1}')
    assert msgspec.json.decode(encoded, type=type(message)) == message


def test_declaring_the_reply_costs_a_message_no_memory() -> None:
    for message in (Frozen(1), Mutable(1), Slotted(1)):
        assert not hasattr(message, "__dict__")
