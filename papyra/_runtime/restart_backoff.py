"""Restart back-off: how often an actor may restart, and after which delay."""

from __future__ import annotations

from collections import deque

from papyra.supervision import SupervisionPolicy


class RestartBackoff:
    """The restarts of one actor within the time that its supervision policy counts."""

    __slots__ = ("_restarted_at",)

    def __init__(self) -> None:
        self._restarted_at: deque[float] = deque()

    def next_delay(self, policy: SupervisionPolicy, now: float) -> float | None:
        """Count a restart at `now`, and return the seconds to wait before it.

        Return `None`, and count nothing, if it would be one more than `policy` allows.
        """
        while self._restarted_at and now - self._restarted_at[0] > policy.within:
            self._restarted_at.popleft()
        if len(self._restarted_at) >= policy.most_restarts:
            return None
        self._restarted_at.append(now)
        return policy.delay(len(self._restarted_at))
