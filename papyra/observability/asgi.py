"""Health, readiness, figures and the timeline of a system, as plain ASGI applications."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from papyra._safe_repr import shown
from papyra.exceptions import InvalidSetting, SystemNotRunning
from papyra.observability import answers
from papyra.observability.endpoint import Answer, Endpoint, Scope
from papyra.observability.lifecycles import MOST
from papyra.observability.lifespan import Lifespan, end_process, lifespan
from papyra.observability.readiness import Readiness, ReadinessCheck
from papyra.system import ActorSystem

__all__ = (
    "Allow",
    "Endpoint",
    "Lifespan",
    "Readiness",
    "Scope",
    "Source",
    "end_process",
    "health",
    "lifespan",
    "metrics",
    "ready",
    "timeline",
)

#: The system that is asked about, or the lifespan that runs it.
Source: TypeAlias = ActorSystem | Lifespan
#: Returns whether whoever sends a request, whose ASGI scope it gets, may see the timeline.
Allow: TypeAlias = Callable[[Scope], Awaitable[bool] | bool]


def health(source: Source) -> Endpoint:
    """Return an application that says whether the process should go on: 200, or 503.

    It should as long as its event loop answers and no failure has ended the system; before the
    start and in a shutdown, too. It asks nobody, so a store that is down is no reason to be killed.
    """
    _check_sources(source)

    async def answer(scope: Scope) -> Answer:
        del scope
        return answers.alive(_system_of(source))

    return Endpoint(answer)


def ready(source: Source, *, max_lag: int | None = None, timeout: float = 2.0) -> Endpoint:
    """Return an application that says whether to send requests: 200, or 503 with the reasons.

    It is ready when the system has started, and its store was checked; until it begins to stop, or
    to fail; as long as the store answers within `timeout` seconds, and no projection is more than
    `max_lag` records behind, other than one that stands by. The body is a `Readiness` as JSON.
    """
    _check_sources(source)
    check = ReadinessCheck(max_lag, timeout)

    async def answer(scope: Scope) -> Answer:
        del scope
        return answers.readiness(await check.check(_system_of(source)))

    return Endpoint(answer)


def metrics(*sources: Source) -> Endpoint:
    """Return an application that gives the figures of one or more systems to Prometheus.

    In its text format or as OpenMetrics, as the request wants it. A scrape costs as much as there
    are classes of actors. For figures of your own beside them, register a
    `papyra.observability.prometheus.PapyraCollector`. Raises `MissingExtra` without ``prometheus``.
    """
    import papyra.observability.prometheus  # noqa: F401, PLC0415 - an extra of its own

    _check_sources(*sources)

    async def answer(scope: Scope) -> Answer:
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        return answers.figures(map(_system_of, sources), accept.decode("latin-1"))

    return Endpoint(answer)


def timeline(source: Source, *, allow: Allow, records: int = MOST) -> Endpoint:
    """Return an application that shows the page of ``papyra timeline --html``, live.

    It begins with the last so many `records` of the store, and follows what comes. It shows the
    addresses of actors, their errors, and what is in dead letters: to those for whom `allow`, which
    may be a coroutine function, returns `True`. Others get 403. Nothing can be changed there.

    Raises `InvalidSetting` and `InvalidPolicy` for what makes no sense.
    """
    _check_sources(source)
    answers.check_timeline(allow, records)

    async def answer(scope: Scope) -> Answer:
        allowed = allow(scope)
        if (await allowed if inspect.isawaitable(allowed) else allowed) is not True:
            return answers.forbidden()
        system = _system_of(source)
        if system is None or not system.is_running:
            return answers.no_timeline()
        query = scope.get("query_string", b"").decode("latin-1")
        try:
            return await system.portal.call_from_any_loop(answers.timeline, system, query, records)
        except SystemNotRunning:
            return answers.no_timeline()

    return Endpoint(answer)


def _check_sources(*sources: object) -> None:
    for source in sources:
        if not isinstance(source, (ActorSystem, Lifespan)):
            raise InvalidSetting(
                f"it is asked of an ActorSystem, or of its lifespan, not of {shown(source)}"
            )


def _system_of(source: Source) -> ActorSystem | None:
    return source.current if isinstance(source, Lifespan) else source
