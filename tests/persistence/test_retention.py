from __future__ import annotations

import math
from typing import Any

import pytest

from papyra.exceptions import InvalidPolicy
from papyra.persistence import PersistedAudit
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from tests.actors import event


@pytest.mark.parametrize(
    "limits",
    [
        {"max_records": 0},
        {"max_records": -1},
        {"max_records": 1.5},
        {"max_records": True},
        {"max_records": "10"},
        {"max_total_bytes": 0},
        {"max_total_bytes": 2.0},
        {"max_age_seconds": 0},
        {"max_age_seconds": -1},
        {"max_age_seconds": math.nan},
        {"max_age_seconds": math.inf},
        {"max_age_seconds": "1h"},
        {"max_age_seconds": True},
    ],
)
def test_an_invalid_retention_policy_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy, match=next(iter(limits))):
        RetentionPolicy(**limits)


def test_a_backend_takes_only_a_retention_policy() -> None:
    with pytest.raises(InvalidPolicy, match="retention_policy is a RetentionPolicy"):
        InMemoryPersistence(retention_policy={"max_records": 5})  # type: ignore[arg-type]


def test_a_backend_without_a_retention_policy_sets_no_limit() -> None:
    assert InMemoryPersistence().retention == RetentionPolicy()


async def store(policy: RetentionPolicy, now: float = 0.0) -> InMemoryPersistence:
    persistence = InMemoryPersistence(retention_policy=policy, clock=lambda: now)
    await persistence.append(*(event(number, timestamp=float(number)) for number in range(10)))
    return persistence


def numbers(events: Any) -> list[int]:
    return [event.payload["order_id"] for event in events]


async def test_retention_by_max_records_shows_the_newest() -> None:
    persistence = await store(RetentionPolicy(max_records=3))
    assert numbers(await persistence.list_events()) == [7, 8, 9]
    assert numbers(await persistence.list_events(limit=2)) == [8, 9]
    assert numbers((await persistence.read("event", limit=2)).records) == [7, 8]


async def test_retention_by_max_age_shows_records_that_are_young_enough() -> None:
    persistence = await store(RetentionPolicy(max_age_seconds=4), now=10.0)
    assert numbers(await persistence.list_events()) == [6, 7, 8, 9]


async def test_retention_by_max_total_bytes_shows_the_newest_that_fit() -> None:
    size = (await (await store(RetentionPolicy())).scan()).bytes_scanned // 10
    for budget, shown in ((size - 1, 0), (size, 1), (3 * size, 3), (3 * size + size - 1, 3)):
        persistence = await store(RetentionPolicy(max_total_bytes=budget))
        assert numbers(await persistence.list_events()) == list(range(10))[10 - shown :]


async def test_retention_shows_a_record_that_is_within_every_limit() -> None:
    policy = RetentionPolicy(max_records=5, max_age_seconds=3)
    assert numbers(await (await store(policy, now=11.0)).list_events()) == [8, 9]
    assert numbers(await (await store(policy, now=0.0)).list_events()) == [5, 6, 7, 8, 9]


async def test_retention_limits_each_kind_of_record_by_itself() -> None:
    persistence = await store(RetentionPolicy(max_records=10))
    for _ in range(20):
        await persistence.append(PersistedAudit("shop", {}, 1.0))
    assert len(await persistence.list_events()) == 10
    assert len(await persistence.list_audits()) == 10


async def test_records_hidden_by_retention_still_occupy_memory() -> None:
    persistence = await store(RetentionPolicy(max_records=1))
    assert len(persistence.events) == 10
    report = await persistence.compact()
    assert (report.supported, report.records_before, report.records_after) == (False, 10, 10)
    assert len(persistence.events) == 10
