"""The persistence actor: order, group commit, and callers that fail on their own."""

from __future__ import annotations

import logging
import math
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorRef, ActorSystem
from papyra.exceptions import (
    ActorStopped,
    InvalidRecord,
    InvalidRequest,
    MailboxFull,
    RevisionConflict,
    StoreError,
    UnencodablePayload,
)
from papyra.persistence import (
    Append,
    Appended,
    AppendMany,
    Compact,
    Flush,
    Flushed,
    GetMetrics,
    MetricsSnapshot,
    PersistenceActor,
    Read,
    Recover,
    ResetMetrics,
    Restore,
    Scan,
    codec,
)
from papyra.persistence.backends import group_commit
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.messages import AppendEncoded
from papyra.testing import FaultyPersistence, wait_until_idle
from tests.actors import event
from tests.persistence import payloads


async def busy(system: ActorSystem) -> tuple[ActorRef, FaultyPersistence]:
    """Return a persistence actor that hangs in its first append until it is released."""
    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.hang()
    ref = system.spawn(PersistenceActor, persistence)
    await ref.tell(Append(event(0)))
    await wait_until_idle()
    return ref, persistence


def commits_of(persistence: InMemoryPersistence) -> list[int]:
    """Return a list to which the number of records of each commit is added."""
    commits: list[int] = []
    persistence.watch_commits(lambda batch: commits.append(len(batch.records)))
    return commits


def numbers(persistence: FaultyPersistence) -> list[int]:
    """Return the numbers of the stored events, in order."""
    store = persistence.wrapped
    assert isinstance(store, InMemoryPersistence)
    return [stored.payload["order_id"] for stored in store.events]


async def test_events_that_were_encoded_already_are_stored_with_their_neighbours() -> None:
    def encoded(number: int) -> AppendEncoded:
        record = msgspec.structs.replace(event(number), revision=number)
        data = codec.encode_known(record)
        assert data is not None
        return AppendEncoded(record, data)

    backend = InMemoryPersistence()
    async with backend:
        replies, errors = await backend.commit([encoded(1)])
        assert (list(replies), list(errors)) == ([Appended(1, 1)], [])
        replies, _ = await backend.commit([encoded(2), encoded(3)])
        assert list(replies) == [Appended(2, 2), Appended(3, 3)]
        unreadable = msgspec.structs.replace(encoded(5), encoded=None)  # encoded by the store, then
        conflict = encoded(9)
        requests: list[Append | AppendMany] = [
            encoded(4),
            unreadable,
            conflict,
            Append(event(10)),
            AppendMany((event(11),)),
        ]
        replies, errors = await backend.commit(requests)
        assert [type(reply) for reply in replies] == [
            *(Appended, Appended, RevisionConflict, Appended, Appended)
        ]
        assert [type(error) for error in errors] == [RevisionConflict]
        history = await backend.read_history("shop/order-1")
        stored = [record.revision for record in history.events]
    assert stored == [1, 2, 3, 4, 5]


async def test_the_persistence_actor_answers_every_request_with_its_reply(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, persistence)
        assert await ref.ask(Append(event(1))) == Appended(1, 1)
        assert await ref.ask(AppendMany((event(2), event(3)))) == Appended(2, 3)
        assert await ref.ask(AppendMany(())) == Appended(4, 3)
        page = await ref.ask(Read("event", limit=2))
        assert ([r.seq for r in page.records], page.next_after, page.more) == ([1, 2], 2, True)
        snapshot = await ref.ask(GetMetrics())
        assert isinstance(snapshot, MetricsSnapshot)
        assert snapshot["records_written"] == 3
        assert (await ref.ask(ResetMetrics())).records_written == 3
        assert (await ref.ask(GetMetrics())).records_written == 0
        assert (await ref.ask(Scan())).is_clean
        assert not (await ref.ask(Recover())).supported
        assert not (await ref.ask(Compact())).supported
        assert await ref.ask(Flush()) == Flushed(3)


async def test_a_read_finds_the_appends_told_to_the_persistence_actor_before(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, persistence)
        for number in range(100):
            await ref.tell(Append(event(number)))
            page = await ref.ask(Read("event", newest=True, limit=1))
            assert page.records[0].payload == {"order_id": number}


async def test_a_run_of_appends_is_one_group_commit(persistence: InMemoryPersistence) -> None:
    commits = commits_of(persistence)
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, persistence)
        for number in range(500):
            await ref.tell(Append(event(number)))
        await ref.tell(AppendMany((event(500), event(501))))
        await ref.tell(Scan())
        await ref.tell(Append(event(502)))
        await ref.ask(Flush())
    assert commits == [502, 1]
    assert [e.payload["order_id"] for e in persistence.events] == list(range(503))


