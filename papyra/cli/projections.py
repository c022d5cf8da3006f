"""``papyra projections``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast, get_args

import anyio
from cyclopts import Parameter

from papyra.cli._exit_codes import CommandFailed, WrongUse
from papyra.cli._output import (
    AsJson,
    Yes,
    confirm,
    console,
    is_terminal,
    show_fields,
    show_json,
    show_table,
    tell,
    write,
)
from papyra.cli._projections import (
    COLUMNS,
    NUMBERS,
    App,
    Row,
    Views,
    as_data,
    cells,
    look,
    state_of,
    style_of,
    views_of,
)
from papyra.cli._records import styled, tabbed_lines
from papyra.cli._store_argument import reading
from papyra.cli._units import Count, Duration, format_duration
from papyra.cli._writer import FIRST_PAUSE, LONGEST_PAUSE, carry_out
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import (
    PositionRemoved,
    PositionSaved,
    RemovePosition,
    SavePosition,
)
from papyra.persistence.records import Record

if TYPE_CHECKING:
    from papyra.projections import View

Action = Literal["show", "pause", "resume", "retry", "skip", "rebuild"]
ACTIONS: tuple[Action, ...] = get_args(Action)
#: Those that may be about a parked event.
_OF_EVENTS = ("retry", "skip")
#: Facts of a projection that are shown.
_FACTS = 10
#: Seconds for a paused projection that has taken a request to go on, or to be paused again.
PATIENCE = 3.0


def projections(
    *words: Annotated[str, Parameter(name="STORE", help="[ACTION NAME] [STORE]")],
    app: App = None,
    view: Views = (),
    event: Count | None = None,
    reason: str = "",
    over: Duration = 1.0,
    timeout: Duration = 10.0,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Say how far projections are, and have one paused or rebuilt.

    Those that keep their positions in the store are found there; those into views need --view, or
    --app. ACTION is show, pause, resume, retry, skip or rebuild, and NAME the projection: show is
    about one of them, with what is parked and what has become of it. What changes anything is not
    done here: whoever runs the projection is asked to do it. If that takes too long, the request is
    taken back; if nobody runs it, it waits for who will.

    Examples
    --------
      papyra projections events.ndjson --view views.db
      papyra projections skip balances events.ndjson --app bank.views --reason "paid twice"
      papyra projections retry balances --event 17 --yes --json

    Parameters
    ----------
    event
        The parked event that retry or skip is about; without it, that at which it is paused.
    reason
        Why; it is kept with the fact that it was paused, or that an event was skipped.
    over
        How long it takes to measure rates; 0s does without.
    timeout
        How long to wait for whoever runs the projection.

    """
    action, name, store = _parsed(words)
    views = views_of(app, view)
    if action is None:
        rows = anyio.run(partial(_look, over=over), store, views)
        _show(rows, as_json=as_json)
        return
    if event is not None and action not in _OF_EVENTS:
        raise WrongUse("--event is for retry and skip")
    if action == "show":
        anyio.run(partial(_show_one, over=over, as_json=as_json), store, views, name)
        return
    asked = anyio.run(_prepare, store, views, _Wish(action, name, event, reason))
    if asked.is_done:
        _report(asked, asked.row, taken=False, as_json=as_json)
        return
    if not as_json:
        _show([asked.row], as_json=False)
    # Outside of any event loop, which would keep Ctrl-C until there is an answer.
    if not confirm(asked.question, yes=yes):
        raise CommandFailed("nothing was changed")
    row, taken = anyio.run(_ask, store, views, asked, timeout)
    _report(asked, row, taken=taken, as_json=as_json)


class _Wish(NamedTuple):
    """What somebody wants of a projection."""

    action: Action
    name: str
    event: int | None
    reason: str

    @property
    def request(self) -> str:
        """The request, as whoever runs the projection reads it."""
        which = "" if self.event is None else f" {self.event}"
        return f"{self.action}{which}{f': {self.reason}' if self.reason else ''}"


class _Asked(NamedTuple):
    """A wish, and the projection as it was before."""

    wish: _Wish
    row: Row
    #: whether there is nothing to do
    is_done: bool

    @property
    def question(self) -> str:
        """The question whether to ask for it."""
        build, inspected = self.row.inspected.build, self.row.inspected
        place = f"into {inspected.location}" if inspected.location else "without a view"
        instead = f", in place of {build.request!r}" if build.request else ""
        later = "" if inspected.is_run else ", as soon as somebody runs it"
        return f"have {self.wish.name} ({place}) {self.wish.request}{instead}{later}?"

    def has_come(self, row: Row) -> bool:
        """Return whether what was wanted is so."""
        match self.wish:
            case _Wish("pause"):
                return row.inspected.build.is_paused
            case _Wish("rebuild"):
                is_newer = row.inspected.build.build > self.row.inspected.build.build
                return is_newer or row.inspected.beside is not None
            case _Wish(event=int() as seq):
                return seq not in _parked(row)
            case _:
                # It may be running for a moment, and be paused at the same event again.
                before, now = self.row.inspected.build, row.inspected.build
                return not now.is_paused and now.position >= (before.error_seq or 0)


