"""Faults between an actor and its store, and the rules by which they are injected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy, PersistenceError, StoreError
from papyra.persistence.messages import Request
from papyra.persistence.records import KINDS, Kind, Record, kind_of

OperationName: TypeAlias = Literal[
    "append",
    "read",
    "scan",
    "recover",
    "compact",
    "flush",
    "open",
    "close",
    "save_snapshot",
    "load_snapshot",
    # a removal is a save
    "save_position",
    "load_position",
    # each of what is done to the inbox of a store: a writer looks there once a second
    "inbox",
    # each look into the outbox, and what it sets aside; what it takes over is an ``append``
    "outbox",
]
FaultT = TypeVar("FaultT")

_NAMES: tuple[OperationName, ...] = get_args(OperationName)


class InjectedFault(StoreError):
    """The store failed because a test wanted it to."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """An operation that a store is about to carry out."""

    name: OperationName
    #: how many of this name there were before it, and 1
    number: int
    #: what is to be appended: the records of every request in this commit
    records: Sequence[Record] = ()
    #: for a ``read`` and a ``recover``, what was asked for
    request: Request[Any] | None = None

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of records that it is about; of a scan, a flush and so on, none."""
        kind: Kind | None = getattr(self.request, "kind", None)
        return frozenset(map(kind_of, self.records) if kind is None else (kind,))


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """Raise `error`. What is no `PersistenceError` becomes the cause of a `StoreError`.

    A commit that fails fails everybody whose records are in it, as with a real store.
    """

    error: Exception
    #: do it all the same: what gets lost is the answer, as with a connection that breaks
    after: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """Refuse one append request, and carry out the others of its commit. See `reject`."""

    error: PersistenceError


@dataclasses.dataclass(frozen=True, slots=True)
class Delay:
    """Do it after `seconds`."""

    seconds: float

    def __post_init__(self) -> None:
        if not is_seconds(self.seconds):
            raise InvalidPolicy(f"a delay is seconds, 0 or more, not {shown(self.seconds)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Hang:
    """Do it when it is released, or never."""


Fault: TypeAlias = Fail | Delay | Hang


@dataclasses.dataclass(frozen=True, slots=True)
class Injection:
    """A fault that was injected."""

    operation: Operation
    fault: Fault | Reject


class FaultPolicy(Protocol):
    """Decides what goes wrong."""

    def decide(self, operation: Operation) -> Fault | None:
        """Return what happens to `operation`; `None` for nothing. Called once for each."""


class Rule(Generic[FaultT]):
    """Injects one fault into the operations that it is for, a number of times."""

    def __init__(
        self,
        fault: FaultT,
        operation: OperationName | None,
        kind: Kind | None = None,
        *,
        predicate: Callable[[Operation], object] | None = None,
        every: int = 1,
        times: int | None = None,
    ) -> None:
        if operation is not None and operation not in _NAMES:
            raise InvalidPolicy(
                f"an operation is one of {', '.join(_NAMES)}, not {shown(operation)}"
            )
        if kind is not None and kind not in KINDS:
            raise InvalidPolicy(f"kind is one of {', '.join(KINDS)}, not {shown(kind)}")
        for name, number in (("every", every), ("times", times)):
            if number is not None and (type(number) is not int or number < 1):
                raise InvalidPolicy(f"{name} is a whole number greater than 0, not {shown(number)}")
        self.fault = fault
        self._operation = operation
        self._kind = kind
        self._predicate = predicate
        self._every = every
        self._seen = 0
        #: how often it is still to act; `None` for always
        self.times = times

    def decide(self, operation: Operation) -> FaultT | None:
        """Return the fault if it is this operation's turn."""
        if (
            self.times == 0
            or self._operation not in (None, operation.name)
            or not (self._kind is None or self._kind in operation.kinds)
            or not (self._predicate is None or self._predicate(operation))
        ):
            return None
        self._seen += 1
        if self._seen % self._every:
            return None
        if self.times is not None:
            self.times -= 1
        return self.fault

    def __repr__(self) -> str:
        about = " ".join(filter(None, (self._operation, self._kind))) or "every operation"
        times = "always" if self.times is None else f"{self.times} times more"
        return f"<{self.fault} for {about}, {times}>"
