"""The rules of reads."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgspec
import pytest

from papyra.exceptions import InvalidRequest
from papyra.persistence.backends.paging import MAX_PAGE_BYTES, MAX_PAGE_RECORDS
from papyra.persistence.messages import Append, Read
from papyra.persistence.records import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)
from papyra.persistence.retention import RetentionPolicy
from papyra.testing._list_model import read_pages, read_to_the_end
from papyra.testing.conformance._fixtures import (
    T0,
    MakeBackend,
    an_event,
    everything,
    fill,
    hosted,
    reads,
    without_seq,
)


@dataclasses.dataclass
class _Order:
    number: int
    items: list[str]


class _Line(msgspec.Struct):
    sku: str
    count: int


class Reading:
    """Part of the conformance suite."""

    async def test_records_come_back_as_they_were_written(self, make_backend: MakeBackend) -> None:
        payloads: list[Any] = [
            None,
            True,
            0,
            -(2**53),
            2**64 - 1,
            1e-300,
            0.1,
            "",
            'line\nbreak, tab\t, quote ", backslash \\, null \0, del \x7f',
            "Größe 尺寸 📏 \u2028\u2029",
            [],
            {},
            {"": {"nested": [[], {}, [None]]}},
            {"long": "x" * 100_000},
            list(range(1000)),
            {f"key {number}": number for number in range(500)},
        ]
        async with make_backend() as backend:
            records: list[Record] = [an_event(n, payload=p) for n, p in enumerate(payloads)]
            records += [PersistedAudit("s", payload, T0) for payload in payloads]
            records += [
                PersistedDeadLetter("s", "s/ä/尺", "str", payload, n % 2 == 0, T0 + 0.25)
                for n, payload in enumerate(payloads)
            ]
            await backend.append(*records)
            assert [without_seq(record) for record in await everything(backend)] == records

    async def test_structs_and_dataclasses_come_back_as_plain_data(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            order, line = _Order(1, ["tea"]), _Line("t-1", 2)
            await backend.append(
                an_event(1, payload=order), an_event(2, payload=(line, {"a": {line.sku}}))
            )
            first, second = await backend.list_events()
            assert first.payload == {"number": 1, "items": ["tea"]}
            assert second.payload == [{"sku": "t-1", "count": 2}, {"a": ["t-1"]}]

    async def test_each_kind_is_read_by_itself(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.record_event(an_event(1))
            await backend.record_audit(PersistedAudit("s", {"actors": 1}, T0))
            await backend.record_dead_letter(PersistedDeadLetter("s", "s/a", "str", "m", True, T0))
            assert [(r.seq, type(r)) for r in await backend.list_events()] == [(1, PersistedEvent)]
            assert [(r.seq, type(r)) for r in await backend.list_audits()] == [(2, PersistedAudit)]
            letters = await backend.list_dead_letters()
            assert [(r.seq, type(r)) for r in letters] == [(3, PersistedDeadLetter)]

    async def test_a_stored_record_does_not_change_with_what_it_was_made_of(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            payload = {"items": ["tea"]}
            await backend.append(an_event(1, payload=payload), an_event(2, payload=payload))
            payload["items"].append("cups")
            assert [event.payload for event in await backend.list_events()] == [
                {"items": ["tea"]}
            ] * 2

    async def test_a_stored_record_does_not_change_with_what_was_read(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(an_event(1, payload={"items": ["tea"]}))
            for read in (backend.list_events, backend.list_events):
                (event,) = await read()
                event.payload["items"].append("cups")
            page = await backend.read("event")
            assert page.records[0].payload == {"items": ["tea"]}

    async def test_reads_obey_every_argument_and_their_combinations(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            model = await fill(backend, 30)
            for request in reads(
                {
                    "after": [0, 7, 99],
                    "before": [None, 20],
                    "since": [None, T0 + 9],
                    "until": [None, T0 + 21],
                    "limit": [None, 0, 1, 4],
                    "event_type": [None, "B"],
                    "actor": [None, "s/b"],
                    "newest": [False, True],
                }
            ):
                found = await read_to_the_end(backend, request)
                assert found == model.read(request, T0), request

    async def test_since_and_until_include_their_own_moment(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*(an_event(n, timestamp=T0 + n / 4) for n in range(9)))
            page = await backend.read("event", since=T0 + 0.5, until=T0 + 1.0)
            assert [record.payload["n"] for record in page.records] == [2, 3, 4]

    async def test_a_page_is_bounded_in_records(self, make_backend: MakeBackend) -> None:
        count = 2 * MAX_PAGE_RECORDS + 10
        async with make_backend() as backend:
            await backend.append(*(an_event(number) for number in range(count)))
            for newest in (False, True):
                pages = await read_pages(backend, Read("event", newest=newest))
                assert max(map(len, pages)) <= MAX_PAGE_RECORDS
                assert sum(map(len, pages)) == count

    async def test_a_page_is_bounded_in_bytes(self, make_backend: MakeBackend) -> None:
        payload = "x" * (MAX_PAGE_BYTES // 2)
        async with make_backend() as backend:
            for number in range(5):
                await backend.append(an_event(number, payload=payload))
            for newest in (False, True):
                pages = await read_pages(backend, Read("event", newest=newest))
                assert max(map(len, pages)) <= 2
                assert sum(map(len, pages)) == 5

    async def test_a_page_says_whether_there_is_more(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.append(*map(an_event, range(1, 6)))
            for limit, more in ((0, True), (2, True), (5, False), (6, False)):
                for newest in (False, True):
                    page = await backend.read("event", limit=limit, newest=newest)
                    assert (len(page.records), page.more) == (min(limit, 5), more)
            assert not (await backend.read("audit")).more

    async def test_lists_keep_the_newest(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.append(*map(an_event, range(10)))
            listed = [
                [event.payload["n"] for event in await backend.list_events(limit, since)]
                for limit, since in ((None, None), (3, None), (0, None), (None, T0 + 8), (1, T0))
            ]
            assert listed == [list(range(10)), [7, 8, 9], [], [8, 9], [9]]

    async def test_a_stream_walks_all_pages_and_what_is_appended_meanwhile(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*map(an_event, range(MAX_PAGE_RECORDS + 1)))
            seen: list[int] = []
            async for record in backend.stream("event"):
                if not seen:
                    await backend.append(an_event(-1))
                seen.append(record.payload["n"])
            assert seen == [*range(MAX_PAGE_RECORDS + 1), -1]

    async def test_what_was_acknowledged_is_read(self, make_backend: MakeBackend) -> None:
        async with hosted(make_backend()) as (backend, ref):
            for number in range(1, 10):
                await ref.ask(Append(an_event(number)))
                newest = await backend.list_events(limit=1)
                assert newest[0].seq == number

    async def test_numbers_may_be_greater_than_any_column_of_a_store(
        self, make_backend: MakeBackend
    ) -> None:
        huge = 10**30
        policy = RetentionPolicy(max_records=huge, max_age_seconds=huge, max_total_bytes=huge)
        async with make_backend(retention_policy=policy) as backend:
            await backend.append(*map(an_event, range(1, 4)))
            cases: list[tuple[dict[str, Any], list[int]]] = [
                ({"after": huge}, []),
                ({"before": huge}, [1, 2, 3]),
                ({"limit": huge}, [1, 2, 3]),
                ({"since": huge}, []),
                ({"since": -huge, "until": huge}, [1, 2, 3]),
                ({"since": -math.inf, "until": math.inf}, [1, 2, 3]),
            ]
            for arguments, found in cases:
                for newest in (False, True):
                    page = await backend.read("event", newest=newest, **arguments)
                    assert [record.seq for record in page.records] == found, arguments
                    assert not page.more
            for dry_run in (True, False):
                report = await backend.compact(policy, dry_run=dry_run)
                assert report.records_before == report.records_after == 3

    async def test_a_read_that_makes_no_sense_is_refused(self, make_backend: MakeBackend) -> None:
        wrong: list[dict[str, Any]] = [
            {"kind": "events"},
            {"kind": "event", "limit": -1},
            {"kind": "event", "after": None},
            {"kind": "event", "since": math.nan},
            {"kind": "event", "event_type": 5},
            {"kind": "audit", "actor": "s/a"},
            {"kind": "dead_letter", "event_type": "A"},
        ]
        async with make_backend() as backend:
            for arguments in wrong:
                with pytest.raises(InvalidRequest):
                    await backend.read(**arguments)
