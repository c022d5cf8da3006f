"""The way to the writer of a store: the command itself, or the system that writes it."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal, NamedTuple, cast

import anyio

from papyra.cli._exit_codes import CommandFailed
from papyra.cli._output import tell
from papyra.cli._store_argument import backend_at, name_of, reading
from papyra.exceptions import BackendInUse
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.store import Inbox
from papyra.persistence.inbox import (
    Answer,
    OperatorReply,
    OperatorRequest,
    PostedRequest,
    Refused,
    decode_answer,
    encode_posted,
)
from papyra.persistence.messages import (
    CancelTimer,
    FireTimer,
    RemovePosition,
    Request,
    SavePosition,
    SkipEvent,
)

#: Seconds for which a request lies with a writer in files, before it is looked whether that lives.
SLICE = 3.0
#: Seconds more for a request that was taken.
PATIENCE = 5.0
#: Seconds between two looks for an answer, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
#: Seconds after which a request that nobody could withdraw counts for nothing.
LEFT_BEHIND = 60.0

#: What each of them comes to, as messages have it.
_WANTED = {
    SkipEvent: "skipping an event",
    RemovePosition: "asking a projection for something",
    SavePosition: "asking a projection for something",
    CancelTimer: "changing a timer",
    FireTimer: "changing a timer",
}


class Outcome(NamedTuple):
    """The reply to a request, and who has carried it out."""

    reply: OperatorReply
    by: Literal["command", "system"]


async def carry_out(store: str | None, request: OperatorRequest, timeout: float) -> Outcome:
    """Have a request carried out: by the system that writes the store, if there is one.

    Said twice, it is to do no harm. A system has `timeout` seconds to answer. Raises
    `CommandFailed` if it does not, or refuses.
    """
    what = _WANTED[type(request)]
    async with reading(store, what) as reader:
        registration = registry.find(reader.store.name)
        if registration is not None and registration.is_on_server:
            return await _on_server(store, reader, request, timeout)
        return await _in_files(store, reader, request, timeout)


async def _in_files(
    store: str | None, reader: PersistenceBackend, request: OperatorRequest, timeout: float
) -> Outcome:
    """Write where nobody else can, and ask who keeps this one out otherwise."""
    deadline = anyio.current_time() + timeout
    while True:
        try:
            return await _write(store, request)
        except BackendInUse as error:
            in_use = error
        left = deadline - anyio.current_time()
        if not isinstance(reader.store, Inbox):
            raise CommandFailed(
                f"{in_use}, and requests can't be left for it in a store of kind "
                f"{reader.store.name}: stop it first"
            )
        if left <= 0:
            raise CommandFailed(
                f"{in_use}. It has not answered within {timeout:g} seconds, and nothing was "
                "changed: it may be busy, or of a version of Papyra that does not look for requests"
            )
        asked = _Asked(reader.store)
        answer = await asked.ask(request, min(left, SLICE))
        if answer is not None:
            return _outcome(answer)
        if asked.is_taken:
            # Should it have ended in the middle, this one may write; said twice, it is done once.
            try:
                return await _write(store, request)
            except BackendInUse as error:
                raise _unanswered(str(error)) from None


async def _on_server(
    store: str | None, reader: PersistenceBackend, request: OperatorRequest, timeout: float
) -> Outcome:
    """Ask whoever may write the store, and write if nobody answers and nobody writes."""
    before = await reader.summarize()
    if before.writer is not None and isinstance(reader.store, Inbox):
        tell(f"asking the writer of {name_of(reader)}, for up to {timeout:g} seconds", "dim")
        asked = _Asked(reader.store)
        answer = await asked.ask(request, timeout)
        if answer is not None:
            return _outcome(answer)
        if asked.is_taken:
            raise _unanswered(before.writer)
    after = await reader.summarize()
    is_attended = isinstance(reader.store, Inbox) and await reader.store.is_attended()
    if is_attended or (after.last_seq, after.writer) != (before.last_seq, before.writer):
        raise CommandFailed(
            f"{after.writer} writes {name_of(reader)}, and has not answered within {timeout:g} "
            "seconds: nothing was changed. It may be busy, or of a version of Papyra that does "
            "not look for requests; stop it first, or say a longer --timeout"
        )
    return await _write(store, request)


async def _write(store: str | None, request: OperatorRequest) -> Outcome:
    async with backend_at(store) as backend:
        reply: OperatorReply = await backend.execute(cast("Request[Any]", request))
        return Outcome(reply, "command")


def _outcome(answer: Answer) -> Outcome:
    if isinstance(answer, Refused):
        raise CommandFailed(f"the system that writes the store has refused it: {answer.reason}")
    return Outcome(answer, "system")


def _unanswered(writer: str) -> CommandFailed:
    return CommandFailed(
        f"{writer} has taken the request, and has not answered yet: papyra history shows whether "
        "it was carried out, or papyra projections does. To say it again does no harm"
    )


class _Asked:
    """One request that is left for the writer, and taken back unless it is answered."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._id = uuid.uuid4().hex
        #: whether the writer has taken it
        self.is_taken = False

    async def ask(self, request: OperatorRequest, seconds: float) -> Answer | None:
        """Return the answer; `None` if there is none in time: then it was taken, or withdrawn."""
        until = time.time() + seconds + LEFT_BEHIND
        answer: Answer | None = None
        try:
            await self._inbox.post(self._id, encode_posted(PostedRequest(request, until)))
            answer = await self._answer(seconds)
        finally:
            if answer is None:
                # Also where somebody has had enough of waiting.
                with anyio.CancelScope(shield=True):
                    self.is_taken = not await self._inbox.withdraw(self._id)
        if answer is None and self.is_taken:
            answer = await self._answer(PATIENCE)
        return answer

    async def _answer(self, seconds: float) -> Answer | None:
        pause = FIRST_PAUSE
        with anyio.move_on_after(seconds):
            while True:
                with anyio.CancelScope(shield=True):  # or what is removed would be lost
                    data = await self._inbox.answered(self._id)
                if data is not None:
                    return decode_answer(data)
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        return None
