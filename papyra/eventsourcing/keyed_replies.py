"""Replies to commands with idempotency keys: what is kept of them, and what is made of that."""

from __future__ import annotations

import functools
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from papyra._safe_repr import printable, text_of, type_and_text, type_name
from papyra.actor import Failure
from papyra.eventsourcing.bookkeeping import KeptFailure, KeptReply
from papyra.eventsourcing.schema import fault_in
from papyra.exceptions import RepeatedFailure, ReplyNotKept
from papyra.message import Message
from papyra.persistence import codec

#: Bytes of JSON that a reply may take up to be kept.
MAX_REPLY_BYTES: Final = 8 * 1024
#: Types of replies that are JSON whatever they are, up to so many bytes.
_WORDS: Final = frozenset({str, bool, int, type(None)})
_SMALL: Final = 1_000
#: Characters that are kept of a failure's text, or of a reason.
_MAX_TEXT: Final = 1_000

_encode = msgspec.json.Encoder().encode


def keep_reply(message: Any, reply: object) -> KeptReply:
    """Return what is kept of the reply to a message."""
    if type(reply) is Failure:
        failure = KeptFailure(printable(type_name(reply.error)), _short(text_of(reply.error)))
        return KeptReply(failure=failure)
    try:
        # Most replies are no more than a word, or a number.
        is_small = type(reply) in _WORDS and len(encoded := _encode(reply)) <= _SMALL
        if not is_small:
            encoded = codec.encode_payload(reply)
        if len(encoded) > MAX_REPLY_BYTES:
            return KeptReply(not_kept=f"it is larger than {MAX_REPLY_BYTES} bytes of JSON")
        # Once more as who repeats the command will get it.
        if _decoder_of(message.__class__).decode(encoded) == reply:
            return KeptReply(msgspec.Raw(encoded))
    except Exception as error:  # noqa: BLE001 - whatever users' classes raise
        return KeptReply(not_kept=_short(f"it could not be kept: {type_and_text(error)}"))
    return KeptReply(
        not_kept=f"a {printable(type_name(reply))} does not come back as it was: declare the "
        f"message as {printable(type_name(message))}(Message[...]) with the type of its reply"
    )


def reply_again(kept: KeptReply, message: Any) -> Any:
    """Return a reply that was kept. Raises `ReplyNotKept`."""
    if kept.failure is not None:
        failure = RepeatedFailure(
            f"the first time it failed with {kept.failure.type}: {kept.failure.text}",
            error_type=kept.failure.type,
        )
        return Failure(failure)
    if isinstance(kept.value, msgspec.UnsetType):
        raise ReplyNotKept(f"this command was handled before, and of its reply {kept.not_kept}")
    try:
        return _decoder_of(message.__class__).decode(kept.value)
    except Exception as error:
        raise ReplyNotKept(
            "this command was handled before, and its reply is no longer what its message says: "
            f"{text_of(error)}"
        ) from error


@functools.lru_cache(maxsize=1_000)
def _decoder_of(message_class: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of the replies to a class of messages; to plain data if it says none."""
    for each in message_class.__mro__:
        for base in vars(each).get("__orig_bases__", ()):
            if get_origin(base) is Message:
                (reply_type,) = get_args(base)
                if not isinstance(reply_type, TypeVar) and fault_in(reply_type) is None:
                    return msgspec.json.Decoder(reply_type)
    return msgspec.json.Decoder()


def _short(text: str) -> str:
    return printable(text[:_MAX_TEXT])
