"""A system that tells what its test left behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, get_args

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.system import ActorSystem

#: What a test may leave behind, if it says so.
Leftover: TypeAlias = Literal["leaked_actors", "unclaimed_replies", "write_errors"]
_LEFTOVERS: tuple[Leftover, ...] = get_args(Leftover)


class CheckedSystem(ActorSystem):
    """An `ActorSystem` that raises `AssertionError` when it is left, if something was left behind.

    That is, unless it is allowed:

    - ``leaked_actors``: actors that did not stop, so that they had to be cancelled;
    - ``unclaimed_replies``: replies that came when their askers had given up;
    - ``write_errors``: appends that failed, were they told or asked.

    An actor has one second to stop. Nothing is checked when the block raises by itself. This is
    what the fixture ``actor_system`` gives to tests.
    """

    def __init__(
        self,
        system_id: str = "papyra",
        *,
        allow: Iterable[Leftover] = (),
        shutdown_timeout: float = 1.0,
        **options: Any,
    ) -> None:
        """Make a system that allows the leftovers named; `options` are `ActorSystem`'s."""
        super().__init__(system_id, shutdown_timeout=shutdown_timeout, **options)
        self._allowed: set[Leftover] = set()
        self.allow(*allow)
        self._write_errors_before = 0

    def allow(self, *leftovers: Leftover) -> None:
        """Let the test leave these behind."""
        for leftover in leftovers:
            if leftover not in _LEFTOVERS:
                raise InvalidPolicy(
                    f"what can be allowed is {', '.join(_LEFTOVERS)}, not {shown(leftover)}"
                )
            self._allowed.add(leftover)

    def check(self) -> None:
        """Raise `AssertionError` for what was left behind and is not allowed."""
        __tracebackhide__ = True
        found = {
            "leaked_actors": self._leaked(),
            "unclaimed_replies": self._unclaimed(),
            "write_errors": self._failed_writes(),
        }
        lines = [
            f"{what} (allow them with system.allow({leftover!r}))"
            for leftover, what in found.items()
            if what and leftover not in self._allowed
        ]
        if lines:
            raise AssertionError(f"{self.system_id!r} left behind:\n" + "\n".join(lines))

    async def start(self) -> None:
        """Start as `ActorSystem` does."""
        await super().start()
        self._write_errors_before = self.backend.metrics.write_errors

    async def __aexit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        await super().__aexit__(exc_type, exc, traceback)
        if exc is None:
            self.check()

    def _leaked(self) -> str:
        cancelled = self.cancelled_actors
        return (cancelled and f"actors that did not stop: {', '.join(cancelled)}") or ""

    def _unclaimed(self) -> str:
        count = self.audit().unclaimed_replies
        if not count or self._recorder is None:
            return ""
        latest = ", ".join(f"{actor} to {kind}" for actor, kind in self._recorder.latest_unclaimed)
        return f"replies that nobody waited for, {count} of them: {latest}"

    def _failed_writes(self) -> str:
        count = self.backend.metrics.write_errors
        if count >= self._write_errors_before:
            count -= self._write_errors_before  # if less, the test has reset the metrics
        return f"appends that failed, {count} of them; the log says why" if count else ""