async def test_a_group_commit_is_bounded_by_records_and_by_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit, value in (("MAX_COMMIT_RECORDS", 10), ("MAX_COMMIT_BYTES", 1200)):
        persistence = InMemoryPersistence()
        commits = commits_of(persistence)
        with monkeypatch.context() as patch:
            patch.setattr(group_commit, limit, value)
            async with ActorSystem() as system:
                ref = system.spawn(PersistenceActor, persistence)
                for number in range(100):
                    await ref.tell(Append(event(number)))
                big = AppendMany(tuple(event(number) for number in range(100, 130)))
                assert await ref.ask(big) == Appended(101, 130)
        assert sum(commits) == 130
        assert len(commits) > 10
        assert max(commits[:-1]) <= 10
        assert commits[-1] >= 30  # a request is never cut in two
        assert [e.payload["order_id"] for e in persistence.events] == list(range(130))


async def test_every_caller_of_a_group_commit_gets_its_own_reply() -> None:
    replies: dict[int, Appended] = {}

    async def ask(ref: ActorRef, number: int) -> None:
        replies[number] = await ref.ask(Append(event(number)))

    async with ActorSystem() as system:
        ref, persistence = await busy(system)
        async with anyio.create_task_group() as tasks:
            for number in range(1, 6):
                tasks.start_soon(ask, ref, number)
                await wait_until_idle()
            persistence.release()
    assert replies == {number: Appended(number + 1, number + 1) for number in range(1, 6)}


async def test_a_bad_record_in_a_group_commit_fails_its_own_caller_only() -> None:
    replies: dict[int, Any] = {}

    async def ask(ref: ActorRef, number: int, request: Any) -> None:
        try:
            replies[number] = await ref.ask(request)
        except InvalidRecord as error:
            replies[number] = error

    requests = [
        Append(event(1)),
        Append(event(2, payload={"x": object()})),
        AppendMany((event(3), event(4))),
        AppendMany((event(5), event(6, payload=object()))),
        Append("no record"),  # type: ignore[arg-type]
        AppendMany(7),  # type: ignore[arg-type]
        Append(event(8)),
    ]
    async with ActorSystem() as system:
        ref, persistence = await busy(system)
        async with anyio.create_task_group() as tasks:
            for number, request in enumerate(requests):
                tasks.start_soon(ask, ref, number, request)
                await wait_until_idle()
            persistence.release()
    assert [replies[0], replies[2], replies[6]] == [Appended(2, 2), Appended(3, 4), Appended(5, 5)]
    assert isinstance(replies[1], UnencodablePayload)
    assert replies[1].path == "payload['x']"
    assert isinstance(replies[3], UnencodablePayload)
    assert isinstance(replies[4], InvalidRecord)
    assert isinstance(replies[5], InvalidRecord)
    assert numbers(persistence) == [0, 1, 3, 4, 8]
    assert persistence.metrics.snapshot().write_errors == 4


BAD_RECORDS: list[Any] = [
    event(timestamp=10**400),
    event(timestamp=math.nan),
    event(payload={"n": 10**5000}),
    event(payload=payloads.without(payloads.Line(1), "y")),
    event(payload=payloads.Unnamed()),
    event(event_type="\ud800"),
    payloads.without(event(), "payload"),
    payloads.without(event(), "timestamp"),
    payloads.Hostile(RuntimeError("no")),
    payloads.Unnamed(),
    *(event(payload=payload) for error in payloads.ERRORS for payload in payloads.hostile(error)),
]


async def test_a_record_whose_encoding_raises_fails_its_own_caller_only() -> None:
    failed: list[int] = []
    requests: list[Any] = [
        *map(Append, BAD_RECORDS),
        *(AppendMany((event(), record)) for record in BAD_RECORDS),
        payloads.without(Append(event()), "record"),
        payloads.without(AppendMany(()), "records"),
        AppendMany(payloads.Hostile(RuntimeError("no"))),  # type: ignore[arg-type]
        AppendMany(payloads.Endless([object()])),  # type: ignore[arg-type]
    ]

    async def ask(ref: ActorRef, number: int, request: Any) -> None:
        try:
            await ref.ask(request)
        except InvalidRecord:
            failed.append(number)

    async with ActorSystem() as system:
        ref, persistence = await busy(system)
        async with anyio.create_task_group() as tasks:
            for number, request in enumerate(requests):
                await ref.tell(Append(event(number + 1)))
                tasks.start_soon(ask, ref, number, request)
                await wait_until_idle()
                await ref.tell(request)
            persistence.release()
        await ref.ask(Flush())
        assert persistence.metrics.write_errors == 2 * len(requests)
    assert sorted(failed) == list(range(len(requests)))
    assert numbers(persistence) == list(range(len(requests) + 1))


