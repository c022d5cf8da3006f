"""``papyra events``, ``papyra audits`` and ``papyra dead-letters``."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._exit_codes import WrongUse
from papyra.cli._no_matches import explain_no_matches
from papyra.cli._output import AsJson, console, is_terminal, tell, write
from papyra.cli._records import json_lines, styled, tabbed_lines
from papyra.cli._store_argument import StoreName, check_output, reading
from papyra.cli._units import Count, Moment
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Read
from papyra.persistence.records import PersistedDeadLetter, Record

#: How many new records are printed together, at most.
_AT_ONCE = 1_000
#: What fits on a terminal, where nobody says how many.
_ON_TERMINAL = 50
#: What comes before the new, as `tail` has it.
_BEFORE_NEW = 10
#: Names of files that hold JSON.
_JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The options that select records, and the form of the output."""

    since: Moment | None = None
    "Only from then on."
    until: Moment | None = None
    "Only up to then."
    limit: Annotated[Count | None, Parameter(name=("--limit", "-n"))] = None
    "The newest so many; on a terminal 50, elsewhere all of them."
    reverse: Annotated[bool, Parameter(name=("--reverse", "-r"))] = False
    "The newest first."
    follow: Annotated[bool, Parameter(name=("--follow", "-f"))] = False
    "Go on with what comes, until Ctrl-C."
    as_json: AsJson = False
    "Print a line of JSON for each."
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None
    "Write to a file; in JSON, if it is called so."

    def check(self) -> None:
        """Raise `WrongUse` for what makes no sense together."""
        if self.limit is not None and self.limit < 0:
            raise WrongUse(f"--limit is how many records, not {self.limit}")
        if self.follow and (self.reverse or self.until is not None):
            raise WrongUse("--follow goes on with what is new: leave out --reverse and --until")

    @property
    def count(self) -> int | None:
        """The number of stored records to show; `None` for all of them."""
        if self.limit is None and self.follow:
            return _BEFORE_NEW
        if self.limit is None and self.output is None and not self.as_json and is_terminal():
            return _ON_TERMINAL
        return self.limit


def events(
    store: StoreName = None,
    /,
    *,
    event_type: Annotated[str | None, Parameter(name=("--type", "-t"))] = None,
    actor: Annotated[str | None, Parameter(name=("--actor", "-a"))] = None,
    selection: Selection = Selection(),
) -> None:
    """List events, the oldest first.

    Examples
    --------
      papyra events ./journal/ --since 1h --type ActorCrashed
      papyra events events.ndjson --actor shop/desk --follow
      papyra events --json | jq .payload

    Parameters
    ----------
    event_type
        Only events of this type.
    actor
        Only those of the actor with this address.

    """
    _run(store, Read("event", event_type=event_type, actor=actor), selection)


def audits(
    store: StoreName = None,
    /,
    *,
    selection: Selection = Selection(),
) -> None:
    """List audits, the oldest first.

    Examples
    --------
      papyra audits events.ndjson --limit 1
      papyra audits --since 2h --json | jq .payload.messages_waiting

    """
    _run(store, Read("audit"), selection)


def dead_letters(
    store: StoreName = None,
    /,
    *,
    message_type: Annotated[str | None, Parameter(name=("--type", "-t"))] = None,
    actor: Annotated[str | None, Parameter(name=("--actor", "-a"))] = None,
    selection: Selection = Selection(),
) -> None:
    """List messages that reached nobody, the oldest first.

    Examples
    --------
      papyra dead-letters ./journal/ --since 1d
      papyra dead-letters 'redis://localhost/0?system_id=shop' --actor shop/desk --follow

    Parameters
    ----------
    message_type
        Only messages of this type.
    actor
        Only those to the actor with this address.

    """
    _run(store, Read("dead_letter", actor=actor), selection, message_type)


def _run(
    store: str | None,
    request: Read,
    selection: Selection,
    message_type: str | None = None,
) -> None:
    selection.check()
    check_output(selection.output, store)
    request = msgspec.structs.replace(request, since=selection.since, until=selection.until)
    anyio.run(_list, store, request, selection, message_type)


