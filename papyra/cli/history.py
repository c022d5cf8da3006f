"""``papyra history``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._app_module import imported
from papyra.cli._exit_codes import ANOMALIES_FOUND, SUCCEEDED, CommandFailed, WrongUse
from papyra.cli._no_matches import explain_no_matches
from papyra.cli._output import (
    AsJson,
    console,
    is_terminal,
    json_text,
    rows,
    tell,
    text,
    write,
)
from papyra.cli._store_argument import StoreName, reading
from papyra.cli._units import format_time
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.bases import BASE_TYPE
from papyra.persistence.decisions import Decision, decisions_after, events_after
from papyra.persistence.messages import Read
from papyra.persistence.records import PersistedEvent

if TYPE_CHECKING:
    from papyra.eventsourcing.actor import EventSourced

#: The type of the runtime's event that names the class of an actor.
_STARTED = "ActorStarted"


def history(
    actor: Annotated[str, Parameter(name="ACTOR")],
    store: StoreName = None,
    /,
    *,
    app: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Show the history of one actor, and whether it can be read.

    That are the events that its state is the sum of: their revisions, times, types and versions.
    With --app, each is decoded into the classes that are there, as a recovery would. A history
    whose beginning was removed begins with a papyra.base, which holds the state at that revision.
    It ends with 3 if an event is missing or can't be decoded, and is not one that papyra skip-event
    has had passed over.

    Examples
    --------
      papyra history bank/ann events.ndjson
      papyra history bank/ann events.ndjson --app bank
      papyra history bank/ann --app bank.accounts:Account --json | jq .problem

    Parameters
    ----------
    actor
        The address of the actor.
    app
        The module, or module:Class, of the actor; the module imports what it needs.

    """
    if not actor.strip():
        raise WrongUse("ACTOR is empty: a variable that is not set, maybe?")
    classes = [] if app is None else _classes(app)
    return anyio.run(_history, actor, store, app, classes, as_json)


async def _history(
    actor: str,
    store: str | None,
    app: str | None,
    classes: list[type[EventSourced[Any]]],
    as_json: bool,
) -> int:
    async with reading(store) as backend:
        chosen = None if app is None else await _chosen(backend, actor, app, classes)
        decisions = await decisions_after(backend.execute, actor, 0)
        view = _View(actor, chosen, decisions, as_json=as_json)
        async for record in events_after(backend.execute, actor, 0):
            view.show(record)
        if not view.revision:
            raise CommandFailed(await _no_history(backend, actor))
    return view.conclude()


async def _no_history(backend: PersistenceBackend, actor: str) -> str:
    """Return why there is no history, and what may be meant instead."""
    if (await backend.read("event", actor=actor, limit=1)).records:
        return (
            f"{actor} has no history: it has events, but not one that an event-sourced actor has "
            f"persisted. papyra events --actor {actor} lists them"
        )
    explanation = await explain_no_matches(backend, Read("event", actor=actor))
    return f"{actor} has no history: {explanation.removeprefix(f'--actor {actor}: ')}"


class _State(NamedTuple):
    """How a recovery deals with an event."""

    #: empty if there is nothing to say
    text: str
    #: of what stands out
    style: str
    #: what JSON has of it
    fields: dict[str, object]


