"""Revisions are checked before anything is written, and the store is asked for few of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import anyio
import pytest

from papyra import ActorSystem
from papyra.exceptions import (
    HistoriesUnsupported,
    InvalidRecord,
    PositionsExhausted,
    RevisionConflict,
    StoreError,
)
from papyra.persistence import Append, Appended, AppendMany, PersistedEvent, PersistenceActor
from papyra.persistence.backends import revisions
from papyra.persistence.backends.base import MAX_SEQ, PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence, MemoryStore
from papyra.persistence.backends.store import Store
from papyra.testing import FaultyPersistence

pytestmark = pytest.mark.anyio


def step(actor: str, revision: int) -> PersistedEvent:
    return PersistedEvent("s", f"s/{actor}", "Stepped", {}, 1.0, revision=revision)


class CountingStore(MemoryStore):
    """Counts the questions for last revisions, and how many actors they were about."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[int] = []

    async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
        self.questions.append(len(actors))
        return await super().last_revisions(actors)


async def test_known_revisions_are_not_asked_for_again() -> None:
    store = CountingStore()
    async with PersistenceBackend(store) as backend:
        for revision in range(1, 20):
            await backend.append(*(step(actor, revision) for actor in "abc"))
        await backend.append(step("d", 1), step("a", 20))
    assert store.questions == [3, 1]


async def test_the_revisions_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "MAX_ACTORS", 3)
    store = CountingStore()
    async with PersistenceBackend(store) as backend:
        for actor in "abcd":
            await backend.append(step(actor, 1))
        await backend.append(step("d", 2), step("c", 2), step("b", 2))
        assert store.questions == [1, 1, 1, 1]
        await backend.append(step("a", 2))
        assert store.questions == [1, 1, 1, 1, 1]


async def test_after_an_append_that_failed_the_store_is_asked_again() -> None:
    backend = FaultyPersistence(InMemoryPersistence())
    async with backend:
        await backend.append(step("a", 1))
        backend.fail_next("append")
        with pytest.raises(StoreError):
            await backend.append(step("a", 2))
        await backend.append(step("a", 2))
        backend.fail_next("append", after=True)  # it is stored, and nobody knows
        with pytest.raises(StoreError):
            await backend.append(step("a", 3))
        with pytest.raises(RevisionConflict) as caught:
            await backend.append(step("a", 3))
        assert (caught.value.expected, caught.value.found) == (4, 3)
        await backend.append(step("a", 4))


async def test_a_failed_write_leaves_the_revisions_after_it_without_a_predecessor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("papyra.persistence.backends.group_commit.MAX_COMMIT_RECORDS", 2)
    backend = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("s", persistence=backend) as system:
        backend.fail_next("append", kind="event")
        for revision in range(1, 7):
            await system.persistence.tell(Append(step("a", revision)))
            await system.persistence.tell(Append(step("b", (revision + 1) // 2)))
        await backend.flush()
        # The first of each were in the write that failed; b's is told a second time.
        assert (await backend.read_history("s/a")).events == ()
        found = (await backend.read_history("s/b")).events
        assert [event.revision for event in found] == [1, 2, 3]


async def test_an_append_beyond_the_last_position_moves_no_revision() -> None:
    async with InMemoryPersistence() as backend:
        await backend.restore(
            PersistedEvent("s", "s/a", "Stepped", {}, 1.0, seq=MAX_SEQ, revision=1)
        )
        for _ in range(2):
            with pytest.raises(PositionsExhausted):
                await backend.append(step("a", 2))


async def test_a_cancelled_append_leaves_nothing_to_build_on() -> None:
    class SlowStore(MemoryStore):
        async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
            await anyio.lowlevel.checkpoint()
            return await super().last_revisions(actors)

    async with PersistenceBackend(SlowStore()) as backend:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await backend.append(step("a", 1))
        assert (await backend.read_history("s/a")).events == ()
        await backend.append(step("a", 1))


async def test_a_store_without_histories_says_so_and_takes_the_rest() -> None:
    async with PersistenceBackend(cast("Store", _Without(MemoryStore()))) as backend:
        with pytest.raises(HistoriesUnsupported, match="keeps no histories"):
            await backend.append(step("a", 1))
        with pytest.raises(HistoriesUnsupported):
            await backend.read_history("s/a")
        assert backend.metrics.write_errors == 1


class _Without:
    """A store as it is, without its histories."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        if name in ("read_history", "last_revisions"):
            raise AttributeError(name)
        return getattr(self._store, name)


async def test_a_question_that_failed_forgets_nothing_of_what_shares_the_commit() -> None:
    class Failing(CountingStore):
        async def last_revisions(self, actors: Collection[str]) -> Mapping[str, int]:
            if "s/lost" in actors:
                raise OSError("no answer")
            return await super().last_revisions(actors)

    async with PersistenceBackend(Failing()) as backend:
        replies, _ = await backend.commit(
            [
                Append(cast("PersistedEvent", "no record, so each is checked by itself")),
                Append(step("a", 1)),
                AppendMany((step("a", 2), step("lost", 1))),
                Append(step("a", 1)),
                Append(step("a", 2)),
            ]
        )
        assert [type(reply) for reply in replies] == [
            InvalidRecord,
            Appended,
            StoreError,
            RevisionConflict,
            Appended,
        ]
        found = (await backend.read_history("s/a")).events
    assert [event.revision for event in found] == [1, 2]


async def test_a_store_that_others_wrote_while_it_was_closed_is_asked_again(tmp_path: Path) -> None:
    backend = JsonFilePersistence(tmp_path / "events", fsync="no")
    async with ActorSystem("s", persistence=InMemoryPersistence()) as system:
        host = system.spawn(PersistenceActor, backend)
        await host.ask(Append(step("a", 1)))
        await host.stop()
        async with JsonFilePersistence(tmp_path / "events", fsync="no") as other:
            await other.append(step("a", 2))
        again = system.spawn(PersistenceActor, backend)
        with pytest.raises(RevisionConflict):
            await again.ask(Append(step("a", 2)))
        await again.ask(Append(step("a", 3)))
