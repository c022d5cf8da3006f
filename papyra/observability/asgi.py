"""Health, readiness, figures and the timeline of a system, as plain ASGI applications."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import parse_qs

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy, InvalidSetting, StoreError, StoreReplaced
from papyra.observability.endpoint import Answer, Endpoint, Scope, plain
from papyra.observability.lifecycles import MOST, read_timeline_after
from papyra.observability.lifespan import Lifespan, end_process, lifespan
from papyra.observability.readiness import Readiness, ReadinessCheck
from papyra.observability.timeline_page import data, page
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

#: Nobody may show the page in a frame, or learn its address.
_PAGE_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
#: The greatest position that a store can give.
_LAST_POSITION = 2**63 - 1


def health(source: Source) -> Endpoint:
    """Return an application that says whether the process should go on: 200, or 503.

    It should as long as its event loop answers and no failure has ended the system; before the
    start and in a shutdown, too. It asks nobody, so a store that is down is no reason to be killed.
    """
    _check_sources(source)

    async def answer(scope: Scope) -> Answer:
        del scope
        system = _system_of(source)
        alive = system is None or system.failure is None
        return _json(200 if alive else 503, {"alive": alive})

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
        readiness = await check.check(_system_of(source))
        return _json(200 if readiness.ready else 503, readiness)

    return Endpoint(answer)


def metrics(*sources: Source) -> Endpoint:
    """Return an application that gives the figures of one or more systems to Prometheus.

    In its text format or as OpenMetrics, as the request wants it. A scrape costs as much as there
    are classes of actors. For figures of your own beside them, register a
    `papyra.observability.prometheus.PapyraCollector`. Raises `MissingExtra` without ``prometheus``.
    """
    from papyra.observability.prometheus import scrape  # noqa: PLC0415 - an extra of its own

    _check_sources(*sources)

    async def answer(scope: Scope) -> Answer:
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        systems = [system for source in sources if (system := _system_of(source)) is not None]
        body, content_type = scrape(systems, accept.decode("latin-1"))
        return Answer(200, content_type, body)

    return Endpoint(answer)


def timeline(source: Source, *, allow: Allow, records: int = MOST) -> Endpoint:
    """Return an application that shows the page of ``papyra timeline --html``, live.

    It begins with the last so many `records` of the store, and follows what comes. It shows the
    addresses of actors, their errors, and what is in dead letters: to those for whom `allow`, which
    may be a coroutine function, returns `True`. Others get 403. Nothing can be changed there.

    Raises `InvalidSetting` and `InvalidPolicy` for what makes no sense.
    """
    _check_sources(source)
    if not callable(allow):
        raise InvalidSetting(f"allow is a function that decides who may see it, not {shown(allow)}")
    if type(records) is not int or records < 0:
        raise InvalidPolicy(f"records is a whole number, 0 or more, not {shown(records)}")

    async def answer(scope: Scope) -> Answer:
        allowed = allow(scope)
        if (await allowed if inspect.isawaitable(allowed) else allowed) is not True:
            return plain(403, "Forbidden")
        system = _system_of(source)
        if system is None or not system.is_running:
            return plain(503, "The system does not run.")
        try:
            return await _timeline(system, scope, records)
        except StoreReplaced:
            return plain(409, "The store has not come so far.")
        except StoreError:
            return plain(503, "The store does not answer.")

    return Endpoint(answer)


async def _timeline(system: ActorSystem, scope: Scope, records: int) -> Answer:
    backend = system.backend
    name = f"{system.system_id} in {backend.location}" if backend.location else system.system_id
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    if "after" not in query:
        after = max(0, backend.last_seq - records)
        shown = page(await read_timeline_after(backend, name, after))
        return Answer(200, "text/html; charset=utf-8", shown.encode(), _PAGE_HEADERS)
    text = query["after"][-1]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LAST_POSITION):
        return plain(400, "after is a position, a whole number.")
    found = await read_timeline_after(backend, name, int(text))
    return Answer(200, "application/json", data(found).encode())


def _json(status: int, content: object) -> Answer:
    return Answer(status, "application/json", msgspec.json.encode(content))


def _check_sources(*sources: object) -> None:
    for source in sources:
        if not isinstance(source, (ActorSystem, Lifespan)):
            raise InvalidSetting(
                f"it is asked of an ActorSystem, or of its lifespan, not of {shown(source)}"
            )


def _system_of(source: Source) -> ActorSystem | None:
    return source.current if isinstance(source, Lifespan) else source
