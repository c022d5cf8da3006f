"""Commands with idempotency keys: each is handled once, and replied to as the first time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from papyra._safe_repr import printable, shown, type_name
from papyra.actor import Failure
from papyra.eventsourcing.bookkeeping import COMMAND, KEY, REPLIED, KeyedCommand, Replied
from papyra.eventsourcing.history import History
from papyra.eventsourcing.keyed_replies import keep_reply, reply_again
from papyra.eventsourcing.recovery import Recovery
from papyra.eventsourcing.resumption import Resumption
from papyra.exceptions import (
    InvalidIdempotencyKey,
    InvalidRecord,
    PersistenceError,
    RecoveryFailed,
    ReplyNotKept,
)
from papyra.persistence.records import RESERVED

StateT = TypeVar("StateT")

#: What handles a message: ``receive``.
Receive: TypeAlias = Callable[[Any], Awaitable[Any]]

#: Characters that are kept of the name of a command's type.
MAX_TYPE = 200


class KeyedCommands(Generic[StateT]):
    """Handles those commands of one actor that have keys."""

    def __init__(
        self, history: History[StateT], recovery: Recovery[StateT], receive: Receive
    ) -> None:
        self._history = history
        self._recovery = recovery
        self._receive = receive

    async def handle(self, message: Any, idempotency_key: str) -> Any:
        """Return the reply that is kept of this command, or what `receive` does.

        That is called once more, where a command with this key was cut short.
        """
        history, command_type = self._history, printable(type_name(message))[:MAX_TYPE]
        handled = history.books.kept.commands.get(idempotency_key)
        try:
            if handled is not None:
                _check_same(handled, command_type, idempotency_key)
                if handled.reply is not None:
                    return reply_again(handled.reply, message)
                await history.resume(idempotency_key, handled.revision)
        except (InvalidIdempotencyKey, ReplyNotKept, RecoveryFailed, PersistenceError) as error:
            return Failure(error)
        history.command_metadata = {KEY: idempotency_key, COMMAND: command_type}
        resumption = history.resumption
        try:
            reply = (
                await self._receive_resumed(resumption, message)
                if resumption
                else await self._receive(message)
            )
        finally:
            history.command_metadata = None
            history.return_to_present()
        if resumption is not None and resumption.divergence is not None:
            return Failure(resumption.divergence)
        if history.failure is None and idempotency_key in history.books.kept.commands:
            replied = Replied(idempotency_key, keep_reply(message, reply))
            self._recovery.append_nowait((), notes=[(REPLIED, replied)])
        return reply

    async def _receive_resumed(self, resumption: Resumption[StateT], message: Any) -> Any:
        """Return what `receive` does, and note if that is something else than the first time."""
        try:
            reply = await self._receive(message)
        except ReplyNotKept as error:
            if error is resumption.divergence:
                return None
            raise
        if not resumption.is_through:
            resumption.diverge()
        return reply


def all_metadata(
    metadata: Mapping[str, str], of_command: Mapping[str, str] | None
) -> Mapping[str, str]:
    """Return what is stored with events: what the user says, and what the command does.

    Raises `InvalidRecord`.
    """
    if not isinstance(metadata, Mapping) or any(
        not isinstance(name, str) or name.startswith(RESERVED) for name in metadata
    ):
        raise InvalidRecord(
            f"metadata is strings by their names, which do not begin with {RESERVED!r}, "
            f"not {shown(metadata)}"
        )
    return {**metadata, **(of_command or {})}


def _check_same(handled: KeyedCommand, command_type: str, idempotency_key: str) -> None:
    if handled.type != command_type:
        raise InvalidIdempotencyKey(
            f"the idempotency key {shown(idempotency_key)} is that of another command, a "
            f"{handled.type}"
        )
