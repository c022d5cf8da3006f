"""The store against a list: appended to, read, taken over, compacted, damaged and recovered.

``PAPYRA_EXAMPLES=200`` makes it a long run.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, ClassVar
from unittest import mock

import anyio.from_thread
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from papyra.exceptions import StoreFenced
from papyra.persistence import PersistenceRecoveryConfig, Read, Record
from papyra.persistence.backends import paging
from papyra.persistence.backends._redis import reader, repair, stream_iterator, stream_scan
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.records import KINDS, kind_of
from papyra.testing._list_model import read_to_the_end
from tests.conftest import event_loops
from tests.extent import count, some
from tests.persistence.backends.files.test_files_model import CompactedList
from tests.persistence.backends.test_memory_model import NOW, policies, reads, records
from tests.redis_server import RedisServer

anyio_backend = event_loops("asyncio")

EXAMPLES = count("PAPYRA_EXAMPLES", 6, 12)


class TrimmedList(CompactedList):
    """A list that is trimmed as streams are: from the beginning, up to what is shown."""

    def __init__(self, policy: RetentionPolicy) -> None:
        super().__init__(policy)
        self.policy = policy
        #: the time of each record's id: that of the latest so far
        self.times: dict[int, float] = {}

    def append(self, *records: Record) -> None:
        for record in records:
            super().append(record)
            latest = max(self.times.values(), default=0.0)
            self.times[self.last_seq] = max(latest, record.timestamp)

    def compact(self) -> None:
        kept = []
        for kind in KINDS:
            mine = [each for each in self.stored if kind_of(each[0]) == kind]
            limits = self.policy.of(kind)
            count, size = limits.max_records, limits.max_total_bytes
            oldest = limits.oldest_time(NOW)
            start = 0 if count is None else max(0, len(mine) - count)
            while size is not None and sum(length for _, length in mine[start:]) > size:
                start += 1
            while (
                oldest is not None
                and start < len(mine)
                and self.times[mine[start][0].seq or 0] < oldest
            ):
                start += 1
            kept += mine[start:]
        self.stored = sorted(kept, key=lambda each: each[0].seq or 0)


class Store(RuleBasedStateMachine):
    """What may happen to a store on a server."""

    loop: ClassVar[str]
    server: ClassVar[RedisServer]

    def run_in_loop(self, function: Callable[[], Awaitable[Any]]) -> Any:
        return self.portal.call(function)

    def make(self, **changes: Any) -> RedisStreamsPersistence:
        config = RedisStreamsConfig(url=self.server.url, system_id=self.system_id, **changes)
        return RedisStreamsPersistence(config, retention_policy=self.policy, clock=lambda: NOW)

    @initialize(policy=policies)
    def begin(self, policy: RetentionPolicy) -> None:
        self.stack = ExitStack()
        # Small enough for every limit to be met.
        for module, name, value in (
            (paging, "MAX_PAGE_RECORDS", 4),
            (reader, "MAX_PAGE_RECORDS", 4),
            (reader, "MAX_FETCHED", 6),
            (reader, "FIRST_FETCH", 2),
            (reader, "PAGE_ENTRIES", 3),
            (stream_scan, "PAGE_ENTRIES", 3),
            (repair, "REMOVED_AT_ONCE", 2),
            (stream_iterator, "COUNT", 3),
        ):
            self.stack.enter_context(mock.patch.object(module, name, value))
        self.portal = self.stack.enter_context(anyio.from_thread.start_blocking_portal(self.loop))
        self.admin = self.stack.enter_context(redis.Redis(port=self.server.port))
        self.system_id = uuid.uuid4().hex
        self.policy = policy
        self.model = TrimmedList(policy)
        self.store = self.make()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.run_in_loop(self.store.aclose)
            self.admin.delete(*self.store.config.keys.all)
            self.stack.close()

    @rule(batch=st.lists(records, max_size=12))
    def append(self, batch: list[Record]) -> None:
        appended = self.run_in_loop(lambda: self.store.append(*batch))
        assert appended.first_seq == self.model.last_seq + 1
        self.model.append(*batch)
        assert appended.last_seq == self.model.last_seq

    @rule(query=reads)
    def read(self, query: dict[str, Any]) -> None:
        request = Read(**query)
        found = self.run_in_loop(lambda: read_to_the_end(self.store, request))
        assert found == self.model.read(request, NOW)

    @rule()
    def close_and_open(self) -> None:
        self.run_in_loop(self.store.aclose)
        self.store = self.make()

    @rule(record=records)
    def take_over(self, record: Record) -> None:
        """Another writer comes; the first one is told with its next write."""
        first, self.store = self.store, self.make()
        had_written = first.last_seq and first.store.writer.is_claimed
        self.append([record])
        if had_written:
            with pytest.raises(StoreFenced):
                self.run_in_loop(lambda: first.append(record))
        self.run_in_loop(first.aclose)

    @rule()
    def compact(self) -> None:
        report = self.run_in_loop(self.store.compact)
        assert report.records_before == len(self.model.stored)
        assert report.bytes_before == sum(size for _, size in self.model.stored)
        self.model.compact()
        assert report.records_after == len(self.model.stored)
        assert report.bytes_after == sum(size for _, size in self.model.stored)

    @precondition(lambda self: self.model.stored)
    @rule(data=st.data(), mode=st.sampled_from(["repair", "quarantine"]))
    def damage_and_recover(self, data: st.DataObject, mode: Any) -> None:
        seqs = [record.seq or 0 for record, _ in self.model.stored]
        lost = data.draw(st.sets(st.sampled_from(seqs), max_size=4))
        foreign = data.draw(st.sets(st.sampled_from(KINDS)))
        for key in self.store.config.keys.streams.values():
            for identifier, _ in self.admin.xrange(key):
                if int(identifier.partition(b"-")[2]) in lost:
                    self.admin.xdel(key, identifier)
        for kind in foreign:
            key = self.store.config.keys.streams[kind]
            last = b"0-0"
            if self.admin.exists(key):
                last = self.admin.xinfo_stream(key)["last-generated-id"]
            # What comes next in the same millisecond has to be later than it would be.
            ms, _, seq = last.partition(b"-")
            self.admin.xadd(key, {"a": "b"}, b"%b-%d" % (ms, int(seq) + 500_000))
        report = self.run_in_loop(self.store.scan)
        assert report.is_clean == (not lost and not foreign)
        self.model.lose(lost)
        recovered = self.run_in_loop(lambda: self.store.recover(PersistenceRecoveryConfig(mode)))
        assert recovered.scan.is_clean
        assert recovered.records_kept == len(self.model.stored)
        assert recovered.records_removed == len(foreign)

    @rule()
    def look_from_outside(self) -> None:
        other = self.make(read_only=True)
        found = self.run_in_loop(lambda: read_to_the_end(other, Read("event")))
        assert found == self.model.read(Read("event"), NOW)
        self.run_in_loop(other.aclose)

    @rule(after=st.integers(0, 40), kind=st.sampled_from(KINDS))
    def follow(self, after: int, kind: Any) -> None:
        wanted = [
            record.seq
            for record, _ in self.model.stored
            if kind_of(record) == kind and (record.seq or 0) > after
        ]

        async def take() -> list[int | None]:
            records = self.store.follow(kind, after=after)
            return [(await anext(records)).seq for _ in wanted]

        assert self.run_in_loop(take) == wanted

    @invariant()
    def it_is_sound(self) -> None:
        if hasattr(self, "store"):
            report = self.run_in_loop(self.store.scan)
            assert report.is_clean, report
            assert report.records_scanned == len(self.model.stored)


@pytest.mark.timeout(300 + 10 * EXAMPLES)
@pytest.mark.parametrize("loop", some(["asyncio", "trio"], every=2))
def test_a_redis_store_holds_what_a_list_would_hold(server: RedisServer, loop: str) -> None:
    Store.loop, Store.server = loop, server
    test_case = Store.TestCase
    test_case.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    test_case("runTest").runTest()
