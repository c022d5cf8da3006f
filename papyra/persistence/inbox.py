"""Requests that operators leave for the writer of a store, and what it answers.

Only one process writes a store. What another one wants written while that lives, it posts where the
writer looks, and waits for the answer. Either the writer takes a request, or who has posted it
withdraws it: never both.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from papyra.exceptions import InvalidRequest
from papyra.persistence.messages import (
    CancelTimer,
    EventSkipped,
    FireTimer,
    PositionRemoved,
    PositionSaved,
    RemovePosition,
    SavePosition,
    SkipEvent,
    TimerChanged,
)

#: Bytes of a request, at most; an answer has no more.
MAX_POSTED_BYTES = 64 * 1024

#: What may be posted: requests that say what is wanted, and leave the how to the writer.
OperatorRequest: TypeAlias = SkipEvent | SavePosition | RemovePosition | CancelTimer | FireTimer
#: What the writer replies to them.
OperatorReply: TypeAlias = EventSkipped | PositionSaved | PositionRemoved | TimerChanged


class PostedRequest(msgspec.Struct, frozen=True, tag=True):
    """A request as it is posted."""

    request: OperatorRequest
    #: Unix time in seconds, from which on nobody waits for the answer, so that nothing is done
    until: float


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Nothing was done, for this reason."""

    reason: str


Answer: TypeAlias = OperatorReply | Refused

_decode_answer = msgspec.json.Decoder(Answer).decode


@runtime_checkable
class Inbox(Protocol):
    """An optional part of a `Store`: requests of other processes for its writer, and the answers.

    Ids are 32 hexadecimal digits, each used once; data is up to `MAX_POSTED_BYTES`. Requests need
    not outlive a crash of the machine. They are no records, and nothing else shows them. Whoever
    may write the store may post, and nobody else.

    `post`, `answered`, `withdraw` and `is_attended` are called on stores that are only looked at;
    `posted`, `take` and `answer` on that of the writer, once a second if there is nothing to do.
    """

    async def post(self, request_id: str, data: bytes) -> None:
        """Leave a request for the writer, whole."""

    async def posted(self) -> list[str]:
        """Return the ids of requests that wait. Removes what nobody has asked for in an hour."""

    async def take(self, request_id: str) -> bytes | None:
        """Take a request, which is answered next; `None` if it is not there any more.

        What can't be read, or is too long, is taken as well, and comes back empty.
        """

    async def answer(self, request_id: str, data: bytes) -> None:
        """Leave the answer to a request that was taken."""

    async def answered(self, request_id: str) -> bytes | None:
        """Return the answer to a request, and remove it; `None` if there is none yet."""

    async def withdraw(self, request_id: str) -> bool:
        """Take a request back; return whether the writer had not taken it."""

    async def is_attended(self) -> bool:
        """Return whether a writer is known to be there, be it that it does not answer.

        Nobody takes its place then. Of one that has closed its store, this says nothing.
        """


def encode_posted(posted: PostedRequest) -> bytes:
    """Return a request as it is posted. Raises `InvalidRequest` for one that is too long."""
    data = msgspec.json.encode(posted)
    if len(data) > MAX_POSTED_BYTES:
        raise InvalidRequest(f"a request for a writer has at most {MAX_POSTED_BYTES:,} bytes")
    return data


def decode_posted(data: bytes) -> PostedRequest:
    """Return the request that was posted. Raises `InvalidRequest` for what is none."""
    try:
        return msgspec.json.decode(data, type=PostedRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"this is no request that is known here: {error}") from error


def encode_answer(answer: Answer) -> bytes:
    """Return an answer as it is left."""
    return msgspec.json.encode(answer)


def decode_answer(data: bytes) -> Answer:
    """Return the answer. Raises `InvalidRequest` for what is none."""
    try:
        answer: Answer = _decode_answer(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the writer's answer can't be read: {error}") from error
    return answer
