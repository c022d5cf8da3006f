"""The check that a snapshot, and the events behind it, are the whole history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from papyra._safe_repr import shown, type_and_text
from papyra.eventsourcing.actor import EventSourced
from papyra.eventsourcing.schema import fault_in
from papyra.eventsourcing.snapshots import StateCodec, state_type_of
from papyra.exceptions import PersistenceError
from papyra.persistence import codec
from papyra.persistence.messages import LoadSnapshot
from papyra.persistence.verbs import PersistenceVerbs

StateT = TypeVar("StateT")

_NONE_YET: Any = object()


class SnapshotCheck(Generic[StateT]):
    """Compares the states of a replay with those of one that takes each through a snapshot."""

    def __init__(
        self,
        actor: EventSourced[StateT],
        state_codec: StateCodec[StateT],
        stored: Mapping[int, StateT],
    ) -> None:
        self._actor, self._codec = actor, state_codec
        #: states of snapshots that are stored, by revision
        self._stored = stored
        #: the state before the next event, from a snapshot
        self._restored: StateT = _NONE_YET

    def begin_anew(self) -> None:
        """Begin with the next state, which is not the sum of the events before it."""
        self._restored = _NONE_YET

    def fault_at(self, revision: int, events: Sequence[object], state: StateT) -> str | None:
        """Return how a snapshot leads to another state than `state`, or `None` if it does not.

        `state` is what the replay has come to with `events`, those of `revision`.
        """
        if self._restored is _NONE_YET:
            reached = state
        else:
            try:
                reached = self._restored
                for event in events:
                    reached = self._actor.apply(reached, event)
            except Exception as error:  # noqa: BLE001 - whatever users' classes raise
                return f"apply refuses the state of a snapshot: {type_and_text(error)}"
            if why := difference(state, reached, "comes to be"):
                return f"from a snapshot of the revision before, the state {why}"
        try:
            self._restored = self._codec.decode(msgspec.Raw(codec.encode_payload(reached)))
        except Exception as error:  # noqa: BLE001 - whatever users' classes raise
            return f"no snapshot could be taken of the state {shown(state)}: {type_and_text(error)}"
        if why := difference(state, self._restored):
            return f"with a snapshot, the state {why}"
        if revision in self._stored and (why := difference(state, self._stored[revision], "is")):
            return f"in the snapshot that is stored, the state {why}"
        return None


def state_codec_of(actor_class: type[EventSourced[StateT]]) -> StateCodec[StateT] | None:
    """Return the codec that snapshots of these states would need; `None` if there can't be any."""
    state_type = state_type_of(actor_class)
    if state_type is Any or isinstance(state_type, TypeVar) or fault_in(state_type) is not None:
        return None
    return StateCodec(actor_class.__name__, state_type)


async def stored_snapshots(
    backend: PersistenceVerbs, actor: str, version: int, state_codec: StateCodec[StateT]
) -> dict[int, StateT]:
    """Return the states of those snapshots of `actor` that a recovery could use, by revision."""
    states: dict[int, StateT] = {}
    before: int | None = None
    while before != 1:
        try:
            loaded = await backend.execute(LoadSnapshot(actor, version, before))
        except PersistenceError:
            break  # a store without snapshots, say: a recovery would do without them, too
        if (snapshot := loaded.snapshot) is None:
            break
        before = snapshot.revision
        if snapshot.shape == state_codec.shape:
            try:
                states[before] = state_codec.decode(snapshot.state)
            except Exception:  # noqa: BLE001, S112 - a recovery would pass over it, too
                continue
    return states


def difference(before: object, after: object, becomes: str = "comes back as") -> str | None:
    """Return, in words, how two values differ; `None` if they are equal, or nobody can say."""
    if type(before).__eq__ is object.__eq__ or before == after:
        return None
    whole = f"was {shown(before)}, and {becomes} {shown(after)}"
    place, one, other = _first_difference("", before, after)
    return f"{whole}: {place} was {shown(one)}, and is {shown(other)}" if place else whole


def _first_difference(place: str, before: Any, after: Any) -> tuple[str, object, object]:
    """Return where two values differ first, as deep as can be named, and what is there."""
    if type(before) is type(after):
        for name, one, other in _parts(before, after):
            if one != other:
                return _first_difference(f"{place}{name}".removeprefix("."), one, other)
    return place, before, after


def _parts(before: Any, after: Any) -> Iterator[tuple[str, object, object]]:
    """Yield the parts that two values of one type have in common, each with its name."""
    match before:
        case dict():
            for key in before.keys() & after.keys():
                yield f"[{shown(key)}]", before[key], after[key]
        case list() | tuple():
            for index, (one, other) in enumerate(zip(before, after, strict=False)):
                yield f"[{index}]", one, other
        case _:
            names: Any = getattr(before, "__struct_fields__", None)
            names = names or getattr(before, "__dataclass_fields__", ())
            for name in names:
                yield f".{name}", getattr(before, name, None), getattr(after, name, None)
