"""``papyra timers``."""

from __future__ import annotations

import time
from typing import Annotated

import anyio
from cyclopts import Parameter

from papyra.cli._exit_codes import CommandFailed, WrongUse
from papyra.cli._output import (
    AsJson,
    Yes,
    confirm,
    is_terminal,
    rows,
    show_json,
    show_table,
    tell,
    write,
)
from papyra.cli._store_argument import name_of, reading
from papyra.cli._units import Duration, format_duration, format_time
from papyra.cli._writer import Outcome, carry_out
from papyra.exceptions import InvalidRequest
from papyra.persistence.messages import CancelTimer, FireTimer, TimerChanged
from papyra.persistence.timer_changes import Pending
from papyra.persistence.timer_operations import find_timer, pending_timers

_ACTIONS: dict[str, type[CancelTimer | FireTimer]] = {
    "cancel": CancelTimer,
    "fire": FireTimer,
}
_COLUMNS = ("due", "in", "actor", "timer", "message", "failed", "why")


def timers(
    *arguments: Annotated[str, Parameter(name="STORE", help="A file, a directory or a URL.")],
    timeout: Duration = 10.0,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """List the durable timers that are pending; cancel or fire one.

    The list says what is due, when, for whom, and how often it has failed, the next one first.
    Cancelled, a timer comes no more; fired, it comes at once, and one that recurs goes on as
    before. A system that writes the store is asked to do that, and goes on.

    Examples
    --------
      papyra timers shop.ndjson
      papyra timers cancel shop/Order/42 payment shop.ndjson
      papyra timers fire shop/Order/42 payment --yes --json

    Parameters
    ----------
    timeout
        How long to wait for a system that writes the store.

    """
    match arguments:
        case ("cancel" | "fire" as action, actor, name, *rest) if len(rest) <= 1:
            _change(action, actor, name, *rest, timeout=timeout, yes=yes, as_json=as_json)
        case ("cancel" | "fire" as action, *_):
            raise WrongUse(f"{action} takes ACTOR NAME [STORE]; a store called so is ./{action}")
        case () | (_,):
            _list(*arguments, as_json=as_json)
        case _:
            raise WrongUse("one STORE, or cancel ACTOR NAME [STORE], or fire ACTOR NAME [STORE]")


def _list(store: str | None = None, *, as_json: bool) -> None:
    found = anyio.run(_pending, store)
    now = time.time()
    if as_json:
        for actor, pending in found:
            show_json(_fields(actor, pending))
        return
    cells = [_cells(actor, pending, now) for actor, pending in found]
    if not is_terminal():
        write(rows(cells))
    elif cells:
        show_table(_COLUMNS, cells)
    if not cells:
        tell("no timer is pending", "dim")


async def _pending(store: str | None) -> list[tuple[str, Pending]]:
    """Return the pending timers of a store, by when they come."""
    async with reading(store) as backend:
        found = [each async for each in pending_timers(backend)]
    return sorted(found, key=lambda each: (each[1].comes_at, each[0], each[1].name))


def _fields(actor: str, pending: Pending) -> dict[str, object]:
    scheduled = pending.scheduled
    return {
        "actor": actor,
        "name": pending.name,
        "due": pending.due,
        "not_before": pending.not_before,
        "failed": pending.attempts,
        "error": pending.error or None,
        "message_type": scheduled.message_type,
        "message": scheduled.message,
        "every": scheduled.every,
        "cron": scheduled.cron,
        "tz": scheduled.tz,
        "missed": scheduled.missed,
    }


def _cells(actor: str, pending: Pending, now: float) -> tuple[str, ...]:
    left = pending.comes_at - now
    when = f"in {format_duration(left)}" if left > 0 else f"{format_duration(-left)} ago"
    return (
        *(format_time(pending.due), when, actor, pending.name),
        *(pending.scheduled.message_type, str(pending.attempts), pending.error),
    )


def _change(
    action: str,
    actor: str,
    name: str,
    store: str | None = None,
    *,
    timeout: float,
    yes: bool,
    as_json: bool,
) -> None:
    if not actor.strip() or not name:
        raise WrongUse("ACTOR or NAME is empty: a variable that is not set, maybe?")
    try:
        request = _ACTIONS[action](actor, name)
    except InvalidRequest as error:
        raise WrongUse(str(error)) from error
    place, pending = anyio.run(_find, store, request)
    if not as_json:
        due = format_time(pending.due)
        tell(f"{name} of {actor}: {pending.scheduled.message_type}, due {due}")
    # Outside of any event loop, which would keep Ctrl-C until there is an answer.
    if not confirm(f"{action} {name} of {actor} in {place}?", yes=yes):
        raise CommandFailed("nothing was changed")
    _report(action, request, anyio.run(carry_out, store, request, timeout), as_json=as_json)


async def _find(store: str | None, request: CancelTimer | FireTimer) -> tuple[str, Pending]:
    """Return the name of a store, and the timer."""
    async with reading(store, "changing a timer") as backend:
        try:
            found = await find_timer(request.actor, request.name, backend.execute)
        except InvalidRequest as error:
            raise CommandFailed(f"{error}: papyra timers shows those that are") from error
        return name_of(backend), found.pending


def _report(
    action: str, request: CancelTimer | FireTimer, outcome: Outcome, *, as_json: bool
) -> None:
    reply, by = outcome
    assert isinstance(reply, TimerChanged)
    if as_json:
        show_json(
            {
                "done": reply.is_new,
                "action": action,
                "actor": request.actor,
                "name": request.name,
                "revision": reply.revision,
                "by": by if reply.is_new else None,
            }
        )
        return
    which = f"{request.name} of {request.actor}"
    if not reply.is_new:
        tell(f"{which} is due already", "green")
        return
    who = " by the system that writes the store" if by == "system" else ""
    done = "is cancelled" if action == "cancel" else "is due now"
    tell(f"{which} {done}, as revision {reply.revision:,} says{who}", "green")
