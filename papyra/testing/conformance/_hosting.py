"""Opening, closing and sharing a backend; its counters; cancelled callers."""

from __future__ import annotations

import contextlib
import random

import anyio
import msgspec
import pytest

from papyra.exceptions import (
    BackendBusy,
    BackendClosed,
    BackendInUse,
    InvalidRecord,
    PersistenceError,
)
from papyra.persistence.actor import PersistenceActor
from papyra.persistence.backends.base import (
    Batch,
    PersistenceBackend,
)
from papyra.persistence.messages import Append, AppendMany
from papyra.persistence.retention import RetentionPolicy
from papyra.system import ActorSystem
from papyra.testing._cancel import cancel_at_each_await
from papyra.testing._list_model import ListModel
from papyra.testing.conformance._fixtures import (
    MakeBackend,
    a_record,
    an_event,
    everything,
    hosted,
)


async def append_and_cancel(backend: PersistenceBackend, size: int) -> None:
    """Check that batches which are cancelled at each await are stored whole or not at all."""
    number = 0

    async def append() -> None:
        await backend.append(*[an_event(number)] * size)

    async def append_another() -> None:
        nonlocal number
        number += 1
        await backend.append(an_event(-1))

    await cancel_at_each_await(append, append_another)
    stored = [event.payload["n"] for event in await backend.list_events()]
    # The last one was not cancelled.
    assert {stored.count(n) for n in stored if n >= 0} == {size}, stored
    assert stored.count(-1) == number


