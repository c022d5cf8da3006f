"""Death watch: tell the watchers of an actor that it has stopped."""

from __future__ import annotations

import contextlib

from papyra.exceptions import MailboxClosed
from papyra.mailbox import Mailbox
from papyra.ref import ActorRef, Terminated


class DeathWatch:
    """One actor's part in watching: whom it watches, and who watches it."""

    __slots__ = (
        "_mailbox",
        "_over",
        "_ref",
        "_watched",
        "_watchers",
    )

    def __init__(self, ref: ActorRef, mailbox: Mailbox[object], *, over: bool) -> None:
        self._ref = ref
        self._mailbox = mailbox
        # Whether the actor has stopped.
        self._over = over
        # Dictionaries, as they keep their order: watchers are told in the order they came.
        self._watchers: dict[DeathWatch, None] = {}
        self._watched: dict[DeathWatch, None] = {}

    def add(self, other: DeathWatch) -> None:
        """Have `other`'s end told to this actor; at once if it has ended."""
        if other._over:
            self._tell(other)
        else:
            other._watchers[self] = None
            self._watched[other] = None

    def remove(self, other: DeathWatch) -> None:
        """Take `add` back."""
        other._watchers.pop(self, None)
        self._watched.pop(other, None)

    def forget(self) -> None:
        """Watch nobody any more."""
        for other in tuple(self._watched):
            self.remove(other)

    def end(self) -> None:
        """Tell the watchers, and watch nobody any more."""
        self._over = True
        self.forget()
        for watcher in tuple(self._watchers):
            watcher.remove(self)
            watcher._tell(self)

    def _tell(self, other: DeathWatch) -> None:
        # Beyond the capacity if need be, as nobody is there to wait. One that is stopping itself
        # does not need to know any more.
        with contextlib.suppress(MailboxClosed):
            self._mailbox.push(Terminated(other._ref))
