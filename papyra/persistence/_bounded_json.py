"""JSON of a bounded size: what shares its parts may be small in memory and endless as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from papyra.exceptions import RecordTooLarge

#: Encoded bytes of a record, at most.
MAX_RECORD_BYTES = 64 * 1024 * 1024
#: Encoded bytes of all the records of a request, at most; a record that is restored may be as
#: large by itself.
MAX_REQUEST_BYTES = 4 * MAX_RECORD_BYTES
#: Bytes that are there ahead of what is written into them.
_SPACE = 1024
#: Bytes of a buffer up to which it is used again.
_KEPT = 1024 * 1024

_encode_into: Callable[..., None] = msgspec.json.Encoder().encode_into
_spare: list[bytearray] = []


def json_within(value: Any, most: int = MAX_RECORD_BYTES) -> bytes:
    """Encode `value`; raise `RecordTooLarge` as soon as that takes over `most` bytes."""
    buffer = _spare.pop() if _spare else bytearray()
    # Something at its end makes it large enough. In between, no memory is touched yet.
    _encode_into(0, buffer, most + _SPACE)
    view = memoryview(buffer)  # which keeps the buffer from growing
    try:
        _encode_into(value, buffer)
    except BaseException as error:
        view.release()
        buffer.clear()  # as tracebacks keep it
        if type(error) is not BufferError or _is_users(error):
            raise
        raise too_large(most) from None
    view.release()
    if len(buffer) > _KEPT:
        if len(buffer) > most:
            raise too_large(most)
        return bytes(buffer)
    encoded = bytes(buffer)
    if not _spare:
        _spare.append(buffer)
    return encoded


def _is_users(error: BufferError) -> bool:
    """Return whether an error was raised by a user's object, and not for want of room."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def too_large(most: int, what: str = "the record") -> RecordTooLarge:
    """Return the error for what would take up more than `most` bytes."""
    return RecordTooLarge(f"{what} takes over {most // 1024**2} MiB as JSON, which is the most")
