"""The in-memory backend against the plainest model of it: a list.

``PAPYRA_EXAMPLES=1000`` makes it a long run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from papyra import ActorSystem
from papyra.exceptions import InvalidRecord
from papyra.persistence import (
    Kind,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    PersistenceActor,
    Read,
    Record,
)
from papyra.persistence.backends import group_commit, memory, paging
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import Limits, RetentionPolicy
from papyra.testing._list_model import ListModel, read_to_the_end
from tests.extent import count

NOW = 50.0
times = st.integers(0, 60).map(float)
names = st.sampled_from("AB")

events = st.builds(PersistedEvent, st.just("s"), names, names, st.text("xy", max_size=9), times)
records = st.one_of(
    events,
    st.builds(PersistedAudit, st.just("s"), st.integers(), times),
    st.builds(PersistedDeadLetter, st.just("s"), names, names, st.none(), st.booleans(), times),
)
bad = st.just(PersistedEvent("s", "A", "A", object(), 1.0))
# Short ones of every kind; and longer runs of events, which are stored in another way.
batches = st.one_of(
    st.lists(st.one_of(records, records, records, bad), max_size=5),
    st.lists(events, min_size=9, max_size=15),
)
limits: dict[str, Any] = {
    "max_records": st.none() | st.integers(1, 12),
    "max_age_seconds": st.none() | st.integers(1, 50),
    "max_total_bytes": st.none() | st.integers(1, 1500),
}
own_limits = st.none() | st.builds(Limits, **limits)
policies = st.builds(RetentionPolicy, **limits) | st.builds(
    RetentionPolicy, **limits, events=own_limits, audits=own_limits, dead_letters=own_limits
)


def meaningful(query: dict[str, Any]) -> dict[str, Any]:
    """Drop the filters that a kind of record does not have."""
    filters = {"event": set(), "audit": {"event_type", "actor"}, "dead_letter": {"event_type"}}
    return {name: q for name, q in query.items() if name not in filters[query["kind"]]}


reads = st.fixed_dictionaries(
    {"kind": st.sampled_from(["event", "audit", "dead_letter"])},
    optional={
        "after": st.integers(0, 40),
        "before": st.integers(0, 40),
        "since": times,
        "until": times,
        "limit": st.integers(0, 12),
        "newest": st.booleans(),
        "event_type": names,
        "actor": names,
    },
).map(meaningful)


@pytest.mark.parametrize("hosted", [False, True], ids=["alone", "hosted"])
@settings(
    max_examples=count("PAPYRA_EXAMPLES", 25, 150),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(policy=policies, appends=st.lists(batches, max_size=12), queries=st.lists(reads, max_size=8))
def test_an_in_memory_store_holds_what_a_list_would_hold(
    hosted: bool, policy: RetentionPolicy, appends: list[list[Any]], queries: list[dict[str, Any]]
) -> None:
    persistence = InMemoryPersistence(retention_policy=policy, clock=lambda: NOW)
    model = ListModel(policy)

    async def run() -> None:
        for batch in appends:
            before = persistence.metrics.snapshot()
            try:
                appended = await persistence.append(*batch)
            except InvalidRecord:
                assert any(type(record.payload) is object for record in batch)
                after = persistence.metrics.snapshot()
                assert after.records_written == before.records_written
                assert after.write_errors == before.write_errors + 1
                continue
            assert appended.first_seq == len(model.stored) + 1
            assert appended.last_seq == len(model.stored) + len(batch)
            model.append(*batch)
        for query in queries:
            request = Read(**query)
            assert await read_to_the_end(persistence, request) == model.read(request, NOW)
        lists: list[tuple[Kind, Sequence[Record]]] = [
            ("event", await persistence.list_events()),
            ("audit", await persistence.list_audits()),
            ("dead_letter", await persistence.list_dead_letters()),
        ]
        for kind, listed in lists:
            assert listed == model.visible(kind, NOW)
        held: list[Record] = [*persistence.events, *persistence.audits, *persistence.dead_letters]
        everything = sorted(held, key=lambda record: record.seq or 0)
        assert everything == [record for record, _ in model.stored]
        assert persistence.metrics.snapshot().bytes_written == sum(size for _, size in model.stored)

    async def run_hosted() -> None:
        async with ActorSystem() as system:
            system.spawn(PersistenceActor, persistence)
            await run()

    with (
        mock.patch.object(paging, "MAX_PAGE_RECORDS", 3),
        mock.patch.object(paging, "MAX_PAGE_BYTES", 300),
        mock.patch.object(memory, "_BLOCK", 2),
        mock.patch.object(group_commit, "MAX_COMMIT_RECORDS", 3),
    ):
        anyio.run(run_hosted if hosted else run)
