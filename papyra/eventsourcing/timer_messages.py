"""The messages that durable timers bring: as they are stored, and as they come back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from papyra._safe_repr import shown, text_of, type_name
from papyra.eventsourcing.schema import Schema, Upcaster
from papyra.eventsourcing.steps import decodes_alike, parts_of
from papyra.exceptions import InvalidEvent, InvalidTimer
from papyra.persistence import codec
from papyra.persistence.timer_changes import Scheduled

__all__ = ("TimerMessages",)

#: Integers up to there are small.
_WORD = 2**63


class TimerMessages:
    """The messages that the timers of one class of actors may bring back."""

    def __init__(
        self, owner: str, types: Sequence[type], upcasters: Sequence[Upcaster] = ()
    ) -> None:
        """Check the types, and what leads to them from what they were.

        Raises `InvalidSchema` for what could not be read back.
        """
        self._owner = owner
        self._schema = Schema(owner, types, upcasters, attribute="timer_messages")
        self._classes = frozenset(self._schema.classes)
        #: those of which any JSON that is made comes back, but for NaN
        self._simple = {each for each in self._schema.classes if _is_simple(each)}
        self._encoder = msgspec.json.Encoder()

    def encode(self, message: object) -> tuple[str, int, Any]:
        """Return the name and the version of a message's type, and the message as plain data.

        Raises `InvalidTimer` for one of another type, or that could not be read back.
        """
        try:
            kind, payload = self._schema.encode(message)
            if type(payload) is dict and _is_plain(payload.values()):
                return kind.name, kind.version, payload
            if type(message) in self._simple:
                encoded = self._encoder.encode(payload)
                if b"null" not in encoded:
                    return kind.name, kind.version, msgspec.json.decode(encoded)
            return kind.name, kind.version, codec.plain(payload)
        except Exception as error:
            if type(message) in self._classes:
                why = text_of(error)
            else:
                known = ", ".join(sorted(each.__name__ for each in self._schema.classes)) or "none"
                why = f"it is not in {self._owner}.timer_messages, which names {known}"
            raise InvalidTimer(f"{type_name(message)} can't be scheduled: {why}") from error

    def decode(self, scheduled: Scheduled) -> Sequence[object]:
        """Return the message of a timer, as it is today; none where an upcaster has said so.

        Raises `InvalidTimer` for a type, or a version, from which nothing leads to one of today,
        and where an upcaster makes several messages of one.
        """
        try:
            messages = self._schema.decode(_Stored(scheduled))
        except InvalidEvent as error:
            raise InvalidTimer(f"timer {shown(scheduled.name)}: {text_of(error)}") from error
        if len(messages) > 1:
            raise InvalidTimer(
                f"timer {shown(scheduled.name)}: upcasters make {len(messages)} messages of a "
                f"{shown(scheduled.message_type)}, and a timer brings one"
            )
        return messages


def _is_simple(message_class: type) -> bool:
    """Return whether there is nothing in a class of messages but what JSON has, and other such."""
    parts = parts_of(msgspec.inspect.type_info(message_class))
    is_known = not any(isinstance(each, msgspec.inspect.AnyType) for each in parts)
    return is_known and decodes_alike(message_class)


def _is_plain(values: Iterable[object]) -> bool:
    """Return whether it is plain that these come back from JSON as they are."""
    for each in values:
        if type(each) is int:
            if not -_WORD <= each < _WORD:
                return False
        elif type(each) is str:
            if not each.isascii():
                return False
        elif each is not None and type(each) is not bool:
            return False
    return True


class _Stored:
    """The message of a timer, as a schema decodes what is stored."""

    revision: int | None = None
    metadata: Mapping[str, str] | None = None

    def __init__(self, scheduled: Scheduled) -> None:
        self.event_type = scheduled.message_type
        self.event_version = scheduled.message_version
        self.payload = scheduled.message
