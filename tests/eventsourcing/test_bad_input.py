"""What is done wrongly with actors of events loses nothing, and makes nothing up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any

import anyio
import msgspec
import pytest

from papyra import Actor, ActorRef, ActorSystem, Failure
from papyra.eventsourcing import EventSourced
from papyra.exceptions import (
    ActorStopped,
    AskTimeout,
    InvalidActor,
    InvalidEvent,
    PapyraError,
    PersistenceError,
    RecoveryFailed,
    StoreError,
)
from papyra.output_gate import OutputGate
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import FaultyPersistence
from tests.actors import Log
from tests.eventsourcing.accounts import (
    Account,
    Balance,
    Deposit,
    Deposited,
    Look,
    PipelinedAccount,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def every_gate_is_open_in_the_end() -> Iterator[None]:
    before = OutputGate.shut
    yield
    assert OutputGate.shut == before


def faulty() -> FaultyPersistence:
    return FaultyPersistence(InMemoryPersistence())


async def ready(system: ActorSystem, actor: type[Actor]) -> ActorRef:
    """Return an actor that has recovered, with nothing on its way to the store."""
    ref = system.spawn(actor, name="ann")
    await ref.ask(Look())
    await system.backend.flush()
    return ref


# The gate


class Strange(StoreError):
    """An error that its author did not think would be copied."""

    def __init__(self, *, code: int) -> None:
        super().__init__("strange")
        self.code = code


@pytest.mark.parametrize("actor", [Account, PipelinedAccount])
async def test_an_error_that_can_not_be_copied_reaches_who_asked(actor: type[Account]) -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        account = await ready(system, actor)
        store.fail_next("append", Strange(code=7), kind="event")
        with pytest.raises(Strange) as caught:
            await account.ask(Deposit(1))
        assert caught.value.code == 7
        assert await account.ask(Deposit(1)) == 1


async def test_each_asker_of_an_actor_that_can_not_recover_gets_an_error_of_its_own() -> None:
    store = faulty()
    async with ActorSystem("bank", persistence=store) as system:
        store.fail_when(lambda operation: operation.name == "read")
        account = system.spawn(Account, name="ann")
        lengths = []
        for _ in range(20):
            with pytest.raises(RecoveryFailed) as caught:
                await account.ask(Look())
            lengths.append(len(caught.traceback))
        assert lengths[-1] <= lengths[1] + 1
        store.clear()
