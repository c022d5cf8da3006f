"""The explanation of a filter that has let nothing through."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from papyra.cli._records import type_and_address
from papyra.cli._units import format_time
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Read
from papyra.persistence.records import Kind, Record

#: Pages of the newest records that are looked through for names.
_PAGES = 20
#: How many names are suggested.
_SUGGESTED = 3
#: How many names are compared with a mistyped one.
_COMPARED = 500


async def explain_no_matches(
    backend: PersistenceBackend,
    request: Read,
    record_type: str | None = None,
    *,
    below: bool = False,
) -> str:
    """Return why a read has matched nothing, judged by the newest records.

    With `below`, an actor stands for those below it, too.
    """
    what = request.kind.replace("_", " ")
    records, is_all = await _newest(backend, request.kind)
    if not records:
        return f"there is no {what} at all"
    among = "" if is_all else f" among the newest {len(records):,}"
    types, addresses = map(set, zip(*map(type_and_address, records), strict=True))
    for name, option, names in (
        (request.actor, "--actor", addresses),
        (record_type, "--type", types),
    ):
        if name is not None and not any(
            each == name or (below and each.startswith(f"{name}/")) for each in names
        ):
            return f"{option} {name}: no {what} has that{among}{_suggestion(name, sorted(names))}"
    return _outside(request, what, [record.timestamp for record in records]) + among


async def _newest(backend: PersistenceBackend, kind: Kind) -> tuple[list[Record], bool]:
    records: list[Record] = []
    before: int | None = None
    for _ in range(_PAGES):
        page = await backend.read(kind, newest=True, before=before)
        records += page.records
        before = page.next_before
        if not page.more:
            return records, True
    return records, False


def _outside(request: Read, what: str, times: Sequence[float]) -> str:
    since, until = request.since, request.until
    if since is not None and until is not None and since > until:
        return "--since is after --until, so nothing can be between them"
    if since is None and until is None:
        return f"no {what} is all of that"
    there = f"{format_time(min(times))} to {format_time(max(times))}"
    return f"no {what} of that is in that time; there are some from {there}"


def _suggestion(name: str, names: Sequence[str]) -> str:
    """Return names that may be meant: those that end so, or are written in a similar way."""
    meant = [each for each in names if each.endswith(f"/{name}")]
    meant += [each for each in names if each.casefold() == name.casefold()]
    meant = meant or difflib.get_close_matches(name, names[:_COMPARED], _SUGGESTED)
    if meant:
        return f"; did you mean {' or '.join(meant[:_SUGGESTED])}?"
    return f"; there is, for example, {names[0]}"
