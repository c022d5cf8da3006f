"""The rules of appends."""

from __future__ import annotations

import decimal
import enum
import math
from typing import Any

import anyio
import msgspec
import pytest

from papyra.exceptions import (
    InvalidRecord,
    PersistenceError,
    RecordTooLarge,
    UnencodablePayload,
)
from papyra.persistence.backends.paging import MAX_PAGE_RECORDS
from papyra.persistence.codec import MAX_DEPTH
from papyra.persistence.messages import Append, AppendMany, Restore
from papyra.persistence.records import PersistedAudit
from papyra.testing._list_model import ListModel
from papyra.testing.conformance._fixtures import (
    MakeBackend,
    a_record,
    an_event,
    everything,
    hosted,
    without_seq,
)


class _Note(msgspec.Struct):
    text: Any


class _Odd(enum.Enum):
    NAN = math.nan


class Appending:
    """Part of the conformance suite."""

    async def test_positions_count_one_two_three_across_kinds(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            for number in range(1, 7):
                appended = await backend.append(a_record(number))
                assert (appended.first_seq, appended.last_seq) == (number, number)
            assert [r.seq for r in await everything(backend)] == [1, 2, 3, 4, 5, 6]

    async def test_an_append_says_where_its_records_are(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            first = await backend.append(*map(a_record, range(5)))
            second = await backend.append(a_record(5), a_record(6))
            assert (first.first_seq, first.last_seq) == (1, 5)
            assert (second.first_seq, second.last_seq) == (6, 7)
            stored = await everything(backend)
            assert [without_seq(record) for record in stored] == list(map(a_record, range(7)))

    async def test_an_append_of_nothing_stores_nothing(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.append(a_record(1))
            appended = await backend.append()
            assert (appended.first_seq, appended.last_seq) == (2, 1)
            assert (await backend.append(a_record(2))).first_seq == 2
            assert len(await everything(backend)) == 2

    async def test_an_append_that_fails_uses_no_positions(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.append(a_record(1))
            with pytest.raises(InvalidRecord):
                await backend.append(an_event(2), an_event(3, payload=object()))
            assert (await backend.append(a_record(4))).first_seq == 2

    async def test_a_batch_is_stored_whole_or_not_at_all(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            for position in range(3):
                batch = [an_event(number) for number in range(3)]
                batch[position] = an_event(9, payload={"bad": object()})
                with pytest.raises(InvalidRecord):
                    await backend.append(*batch)
            assert await everything(backend) == []

    async def test_a_bad_record_fails_its_own_caller_only(self, make_backend: MakeBackend) -> None:
        unset = _Note("")
        del unset.text
        bad = {
            3: an_event(3, payload=object()),
            4: an_event(4, timestamp=10**400),
            6: an_event(6, payload={"n": 10**5000}),
            9: an_event(9, payload=[unset]),
        }
        async with hosted(make_backend()) as (backend, ref):
            outcomes: dict[int, object] = {}

            async def ask(number: int) -> None:
                try:
                    outcomes[number] = await ref.ask(Append(bad.get(number, an_event(number))))
                except InvalidRecord as error:
                    outcomes[number] = error

            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(ask, number)
            failed = {n for n, outcome in outcomes.items() if isinstance(outcome, Exception)}
            assert failed == bad.keys()
            stored = await backend.list_events()
            assert sorted(event.payload["n"] for event in stored) == [0, 1, 2, 5, 7, 8, 10, 11]
            assert backend.metrics.write_errors == len(bad)

    async def test_a_record_that_is_too_large_fails_its_own_caller_only(
        self, make_backend: MakeBackend
    ) -> None:
        shared: Any = ["x" * 1024**2]  # which is soon too large; of single letters it takes long
        for _ in range(60):
            shared = [shared, shared]  # small here, and endless once it is written out
        too_large = an_event(3, payload=shared)
        requests: list[Append | AppendMany] = [
            Append(an_event(1)),
            Append(too_large),
            Append(an_event(2)),
        ]
        requests += [AppendMany((an_event(4), too_large)), AppendMany((an_event(5), an_event(6)))]
        async with hosted(make_backend()) as (backend, ref):
            outcomes: list[object] = [None] * len(requests)

            async def ask(position: int) -> None:
                try:
                    outcomes[position] = await ref.ask(requests[position])
                except PersistenceError as error:
                    outcomes[position] = type(error)

            async with anyio.create_task_group() as tasks:
                for position in range(len(requests)):
                    tasks.start_soon(ask, position)
            await ref.tell(Append(too_large))
            with pytest.raises(RecordTooLarge):
                await ref.ask(Restore((msgspec.structs.replace(too_large, seq=100),)))
            refused = [outcome is RecordTooLarge for outcome in outcomes]
            assert refused == [False, True, False, True, False]
            stored = await backend.list_events()
            assert sorted(event.payload["n"] for event in stored) == [1, 2, 5, 6]
            assert (await backend.append(an_event(7))).first_seq == 5

    async def test_a_run_of_appends_keeps_the_order_of_the_mailbox(
        self, make_backend: MakeBackend
    ) -> None:
        async with hosted(make_backend()) as (backend, ref):
            model = ListModel()
            number = 0
            for length in (1, 3, 12, 40):
                records = tuple(a_record(number + i) for i in range(length))
                model.append(*records)
                number += length
                if length % 2:
                    await ref.tell(AppendMany(records))
                else:
                    for record in records:
                        await ref.tell(Append(record))
            await backend.flush()
            assert await everything(backend) == [record for record, _ in model.stored]

    async def test_a_large_batch_is_stored_whole(self, make_backend: MakeBackend) -> None:
        count = 2 * MAX_PAGE_RECORDS + 1
        async with make_backend() as backend:
            appended = await backend.append(*(an_event(number) for number in range(count)))
            assert (appended.first_seq, appended.last_seq) == (1, count)
            numbers = [event.payload["n"] for event in await backend.list_events()]
            assert numbers == list(range(count))

    async def test_what_json_has_no_form_for_is_refused_with_its_path(
        self, make_backend: MakeBackend
    ) -> None:
        itself: dict[str, Any] = {}
        itself["itself"] = itself
        async with make_backend() as backend:
            for payload, path in [
                ({"items": ["tea", {"price": object()}]}, "payload['items'][1]['price']"),
                ({"price": math.nan}, "payload['price']"),
                ([math.inf], "payload[0]"),
                (itself, "payload['itself']"),
                ({"key": {1: b"", (1, 2): 0}}, "payload['key']"),
            ]:
                with pytest.raises(UnencodablePayload) as caught:
                    await backend.append(an_event(1, payload=payload))
                assert caught.value.path == path
            assert await everything(backend) == []

    async def test_what_would_not_come_back_is_refused_with_its_path(
        self, make_backend: MakeBackend
    ) -> None:
        elsewhere = b'{},"actor_address":"s/x","event_type":"X","payload":{"n":1}'
        deep: Any = []
        for _ in range(MAX_DEPTH):
            deep = [deep]
        async with make_backend() as backend:
            for value, place in [
                ({1: "a", "1": "b"}, ""),
                (_Odd.NAN, ""),
                (_Note(math.inf), ".text"),
                (decimal.Decimal("NaN"), ""),
                (msgspec.Raw(elsewhere), ""),
                (msgspec.Raw(b'{"a":1,"a":2}'), ""),
                (msgspec.Raw(b"[1,"), ""),
                ([msgspec.Raw(b"[" * 1200 + b"]" * 1200)], "[0]"),
            ]:
                with pytest.raises(UnencodablePayload) as caught:
                    await backend.append(an_event(1, payload={"here": value}))
                assert caught.value.path == f"payload['here']{place}"
            with pytest.raises(UnencodablePayload, match="nested too deeply"):
                await backend.append(an_event(1, payload=deep))
            assert await everything(backend) == []

    async def test_what_is_nested_as_deeply_as_may_be_is_read_again(
        self, make_backend: MakeBackend
    ) -> None:
        deep: Any = ["here"]
        for number in range(1, MAX_DEPTH):
            deep = {"a": deep} if number % 2 else [deep, number]
        record = an_event(1, payload=deep)
        async with make_backend() as backend:
            await backend.append(an_event(0), record, an_event(2))
            assert [without_seq(each) for each in await everything(backend)][1] == record
            assert (await backend.list_events(limit=2))[0].payload == deep
            assert (await backend.scan()).is_clean

    async def test_a_time_may_be_a_whole_number(self, make_backend: MakeBackend) -> None:
        times = [0, 5, -3, 10**30, -(10**300), 2**63]
        async with make_backend() as backend:
            await backend.append(*(an_event(n, timestamp=time) for n, time in enumerate(times)))
            await backend.append(an_event(6, timestamp=10**30))
            stored = [event.timestamp for event in await backend.list_events()]
            assert stored == [*map(float, times), 1e30]
            page = await backend.read("event", since=0, until=10)
            assert [event.timestamp for event in page.records] == [0.0, 5.0]

    async def test_a_record_of_wrong_types_is_refused(self, make_backend: MakeBackend) -> None:
        wrong: list[Any] = [
            "a string",
            None,
            {"event_type": "Placed"},
            an_event(1, event_type=5),
            an_event(1, timestamp=math.nan),
            an_event(1, timestamp="now"),
            an_event(1, timestamp=10**400),
            PersistedAudit("s", {}, math.inf),
        ]
        async with make_backend() as backend:
            for record in wrong:
                with pytest.raises(InvalidRecord):
                    await backend.append(record)
            assert await everything(backend) == []