class _View:
    """The history as it is shown, event by event, and what was wrong with it."""

    def __init__(
        self,
        actor: str,
        actor_class: type[EventSourced[Any]] | None,
        decisions: Mapping[int, Decision],
        *,
        as_json: bool,
    ) -> None:
        self._actor, self._class, self._as_json = actor, actor_class, as_json
        self._decisions = decisions
        #: why events are passed over, by their revisions; of two reasons, the first
        self._reasons: dict[int, str] = {}
        for _, decision in sorted(decisions.items()):
            self._reasons.setdefault(decision.revision, decision.reason)
        #: the last one that was shown
        self.revision = 0
        self._shown = self._undecoded = self._skipped = 0
        self._is_broken = False

    def show(self, record: PersistedEvent) -> None:
        """Show the next event."""
        revision = record.revision or 0
        if record.event_type != BASE_TYPE or revision <= self.revision:
            self._look_at_gap(revision)
        self.revision = revision
        state = self._state_of(record)
        if self._as_json:
            fields = msgspec.to_builtins(record) | {"event_version": record.event_version}
            write(json_text(fields | state.fields) + "\n")
        elif is_terminal():
            self._draw(record, state)
        else:
            write(rows([(*_cells(record), *filter(None, [state.text]))]))

    def conclude(self) -> int:
        """Say how it is, and return the exit code."""
        if self._class is not None:
            name = f"{self._class.__module__}:{self._class.__qualname__}"
            left_out = f", and {self._skipped:,} skipped" if self._skipped else ""
            if self._undecoded:
                told = f"{self._undecoded:,} of {self._shown:,} can't be read by {name}{left_out}"
                tell(told, "bold red")
            else:
                count = self._shown - self._skipped
                tell(f"{count:,} of {self._shown:,} decode with {name}{left_out}", "dim")
        return ANOMALIES_FOUND if self._undecoded or self._is_broken else SUCCEEDED

    def _state_of(self, record: PersistedEvent) -> _State:
        """Return how a recovery deals with an event, and count it."""
        revision = record.revision or 0
        if (decision := self._decisions.get(revision)) is not None:
            return _State(f"skips revision {decision.revision}", "cyan", {})
        reason, problem = self._reasons.get(revision), self._problem(record)
        self._shown += 1
        fields: dict[str, object] = {}
        if self._class is not None:
            fields = {"decodes": problem is None, "problem": None if reason else problem}
        if reason is not None:
            self._skipped += 1
            return _State(f"skipped: {reason}", "yellow", fields | {"skipped": reason})
        self._undecoded += problem is not None
        if problem is not None:
            return _State(problem, "red", fields)
        return _State("" if self._class is None else "decodes", "", fields)

    def _look_at_gap(self, revision: int) -> None:
        """Say what is missing before an event, unless a recovery passes over all of it."""
        if revision <= self.revision:
            self._note(f"revision {revision:,} is there twice")
        gap = range(self.revision + 1, revision)
        if not gap:
            return
        if len(gap) > len(self._reasons) or not all(each in self._reasons for each in gap):
            self._note(_missing(gap[0], gap[-1]))
        else:
            why = ", ".join(dict.fromkeys(self._reasons[each] for each in gap))
            tell(f"{_missing(gap[0], gap[-1])} and skipped: {why}", "yellow")

    def _problem(self, record: PersistedEvent) -> str | None:
        if self._class is None:
            return None
        from papyra.eventsourcing.stored import (  # noqa: PLC0415
            base_fault,
            decoding_fault,
            schema_of,
        )

        if record.event_type == BASE_TYPE:
            return base_fault(self._class, record)
        return decoding_fault(schema_of(self._class), record)

    def _note(self, what: str) -> None:
        """Say what is wrong with the order of the events."""
        self._is_broken = True
        tell(f"{what} in the history of {self._actor}", "bold red")

    def _draw(self, record: PersistedEvent, state: _State) -> None:
        revision, time, name, version, payload = _cells(record)
        line = text(
            (f"{revision:>7} ", "dim"),
            (f"{time} ", "dim"),
            (name, f"bold {state.style}".rstrip()),
            (f" v{version} ", "cyan"),
            payload,
        )
        console().print(line, soft_wrap=True)
        if state.style:
            console().print(text((f"{'':>8}{state.text}", state.style)), soft_wrap=True)


def _missing(first: int, last: int) -> str:
    if first == last:
        return f"revision {first:,} is missing"
    return f"revisions {first:,} to {last:,} are missing"


def _cells(record: PersistedEvent) -> tuple[str, str, str, str, str]:
    """Return the columns of an event: revision, time, type, version, and payload."""
    return (
        *(str(record.revision), format_time(record.timestamp), record.event_type),
        str(record.event_version),
        json_text(record.payload),
    )


# The classes of `--app`


def _classes(app: str) -> list[type[EventSourced[Any]]]:
    """Return the class that ``module:Class`` names, or all that are in ``module``."""
    from papyra.eventsourcing.actor import EventSourced  # noqa: PLC0415 - where it is needed

    name, colon, path = app.partition(":")
    module = imported(name)
    if not colon:
        found = [
            each
            for each in vars(module).values()
            if isinstance(each, type)
            and issubclass(each, EventSourced)
            and not inspect.isabstract(each)
        ]
        if not found:
            raise WrongUse(f"--app {app}: there is no event-sourced actor in it")
        return list(dict.fromkeys(found))
    try:
        named = functools.reduce(getattr, path.split("."), module)
    except AttributeError:
        raise WrongUse(f"--app {app}: the module has no {path!r}") from None
    if not (isinstance(named, type) and issubclass(named, EventSourced)) or named is EventSourced:
        raise WrongUse(f"--app {app}: that is no class of event-sourced actors")
    return [named]


async def _chosen(
    backend: PersistenceBackend, actor: str, app: str, classes: list[type[EventSourced[Any]]]
) -> type[EventSourced[Any]]:
    """Return the class of the actor, going by its name where there are several."""
    if len(classes) == 1:
        return classes[0]
    read = await backend.read("event", event_type=_STARTED, actor=actor, newest=True, limit=1)
    for record in read.records:
        fields = record.payload if isinstance(record.payload, dict) else {}
        found = [each for each in classes if each.__name__ == fields.get("actor_type")]
        if len(found) == 1:
            return found[0]
    names = ", ".join(sorted(each.__qualname__ for each in classes))
    raise WrongUse(f"--app {app} has {names}: say which is that of {actor}, as in {app}:Class")
