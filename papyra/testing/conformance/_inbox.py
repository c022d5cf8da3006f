"""What other processes leave for the writer of a store, and its answers."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator
from typing import TypeAlias

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.store import Inbox, Positions
from papyra.persistence.inbox import (
    MAX_POSTED_BYTES,
    Answer,
    PostedRequest,
    Refused,
    decode_answer,
    encode_posted,
)
from papyra.persistence.messages import (
    Attend,
    EventSkipped,
    PositionRemoved,
    PositionSaved,
    RemovePosition,
    SavePosition,
    SkipEvent,
)
from papyra.testing.conformance._fixtures import MakeBackend, an_event, everything, needs

Opened: TypeAlias = tuple[PersistenceBackend, Inbox, Inbox]


def has_inbox(backend: PersistenceBackend) -> bool:
    return backend.has_inbox


def keeps_inbox_and_positions(backend: PersistenceBackend) -> bool:
    return backend.has_inbox and isinstance(backend.store, Positions)


def new_id() -> str:
    return uuid.uuid4().hex


def a_request(revision: int = 2, until: float = math.inf) -> bytes:
    until = until if until < math.inf else time.time() + 600
    return encode_posted(PostedRequest(SkipEvent("s/a", revision, "paid twice"), until))


@contextlib.asynccontextmanager
async def opened(make_backend: MakeBackend) -> AsyncIterator[Opened]:
    """Yield a backend that writes, its inbox, and that of a process beside it."""
    async with make_backend() as backend, contextlib.AsyncExitStack() as stack:
        await backend.append(
            *(an_event(0, actor_address="s/a", revision=number) for number in (1, 2, 3))
        )
        beside = backend.reader()
        if beside is not backend:
            await stack.enter_async_context(beside)
        assert isinstance(backend.store, Inbox)
        assert isinstance(beside.store, Inbox)
        yield backend, backend.store, beside.store


async def answer_to(inbox: Inbox, request_id: str) -> Answer:
    data = await inbox.answered(request_id)
    assert data is not None
    return decode_answer(data)


class Asking:
    """Part of the conformance suite."""

    @needs(has_inbox)
    async def test_what_is_posted_reaches_the_writer_and_its_answer_comes_back(
        self, make_backend: MakeBackend
    ) -> None:
        async with opened(make_backend) as (_, writer, beside):
            assert await writer.posted() == []
            sent = {new_id(): b"%d" % number * MAX_POSTED_BYTES for number in range(3)}
            for request_id, data in sent.items():
                await beside.post(request_id, data)
            assert sorted(await writer.posted()) == sorted(sent)
            for request_id, data in sent.items():
                assert await beside.answered(request_id) is None
                assert await writer.take(request_id) == data
                assert request_id not in await writer.posted()
                assert await beside.answered(request_id) is None
                await writer.answer(request_id, data[::-1])
            for request_id, data in sent.items():
                assert await beside.answered(request_id) == data[::-1]
                assert await beside.answered(request_id) is None
            assert await writer.posted() == []

    @needs(has_inbox)
    async def test_a_request_is_taken_or_withdrawn_and_never_both(
        self, make_backend: MakeBackend
    ) -> None:
        async with opened(make_backend) as (_, writer, beside):
            taken, withdrawn = new_id(), new_id()
            for request_id in (taken, withdrawn):
                await beside.post(request_id, b"x")
            assert await beside.withdraw(withdrawn)
            assert not await beside.withdraw(withdrawn)
            assert await writer.take(withdrawn) is None
            assert await writer.posted() == [taken]
            assert await writer.take(taken) == b"x"
            assert await writer.take(taken) is None
            assert not await beside.withdraw(taken)
            await writer.answer(taken, b"y")
            assert await beside.answered(taken) == b"y"
            assert not await beside.withdraw(new_id())
            assert await writer.take(new_id()) is None

    @needs(has_inbox)
    async def test_a_writer_that_has_closed_its_store_is_not_there_any_more(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(an_event(0))
        async with make_backend().reader() as beside:
            assert isinstance(beside.store, Inbox)
            assert not await beside.store.is_attended()

    @needs(has_inbox)
    async def test_the_writer_carries_out_what_is_posted(self, make_backend: MakeBackend) -> None:
        async with opened(make_backend) as (backend, _, beside):
            first, again, wrong = new_id(), new_id(), new_id()
            await beside.post(first, a_request())
            assert (await backend.execute(Attend())).count == 1
            await beside.post(again, a_request())
            await beside.post(wrong, a_request(9))
            assert (await backend.execute(Attend())).count == 2
            assert await answer_to(beside, first) == EventSkipped(4, "paid twice", is_new=True)
            assert await answer_to(beside, again) == EventSkipped(4, "paid twice", is_new=False)
            assert isinstance(await answer_to(beside, wrong), Refused)
            assert len((await backend.read_history("s/a")).events) == 4
            assert (await backend.execute(Attend())).count == 0

    @needs(keeps_inbox_and_positions)
    async def test_the_writer_sets_a_position_for_others(self, make_backend: MakeBackend) -> None:
        async with opened(make_backend) as (backend, _, beside):
            until = time.time() + 600
            posted = [
                (new_id(), PostedRequest(SavePosition("a", b"\xff", None), until)),
                (new_id(), PostedRequest(SavePosition("a", b"2", b"1"), until)),
                (new_id(), PostedRequest(SavePosition("b", b"2", None), until)),
                (new_id(), PostedRequest(RemovePosition("b", b"2"), until)),
            ]
            for request_id, request in posted:
                await beside.post(request_id, encode_posted(request))
                assert (await backend.execute(Attend())).count == 1
            answers = [await answer_to(beside, request_id) for request_id, _ in posted]
            assert answers == [
                *(PositionSaved(is_saved=is_saved) for is_saved in (True, False, True)),
                PositionRemoved(is_removed=True),
            ]
            assert await backend.load_position("a") == b"\xff"
            assert await backend.list_positions() == ["a"]

    @needs(has_inbox)
    async def test_what_is_posted_and_makes_no_sense_is_refused(
        self, make_backend: MakeBackend
    ) -> None:
        async with opened(make_backend) as (backend, _, beside):
            before = await everything(backend)
            for data in (
                b"",
                b"{",
                b"\xff\xfe",
                b"[" * 1000,
                b'{"type":"Append"}',
                b"x" * (MAX_POSTED_BYTES + 1),
                a_request(until=time.time() - 1),
                a_request().replace(b'"revision":2', b'"revision":-2'),
            ):
                request_id = new_id()
                await beside.post(request_id, data)
                assert (await backend.execute(Attend())).count == 1
                assert isinstance(await answer_to(beside, request_id), Refused), data
            assert await everything(backend) == before
            assert (await backend.scan()).is_clean
