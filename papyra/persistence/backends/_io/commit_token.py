"""The commit token, which decides whether a call commits or was given up before."""

from __future__ import annotations

import threading


class CommitToken:
    """The commit token of a call: taken by the call when it commits, or by whoever gives it up.

    Only the first may take it, so a call that timed out never commits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False

    def take(self) -> bool:
        """Return True for whoever is the first."""
        with self._lock:
            was_taken, self._is_taken = self._is_taken, True
        return not was_taken

    def take_or_raise(self) -> None:
        """Take it, or raise `TimeoutError` if the call was given up."""
        if not self.take():
            raise TimeoutError("nobody waits for this any more")