def _parsed(words: Sequence[str]) -> tuple[Action | None, str, str | None]:
    """Return action, name and store. Raises `WrongUse`."""
    if not words or words[0] not in ACTIONS:
        if len(words) > 1:
            raise WrongUse(f"{words[0]!r} is none of {', '.join(ACTIONS)}, which a NAME follows")
        return None, "", words[0] if words else None
    action = words[0]
    if not 2 <= len(words) <= 3 or not words[1].strip():
        raise WrongUse(f"papyra projections {action} NAME [STORE]: which projection?")
    return action, words[1], words[2] if len(words) == 3 else None


async def _look(store: str | None, views: Sequence[View[Any]], *, over: float = 0.0) -> list[Row]:
    async with reading(store) as backend:
        return await look(backend, views, over=over)


async def _show_one(
    store: str | None, views: Sequence[View[Any]], name: str, *, over: float, as_json: bool
) -> None:
    async with reading(store) as backend:
        row = _named(await look(backend, views, over=over), name)
        facts = await _facts(backend, name)
    if as_json:
        show_json(as_data(row) | {"facts": facts})
        return
    _show_fields(row)
    if facts and is_terminal():
        for fact in facts:
            console().print(styled(fact), soft_wrap=True)
    elif facts:
        write(tabbed_lines(facts))


async def _facts(backend: PersistenceBackend, name: str) -> list[Record]:
    """Return the newest facts that a projection has left in the store, the oldest first."""
    from papyra.projections.facts import FOLDER  # noqa: PLC0415 - where it is needed

    newest = (await backend.read("event", newest=True, limit=1)).records
    if not newest:
        return []
    address = f"{newest[0].system_id}/{FOLDER}/{name}"
    page = await backend.read("event", actor=address, newest=True, limit=_FACTS)
    return list(page.records)


def _named(rows: Sequence[Row], name: str) -> Row:
    """Return the projection of a name. Raises `CommandFailed` for none, or several."""
    found = [row for row in rows if row.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(row.name for row in rows)) or "none"
        raise CommandFailed(
            f"there is no projection {name!r}; there is {known}: --view or --app says where "
            "others are"
        )
    if len(found) > 1:
        places = ", ".join(row.inspected.location or "the store" for row in found)
        raise CommandFailed(f"there are several of the name {name!r}: {places}. Name one --view")
    return found[0]


async def _prepare(store: str | None, views: Sequence[View[Any]], wish: _Wish) -> _Asked:
    """Find the projection. Raises `CommandFailed` for what can't be done with it."""
    row = _named(await _look(store, views), wish.name)
    inspected = row.inspected
    if wish.action == "rebuild" and not inspected.location:
        raise CommandFailed(f"{wish.name} has no view, and nothing that could be built anew")
    if wish.event is not None:
        parked = _parked(row)
        if wish.event not in parked:
            these = ", ".join(map(str, parked[:20])) or "none are"
            raise CommandFailed(f"event {wish.event} is not parked by {wish.name}: {these}")
    elif wish.action in _OF_EVENTS and not inspected.build.is_paused:
        raise CommandFailed(
            f"{wish.name} is not paused at any event: --event says which parked one is meant"
        )
    is_done = wish.action in ("pause", "resume") and _Asked(wish, row, False).has_come(row)
    return _Asked(wish, row, is_done and not inspected.build.request)


def _parked(row: Row) -> list[int]:
    return [each.seq for each in row.inspected.parked]


async def _ask(
    store: str | None, views: Sequence[View[Any]], asked: _Asked, timeout: float
) -> tuple[Row, bool]:
    """Ask whoever runs it; return the projection as it is then, and whether it was taken."""
    location = asked.row.inspected.location
    view = next((each for each in views if each.location == location), None)
    ask = _ask_in_store if view is None else partial(_ask_in_view, view)
    by_nobody = not await ask(store, asked, timeout)

    def is_taken(row: Row) -> bool:
        return row.inspected.build.request != asked.wish.request

    if by_nobody:
        return await _find(store, views, asked), False
    row = await _until(partial(_find, store, views, asked), is_taken, timeout)
    if not is_taken(row):
        withdraw = _withdraw_in_store if view is None else partial(_withdraw_in_view, view)
        if await withdraw(store, asked, timeout):
            raise CommandFailed(
                f"{asked.wish.name}: nobody has taken the request within {timeout:g} seconds, and "
                "nothing was changed: whoever runs it may be busy; say a longer --timeout"
            )
    return await _come_of(partial(_find, store, views, asked), asked, timeout), True


