"""Commands: what operators want of the runner of a projection."""

from __future__ import annotations

import enum
import logging
import re
from typing import Self

import anyio

__all__ = ("Command", "Verb")

logger = logging.getLogger("papyra")

_REQUEST = re.compile(r"(?P<verb>\w+)( (?P<seq>[0-9]{1,18}))?(: (?P<reason>.+))?", re.DOTALL)


class Verb(enum.Enum):
    """What is to be done."""

    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    SKIP = "skip"
    REBUILD = "rebuild"
    DROP_OLD = "drop_old"


class Command:
    """Something that somebody wants, and waits for."""

    def __init__(self, verb: Verb, *, seq: int | None = None, reason: str = "") -> None:
        self.verb = verb
        #: of the parked event that it is about; `None` if it is about none
        self.seq = seq
        self.reason = reason
        #: what was asked for from another process, of which projection; empty for who waits here
        self.posted = ""
        self._done = anyio.Event()
        self._error: BaseException | None = None

    @classmethod
    def parsed(cls, request: str) -> Self | None:
        """Return what ``verb``, ``verb 17`` or ``verb 17: reason`` asks for; `None` if nothing."""
        match = _REQUEST.fullmatch(request.strip())
        try:
            return match and cls(
                Verb(match["verb"]),
                seq=int(match["seq"]) if match["seq"] else None,
                reason=match["reason"] or "",
            )
        except ValueError:
            return None

    def finish(self) -> None:
        """Let go whoever waits."""
        self._done.set()

    def fail(self, error: BaseException) -> None:
        """Let whoever waits raise `error`; log it where that is another process."""
        if self.posted:
            logger.warning("projection %s was refused: %s", self.posted, error)
        self._error = error
        self._done.set()

    async def wait(self) -> None:
        """Wait until it is done. Raises what it has failed with."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