class Sharing:
    """Part of the conformance suite."""

    async def test_a_store_that_is_opened_again_goes_on_where_it_was(
        self, make_backend: MakeBackend
    ) -> None:
        backend = make_backend()
        model = ListModel()
        for _ in range(3):
            async with backend:
                records = [a_record(len(model.stored) + i) for i in range(4)]
                model.append(*records)
                appended = await backend.append(*records)
                assert appended.last_seq == len(model.stored)
                assert await everything(backend) == [record for record, _ in model.stored]
            if backend.capabilities.durable:
                backend = make_backend()

    async def test_a_closed_backend_says_so(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        await backend.append(an_event(1))
        await backend.aclose()
        await backend.aclose()
        with pytest.raises(BackendClosed):
            await backend.append(an_event(2))
        if backend.capabilities.readable_when_closed:
            assert len(await backend.list_events()) == 1
            assert (await backend.scan()).is_clean
        else:
            with pytest.raises(BackendClosed):
                await backend.list_events()
        async with backend:
            assert (await backend.append(an_event(2))).first_seq == 2

    async def test_one_actor_at_a_time_hosts_a_backend(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        async with ActorSystem("conformance") as system:
            first = system.spawn(PersistenceActor, backend, name="first")
            with pytest.raises(BackendInUse, match="conformance/first"):
                system.spawn(PersistenceActor, backend)
            assert (await first.ask(Append(an_event(1)))).first_seq == 1
            await first.stop()
            second = system.spawn(PersistenceActor, backend)
            assert (await second.ask(Append(an_event(2)))).first_seq == 2
            assert len(await backend.list_events()) == 2

    async def test_two_tasks_without_a_host_never_meet_in_the_store(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            refused = []

            async def append(number: int) -> None:
                try:
                    await backend.append(an_event(number), an_event(number))
                except BackendBusy:
                    refused.append(number)

            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(append, number)
            stored = [event.payload["n"] for event in await backend.list_events()]
            assert stored[::2] == stored[1::2]
            assert sorted([*stored[::2], *refused]) == list(range(5))

    async def test_two_writers_never_get_the_same_position(self, make_backend: MakeBackend) -> None:
        first, second = make_backend(), make_backend()
        if not first.capabilities.durable:
            return  # each has a store of its own
        given: dict[int | None, int] = {}

        async def append(backend: PersistenceBackend, *numbers: int) -> None:
            # It may be kept out, or be told that it is not the writer any more.
            with contextlib.suppress(PersistenceError):
                appended = await backend.append(*map(an_event, numbers))
                for seq, number in enumerate(numbers, appended.first_seq):
                    assert seq not in given, seq
                    given[seq] = number

        await append(first, 1, 2)
        await append(second, 3)
        with contextlib.suppress(PersistenceError):
            await second.compact(RetentionPolicy(max_age_seconds=1))  # they are years old
        for backend, numbers in ((first, (4, 5)), (first, (6,)), (second, (7,)), (first, (8,))):
            await append(backend, *numbers)
        for backend in (first, second):
            with contextlib.suppress(PersistenceError):
                await backend.aclose()
        async with make_backend() as backend:
            events = await backend.list_events()
            stored = {event.seq: event.payload["n"] for event in events}
            assert len(stored) == len(events)
            assert stored.items() <= given.items()
            assert {number for number in given.values() if number > 3} <= set(stored.values())
            assert (await backend.scan()).is_clean
            assert (await backend.append(an_event(9))).first_seq > max(seq or 0 for seq in given)

    async def test_many_tasks_share_a_hosted_backend(self, make_backend: MakeBackend) -> None:
        async with hosted(make_backend()) as (backend, ref):
            seqs: dict[int, list[int]] = {}

            async def work(name: int) -> None:
                chance = random.Random(name)  # noqa: S311 - the same mixture each time
                mine = seqs[name] = []
                for number in range(12):
                    records = [an_event(name * 100 + number)] * chance.randint(1, 3)
                    appended = await ref.ask(AppendMany(tuple(records)))
                    mine.append(appended.first_seq)
                    stored = (await backend.read("event", after=appended.first_seq - 1)).records
                    assert stored[0].payload["n"] == name * 100 + number

            async with anyio.create_task_group() as tasks:
                for name in range(8):
                    tasks.start_soon(work, name)
            given = [seq for mine in seqs.values() for seq in mine]
            assert len(set(given)) == len(given)
            assert all(mine == sorted(mine) for mine in seqs.values())
            stored = await backend.list_events()
            assert [event.seq for event in stored] == list(range(1, len(stored) + 1))

    async def test_a_flush_says_up_to_where(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            assert (await backend.flush()).last_seq == 0
            await backend.append(*map(a_record, range(3)))
            assert (await backend.flush()).last_seq == 3

    async def test_metrics_count_what_was_done(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            backend.metrics.reset()
            records = [a_record(number) for number in range(6)]
            await backend.append(*records[:4])
            await backend.append(*records[4:])
            with pytest.raises(InvalidRecord):
                await backend.append(an_event(1, payload=object()))
            await backend.read("event")
            found = len((await backend.scan()).anomalies)
            await backend.recover()
            await backend.compact()
            size = sum(len(msgspec.json.encode(record)) for record in records)
            capabilities = backend.capabilities
            assert {name: count for name, count in backend.metrics.snapshot().items() if count} == {
                name: count
                for name, count in {
                    "records_written": 6,
                    "bytes_written": size,
                    "commits": 2,
                    "reads": 1,
                    "scans": 1,
                    "anomalies_detected": found,
                    "recoveries": int(capabilities.recovery),
                    "compactions": int(capabilities.compaction),
                    "write_errors": 1,
                }.items()
                if count
            }
            backend.metrics.reset()
            assert set(backend.metrics.snapshot().values()) == {0}

    async def test_subscribers_see_each_batch_when_it_is_stored(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            seen: list[tuple[int, int]] = []

            def see(batch: Batch) -> None:
                seen.append((batch.first_seq, len(batch.encoded)))

            end = backend.watch_commits(see)
            await backend.append(an_event(1))
            assert seen == [(1, 1)]
            await backend.append(*map(an_event, range(4)))
            end()
            await backend.append(an_event(6))
            assert seen == [(1, 1), (2, 4)]

    async def test_an_append_cancelled_at_any_await_is_whole_or_nothing(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(an_event(-2))  # the first one may take more than those to come
            await append_and_cancel(backend, 3)
            seqs = [event.seq for event in await backend.list_events()]
            assert seqs == list(range(1, len(seqs) + 1))

    async def test_a_cancelled_caller_leaves_a_hosted_backend_sound(
        self, make_backend: MakeBackend
    ) -> None:
        async with hosted(make_backend()) as (backend, _):
            await append_and_cancel(backend, 2)

    async def test_a_read_cancelled_at_any_await_leaves_the_backend_usable(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*map(a_record, range(20)))
            before = await everything(backend)

            async def check() -> None:
                assert await everything(backend) == before

            for verb in (backend.list_events, backend.scan, backend.compact, backend.flush):
                await cancel_at_each_await(verb, check)
