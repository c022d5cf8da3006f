"""The fields of log records: what is known of where they were logged, and of what they tell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

from papyra._safe_repr import one_line, text_of

__all__ = ("FIELDS", "LogFields", "about", "fields", "watch_tasks")

#: The attributes that records get, each `None` where nothing is known of it. With a prefix, as
#: attributes of records are everybody's, and those that are there already must not be given again.
FIELDS: Final = (
    "papyra_system",
    "papyra_actor",
    "papyra_message_type",
    "papyra_revision",
    "papyra_correlation_id",
    "papyra_projection",
    "papyra_seq",
)

#: The fields of all that is logged in a task, and in those that are started there.
about: ContextVar[Mapping[str, str | int | None]] = ContextVar("papyra_log_fields")

_look: list[Callable[[], Mapping[str, str | None]]] = []


def fields(**known: str | int | None) -> dict[str, str | int | None]:
    """Return the `extra` of a record: ``fields(actor=...)`` is its ``papyra_actor``."""
    return {f"papyra_{name}": value for name, value in known.items()}


def watch_tasks(look: Callable[[], Mapping[str, str | None]]) -> None:
    """Have `look` say which actor runs where something is logged, and what it handles."""
    _look.append(look)


class LogFields(logging.Filter):
    """Gives each record the `FIELDS`, and lets it pass.

    Papyra's own logger has one. In one of yours, or in a handler, it has what you log in an actor
    say which actor that was, and what it was handling.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Give `record` the fields that it does not have."""
        known: dict[str, object] = {**about.get({})}
        for look in _look:
            known |= look()
        for name in FIELDS:
            value = record.__dict__.get(name)
            value = known.get(name) if value is None else value
            record.__dict__[name] = one_line(value) if isinstance(value, str) else value
        return True


class _OwnRecords(LogFields):
    """The same for Papyra's own records, which are a line each, whatever is in them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_on_one_line, record.args))
        return super().filter(record)


def _on_one_line(value: object) -> object:
    """Return what is shown of a value without ends of lines, which would begin a forged one."""
    if isinstance(value, BaseException):
        return one_line(text_of(value))
    return one_line(value) if isinstance(value, str) else value


logging.getLogger("papyra").addFilter(_OwnRecords())
