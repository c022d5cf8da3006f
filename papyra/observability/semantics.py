"""Names of spans and attributes, and what may stand in them.

Those of errors are OpenTelemetry's stable ones. Its conventions for messaging are not stable yet,
and know no actors, so the others begin with ``papyra.``, and may change when those are.
"""

from __future__ import annotations

from typing import Final

from papyra._safe_repr import type_name

# OpenTelemetry's, stable
ERROR_TYPE: Final = "error.type"
EXCEPTION: Final = "exception"  #: the name of an event
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
EXCEPTION_TYPE: Final = "exception.type"

# Papyra's own
ACTOR_ADDRESS: Final = "papyra.actor.address"
ACTOR_TYPE: Final = "papyra.actor.type"  #: the name of the class
MESSAGE_TYPE: Final = "papyra.message.type"  #: the name of the class
RECORDS: Final = "papyra.records"  #: how many are stored, or handled
REVISION: Final = "papyra.revision"
TIMER_NAME: Final = "papyra.timer.name"
TIMER_LATE: Final = "papyra.timer.late"  #: seconds
PROJECTION_NAME: Final = "papyra.projection.name"

# The names of spans; those of `ask` and `receive` go on with the type of the message
ASK: Final = "ask"
RECEIVE: Final = "receive"
PERSIST: Final = "persist"
RECOVERY: Final = "recover"
SNAPSHOT: Final = "save snapshot"
TIMER: Final = "fire timer"
PROJECTION: Final = "project"

#: Characters of a name that are kept.
MAX_NAME: Final = 200


def named(text: str) -> str:
    """Return a name as it may be shown anywhere: printable, and shortened if it is long."""
    if text.isprintable() and len(text) <= MAX_NAME:
        return text
    shown = text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 3]}..."
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in shown)


def type_of(value: object) -> str:
    """Return the name of a value's class, as it may be shown anywhere."""
    name = type_name(value)
    return name if name.isidentifier() and len(name) <= MAX_NAME else named(name)
