"""The Lua scripts: each runs inside the server, is atomic, and costs one round trip.

All of them get the store's keys in the same order: the hash ``meta``, then a stream for each kind.
They are deterministic, as Redis before version 7 wants scripts that write. Each file in ``lua/``
begins with its arguments and its reply; those without are shared parts.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from papyra.persistence.records import KINDS

__all__ = (
    "APPEND",
    "BEGIN",
    "CLAIM",
    "DROP",
    "FIND",
    "FORGET",
    "REMOVE",
    "RENUMBER",
    "SETTLE",
    "STATE",
    "TRIM",
    "Script",
)

# Numbers in Lua are doubles, and written with 14 digits: enough for milliseconds until the year
# 5138, for 99 trillion records, and for as many bytes. What others may have put in their place
# (exponents, infinities, more digits) is no number here.

_DIRECTORY = resources.files(__package__) / "lua"
_DECLARED_KINDS = f"local kinds = {{{', '.join(map(repr, KINDS))}}}\n"


class Script:
    """A script, and the digest by which a server keeps it."""

    def __init__(self, *parts: str) -> None:
        texts = [(_DIRECTORY / f"{part}.lua").read_text("utf-8") for part in parts]
        self.source = _DECLARED_KINDS + "\n".join(texts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


_COMMON = ("whole_numbers", "common")

CLAIM = Script(*_COMMON, "permissions", "floor", "claim")
SETTLE = Script(*_COMMON, "permissions", "search", "settle")
APPEND = Script("whole_numbers", "floor", "append")
FIND = Script(*_COMMON, "search", "find")
BEGIN = Script(*_COMMON, "floor", "search", "begin")
STATE = Script(*_COMMON, "floor", "state")
TRIM = Script(*_COMMON, "permissions", "trim")
REMOVE = Script("replicate_commands", *_COMMON, "permissions", "remove")
FORGET = Script(*_COMMON, "forget")
DROP = Script(*_COMMON, "drop")
RENUMBER = Script(*_COMMON, "permissions", "floor", "renumber")