async def _list(
    store: str | None,
    request: Read,
    selection: Selection,
    message_type: str | None,
) -> None:
    async with reading(store) as backend:
        with _printer(selection) as show:
            last_seq, shown = backend.last_seq, 0
            async for page in _pages(backend, request, selection, message_type):
                show(page)
                shown += len(page)
                last_seq = max(last_seq, *(record.seq or 0 for record in page), 0)
            if shown == selection.count and selection.limit is None and not selection.follow:
                tell(f"the newest {shown}; --limit shows more", "dim")
            elif not shown and _has_to_explain(request, selection, message_type):
                wanted_type = request.event_type if message_type is None else message_type
                tell(await explain_no_matches(backend, request, wanted_type), "dim")
            if selection.follow:
                follow = msgspec.structs.replace(request, after=last_seq)
                async for records in _new_records(backend, follow):
                    show(_chosen(records, message_type))


def _has_to_explain(request: Read, selection: Selection, message_type: str | None) -> bool:
    """Return whether somebody wonders why there is nothing, and not only for how long."""
    filters = (request.actor, request.event_type, message_type, request.since, request.until)
    is_filtered = any(each is not None for each in filters)
    return selection.count != 0 and (is_terminal() or (is_filtered and not selection.follow))


async def _pages(
    backend: PersistenceBackend,
    request: Read,
    selection: Selection,
    message_type: str | None,
) -> AsyncIterator[list[Record]]:
    """Yield stored records, in the order in which they are to be shown."""
    wanted = selection.count
    if wanted is None and not selection.reverse:
        more = True
        while more:
            page = await backend.execute(request)
            yield _chosen(page.records, message_type)
            request, more = msgspec.structs.replace(request, after=page.next_after), page.more
        return
    # Back from the newest; turned round in the end, if that is wanted.
    request = msgspec.structs.replace(request, newest=True)
    kept: list[Record] = []
    more = wanted != 0
    left = wanted
    while more:
        # How many have to be read for them is known where they are chosen by the backend alone.
        limit = left if message_type is None else None
        page = await backend.execute(msgspec.structs.replace(request, limit=limit))
        found = _chosen(page.records, message_type)[::-1][:left]
        request = msgspec.structs.replace(request, before=page.next_before)
        more = page.more
        if left is not None:
            left -= len(found)
            more &= left > 0
        if selection.reverse:
            yield found
        else:
            kept += found
    kept.reverse()
    if kept:
        yield kept


def _chosen(records: Sequence[Record], message_type: str | None) -> list[Record]:
    """Return the dead letters of a type, which a read can't choose; or everything."""
    if message_type is None:
        return list(records)
    return [
        record
        for record in records
        if isinstance(record, PersistedDeadLetter) and record.message_type == message_type
    ]


async def _new_records(backend: PersistenceBackend, request: Read) -> AsyncIterator[list[Record]]:
    """Yield new records as they come, and wait for a server that is away."""
    async with backend.subscribe(
        after=request.after,
        kinds=(request.kind,),
        types=None if request.event_type is None else [request.event_type],
        actor=request.actor,
        waiting=lambda error: tell(f"waiting: {error}", "yellow"),
    ) as items:
        while True:
            batch = await items.batch(_AT_ONCE)
            since = -math.inf if request.since is None else request.since
            yield [item for item in batch if isinstance(item, Record) and item.timestamp >= since]


@contextmanager
def _printer(selection: Selection) -> Iterator[Callable[[list[Record]], None]]:
    """Yield the function that prints records, or writes them to a file."""
    if selection.output is None:
        if not selection.as_json and is_terminal():
            yield _print_for_people
        else:
            yield _writer(write, sys.stdout.flush, as_json=selection.as_json)
        return
    as_json = selection.as_json or selection.output.suffix in _JSON_SUFFIXES
    with selection.output.open("w", encoding="utf-8") as file:
        yield _writer(file.write, file.flush, as_json=as_json)
    tell(f"written to {selection.output}", "dim")


def _writer(
    write: Callable[[str], object], flush: Callable[[], object], *, as_json: bool
) -> Callable[[list[Record]], None]:
    lines = json_lines if as_json else tabbed_lines

    def write_lines(records: list[Record]) -> None:
        write(lines(records))
        flush()

    return write_lines


def _print_for_people(records: list[Record]) -> None:
    for record in records:
        console().print(styled(record), soft_wrap=True)
