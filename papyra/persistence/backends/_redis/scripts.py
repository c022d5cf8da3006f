"""The Lua scripts: each runs inside the server, is atomic, and costs one round trip.

Those about records get the store's keys in the same order: the hash ``meta``, a stream for each
kind, then the index by actor, and the hash of bases.
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
    "DROP_BASES",
    "FIND",
    "FORGET",
    "IDENTIFY",
    "INDEX",
    "LAST",
    "LISTED",
    "MISSING",
    "OWN",
    "PAGE",
    "PLACED",
    "POSITION",
    "REBASE",
    "RECOUNT",
    "REMOVE",
    "RENUMBER",
    "SEEK",
    "SETTLE",
    "SHORTEN",
    "SNAPSHOT",
    "SNAPSHOTS",
    "STATE",
    "STEPS",
    "THIN",
    "TRIM",
    "UNINDEX",
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

CLAIM = Script(*_COMMON, "permissions", "floor", "members", "sound", "taken_back", "claim")
SETTLE = Script(*_COMMON, "permissions", "search", "members", "sound", "taken_back", "settle")
APPEND = Script("whole_numbers", "floor", "members", "append")
FIND = Script(*_COMMON, "search", "kept", "find")
BEGIN = Script(*_COMMON, "floor", "search", "begin")
STATE = Script(*_COMMON, "floor", "state")
TRIM = Script(*_COMMON, "permissions", "trim")
REMOVE = Script("replicate_commands", *_COMMON, "permissions", "remove")
FORGET = Script(*_COMMON, "forget")
DROP = Script(*_COMMON, "drop")
RENUMBER = Script(*_COMMON, "permissions", "floor", "kept", "bases", "renumber")
THIN = Script(*_COMMON, "permissions", "members", "sound", "kept", "bases", "thin")
RECOUNT = Script(*_COMMON, "recount")
SEEK = Script(*_COMMON, "search", "seek")
INDEX = Script(*_COMMON, "permissions", "members", "index")
UNINDEX = Script(*_COMMON, "permissions", "members", "unindex")
LISTED = Script(*_COMMON, "search", "members", "sound", "listed")
OWN = Script(*_COMMON, "members", "sound", "last_through", "bases", "own")
STEPS = Script(*_COMMON, "members", "sound", "last_through", "bases", "steps")
LAST = Script(*_COMMON, "members", "sound", "last_through", "last")
PLACED = Script(*_COMMON, "members", "placed")
MISSING = Script(*_COMMON, "members", "missing")
IDENTIFY = Script("identify")
SNAPSHOT = Script("whole_numbers", "written_by", "snapshot")
SNAPSHOTS = Script("snapshots")
POSITION = Script("whole_numbers", "written_by", "position")
PAGE = Script("bases", "page")
_HISTORIES = (
    *("permissions", "members", "sound", "last_through", "kept", "bases"),
    *("written_by", "history_places"),
)
REBASE = Script(*_COMMON, *_HISTORIES, "rebase")
SHORTEN = Script(*_COMMON, *_HISTORIES, "shorten")
DROP_BASES = Script("replicate_commands", *_COMMON, "bases", "drop_bases")
