"""A system looks once a second at what other processes ask of the writer of its store."""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

import anyio
import pytest

from papyra import Actor, ActorSystem
from papyra.exceptions import StoreError
from papyra.persistence import EventSkipped, PersistedEvent, SkipEvent
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.inbox import PostedRequest, decode_answer, encode_posted
from papyra.testing import ManualClock, explore
from papyra.testing.explore import ScheduleFailed
from tests.conftest import on_event_loops
from tests.testing.shelf import Disk, Shelf, ShelfStore

pytestmark = pytest.mark.anyio

UNTIL = 1e15


async def post(store: ShelfStore, request_id: str) -> None:
    request = SkipEvent("s/a", 1, "why")
    await store.post(request_id, encode_posted(PostedRequest(request, UNTIL)))


async def shelf_with_an_event() -> Shelf:
    shelf = Shelf(Disk())
    async with shelf:
        await shelf.append(PersistedEvent("s", "s/a", "A", 1, 1.0, revision=1))
    return shelf


def is_waited_for(clock: ManualClock) -> bool:
    return clock.next_deadline is not None


async def test_what_is_posted_is_answered_within_a_second_by_the_systems_clock() -> None:
    shelf, clock, request_id = await shelf_with_an_event(), ManualClock(), uuid.uuid4().hex
    async with ActorSystem("s", persistence=shelf, clock=clock):
        await post(shelf.store, request_id)
        await clock.advance(0.9)
        assert await shelf.store.answered(request_id) is None
        await clock.advance(0.1)
        answer = await shelf.store.answered(request_id)
    assert decode_answer(answer or b"") == EventSkipped(2, "why", is_new=True)


async def test_a_store_without_an_inbox_is_not_looked_at() -> None:
    clock = ManualClock()
    options: dict[str, Any] = {"clock": clock, "audit_interval": None}
    async with ActorSystem("s", persistence=InMemoryPersistence(), **options):
        await clock.advance(10)
        assert not is_waited_for(clock)
    async with ActorSystem("s", persistence=Shelf(Disk()), **options):
        await clock.advance(10)
        assert is_waited_for(clock)
    assert not is_waited_for(clock)


class Blind(ShelfStore):
    """Can't look into its inbox for a while."""

    looks = 0
    is_well = False

    async def posted(self) -> list[str]:
        self.looks += 1
        if not self.is_well:
            raise StoreError("no eyes")
        return await super().posted()


class BlindShelf(Shelf):
    store_type = Blind
    store: Blind


async def test_a_store_that_cannot_be_looked_at_is_logged_once_and_looked_at_more_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shelf, clock = BlindShelf(Disk()), ManualClock()
    async with ActorSystem("s", persistence=shelf, clock=clock):
        await clock.advance(600)
        assert shelf.store.looks < 20
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert ["no eyes" in record.getMessage() for record in lines] == [True]
        assert (await shelf.append(PersistedEvent("s", "s/a", "A", 1, 1.0))).last_seq
        shelf.store.is_well = True
        await clock.advance(60)
        shelf.store.looks = 0
        await clock.advance(10)
        assert shelf.store.looks == 10


class Waits(Actor):
    async def receive(self, message: Any) -> None:
        await anyio.sleep_forever()


@on_event_loops("asyncio")
async def test_looks_do_not_hide_from_an_exploration_that_nobody_can_go_on() -> None:
    async def program(system: ActorSystem) -> None:
        await system.spawn(Waits).ask("for ever", timeout=math.inf)

    with anyio.fail_after(60), pytest.raises(ScheduleFailed):
        await explore(program, seeds=1, persistence=lambda: Shelf(Disk()))
