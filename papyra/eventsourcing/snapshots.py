"""Snapshots of event-sourced actors: when they are taken, and what is made of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from papyra._logs import fields
from papyra._safe_repr import shown, type_and_text
from papyra.actor import ActorContext
from papyra.eventsourcing.bookkeeping import Bookkeeping, decode_books, encode_books
from papyra.eventsourcing.schema import fault_in
from papyra.exceptions import (
    InvalidPolicy,
    InvalidSchema,
    PapyraError,
    PersistenceError,
    SnapshotsUnsupported,
)
from papyra.persistence import codec
from papyra.persistence.messages import LoadSnapshot, SaveSnapshot
from papyra.persistence.records import MAX_VERSION
from papyra.persistence.snapshots import Snapshot, checksum

StateT = TypeVar("StateT")

logger = logging.getLogger("papyra")

_UNKNOWN = object()


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Take a snapshot of the state after every so many events, so that recoveries are short.

    A snapshot saves time, and nothing depends on it: one that is damaged or outdated is passed over
    for an older one, or for the whole history. Raise `version` whenever `apply`, or the meaning of
    the state, changes: snapshots of other versions are passed over. If only fields of the state
    change, that is noticed.
    """

    #: events from one snapshot to the next, at least
    every: int = 500
    #: how many are kept for each actor, the newest ones; at least 2
    keep: int = 2
    #: version of what the state means
    version: int = 1
    #: what turns a state of an older version, plain data, into one of this version. It is called
    #: with that state and its version, for the base of a history whose beginning was removed: all
    #: else that is older is passed over. It must be pure
    upcast: Callable[[Any, int], Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("keep", 2), ("version", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= MAX_VERSION:
                raise InvalidPolicy(
                    f"SnapshotPolicy.{name} is a whole number from {least} on, not {shown(value)}"
                )
        if self.upcast is not None and not callable(self.upcast):
            raise InvalidPolicy(f"SnapshotPolicy.upcast is a function, not {shown(self.upcast)}")


class StateCodec(Generic[StateT]):
    """States of one type to JSON and back."""

    def __init__(self, owner: str, state_type: Any) -> None:
        """Raise `InvalidSchema` for a type that could not be read back."""
        if (fault := fault_in(state_type)) is not None:
            raise InvalidSchema(
                f"{owner} has snapshots, but its state, {shown(state_type)}, could not be read "
                f"back: {fault}"
            )
        self._decoder = msgspec.json.Decoder(state_type)
        self.shape = _shape_of(state_type)

    def encode(self, state: StateT) -> msgspec.Raw:
        """Return a state as JSON. Raises `ValueError`, or as the codec does, if it is lost in it.

        What was `Any`, say, may come back as something else, and the sum would be another then.
        """
        encoded = msgspec.Raw(codec.encode_payload(state))
        if self.decode(encoded) != state:
            raise ValueError(f"{shown(state)} does not come back as it was, or as its equal")
        return encoded

    def decode(self, encoded: msgspec.Raw) -> StateT:
        """Return the state that `encoded` holds. Raises whatever users' classes do."""
        state: StateT = self._decoder.decode(encoded)
        return state


class Snapshots(Generic[StateT]):
    """The snapshots of one actor. Whatever fails here is counted and logged, and raises nothing."""

    def __init__(
        self, policy: SnapshotPolicy, state_codec: StateCodec[StateT], context: ActorContext
    ) -> None:
        self._policy = policy
        self._codec = state_codec
        self._context = context
        self._address = str(context.self_ref.address)
        #: the revision from which on the next one is due
        self._due = policy.every
        #: whether one is on its way
        self._is_saving = False
        #: whether the store keeps none
        self._is_unsupported = False

    async def load(self, before: int | None = None) -> tuple[StateT, int, Bookkeeping] | None:
        """Find a snapshot, as `find` does, and count from that one to the next."""
        found = await self.find(before)
        if not self._is_unsupported:
            self._due = (0 if found is None else found[1]) + self._policy.every
        return found

    async def find(self, before: int | None = None) -> tuple[StateT, int, Bookkeeping] | None:
        """Return the state of the newest snapshot that can be used, its revision, and the books.

        Only of those of a revision `before` this one, if it is given.
        """
        while (snapshot := await self._next(before)) is not None:
            try:
                if snapshot.shape != self._codec.shape:
                    raise ValueError("the fields of the state have changed since")
                state = self._codec.decode(snapshot.state)
                books = decode_books(snapshot.bookkeeping)
            except Exception as error:  # noqa: BLE001 - whatever users' classes raise
                logger.warning(
                    "passed over snapshot %d of %s: %s",
                    *(snapshot.revision, self._address, type_and_text(error)),
                    extra=fields(revision=snapshot.revision),
                )
                before = snapshot.revision
                continue
            return state, snapshot.revision, books
        return None

    async def _next(self, before: int | None) -> Snapshot | None:
        request = LoadSnapshot(self._address, self._policy.version, before)
        try:
            return (await self._context.system.backend.execute(request)).snapshot
        except SnapshotsUnsupported as error:
            self._due, self._is_unsupported = MAX_VERSION + 1, True
            logger.warning("%s has no snapshots: %s", self._address, error)
        except PersistenceError as error:
            logger.warning("no snapshot of %s could be loaded: %s", self._address, error)
        return None

    def take(
        self, state: StateT, revision: int, books: Bookkeeping
    ) -> Callable[[int], None] | None:
        """Take a snapshot if one is due: encode the state now, as `apply` may change it later.

        Returns what has it saved once it is known at which position the last of its events is.
        """
        if revision < self._due or self._is_saving:
            return None
        # However this one ends, the next is tried that many events later.
        self._due = revision + self._policy.every
        try:
            encoded, encoded_books = self._codec.encode(state), encode_books(books)
        except Exception as error:  # noqa: BLE001 - whatever users' classes raise
            self._note(revision, error)
            return None
        now = self._context.clock.time()
        policy, address, shape = self._policy, self._address, self._codec.shape

        def save(seq: int) -> None:
            self._save(
                SaveSnapshot(
                    *(address, revision, seq, encoded, now, policy.version, policy.keep, shape),
                    encoded_books,
                )
            )

        return save

    def _save(self, request: SaveSnapshot) -> None:
        def answered(reply: object, error: Exception | None) -> None:
            del reply
            self._saved(request.revision, error)

        if self._is_saving:
            return
        self._is_saving = True
        try:
            self._context.persistence.request(request, answered)
        except PapyraError as error:
            answered(None, error)

    def _saved(self, revision: int, error: Exception | None) -> None:
        """Take note that a snapshot is saved, or has failed."""
        self._is_saving = False
        if error is None:
            self._context.counters.snapshots += 1
        else:
            self._note(revision, error)

    def _note(self, revision: int, error: Exception) -> None:
        logger.warning(
            "no snapshot %d of %s was saved: %s",
            *(revision, self._address, type_and_text(error)),
            extra=fields(actor=self._address, revision=revision),
        )


def state_type_of(actor_class: type) -> object:
    """Return the type of an actor's state, as `initial_state` or its base class says it.

    Returns a `TypeVar`, or `Any`, if they leave that open.
    """
    declared: Any = Any
    try:
        declared = get_type_hints(actor_class.initial_state).get("return", Any)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a name that only the type checker knows, or a local one
        declared = Any
    if declared is Any or isinstance(declared, TypeVar):
        for each in actor_class.__mro__:
            for base in vars(each).get("__orig_bases__", ()):
                origin, arguments = get_origin(base), get_args(base)
                if getattr(origin, "initial_state", None) is not None and len(arguments) == 1:
                    return arguments[0]
    return declared


def _shape_of(state_type: Any) -> str:
    """Return what changes as soon as fields of a type come, go or change."""
    try:
        schema = msgspec.json.schema(state_type)
    except Exception:  # noqa: BLE001 - of dicts with odd keys, say, it makes none
        return ""
    return checksum(msgspec.json.encode(schema, order="sorted"))
