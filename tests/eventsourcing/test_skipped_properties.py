"""Whatever is skipped, when, and beside which snapshots: the state is the sum of the events left.

``PAPYRA_SKIP_EXAMPLES=2000`` tries as many programs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.exceptions import InvalidRequest, RecoveryFailed
from papyra.persistence import PersistedEvent, SkipEvent
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.extent import count

EXAMPLES = count("PAPYRA_SKIP_EXAMPLES", 20, 400)

ANN = "s/ann"


class Added(msgspec.Struct, frozen=True):
    number: int


class Keeper(EventSourced[tuple[int, ...]]):
    """Keeps the numbers that were added, and knows none that is negative."""

    events = (Added,)
    snapshots = SnapshotPolicy(every=2, keep=3)

    def initial_state(self) -> tuple[int, ...]:
        return ()

    def apply(self, state: tuple[int, ...], event: Added) -> tuple[int, ...]:
        if event.number < 0:
            raise ValueError(event.number)
        return (*state, event.number)

    async def receive(self, numbers: Any) -> Any:
        await self.persist(*map(Added, numbers))
        return self.state, self.revision


class Model:
    """The history as it should be: a number for each event, and `None` for a decision."""

    def __init__(self) -> None:
        self.history: list[int | None] = []
        self.skipped: set[int] = set()

    @property
    def outcome(self) -> Any:
        left = [
            number
            for revision, number in enumerate(self.history, 1)
            if number is not None and revision not in self.skipped
        ]
        bad = [number for number in left if number < 0]
        return "failed" if bad else (tuple(left), len(self.history))

    def skip(self, revision: int) -> bool:
        """Return whether this can be decided."""
        if revision > len(self.history) or self.history[revision - 1] is None:
            return False
        if revision not in self.skipped:
            self.skipped.add(revision)
            self.history.append(None)
        return True


Step: TypeAlias = tuple[str, int]
STEPS = st.one_of(
    st.tuples(st.just("persist"), st.integers(1, 4)),
    st.tuples(st.just("foreign"), st.integers(-3, 3)),
    st.tuples(st.just("skip"), st.integers(1, 12)),
    st.tuples(st.just("wake"), st.just(0)),
)


async def run(store: PersistenceBackend, steps: list[Step]) -> None:
    model = Model()
    for what, number in [*steps, ("wake", 0)]:
        match what:
            case "persist" if model.outcome != "failed":
                # In a life of its own, which leaves snapshots.
                async with ActorSystem("s", persistence=store) as system:
                    await system.spawn(Keeper, name="ann").ask(tuple(range(number)))
                model.history += range(number)
            case "foreign":
                model.history.append(number)
                async with store:
                    payload, revision = {"number": number}, len(model.history)
                    await store.append(
                        PersistedEvent("s", ANN, "Added", payload, 1.0, revision=revision)
                    )
            case "skip":
                can_be = model.skip(number)
                async with store:
                    try:
                        await store.execute(SkipEvent(ANN, number, "why"))
                    except InvalidRequest:
                        assert not can_be
                    else:
                        assert can_be
            case "wake":
                async with ActorSystem("s", persistence=store) as system:
                    try:
                        found = await system.spawn(Keeper, name="ann").ask(())
                    except RecoveryFailed:
                        found = "failed"
                assert found == model.outcome


@pytest.mark.parametrize("kind", ["memory", "json"])
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEPS, max_size=20))
def test_the_state_is_the_sum_of_what_is_not_skipped(kind: str, steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store: PersistenceBackend = InMemoryPersistence()
        if kind == "json":
            store = JsonFilePersistence(Path(directory) / "events", fsync="no")
        anyio.run(run, store, steps)
