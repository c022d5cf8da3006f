"""The rules of subscriptions."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence

import anyio
import pytest
from anyio.lowlevel import checkpoint

from papyra.exceptions import StoreReplaced
from papyra.persistence.records import KINDS, Record
from papyra.persistence.retention import RetentionPolicy
from papyra.persistence.subscription import CaughtUp, FellBehind, Item, Received, Subscription
from papyra.testing._cancel import cancel_at_each_await
from papyra.testing.conformance._fixtures import (
    MakeBackend,
    a_record,
    again,
    an_event,
    everything,
    hosted,
    needs,
)

#: Seconds in which what is stored has to come.
_PATIENCE = 60


class Following:
    """Part of the conformance suite."""

    async def test_a_subscription_gives_out_what_is_stored_once_and_in_order(
        self, make_backend: MakeBackend
    ) -> None:
        chance = random.Random(17)  # noqa: S311 - the same mixture each time
        async with hosted(make_backend()) as (backend, _):
            found: dict[int, tuple[int, Sequence[Record]]] = {}

            async def follow(reader: int) -> None:
                for _ in range(chance.randrange(60)):
                    await checkpoint()
                after = chance.choice([0, backend.last_seq, chance.randint(0, backend.last_seq)])
                async with backend.subscribe(after=after, kinds=KINDS) as items:
                    found[reader] = (after, await _records(items, 30 - after))

            with anyio.fail_after(_PATIENCE):
                async with anyio.create_task_group() as tasks:
                    for reader in range(6):
                        tasks.start_soon(follow, reader)
                    number = 0
                    while number < 30:
                        count = min(30 - number, chance.choice([1, 2, 5]))
                        await backend.append(*map(a_record, range(number, number + count)))
                        number += count
                        for _ in range(chance.choice([0, 3])):
                            await checkpoint()
            stored = await everything(backend)
            assert len(stored) == 30
            for after, records in found.values():
                assert records == stored[after:]

    async def test_a_subscription_says_when_it_has_caught_up(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            async with backend.subscribe(kinds=KINDS) as items:
                assert await _next(items) == CaughtUp(0)
                await backend.append(*map(a_record, range(3)))
                records = await everything(backend)
                assert [await _next(items) for _ in range(3)] == records
            async with backend.subscribe(after=1, kinds=KINDS) as items:
                assert [await _next(items) for _ in range(3)] == [*records[1:], CaughtUp(3)]

    async def test_a_subscription_moves_on_over_what_it_does_not_select(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*(an_event(0), a_record(1), a_record(2)))
            async with (
                backend.subscribe(types=["Z"]) as of_type,
                backend.subscribe(actor="s/z") as of_actor,
                backend.subscribe(entity="Z") as of_entity,
            ):
                following = (of_type, of_actor, of_entity)
                for items in following:
                    assert await _next(items) == CaughtUp(3)
                    assert items.position == 3
                await backend.append(an_event(3))
                await backend.append(
                    an_event(4, event_type="Z", actor_address="s/z"),
                    an_event(5, actor_address="s/Z/one"),
                )
                stored = await everything(backend)
                assert [await _next(items) for items in following] == [stored[-2]] * 2 + [
                    stored[-1]
                ]

    async def test_a_subscription_gives_out_what_retention_hides(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*map(an_event, range(6)))
            records = await everything(backend)
        backend = again(backend, make_backend, retention_policy=RetentionPolicy(max_records=1))
        async with backend, backend.subscribe() as items:
            assert await _until_caught_up(items) == records

    @needs(lambda backend: backend.capabilities.compaction)
    async def test_a_subscription_goes_on_after_a_compaction(
        self, make_backend: MakeBackend
    ) -> None:
        policy = RetentionPolicy(max_records=2)
        async with make_backend() as backend, backend.subscribe() as items:
            await backend.append(*map(an_event, range(5)))
            assert len(await _until_caught_up(items)) == 5
            await backend.compact(policy)
            await backend.append(*map(an_event, range(5, 10)))
            records = await everything(backend)
            assert await _records(items, 5) == records[-5:]
            for after, left in ((0, 7), (2, 7), (4, 6), (9, 1)):
                async with backend.subscribe(after=after) as others:
                    assert await _until_caught_up(others) == records[-left:]

    async def test_a_subscription_after_the_end_of_the_store_is_refused(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(an_event(0))
            async with backend.subscribe(after=2) as items:
                with pytest.raises(StoreReplaced):
                    await _next(items)

    @needs(lambda backend: backend.capabilities.durable)
    async def test_a_reader_follows_beside_the_writer(self, make_backend: MakeBackend) -> None:
        async with make_backend() as writer:
            await writer.append(*map(a_record, range(3)))
            async with (
                make_backend().reader() as reader,
                reader.subscribe(kinds=KINDS) as items,
            ):
                assert await _until_caught_up(items) == await everything(writer)
                for number in (3, 5):
                    await writer.append(*map(a_record, range(number, number + 2)))
                    assert await _records(items, 2) == (await everything(writer))[-2:]

    async def test_a_subscription_loses_nothing_when_it_is_cancelled(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*map(a_record, range(6)))
            stored = await everything(backend)
            for after in (0, 3):
                async with backend.subscribe(after=after, kinds=KINDS) as items:
                    found: list[Item] = []

                    async def take(items: Subscription = items, found: list[Item] = found) -> None:
                        found.append(await _next(items))

                    await cancel_at_each_await(take, checkpoint)
                    found += await _until_caught_up(items)
                    assert found == stored[after:]


async def _next(items: Subscription) -> Item:
    with anyio.fail_after(_PATIENCE):
        return await anext(items)


async def _records(items: AsyncIterator[Item], count: int) -> list[Record]:
    """Return the next so many records."""
    found: list[Record] = []
    with anyio.fail_after(_PATIENCE):
        while len(found) < count:
            item = await anext(items)
            if not isinstance(item, (CaughtUp, FellBehind, Received)):
                found.append(item)
    return found


async def _until_caught_up(items: AsyncIterator[Item]) -> list[Record]:
    """Return the records up to the end."""
    found: list[Record] = []
    with anyio.fail_after(_PATIENCE):
        async for item in items:
            if isinstance(item, CaughtUp):
                return found
            if not isinstance(item, (FellBehind, Received)):
                found.append(item)
    raise AssertionError("it has ended")
