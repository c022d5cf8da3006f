"""Revisions, checked before they are written: each follows the last one of its actor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from papyra._safe_repr import shown
from papyra.exceptions import HistoriesUnsupported, RevisionConflict
from papyra.persistence.backends.store import Histories, Store
from papyra.persistence.records import PersistedEvent, Record

#: How many actors' last revisions are known at a time, some 150 bytes each.
MAX_ACTORS = 10_000


def histories_of(store: Store) -> Histories:
    """Return `store` as one that keeps histories; raise `HistoriesUnsupported` if it does not."""
    if isinstance(store, Histories):
        return store
    raise HistoriesUnsupported(
        f"a store of kind {shown(store.name)} keeps no histories: its events have no revision"
    )


def part_of_histories(records: Sequence[Record]) -> Sequence[PersistedEvent]:
    """Return those of `records` that have a revision."""
    if len(records) == 1:
        # Most are alone, and this takes half the time.
        return () if records[0].revision is None else records  # type: ignore[return-value]
    return [record for record in records if record.revision is not None]


class Revisions:
    """The last revisions of the actors that were written to of late.

    `ask_store` returns those of other actors, once what is in doubt has been settled.
    """

    def __init__(
        self, ask_store: Callable[[Collection[str]], Awaitable[Mapping[str, int]]]
    ) -> None:
        self._ask_store = ask_store
        #: the one used last is at the end
        self._last: dict[str, int] = {}

    def forget(self) -> None:
        """Ask the store about every actor again, as somebody else may have written."""
        self._last.clear()

    def advance_alone(self, record: Record) -> bool:
        """Take the revision of one event for the last one, if it is known to follow.

        Return whether it is: else `learn` and `advance` find out. Most are such, and this takes a
        third of the time.
        """
        if type(record) is not PersistedEvent:
            return False
        actor, revision = record.actor_address, record.revision
        last = self._last.get(actor)
        if last is None or revision != last + 1:
            return False
        del self._last[actor]
        self._last[actor] = revision
        return True

    async def learn(self, events: Sequence[PersistedEvent]) -> None:
        """Find out, in one question, what has to be known to check `events`."""
        actors = dict.fromkeys(event.actor_address for event in events)
        found: Mapping[str, int] = {}
        if unknown := actors.keys() - self._last.keys():
            # Should this raise, others that are to be written still rely on what is known.
            found = await self._ask_store(unknown)
        known = {
            actor: self._last.pop(actor) if actor in self._last else found.get(actor, 0)
            for actor in actors
        }
        surplus = len(self._last) + len(known) - MAX_ACTORS
        for actor in list(self._last)[: max(surplus, 0)]:
            del self._last[actor]
        self._last |= known

    def advance(self, events: Sequence[PersistedEvent]) -> None:
        """Take the revisions of `events`, which are to be written, for the last ones.

        Raises `RevisionConflict` if one of them does not follow; then none is taken. Should the
        write fail, `forget` what was taken.
        """
        ahead: dict[str, int] = {}
        for event in events:
            actor = event.actor_address
            ahead[actor] = self._following(event, ahead if actor in ahead else self._last)
        self._last |= ahead

    def _following(self, event: PersistedEvent, last: Mapping[str, int]) -> int:
        """Return the revision of `event`; raise `RevisionConflict` if it is not the next one."""
        actor, found = event.actor_address, event.revision
        expected = last[actor] + 1
        if found != expected:
            raise RevisionConflict(
                f"revision {found} of {shown(actor)} does not follow: the next is {expected}",
                actor=actor,
                expected=expected,
                found=found or 0,
            )
        return expected
