"""Dead letters of one actor: the messages that it refuses, and those that it leaves at its end."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from papyra._runtime.feeds import is_fed
from papyra._runtime.lifecycle import Lifecycle
from papyra._runtime.recorder import Recorder
from papyra.address import ActorAddress
from papyra.exceptions import MailboxFull
from papyra.mailbox import Mailbox
from papyra.ref import Ask, Told
from papyra.volatile_timers import is_of_one_life

#: Dead letters that are made before the event loop has its turn.
_LETTERS_AT_ONCE = 16

#: What an empty mailbox gives; `None` is a message like any other.
_NOTHING = object()

# Most actors postpone none, and a list takes 56 bytes, even if it is empty.
_NOTHING_POSTPONED: Any = ()


class DeadLetters:
    """Turns messages into dead letters, whoever asked for a reply being told."""

    __slots__ = ("_address", "_lifecycle", "_mailbox", "_recorder", "left", "postponed")

    def __init__(
        self,
        address: ActorAddress,
        mailbox: Mailbox[object],
        lifecycle: Lifecycle,
        recorder: Recorder,
    ) -> None:
        self._address = address
        self._mailbox = mailbox
        self._lifecycle = lifecycle
        self._recorder = recorder
        #: messages that were left in the mailbox
        self.left = 0
        #: messages that the store had no room for yet, and whether they were asked
        self.postponed: list[tuple[object, bool]] = _NOTHING_POSTPONED

    async def add(self, message: object, *, asked: bool) -> None:
        """Make a dead letter of `message`; wait if the store has no room for it."""
        await self._recorder.dead_letter(self._address, message, asked)

    def add_nowait(self, message: object, *, asked: bool) -> None:
        """Make a dead letter of `message`; raise `MailboxFull` if the store has no room for it."""
        self._recorder.dead_letter_nowait(self._address, message, asked)

    def add_anyway(self, message: object, *, asked: bool) -> None:
        """Make a dead letter of `message`, even if the store has no room for it."""
        self._recorder.dead_letter_left(self._address, message, asked)

    def postpone(self, message: object, *, asked: bool) -> None:
        """Make a dead letter of `message` now, or as soon as the store has room for it."""
        try:
            self.add_nowait(message, asked=asked)
        except MailboxFull:
            if self.postponed is _NOTHING_POSTPONED:
                self.postponed = []
            self.postponed.append((message, asked))

    async def add_postponed(self) -> None:
        """Wait until the store has taken what was postponed: an actor's turn bounds that."""
        while self.postponed:
            message, asked = self.postponed.pop(0)
            await self.add(message, asked=asked)

    def add_postponed_anyway(self) -> None:
        """Make dead letters of what was postponed, even if the store has no room for them."""
        postponed, self.postponed = self.postponed, _NOTHING_POSTPONED
        for message, asked in postponed:
            self.add_anyway(message, asked=asked)

    async def empty_mailbox(self) -> None:
        """Make dead letters of all messages in the mailbox, and let others run meanwhile."""
        try:
            self.add_postponed_anyway()
            made = 0
            while self._add_oldest():
                made += 1
                if not made % _LETTERS_AT_ONCE:
                    with anyio.CancelScope(shield=True):
                        await checkpoint()
        finally:
            # Whatever was raised, by a message or by who waits for it all: nobody waits in vain.
            self.empty_mailbox_at_once()

    def empty_mailbox_at_once(self) -> None:
        """Make dead letters of all messages in the mailbox."""
        while self._add_oldest():
            pass

    def _add_oldest(self) -> bool:
        """Make a dead letter of the oldest message; return whether there was one."""
        item = self._mailbox.pop(_NOTHING)
        if type(item) is Ask and not is_fed(item):
            self.left += 1
            try:
                self.add_anyway(item.message, asked=True)
            finally:
                item.fail(self._lifecycle.stopped_error("stopped before it could reply", "never"))
        # What is of one life nobody misses, nor what is fed.
        elif item is not _NOTHING and type(item) is not Ask and not is_of_one_life(item):
            self.left += 1
            self.add_anyway(item.message if type(item) is Told else item, asked=False)
        return item is not _NOTHING
