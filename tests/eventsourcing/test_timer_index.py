"""The index of durable timers: what is scheduled is put in late, and adds up to the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from papyra._runtime.timer_index import TimerIndex
from papyra.persistence import codec
from papyra.persistence.records import PersistedEvent
from papyra.persistence.timer_changes import (
    TIMER,
    Change,
    Failed,
    Fired,
    MadeDue,
    Scheduled,
    Unscheduled,
)

NAMES, MOMENTS = st.sampled_from(["pay", "ship", "ask"]), st.sampled_from([10.0, 20.0, 30.0])
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(lambda name, due: Scheduled(name, due, "Due", {}), NAMES, MOMENTS),
    st.builds(Unscheduled, NAMES),
    st.builds(Fired, NAMES, MOMENTS, st.none() | MOMENTS),
    st.builds(Failed, NAMES, MOMENTS, st.integers(1, 3), MOMENTS),
    st.builds(MadeDue, NAMES, MOMENTS),
)
ACTORS = st.sampled_from(["shop/Order/1", "shop/Order/2", "other/Order/1"])
#: What is looked at after a change, if anything is.
LOOKS = st.sampled_from(["", "", "", "count", "next", "all", "due"])


def look(index: TimerIndex, what: str) -> object:
    match what:
        case "count":
            return len(index)
        case "next":
            return index.next_at
        case "all":
            return pending(index)
        case "due":
            timer = index.pop_due(20.0)
            return timer and (timer.owner.address, timer.name, timer.due)
        case _:
            return None


def pending(index: TimerIndex) -> Sequence[object]:
    return sorted(
        (each.owner.address, each.name, each.generation, each.due, each.attempts, each.comes_at)
        for each in index
    )


def in_order(index: TimerIndex) -> list[object]:
    found: list[object] = []
    while (timer := index.pop_due(math.inf)) is not None:
        found.append((timer.owner.address, timer.name, timer.generation))
    return found


@given(st.lists(st.tuples(ACTORS, CHANGES, LOOKS), max_size=40))
def test_timers_that_are_put_in_late_add_up_to_the_same(
    changes: list[tuple[str, Change, str]],
) -> None:
    late, at_once = TimerIndex("shop"), TimerIndex("shop")
    for revision, (actor, change, what) in enumerate(changes, 1):
        record = PersistedEvent(actor.split("/")[0], actor, TIMER, change, 1.0, revision=revision)
        if isinstance(change, Scheduled):
            if late.schedule(record) is None:
                late.take_in(record)
        else:
            late.take_in(record)
        at_once.take_in(record)
        assert late.changes == at_once.changes
        assert late.is_alone == at_once.is_alone
        assert look(late, what) == look(at_once, what)
    assert pending(late) == pending(at_once)
    assert late.next_at == at_once.next_at
    assert in_order(late) == in_order(at_once)


@given(
    st.builds(
        PersistedEvent,
        *(st.text(max_size=5), st.text(max_size=5), st.just(TIMER)),
        CHANGES,
        st.floats(),
        revision=st.integers(-1, 2**54) | st.none(),
        metadata=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=1),
    )
)
def test_a_timer_that_is_encoded_by_its_actor_is_stored_as_by_the_store(
    record: PersistedEvent,
) -> None:
    encoded = codec.encode_known(record)
    if encoded is not None:
        assert codec.encode([record]) == [encoded]


def test_a_timer_is_encoded_by_its_actor() -> None:
    change = Scheduled("pay", 10.0, "Due", {"number": 1})
    record = PersistedEvent("shop", "shop/Order/1", TIMER, change, 1.0, revision=3)
    assert codec.encode_known(record) == codec.encode([record])[0]


@pytest.mark.parametrize(
    "change",
    [
        Scheduled("pay", math.nan, "Due", {}),
        Scheduled("pay", 10.0, "Due", {"text": "x" * 5_000}),
        Scheduled("pay\ud800", 10.0, "Due", {}),
    ],
    ids=["not finite", "large", "no text"],
)
def test_a_timer_out_of_the_ordinary_is_left_to_the_store(change: Change) -> None:
    record = PersistedEvent("shop", "shop/Order/1", TIMER, change, 1.0, revision=3)
    assert codec.encode_known(record) is None
