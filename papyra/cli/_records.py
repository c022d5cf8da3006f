"""Records, as lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, assert_never

from papyra.cli._output import has_unicode, is_terminal, json_text, rows, text
from papyra.cli._units import format_time
from papyra.persistence.records import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

if TYPE_CHECKING:
    from rich.text import Text

#: What happens to actors, as a terminal shows it.
_STYLES = {
    "ActorStarted": "green",
    "ActorCrashed": "bold red",
    "ActorRestarted": "yellow",
    "ActorStopped": "dim",
}


def type_and_address(record: Record) -> tuple[str, str]:
    """Return the type of a record, and the address of its actor; of an audit, the system's id."""
    match record:
        case PersistedEvent():
            return record.event_type, record.actor_address
        case PersistedDeadLetter():
            return record.message_type, record.target
        case PersistedAudit():
            return "Audit", record.system_id
        case _:
            assert_never(record)


def cells(record: Record) -> Sequence[str]:
    """Return the columns of a record: position, time, type, address, and payload."""
    time = format_time(record.timestamp)
    return str(record.seq), time, *type_and_address(record), json_text(record.payload)


def json_lines(records: Iterable[Record]) -> str:
    """Return a line of JSON for each record."""
    return "".join(json_text(record) + "\n" for record in records)


def tabbed_lines(records: Iterable[Record]) -> str:
    """Return a line of columns, separated by tabs, for each record."""
    return rows(map(cells, records))


def style_of(record: Record) -> str:
    """Return how a terminal shows what happened."""
    match record:
        case PersistedEvent():
            return _STYLES.get(record.event_type, "bold")
        case PersistedDeadLetter():
            return "bold magenta"
        case PersistedAudit():
            return "bold blue"
        case _:
            assert_never(record)


def styled(record: Record, width: int | None = None) -> Text:
    """Return a record for a terminal, cut off at `width`."""
    assert is_terminal() or width is not None
    seq, time, what, whose, payload = cells(record)
    line = text(
        (f"{seq:>7} ", "dim"),
        (f"{time} ", "dim"),
        (f"{what} ", style_of(record)),
        (f"{whose} ", "cyan"),
        payload,
    )
    if width is not None:
        line.truncate(width, overflow="ellipsis" if has_unicode() else "crop")
    return line