async def test_the_persistence_actor_refuses_hostile_requests_and_goes_on() -> None:
    strangers: list[Any] = [10**5000, payloads.Unnamed(), payloads.Endless(), Append]
    strangers += map(payloads.Hostile, payloads.ERRORS)
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, InMemoryPersistence())
        for stranger in strangers:
            with pytest.raises(InvalidRequest, match="is no request"):
                await ref.ask(stranger)
            await ref.tell(stranger)
        for records in (payloads.Hostile(RuntimeError("no")), payloads.Endless(), 10**5000):
            with pytest.raises(InvalidRecord, match="takes a tuple of records"):
                await ref.ask(Restore(records))  # type: ignore[arg-type]
        for record in BAD_RECORDS:
            with pytest.raises(InvalidRecord):
                await ref.ask(Restore((record,)))
        for seq in (10**5000, -1, payloads.Hostile(RuntimeError("no"))):
            with pytest.raises(InvalidRequest, match="can't be restored"):
                await ref.ask(Restore((event(seq=seq),)))
        assert (await ref.ask(Append(event()))).first_seq == 1


async def test_a_failing_store_fails_its_callers_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    persistence = FaultyPersistence(InMemoryPersistence())
    errors: list[StoreError] = []

    async def ask(ref: ActorRef) -> None:
        try:
            await ref.ask(Append(event()))
        except StoreError as error:
            errors.append(error)

    async with ActorSystem(persistence=persistence) as system:
        ref = system.persistence
        persistence.fail_every(1, "append", OSError("disk on fire"))
        with caplog.at_level(logging.ERROR, "papyra"):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(ask, ref)
            for _ in range(10):
                await ref.tell(Append(event()))
                await wait_until_idle()
        persistence.clear()
        assert (await ref.ask(Append(event()))).first_seq == 1
        assert persistence.metrics.snapshot().write_errors == 20
    assert len(errors) == 10
    assert len({id(error) for error in errors}) == 10
    assert all(isinstance(error.__cause__, OSError) for error in errors)
    logged = [record.message for record in caplog.records if "requests failed" in record.message]
    assert len(logged) == 1, "failures are logged, at a bounded rate"
    assert "disk on fire" in logged[0]


async def test_the_persistence_actor_refuses_an_unknown_message_and_goes_on(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem() as system:
        ref = system.spawn(PersistenceActor, persistence)
        for message in ("append this", 7, None, event()):
            with pytest.raises(InvalidRequest, match="is no request to a persistence backend"):
                await ref.ask(message)
            await ref.tell(message)
        assert await ref.ask(Append(event())) == Appended(1, 1)


async def test_a_full_mailbox_of_the_persistence_actor_makes_tell_wait() -> None:
    told: list[int] = []

    async def tell(ref: ActorRef) -> None:
        for number in range(20_000):
            await ref.tell(Append(event(number)))
            told.append(number)

    async with ActorSystem() as system:
        ref, persistence = await busy(system)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell, ref)
            await wait_until_idle()
            assert len(told) == PersistenceActor.mailbox_capacity
            with pytest.raises(MailboxFull):
                ref.tell_nowait(Append(event()))
            persistence.release()
    assert len(numbers(persistence)) == 20_001


async def test_a_store_that_hangs_does_not_keep_the_system_from_stopping() -> None:
    errors: list[Exception] = []

    async def ask(ref: ActorRef) -> None:
        try:
            await ref.ask(Append(event()))
        except ActorStopped as error:
            errors.append(error)

    persistence = FaultyPersistence(InMemoryPersistence())
    persistence.hang()
    async with (
        anyio.create_task_group() as tasks,
        ActorSystem(persistence=persistence, shutdown_timeout=0.01) as system,
    ):
        for _ in range(3):
            tasks.start_soon(ask, system.persistence)
        await wait_until_idle()
    assert len(errors) == 3


async def test_a_caller_that_is_cancelled_has_its_record_stored_all_the_same() -> None:
    async with ActorSystem() as system:
        ref, persistence = await busy(system)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.ask, Append(event(1)))
            await wait_until_idle()
            tasks.cancel_scope.cancel()
        persistence.release()
        assert (await ref.ask(Flush())).last_seq == 2


async def test_any_number_of_persistence_actors_work_side_by_side() -> None:
    backends = [InMemoryPersistence() for _ in range(5)]
    async with ActorSystem() as system:
        for number, persistence in enumerate(backends):
            ref = system.spawn(PersistenceActor, persistence)
            await ref.ask(AppendMany((event(),) * number))
    assert [len(persistence.events) for persistence in backends] == [0, 1, 2, 3, 4]


async def test_a_persistence_actor_stopped_before_it_ran_releases_its_backend(
    persistence: InMemoryPersistence,
) -> None:
    async with ActorSystem() as system:
        await system.spawn(PersistenceActor, persistence).stop()
        await system.spawn(PersistenceActor, persistence).ask(Append(event()))
    assert len(persistence.events) == 1
