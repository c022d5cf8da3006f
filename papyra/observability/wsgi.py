"""Health, readiness, figures and the timeline of a system, as plain WSGI applications.

They are for Flask, Django and others without an event loop, around `ActorSystem.run_in_thread`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias

from papyra._safe_repr import shown
from papyra.exceptions import InvalidSetting, SystemNotRunning
from papyra.observability import answers
from papyra.observability.endpoint import Answer, headers_of, refused
from papyra.observability.lifecycles import MOST
from papyra.observability.readiness import Readiness, ReadinessCheck
from papyra.system import ActorSystem

__all__ = ("Allow", "Endpoint", "Environ", "Readiness", "health", "metrics", "ready", "timeline")

#: What WSGI says about a request.
Environ: TypeAlias = Mapping[str, Any]
StartResponse: TypeAlias = Callable[[str, list[tuple[str, str]]], object]
#: Returns whether whoever sends a request may see the timeline.
Allow: TypeAlias = Callable[[Environ], bool]


class Endpoint:
    """A WSGI application that answers GET and HEAD, and refuses other methods.

    Werkzeug has it at a path: ``DispatcherMiddleware(app, {"/health": endpoint})`` around Flask,
    Django, or whatever WSGI application.
    """

    def __init__(self, answer: Callable[[Environ], Answer]) -> None:
        self._answer = answer

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method = environ["REQUEST_METHOD"]
        answer = refused(method) or self._answer(environ)
        headers = [
            (name.decode("latin-1").title(), value.decode("latin-1"))
            for name, value in headers_of(answer)
        ]
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
        return [b"" if method == "HEAD" else answer.body]


def health(system: ActorSystem) -> Endpoint:
    """Return an application that says whether the process should go on, as `asgi.health` does."""
    _check(system)
    return Endpoint(lambda _: answers.alive(system))


def ready(system: ActorSystem, *, max_lag: int | None = None, timeout: float = 2.0) -> Endpoint:
    """Return an application that says whether to send requests, as `asgi.ready` does."""
    _check(system)
    check = ReadinessCheck(max_lag, timeout)
    return Endpoint(lambda _: answers.readiness(check.check_from_thread(system)))


def metrics(*systems: ActorSystem) -> Endpoint:
    """Return an application that gives the figures of systems, as `asgi.metrics` does.

    Raises `MissingExtra` without ``prometheus``.
    """
    import papyra.observability.prometheus  # noqa: F401, PLC0415 - an extra of its own

    _check(*systems)
    return Endpoint(lambda environ: answers.figures(systems, environ.get("HTTP_ACCEPT", "")))


def timeline(system: ActorSystem, *, allow: Allow, records: int = MOST) -> Endpoint:
    """Return an application that shows the timeline, live, as `asgi.timeline` does.

    `allow` gets the ``environ`` of the request, and returns `True` for those who may see it.
    """
    _check(system)
    answers.check_timeline(allow, records)

    def answer(environ: Environ) -> Answer:
        if allow(environ) is not True:
            return answers.forbidden()
        query = environ.get("QUERY_STRING", "")
        try:
            return system.portal.call(answers.timeline, system, query, records)
        except SystemNotRunning:
            return answers.no_timeline()

    return Endpoint(answer)


def _check(*systems: object) -> None:
    for system in systems:
        if not isinstance(system, ActorSystem):
            raise InvalidSetting(f"it is asked of an ActorSystem, not of {shown(system)}")
