"""Whether a system can serve: what a load balancer asks before it sends requests."""

from __future__ import annotations

import logging

import anyio
import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown, type_and_text
from papyra.exceptions import ActorStopped, InvalidPolicy, SystemNotRunning
from papyra.persistence.messages import Flush, Read
from papyra.projections.status import ProjectionState
from papyra.system import ActorSystem

__all__ = ("ProjectionReadiness", "Readiness", "ReadinessCheck")

logger = logging.getLogger("papyra")


class ProjectionReadiness(msgspec.Struct, frozen=True):
    """How far a projection is."""

    state: ProjectionState
    #: the positions that it is behind the head
    lag: int


class Readiness(msgspec.Struct, frozen=True):
    """Whether a system can serve at this moment."""

    ready: bool
    #: why not, in words; they tell no errors of the store, which may be secrets
    reasons: tuple[str, ...]
    projections: dict[str, ProjectionReadiness] = {}


class ReadinessCheck:
    """Finds out whether a system can serve.

    The store is asked through the persistence actor, behind what waits there: once at a time,
    however many want to know.
    """

    def __init__(self, max_lag: int | None, timeout: float) -> None:
        """Allow projections `max_lag` positions, and the store `timeout` seconds.

        Raises `InvalidPolicy` for what makes no sense.
        """
        if max_lag is not None and (type(max_lag) is not int or max_lag < 0):
            raise InvalidPolicy(f"max_lag is a whole number, 0 or more, not {shown(max_lag)}")
        if not is_seconds(timeout, above=True, finite=True):
            raise InvalidPolicy(f"timeout is seconds, more than 0, not {shown(timeout)}")
        self._max_lag = max_lag
        self._timeout = timeout
        self._question: _Question | None = None

    async def check(self, system: ActorSystem | None) -> Readiness:
        """Return whether `system` can serve. `None` stands for one that has not started."""
        if (reason := _reason_of(system)) is not None or system is None:
            return Readiness(False, (reason or "starting",))
        try:
            return await system.portal.call_from_any_loop(self._ask, system)
        except SystemNotRunning:
            return _not_running(system)

    def check_from_thread(self, system: ActorSystem) -> Readiness:
        """Return what `check` does; in a thread that may wait, and has no event loop."""
        if _reason_of(system) is not None:
            return _not_running(system)
        try:
            return system.portal.call(self._ask, system)
        except SystemNotRunning:
            return _not_running(system)

    async def _ask(self, system: ActorSystem) -> Readiness:
        if self._question is None or self._question.system is not system:
            self._question = _Question(system, self._timeout)
        failed = await self._question.ask()
        reasons = [] if failed is None else [failed]
        # It may have ended meanwhile.
        if (reason := _reason_of(system)) is not None:
            return Readiness(False, (reason,))
        projections = _projections_of(system)
        for name, each in projections.items():
            # One that stands by learns nothing of how far the other one is.
            if self._max_lag is not None and each.state != "standby" and each.lag > self._max_lag:
                reasons.append(
                    f"the projection {name} is {each.lag} records behind ({each.state}), "
                    f"more than {self._max_lag}"
                )
        return Readiness(not reasons, tuple(reasons), projections)


class _Question:
    """The question to the store of one system whether it works."""

    def __init__(self, system: ActorSystem, timeout: float) -> None:
        self.system = system
        self._timeout = timeout
        #: set with the answer; `None` while nothing was asked
        self._answered: anyio.Event | None = None
        self._error: Exception | None = None

    async def ask(self) -> str | None:
        """Return why the store does not work, or `None`."""
        answered = self._answered
        if answered is None:
            try:
                answered = self._send()
            except ActorStopped:
                return "not running"
        with anyio.move_on_after(self._timeout):
            await answered.wait()
        if not answered.is_set():
            return f"the store has not answered within {self._timeout:g} seconds"
        if self._error is None:
            return None
        logger.warning("%s is not ready: %s", self.system.system_id, type_and_text(self._error))
        return f"the store does not work: {type(self._error).__name__}"

    def _send(self) -> anyio.Event:
        # No task asks, which could be cancelled and ask again: while a store hangs, one question is
        # in the mailbox of its actor, and not one more each time that somebody wants to know.
        answered, errors = anyio.Event(), list[Exception]()

        def note(_: object, error: Exception | None) -> None:
            if error is not None:
                errors.append(error)

        def finish(reply: object, error: Exception | None) -> None:
            note(reply, error)
            self._answered, self._error = None, errors[0] if errors else None
            answered.set()

        store = self.system.persistence
        store.request(Read("event", limit=1, newest=True), note)
        store.request(Flush(), finish)
        self._answered = answered
        return answered


def _reason_of(system: ActorSystem | None) -> str | None:
    """Return why a system serves nobody, whatever its store does."""
    if system is None:
        return "starting"
    if system.failure is not None:
        return "failed"
    return None if system.is_running else "not running"


def _not_running(system: ActorSystem) -> Readiness:
    return Readiness(False, (_reason_of(system) or "not running",))


def _projections_of(system: ActorSystem) -> dict[str, ProjectionReadiness]:
    statuses = [runner.status for runner in system.projections.values()]
    return {each.name: ProjectionReadiness(each.state, each.lag) for each in statuses}
