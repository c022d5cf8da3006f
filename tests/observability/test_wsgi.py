"""The endpoints as WSGI applications, and as ASGI ones in another event loop than the system's."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import anyio
import pytest

from papyra import Actor, ActorSystem, Decision, OneForOne
from papyra.exceptions import (
    ActorStopped,
    EscalatedFailure,
    InvalidPolicy,
    InvalidSetting,
    StoreUnreachable,
    SystemNotRunning,
)
from papyra.observability import asgi, wsgi
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.system_thread import SystemThread
from tests.observability.test_asgi import Slow, get


class Counter(Actor):
    async def receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        return message


@pytest.fixture(params=["asyncio", "trio"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[ActorSystem, SystemThread]]:
    system = ActorSystem("shop", persistence=InMemoryPersistence())
    with system.run_in_thread(backend=request.param) as thread:
        yield system, thread


def ask(
    endpoint: wsgi.Endpoint, method: str = "GET", query: str = "", **environ: str
) -> tuple[str, dict[str, str], bytes]:
    """Return what a server that looks closely gets from an application."""
    given: dict[str, Any] = {"REQUEST_METHOD": method, "QUERY_STRING": query, **environ}
    setup_testing_defaults(given)
    given["wsgi.input"] = io.BytesIO()
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
        started.extend((status, dict(headers)))
        return lambda _: None

    parts: Any = validator(endpoint)(given, start_response)
    body = b"".join(parts)
    parts.close()
    return started[0], started[1], body


def test_a_system_in_a_thread_is_alive_ready_and_counted(
    running: tuple[ActorSystem, SystemThread],
) -> None:
    system, thread = running
    thread.ask(thread.spawn(Counter, name="counter"), 1)
    status, headers, body = ask(wsgi.health(system))
    assert (status, json.loads(body)) == ("200 OK", {"alive": True})
    assert headers["Content-Length"] == str(len(body))
    assert headers["Cache-Control"] == "no-store"
    status, _, body = ask(wsgi.ready(system))
    assert (status, json.loads(body)["reasons"]) == ("200 OK", [])
    status, headers, body = ask(wsgi.metrics(system))
    assert status == "200 OK"
    assert b'Counter",system_id="shop"} 1.0' in body
    assert headers["Content-Type"].startswith("text/plain")
    accept = "application/openmetrics-text; version=1.0.0"
    _, headers, _ = ask(wsgi.metrics(system), HTTP_ACCEPT=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text")


def test_the_timeline_is_for_those_who_may_see_it(
    running: tuple[ActorSystem, SystemThread],
) -> None:
    system, thread = running
    thread.spawn(Counter, name="counter")
    page = wsgi.timeline(system, allow=lambda environ: environ["REMOTE_USER"] == "ann")
    status, headers, body = ask(page, REMOTE_USER="ann")
    assert status == "200 OK"
    assert b"shop/counter" in body
    assert headers["Referrer-Policy"] == "no-referrer"
    status, _, body = ask(page, query="after=0", REMOTE_USER="ann")
    assert status == "200 OK"
    assert json.loads(body)["head"] == system.backend.last_seq
    assert ask(page, query="after=1000", REMOTE_USER="ann")[0] == "409 Conflict"
    assert ask(page, query="after=far", REMOTE_USER="ann")[0] == "400 Bad Request"
    assert ask(page, REMOTE_USER="bob")[0] == "403 Forbidden"


def test_methods_but_get_and_head_are_refused(running: tuple[ActorSystem, SystemThread]) -> None:
    endpoint = wsgi.health(running[0])
    status, headers, body = ask(endpoint, "HEAD")
    assert (status, body) == ("200 OK", b"")
    assert headers["Content-Length"] == str(len(ask(endpoint)[2]))
    status, headers, _ = ask(endpoint, "POST")
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")


def test_before_its_start_after_its_end_and_in_failure_a_system_says_so() -> None:
    system = ActorSystem("shop", persistence=InMemoryPersistence())
    everything = [
        wsgi.health(system),
        wsgi.ready(system),
        wsgi.timeline(system, allow=lambda _: True),
    ]
    alive, ready, page = [ask(each) for each in everything]
    assert (alive[0], ready[0]) == ("200 OK", "503 Service Unavailable")
    assert page[0] == "503 Service Unavailable"
    thread = system.run_in_thread()
    assert [ask(each)[0] for each in everything] == ["200 OK"] * 3
    thread.stop()
    alive, ready, page = [ask(each) for each in everything]
    assert (alive[0], json.loads(ready[2])["reasons"]) == ("200 OK", ["not running"])
    assert page[0] == "503 Service Unavailable"


def test_a_store_that_fails_makes_it_not_ready() -> None:
    store = Slow()
    system = ActorSystem("shop", persistence=PersistenceBackend(store))
    with system.run_in_thread():
        ready = wsgi.ready(system, timeout=60)
        assert ask(ready)[0] == "200 OK"
        store.error = StoreUnreachable("at redis://:secret@host")
        status, _, body = ask(ready)
        assert status == "503 Service Unavailable"
        reason = "the store does not work: StoreUnreachable"
        assert json.loads(body)["reasons"] == [reason]


def test_a_system_that_has_failed_is_neither_alive_nor_ready() -> None:
    system = ActorSystem(
        "shop",
        persistence=InMemoryPersistence(),
        supervision=OneForOne(default=Decision.ESCALATE),
    )
    with pytest.raises(EscalatedFailure), system.run_in_thread() as thread:
        with pytest.raises((ActorStopped, ValueError)):
            thread.ask(thread.spawn(Counter), ValueError("boom"))
        with contextlib.suppress(SystemNotRunning):  # it may have stopped by now
            thread.call(system.wait_stopped)
        assert ask(wsgi.health(system))[0] == "503 Service Unavailable"
        assert json.loads(ask(wsgi.ready(system))[2])["reasons"] == ["failed"]


@pytest.mark.anyio
async def test_asgi_applications_answer_in_another_loop_than_that_of_the_system(
    running: tuple[ActorSystem, SystemThread],
) -> None:
    system, thread = running
    await anyio.to_thread.run_sync(lambda: thread.spawn(Counter, name="counter"))
    assert (await get(asgi.health(system))).status_code == 200
    assert (await get(asgi.ready(system, max_lag=3))).json()["ready"]
    assert "shop" in (await get(asgi.metrics(system))).text
    page = await get(asgi.timeline(system, allow=lambda _: True))
    assert "shop/counter" in page.text
    await anyio.to_thread.run_sync(thread.stop)
    assert (await get(asgi.ready(system))).json()["reasons"] == ["not running"]
    assert (await get(asgi.timeline(system, allow=lambda _: True))).status_code == 503


@pytest.mark.anyio
async def test_a_call_from_another_loop_that_is_cancelled_ends_in_that_of_the_system(
    running: tuple[ActorSystem, SystemThread],
) -> None:
    portal = running[0].portal
    begun, ended = threading.Event(), threading.Event()

    async def hang() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(portal.call_from_any_loop, hang)
        assert await anyio.to_thread.run_sync(begun.wait, 60)
        tasks.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(ended.wait, 60)


@pytest.mark.anyio
async def test_a_call_from_another_loop_raises_what_it_raises_and_when_the_system_ends(
    running: tuple[ActorSystem, SystemThread],
) -> None:
    system, thread = running

    async def fail() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        await system.portal.call_from_any_loop(fail)
    portal, begun = system.portal, threading.Event()

    async def hang() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def call() -> None:
        with pytest.raises(SystemNotRunning):
            await portal.call_from_any_loop(hang)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        assert await anyio.to_thread.run_sync(begun.wait, 60)
        await anyio.to_thread.run_sync(thread.stop)


@pytest.mark.parametrize("make", [wsgi.health, wsgi.ready, wsgi.metrics, wsgi.timeline])
def test_what_is_no_system_is_refused(make: Any) -> None:
    options = {"allow": bool} if make is wsgi.timeline else {}
    with pytest.raises(InvalidSetting, match="an ActorSystem"):
        make("shop", **options)


def test_a_timeline_that_nobody_decides_about_is_refused() -> None:
    system: Any = ActorSystem("shop", persistence=InMemoryPersistence())
    with pytest.raises(InvalidSetting, match="allow is a function"):
        wsgi.timeline(system, allow=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidPolicy, match="records is a whole number"):
        wsgi.timeline(system, allow=bool, records=-1)
