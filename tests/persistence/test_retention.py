from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from papyra.exceptions import InvalidPolicy
from papyra.persistence import Compact, PersistedAudit
from papyra.persistence.backends._bounds import bounded_policy
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.retention import Limits, RetentionPolicy
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
    for refused in (RetentionPolicy, Limits):
        with pytest.raises(InvalidPolicy, match=next(iter(limits))):
            refused(**limits)


def test_whether_histories_are_trimmed_is_true_or_false() -> None:
    assert not RetentionPolicy().trim_histories
    with pytest.raises(InvalidPolicy, match="trim_histories is True or False, not 1"):
        RetentionPolicy(trim_histories=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["events", "audits", "dead_letters"])
@pytest.mark.parametrize("own", [5, {"max_records": 5}, RetentionPolicy(max_records=5)])
def test_only_limits_may_be_the_limits_of_a_kind(name: str, own: Any) -> None:
    with pytest.raises(InvalidPolicy, match=f"{name} takes Limits"):
        RetentionPolicy(**{name: own})


def test_a_kind_without_limits_of_its_own_has_the_general_ones() -> None:
    policy = RetentionPolicy(max_records=9, max_age_seconds=60, audits=Limits(max_records=2))
    assert policy.of("event") == Limits(max_records=9, max_age_seconds=60)
    assert policy.of("dead_letter") == policy.of("event")


def test_the_limits_of_a_kind_replace_the_general_ones_as_a_whole() -> None:
    policy = RetentionPolicy(
        max_records=9,
        max_age_seconds=60,
        events=Limits(max_total_bytes=100),
        audits=Limits(max_age_seconds=5),
        dead_letters=Limits(),
    )
    assert policy.of("event") == Limits(max_total_bytes=100)
    assert policy.of("audit") == Limits(max_age_seconds=5)
    assert policy.of("dead_letter") == Limits()


def test_a_policy_with_limits_for_kinds_travels_in_a_message() -> None:
    policy = RetentionPolicy(max_records=5, events=Limits(max_age_seconds=7.5), audits=Limits())
    encoded = msgspec.json.encode(Compact(policy))
    assert msgspec.json.decode(encoded, type=Compact).policy == policy


def test_a_policy_that_an_older_version_has_encoded_can_be_decoded() -> None:
    encoded = b'{"max_records":5,"max_age_seconds":null,"max_total_bytes":70}'
    policy = msgspec.json.decode(encoded, type=RetentionPolicy)
    assert policy == RetentionPolicy(max_records=5, max_total_bytes=70)


def test_a_wrong_limit_in_an_encoded_policy_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="max_records"):
        msgspec.json.decode(b'{"events":{"max_records":0}}', type=RetentionPolicy)


def test_a_store_counts_the_limits_of_each_kind_in_64_bits() -> None:
    huge = 10**30
    policy = bounded_policy(
        RetentionPolicy(max_records=huge, events=Limits(max_total_bytes=huge, max_records=3))
    )
    assert policy.of("event") == Limits(max_total_bytes=2**63 - 1, max_records=3)
    assert policy.of("audit") == policy.of("dead_letter") == Limits(max_records=2**63 - 1)


def test_stores_are_told_no_general_limits_where_a_kind_has_its_own() -> None:
    policy = bounded_policy(RetentionPolicy(max_records=2, max_age_seconds=9, events=Limits()))
    assert (policy.max_records, policy.max_age_seconds, policy.max_total_bytes) == (None,) * 3
    assert policy.oldest_time(100.0) is None
    assert policy.of("audit") == Limits(max_records=2, max_age_seconds=9)


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


async def test_a_kind_may_have_limits_of_its_own() -> None:
    persistence = await store(
        RetentionPolicy(max_records=2, events=Limits(max_age_seconds=4)), now=10.0
    )
    await persistence.append(*(PersistedAudit("shop", {}, 1.0) for _ in range(10)))
    assert numbers(await persistence.list_events()) == [6, 7, 8, 9]
    assert len(await persistence.list_audits()) == 2


async def test_records_hidden_by_retention_still_occupy_memory() -> None:
    persistence = await store(RetentionPolicy(max_records=1))
    assert len(persistence.events) == 10
    report = await persistence.compact()
    assert (report.supported, report.records_before, report.records_after) == (False, 10, 10)
    assert len(persistence.events) == 10
