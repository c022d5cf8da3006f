"""``papyra skip-event``."""

from __future__ import annotations

from typing import Annotated

import anyio
from cyclopts import Parameter

from papyra.cli._exit_codes import CommandFailed, WrongUse
from papyra.cli._output import (
    AsJson,
    Yes,
    confirm,
    console,
    is_terminal,
    show_json,
    tell,
    write,
)
from papyra.cli._records import styled, tabbed_lines
from papyra.cli._store_argument import StoreName, name_of, reading
from papyra.cli._units import Count, Duration
from papyra.cli._writer import Outcome, carry_out
from papyra.exceptions import InvalidRequest
from papyra.persistence.decisions import Examined, examine
from papyra.persistence.messages import EventSkipped, SkipEvent


def skip_event(
    actor: Annotated[str, Parameter(name="ACTOR")],
    revision: Annotated[Count, Parameter(name="REVISION")],
    store: StoreName = None,
    /,
    *,
    reason: str,
    timeout: Duration = 10.0,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Have an actor recover without one event of its history.

    That is for an event that can't be decoded or applied, or should not have been stored. It stays
    where it is: what is stored is the decision, with its reason, as the next event of the history.
    A system that writes the store is asked to do that, and goes on; an actor that is awake learns
    of it when it persists next.

    Examples
    --------
      papyra skip-event bank/ann 3 events.ndjson --reason "no account has interest"
      papyra skip-event bank/ann 3 --reason "paid twice" --yes --json

    Parameters
    ----------
    actor
        The address of the actor.
    revision
        Which event, as papyra history shows it.
    reason
        Why; it is kept with the decision.
    timeout
        How long to wait for a system that writes the store.

    """
    if not actor.strip():
        raise WrongUse("ACTOR is empty: a variable that is not set, maybe?")
    try:
        request = SkipEvent(actor, revision, reason)
    except InvalidRequest as error:
        raise WrongUse(str(error)) from error
    name, examined = anyio.run(_examine, store, request)
    if examined.decided is not None:
        _report(request, Outcome(examined.decided, "command"), as_json=as_json)
        return
    if not as_json:
        _show(request, examined)
    # Outside of any event loop, which would keep Ctrl-C until there is an answer.
    if not confirm(f"have {actor} in {name} recover without revision {revision:,}?", yes=yes):
        raise CommandFailed("nothing was changed")
    _report(request, anyio.run(carry_out, store, request, timeout), as_json=as_json)


async def _examine(store: str | None, request: SkipEvent) -> tuple[str, Examined]:
    """Return the name of a store, and what is known about the event."""
    async with reading(store, "skipping an event") as backend:
        try:
            return name_of(backend), await examine(request, backend.execute)
        except InvalidRequest as error:
            raise CommandFailed(f"{error}: papyra history {request.actor} shows them") from error


def _show(request: SkipEvent, examined: Examined) -> None:
    event = examined.event
    if event.revision != request.revision:
        tell(f"revision {request.revision:,} is missing, or can't be read", "yellow")
        return
    if is_terminal():
        console().print(styled(event), soft_wrap=True)
    else:
        write(tabbed_lines([event]))


def _report(request: SkipEvent, outcome: Outcome, *, as_json: bool) -> None:
    reply, by = outcome
    assert isinstance(reply, EventSkipped)
    if as_json:
        show_json(
            {
                "done": reply.is_new,
                "actor": request.actor,
                "revision": request.revision,
                "decision": reply.revision,
                "reason": reply.reason,
                "by": by if reply.is_new else None,
            }
        )
        return
    which = f"revision {request.revision:,} of {request.actor}"
    if not reply.is_new:
        tell(f"{which} is skipped already, by revision {reply.revision:,}: {reply.reason}", "green")
        return
    who = " by the system that writes the store" if by == "system" else ""
    tell(f"{which} is skipped from now on, as revision {reply.revision:,} says{who}", "green")
