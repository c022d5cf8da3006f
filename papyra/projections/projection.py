"""Projection: what users write."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, overload

import anyio

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.actor import Actor
from papyra.eventsourcing.decoding import EventDecoder, wanted_events
from papyra.exceptions import ActorStopped, InvalidProjection, SystemNotRunning
from papyra.message import Message, ReplyT
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.records import KINDS, Kind
from papyra.projections.cause import Cause, current_cause
from papyra.projections.host import Host
from papyra.projections.on_error import OnError, Pause, policy_of
from papyra.projections.view import View
from papyra.retry import Retry

__all__ = ("Projection", "Wanted", "attach", "checked", "table_name", "writing")

#: The name of a projection, or of a table: what needs no quotes in a path, an address or in SQL.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}")


#: The build that is written by the thread that asks: one projection may be built twice at a time.
_current = threading.local()


class Projection:
    """Makes something else of the events of a store: tables, an index, mails.

    ``Balances(SQLiteView("views.db"))`` is made of a view, which `handle` writes: a plain function,
    ``handle(self, received, tx)``, that gets the view's open transaction, on the view's own thread;
    each event has its effect exactly once. ``handle_batch(self, batch, tx)`` in its place gets all
    events of a transaction at a time. Without a view, it is a coroutine function, ``async def
    handle(self, received)``, called at least once for each event.

    What is handed over is a `Received` for classes of events, and else the record. The guide of
    `papyra.projections` says all of it.
    """

    #: what it is called in the view, and in every command; by default the name of the class
    name: ClassVar[str] = ""
    #: of what it makes of the events; a greater one is built anew
    version: ClassVar[int] = 1
    #: the classes of the events that it handles
    events: ClassVar[Sequence[type]] = ()
    #: in place of `events`, names of events as they are stored
    types: ClassVar[Sequence[str]] = ()
    #: the kinds of records that it handles
    kinds: ClassVar[Sequence[Kind]] = ("event",)
    #: the class of the entities whose events it handles, through its upcasters
    entity: ClassVar[type[Actor] | None] = None
    #: what becomes of an event that `handle` raises for
    on_error: ClassVar[OnError] = Retry(3, backoff=1.0).then(Pause())
    #: events of one transaction, at most
    batch_size: ClassVar[int] = 1_000
    #: seconds after which a transaction takes no further event
    batch_seconds: ClassVar[float] = 1.0
    #: seconds after which a batch that is not through counts as hanging
    handle_timeout: ClassVar[float] = 60.0
    #: the tables of the view that are made by ``self.table(name)``, and can be built anew
    tables: ClassVar[Sequence[str]] = ()

    #: of users: ``handle(self, received, tx)``, or ``async def handle(self, received)``
    handle: Callable[..., Any]

    #: of users, in place of `handle`: ``handle_batch(self, batch, tx)``
    handle_batch: Callable[..., Any] | None = None

    #: the system that runs it
    _host: Host | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, view: View[Any] | None = None) -> None:
        self.view = view

    def setup(self, tx: Any) -> None:
        """Make the tables, in the transaction that makes this known to the view. Called once."""

    def live(self, received: Any) -> Any:
        """Have side effects, for a new event whose handling is committed; may be a coroutine.

        It is called on the event loop, at least once for each event that is stored after the
        projection was first made; never for the others, and not in a rebuild.
        """

    @property
    def causation_id(self) -> str:
        """The id of the event at hand, the same whenever this projection handles it.

        ``"balances/17"`` is that of the event at position 17. It is an idempotency key for
        whatever `handle`, a coroutine function, or `live` have others do.
        """
        return self._cause().id

    @overload
    async def command(
        self,
        actor_class: type[Actor],
        entity_id: str,
        message: Message[ReplyT],
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
    ) -> ReplyT: ...

    @overload
    async def command(
        self,
        actor_class: type[Actor],
        entity_id: str,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
    ) -> Any: ...

    async def command(
        self,
        actor_class: type[Actor],
        entity_id: str,
        message: object,
        timeout: float | None = None,
        *,
        retry: Retry | None = None,
    ) -> Any:
        """Tell an event-sourced entity what to do because of the event at hand; return its reply.

        For `handle`, a coroutine function, and `live`, which makes a process manager of it. They
        are called at least once for each event, and the entity does it once: it is asked with an
        idempotency key that is made of `causation_id`, and of the number of this command among
        those to this entity for this event. So say these in the same order each time. Raises what
        `ActorRef.ask` does, and `InvalidProjection` elsewhere. While the system stops, it waits to
        be cancelled.
        """
        cause, host = self._cause(), self._host
        if host is None:
            raise InvalidProjection(f"{self.name}: no system runs it")
        try:
            entity = host.entity(actor_class, entity_id)
            key = cause.next_key(str(entity.address))
            return await entity.ask(message, timeout, retry=retry, idempotency_key=key)
        except (ActorStopped, SystemNotRunning):
            if not host.is_running:
                # No failure of the event, which is handled when the system is there again.
                await anyio.sleep_forever()
            raise

    def _cause(self) -> Cause:
        cause = current_cause.get()
        if cause is None:
            raise InvalidProjection(
                f"{self.name}: only in 'async def handle', or in 'live', is there an event at hand "
                "that causes commands"
            )
        return cause

    def table(self, name: str) -> str:
        """Return what one of `tables` is called in the build that is written; in `handle`."""
        if name not in self.tables:
            raise InvalidProjection(f"{shown(name)} is none of the tables of {self.name!r}")
        build: int | None = getattr(_current, "build", None)
        if build is None:
            raise InvalidProjection(
                f"{self.name}: a table has a name for setup and handle only: read {name!r} itself"
            )
        return table_name(name, build)

    @property
    def has_live(self) -> bool:
        """Whether it has side effects."""
        return type(self).live is not Projection.live


class Wanted(NamedTuple):
    """Which records a projection handles, and in which form."""

    kinds: tuple[Kind, ...]
    types: frozenset[str] | None
    entity: str | None
    decode: EventDecoder | None


def checked(projection: object) -> Wanted:
    """Return which records a projection wants. Raises `InvalidProjection`, and what classes do."""
    if not isinstance(projection, Projection):
        raise InvalidProjection(
            f"a projection is an instance of Projection, not {shown(projection)}"
        )
    kind = type(projection)
    _check_texts(kind)
    _check_numbers(kind)
    policy_of(kind.on_error)
    _check_handle(projection)
    return _wanted(kind)


def attach(projection: Projection, host: Host) -> None:
    """Note which system runs a projection."""
    projection._host = host


def hand_over(projection: Projection, batch: Sequence[Any], tx: Any) -> None:
    """Call the handler of a projection with events, one after the other unless it takes batches."""
    if projection.handle_batch is not None:
        projection.handle_batch(batch, tx)
        return
    for received in batch:
        projection.handle(received, tx)


def table_name(name: str, build: int) -> str:
    """Return what a table is called in a build."""
    return f"{name}_{build}"


@contextlib.contextmanager
def writing(build: int) -> Iterator[None]:
    """Have the projections of this thread write a build within."""
    _current.build = build
    try:
        yield
    finally:
        _current.build = None


def _check_texts(kind: type[Projection]) -> None:
    if type(kind.name) is not str or not _NAME.fullmatch(kind.name):
        raise InvalidProjection(
            f"{kind.__name__}: a name is up to 100 letters, digits, _, . and -, and begins with a "
            f"letter; not {shown(kind.name)}"
        )
    for each in _several(kind, "tables"):
        if type(each) is not str or not _TABLE.fullmatch(each):
            raise InvalidProjection(
                f"{kind.name}: tables are up to 50 letters, digits and _ each, not {shown(each)}"
            )


def _check_numbers(kind: type[Projection]) -> None:
    for name in ("version", "batch_size"):
        value = getattr(kind, name)
        if type(value) is not int or not 0 < value < 2**31:
            raise InvalidProjection(
                f"{kind.name}: {name} is a whole number from 1 on, not {shown(value)}"
            )
    for name in ("batch_seconds", "handle_timeout"):
        value = getattr(kind, name)
        if not is_seconds(value, above=True):
            raise InvalidProjection(
                f"{kind.name}: {name} is seconds, more than 0, not {shown(value)}"
            )


def _check_handle(projection: Projection) -> None:
    kind = type(projection)
    if inspect.iscoroutinefunction(kind.setup):
        raise InvalidProjection(
            f"{kind.name}: setup is a plain function, which runs on the view's thread"
        )
    handle = kind.handle_batch or getattr(kind, "handle", None)
    if handle is None:
        raise InvalidProjection(
            f"{kind.name}: it has no handle(self, received, tx), nor handle_batch(self, batch, tx)"
        )
    view: object = projection.view
    is_async = inspect.iscoroutinefunction(handle)
    if view is None and kind.handle_batch is not None:
        raise InvalidProjection(
            f"{kind.name}: handle_batch writes a view; without one, handle is a coroutine "
            "function, called with one event after the other"
        )
    if view is None and not is_async:
        raise InvalidProjection(
            f"{kind.name}: without a view, handle is a coroutine function, 'async def'; with one, "
            "give it as in Balances(SQLiteView(path))"
        )
    if view is not None and not isinstance(view, View):
        raise InvalidProjection(
            f"{kind.name}: a view is a SQLiteView or a PostgresView, not {shown(view)}"
        )
    if view is not None and is_async:
        raise InvalidProjection(
            f"{kind.name}: into a view, {handle.__name__} is a plain function, which runs on the "
            "view's thread"
        )


def _wanted(kind: type[Projection]) -> Wanted:
    events, types = _several(kind, "events"), _several(kind, "types")
    kinds = _several(kind, "kinds")
    if not kinds or not set(kinds) <= set(KINDS):
        raise InvalidProjection(
            f"{kind.name}: kinds are some of {', '.join(KINDS)}, not {shown(kinds)}"
        )
    if events and types:
        raise InvalidProjection(f"{kind.name}: give events, which are classes, or types, not both")
    if (events or types or kind.entity) and tuple(kinds) != ("event",):
        raise InvalidProjection(f"{kind.name}: events, types and entity are of kind 'event' alone")
    names, decode = wanted_events(events or types or None, kind.entity)
    if names is not None and decode is not None:
        names = {*names, BASE_TYPE}  # which tells that others were removed
    entity = None if kind.entity is None else kind.entity.entity_name or kind.entity.__name__
    return Wanted(tuple(kinds), None if names is None else frozenset(names), entity, decode)


def _several(kind: type[Projection], name: str) -> Sequence[Any]:
    value = getattr(kind, name)
    if not isinstance(value, (tuple, list)):
        raise InvalidProjection(f"{kind.name}: {name} is a tuple, not {shown(value)}")
    return tuple(value)