async def _find(store: str | None, views: Sequence[View[Any]], asked: _Asked) -> Row:
    rows = await _look(store, views)
    location = asked.row.inspected.location
    return _named([row for row in rows if row.inspected.location == location], asked.wish.name)


async def _until(find: Any, condition: Callable[[Row], bool], seconds: float) -> Row:
    """Return the projection once a condition holds, or the time is over."""
    pause = FIRST_PAUSE
    with anyio.move_on_after(seconds):
        while True:
            row: Row = await find()
            if condition(row):
                return row
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    return cast("Row", await find())


async def _come_of(find: Any, asked: _Asked, timeout: float) -> Row:
    """Return the projection once what was wanted is so, or is known not to come."""
    began, pause, was_running = anyio.current_time(), FIRST_PAUSE, False
    while True:
        row: Row = await find()
        is_paused = row.inspected.build.is_paused
        if asked.has_come(row) or (was_running and is_paused):
            return row
        was_running = was_running or not is_paused
        if anyio.current_time() - began > (timeout if was_running else PATIENCE):
            return row
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _ask_in_view(view: View[Any], store: str | None, asked: _Asked, timeout: float) -> bool:
    """Leave the request in the view; return whether somebody runs the projection."""
    del store, timeout
    if not await anyio.to_thread.run_sync(view.post, asked.wish.name, asked.wish.request):
        raise CommandFailed(f"{asked.wish.name} is not in {view.location} any more")
    return asked.row.inspected.is_run


async def _withdraw_in_view(
    view: View[Any], store: str | None, asked: _Asked, timeout: float
) -> bool:
    from papyra.projections.inspection import withdraw  # noqa: PLC0415 - where it is needed

    del store, timeout
    wish = asked.wish
    return await anyio.to_thread.run_sync(withdraw, view, wish.name, wish.request)


async def _ask_in_store(store: str | None, asked: _Asked, timeout: float) -> bool:
    """Have the request left in the store; return whether a system writes that."""
    from papyra.projections.store_keeper import request_of  # noqa: PLC0415 - where it is needed

    before = asked.row.inspected.build.request
    data = asked.wish.request.encode()
    request = SavePosition(request_of(asked.wish.name), data, before.encode() or None)
    outcome = await carry_out(store, request, timeout)
    if outcome.reply != PositionSaved(is_saved=True):
        raise CommandFailed(
            f"{asked.wish.name} was asked for something else meanwhile: nothing was changed"
        )
    return outcome.by == "system"


async def _withdraw_in_store(store: str | None, asked: _Asked, timeout: float) -> bool:
    from papyra.projections.store_keeper import request_of  # noqa: PLC0415 - where it is needed

    request = RemovePosition(request_of(asked.wish.name), asked.wish.request.encode())
    outcome = await carry_out(store, request, timeout)
    return outcome.reply == PositionRemoved(is_removed=True)


def _show(rows: Sequence[Row], *, as_json: bool) -> None:
    if as_json:
        show_json([as_data(row) for row in rows])
        return
    if not rows:
        tell("no projection keeps its position here: --view or --app says where others are", "dim")
        return
    show_table(COLUMNS, [cells(row) for row in rows], numbers=NUMBERS, styles=style_of)


def _show_fields(row: Row) -> None:
    build, inspected = row.inspected.build, row.inspected
    behind = "unknown" if row.lag is None else f"{row.lag:,}"
    if row.lag:
        behind = f"{behind}, the first of them for {format_duration(row.lag_seconds)}"
    fields = [
        ("projection", f"{row.name}, version {build.version}, build {build.build}"),
        ("view", inspected.location or "none: its position is in the store"),
        ("state", state_of(row)),
        ("position", f"{build.position:,}"),
        ("behind", behind),
        ("rate", cells(row)[5]),
    ]
    if build.error:
        fields.append(("error", build.error))
    fields += [
        (
            f"{'held' if each.is_held else 'parked'} {each.seq}",
            f"{each.actor}: {each.reason}" if each.actor else each.reason,
        )
        for each in inspected.parked
    ]
    show_fields(fields)


def _report(asked: _Asked, row: Row, *, taken: bool, as_json: bool) -> None:
    wish, has_come = asked.wish, asked.has_come(row)
    if as_json:
        show_json({"done": has_come, "taken": taken, "asked": wish.request, **as_data(row)})
    if asked.is_done:
        if not as_json:
            tell(f"{wish.name} is {state_of(row)}: nothing to do", "green")
        return
    if not taken:
        if not as_json:
            tell(f"nobody runs {wish.name} now: {wish.request!r} waits for whoever does", "yellow")
        return
    if not has_come:
        error = f": {row.inspected.build.error}" if row.inspected.build.error else ""
        raise CommandFailed(
            f"{wish.name} was asked to {wish.request}, and nothing has come of it: it is "
            f"{state_of(row)}{error}. Its system's log may say more"
        )
    if not as_json:
        tell(f"{wish.name} was asked to {wish.request}, and is {state_of(row)}", "green")
