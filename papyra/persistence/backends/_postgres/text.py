"""Text in columns: any string, though PostgreSQL has no NUL characters and short index rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ("column_text", "column_texts", "text_of_column")

#: What stands for a NUL character, and introduces itself and what was shortened.
_MARK = "\N{SYMBOL FOR NULL}"
#: Bytes of a string as it is. A row of an index holds some 2,700.
_LONGEST = 1_000
#: Characters that are left of a longer one, each up to four bytes.
_KEPT = 200


def column_text(text: str) -> str:
    """Return a string as columns have it: itself, as a rule, and never that of another string.

    A NUL character becomes U+2400 and a 0, and U+2400 is doubled. A very long string is its first
    characters, U+2400, a colon and a hash of the whole; so is what no text can be, as lone
    surrogates, which is in no column.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return f"{_MARK}:{_hash(text.encode(errors='surrogatepass'))}"
    if len(encoded) > _LONGEST:
        return f"{_escaped(text[:_KEPT])}{_MARK}:{_hash(encoded)}"
    return _escaped(text)


def column_texts(texts: Sequence[str]) -> Sequence[str]:
    """Return strings as columns have them. Most are themselves, as one look at all of them says."""
    together = "".join(texts)
    if together.isascii() and "\0" not in together and max(map(len, texts)) <= _LONGEST:
        return texts
    return list(map(column_text, texts))


def text_of_column(column: str) -> str:
    """Return the string of up to 1,000 bytes that a column has in the way of `column_text`."""
    return re.sub(f"{_MARK}(.)", lambda match: "\0" if match[1] == "0" else match[1], column)


def _escaped(text: str) -> str:
    if _MARK in text or "\0" in text:
        return text.replace(_MARK, 2 * _MARK).replace("\0", f"{_MARK}0")
    return text


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
