"""Health, readiness and the timeline as ASGI applications, in each framework that mounts them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from papyra import Actor, ActorSystem, Decision, OneForOne
from papyra.exceptions import EscalatedFailure, InvalidPolicy, StoreUnreachable
from papyra.observability import asgi
from papyra.observability.endpoint import Endpoint
from papyra.observability.lifecycles import Timeline
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.memory import InMemoryPersistence, MemoryStore
from papyra.projections import Projection
from tests.actors import Echo, event
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&\u2028{{ lives }}"


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def get(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    async with client(app) as http:
        return await http.get(path, headers=headers)


def ready_of(source: asgi.Source, max_lag: int | None = None) -> Endpoint:
    """Return what waits for the store however slow the machine is."""
    return asgi.ready(source, max_lag=max_lag, timeout=100)


def everybody(scope: Any) -> bool:
    return True


def every_endpoint(system: ActorSystem) -> list[Endpoint]:
    return [
        asgi.health(system),
        ready_of(system),
        asgi.metrics(system),
        asgi.timeline(system, allow=everybody),
    ]


class Slow(MemoryStore):
    """A store that answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.held: anyio.Event | None = None
        self.error: Exception | None = None

    async def read(self, *args: Any) -> Any:
        self.reads += 1
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        return await super().read(*args)


# Any of them


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "\u00e9"])
async def test_an_endpoint_refuses_each_method_but_get_and_head(method: str) -> None:
    async with ActorSystem() as system:
        for app in every_endpoint(system):
            sent = await call(app, {"type": "http", "method": method})
            assert sent[0]["status"] == 405
            assert (b"allow", b"GET, HEAD") in sent[0]["headers"]


async def test_an_endpoint_answers_head_as_get_but_without_the_body() -> None:
    async with ActorSystem() as system:
        for app in every_endpoint(system):
            got, head = [
                await call(app, {"type": "http", "method": method}) for method in ("GET", "HEAD")
            ]
            assert got[0] == head[0]
            length = dict(head[0]["headers"])[b"content-length"]
            assert len(got[1]["body"]) == int(length) > 0
            assert head[1]["body"] == b""


async def test_no_answer_of_an_endpoint_may_be_stored_or_guessed_at() -> None:
    async with ActorSystem() as system:
        for app in every_endpoint(system):
            headers = (await get(app)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"


async def test_an_endpoint_closes_a_websocket_and_knows_no_other_protocol() -> None:
    async with ActorSystem() as system:
        app = asgi.health(system)
        assert await call(app, {"type": "websocket"}) == [{"type": "websocket.close", "code": 1000}]
        with pytest.raises(NotImplementedError, match="lifespan"):
            await call(app, {"type": "lifespan"})


async def call(app: Endpoint, scope: dict[str, Any]) -> list[Any]:
    """Return what an application sends for one request."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"path": "/", "query_string": b"", "headers": [], **scope}, receive, send)
    return sent


# Health and readiness


async def test_a_service_is_alive_before_its_start_and_ready_from_its_start_to_its_end() -> None:
    service = asgi.lifespan(lambda: ActorSystem("shop"))
    health, ready = asgi.health(service), ready_of(service)
    assert (await get(health)).json() == {"alive": True}
    refused = await get(ready)
    assert refused.status_code == 503
    assert refused.json() == {"ready": False, "reasons": ["starting"], "projections": {}}
    async with service():
        assert (await get(health)).json() == {"alive": True}
        answer = await get(ready)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"ready": True, "reasons": [], "projections": {}}
    assert (await get(health)).status_code == 200
    assert (await get(ready)).json()["reasons"] == ["not running"]


async def test_a_service_is_not_ready_from_the_moment_that_its_shutdown_begins() -> None:
    entered, release = anyio.Event(), anyio.Event()

    class Late(Actor):
        async def receive(self, message: Any) -> None: ...

        async def on_stop(self) -> None:
            entered.set()
            await release.wait()

    seen: list[Any] = []

    async def look(ready: Endpoint) -> None:
        await entered.wait()
        seen.append((await get(ready)).json()["reasons"])
        release.set()

    async with anyio.create_task_group() as tasks:
        service = asgi.lifespan(lambda: ActorSystem(shutdown_timeout=60))
        async with service():
            await service.system.spawn(Late).ask("begun?")
            tasks.start_soon(look, ready_of(service))
    assert seen == [["not running"]]


async def test_a_service_whose_failure_was_escalated_is_neither_ready_nor_alive_at_once() -> None:
    entered, release, told = anyio.Event(), anyio.Event(), list[Any]()

    class Late(Actor):
        async def receive(self, message: Any) -> None:
            entered.set()
            await release.wait()

    async def tell(system: ActorSystem) -> None:
        told.append((system.failure, system.is_running))

    service = asgi.lifespan(
        lambda: ActorSystem(supervision=OneForOne(default=Decision.ESCALATE), shutdown_timeout=60),
        on_failure=tell,
    )
    with pytest.raises(Exception, match="ValueError: boom"):
        async with service():
            system = service.system
            await system.spawn(Late).tell(1)
            await entered.wait()
            await system.spawn(Echo).tell(ValueError("boom"))
            while system.failure is None:
                await anyio.lowlevel.checkpoint()
            # An actor is still at its message, and the server at its requests.
            assert (await get(asgi.health(service))).status_code == 503
            assert (await get(ready_of(service))).json()["reasons"] == ["failed"]
            release.set()
            await system.wait_stopped()
    assert [failure for failure, _ in told] == [system.failure]


async def test_a_service_is_not_ready_while_its_store_fails_or_hangs() -> None:
    store = Slow()
    async with ActorSystem(persistence=PersistenceBackend(store)) as system:
        ready = ready_of(system)
        assert (await get(ready)).status_code == 200
        store.error = StoreUnreachable("at redis://:secret@host")
        answer = await get(ready)
        assert answer.status_code == 503
        assert answer.json()["reasons"] == ["the store does not work: StoreUnreachable"]
        store.error, store.held = None, anyio.Event()
        hanging = asgi.ready(system, timeout=0.01)
        assert (await get(hanging)).json()["reasons"] == [
            "the store has not answered within 0.01 seconds"
        ]
        store.held.set()
        store.held = None
        assert (await get(ready)).status_code == 200


async def test_a_store_that_hangs_is_asked_once_however_often_somebody_wants_to_know() -> None:
    store = Slow()
    async with ActorSystem(persistence=PersistenceBackend(store)) as system:
        ready = asgi.ready(system, timeout=0.01)
        store.held, before = anyio.Event(), store.reads
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(get, ready)
        for _ in range(3):
            assert (await get(ready)).status_code == 503
        store.held.set()
        await system.backend.flush()  # behind what waits there
        assert store.reads == before + 1


class Counts(Projection):
    """Counts events, each when it is let."""

    name, version = "counts", 1

    def __init__(self) -> None:
        super().__init__()
        self.release = anyio.Event()

    async def handle(self, event: Any) -> None:
        await self.release.wait()


async def test_a_service_is_not_ready_while_a_projection_is_further_behind_than_it_may() -> None:
    async with ActorSystem("shop") as system:
        counts = Counts()
        runner = system.project(counts)
        appended = await system.backend.append(*[event(n) for n in range(10)])
        ready = ready_of(system, max_lag=5)
        assert (await get(ready_of(system))).status_code == 200
        answer = await get(ready)
        assert answer.status_code == 503
        [reason] = answer.json()["reasons"]
        assert reason.startswith("the projection counts is ")
        counts.release.set()
        await runner.wait_for(appended.last_seq, timeout=60)
        answer = await get(ready)
        assert answer.status_code == 200
        assert answer.json()["projections"]["counts"]["lag"] <= 5


@pytest.mark.parametrize("wrong", [{"max_lag": -1}, {"max_lag": 1.5}, {"timeout": 0}])
def test_a_readiness_with_limits_that_make_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidPolicy):
        asgi.ready(ActorSystem(), **wrong)


# Metrics


async def test_the_figures_of_a_system_are_given_in_the_format_that_is_asked_for() -> None:
    service = asgi.lifespan(lambda: ActorSystem("shop"))
    app = asgi.metrics(service)
    before = text_string_to_metric_families((await get(app)).text)
    assert [family.samples for family in before if family.samples] == []
    async with service():
        for n in range(3):
            await service.system.spawn(Echo, name=f"secret-{n}").ask(1)
        text = await get(app)
        families = {each.name: each for each in text_string_to_metric_families(text.text)}
        assert text.headers["content-type"].startswith("text/plain; version=")
        [alive] = families["papyra_actors"].samples
        assert (alive.labels["actor_class"], alive.value) == ("tests.actors.Echo", 3)
        assert "secret" not in text.text
        openmetrics = await get(app, accept="application/openmetrics-text; version=1.0.0")
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
    assert (await get(app)).status_code == 200


# Lifespan


async def test_a_lifespan_raises_why_the_system_does_not_start_and_can_be_run_again() -> None:
    store = InMemoryPersistence()
    service = asgi.lifespan(lambda: ActorSystem(persistence=store))
    async with ActorSystem(persistence=store):
        with pytest.raises(Exception, match="hosted by"):
            async with service():
                raise AssertionError("not reached")
    for _ in range(2):
        async with service() as state:
            assert state == {"system": service.system}
            assert service.system.is_running
    assert not service.system.is_running


async def test_a_lifespan_sets_its_system_up_before_it_is_ready_and_fails_with_that() -> None:
    order: list[str] = []

    async def setup(system: ActorSystem) -> None:
        order.append((await get(ready_of(service))).json()["reasons"][0])
        assert await system.spawn(Echo, name="echo").ask(1) == 1

    service = asgi.lifespan(ActorSystem, setup=setup)
    async with service() as state:
        assert state["system"].find("papyra/echo") is not None
    assert order == ["starting"]

    def fail(system: ActorSystem) -> None:
        raise KeyError("no such table")

    with pytest.raises(KeyError, match="no such table"):
        async with asgi.lifespan(ActorSystem, setup=fail)():
            raise AssertionError("not reached")


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt("mine"), SystemExit("mine")])
async def test_a_lifespan_raises_the_error_of_its_block_as_it_is_and_stops_the_system(
    error: BaseException,
) -> None:
    service = asgi.lifespan(ActorSystem)
    with pytest.raises(type(error), match="mine"):
        async with service():
            raise error
    assert not service.system.is_running


async def test_a_lifespan_is_of_one_server_at_a_time() -> None:
    service = asgi.lifespan(ActorSystem)
    async with service():
        with pytest.raises(Exception, match="runs already"):
            async with service():
                raise AssertionError("not reached")
        assert service.system.is_running


async def test_a_lifespan_that_is_cancelled_stops_its_system() -> None:
    service = asgi.lifespan(ActorSystem)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            async with service():
                tasks.cancel_scope.cancel()
                await anyio.sleep_forever()

        tasks.start_soon(serve)
    await service.system.wait_stopped()


async def fail(service: asgi.Lifespan) -> ActorSystem:
    """Run a service whose system fails, until that has ended, and return the system."""
    with pytest.raises(EscalatedFailure, match="boom"):
        async with service():
            await service.system.spawn(Echo).tell(ValueError("boom"))
            await service.system.wait_stopped()
    return service.system


def escalating() -> ActorSystem:
    return ActorSystem(supervision=OneForOne(default=Decision.ESCALATE))


async def test_a_server_that_handles_sigterm_gets_it_once_when_its_system_fails() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        await fail(asgi.lifespan(escalating))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


async def test_a_process_that_handles_no_sigterm_goes_on_when_its_system_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    await fail(asgi.lifespan(escalating))
    assert "has ended by itself" in caplog.text


async def test_what_is_done_about_a_failure_may_fail_and_ends_with_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    async def wait(system: ActorSystem) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(system.system_id)

    async def raise_error(system: ActorSystem) -> None:
        raise KeyError("nobody to call")

    await fail(asgi.lifespan(escalating, on_failure=wait))
    assert ended == ["papyra"]
    await fail(asgi.lifespan(escalating, on_failure=raise_error))
    assert "nobody to call" in caplog.text


async def test_an_actor_that_raises_system_exit_ends_the_server_by_that() -> None:
    class Leaving(Actor):
        async def receive(self, message: Any) -> None:
            raise SystemExit(3)

    told: list[ActorSystem] = []

    async def tell(system: ActorSystem) -> None:
        told.append(system)

    service = asgi.lifespan(ActorSystem, on_failure=tell)
    with pytest.raises(SystemExit):
        async with service():
            await service.system.spawn(Leaving).tell("go")
            await service.system.wait_stopped()
            while not told:
                await anyio.lowlevel.checkpoint()
    assert told == [service.system]


@asynccontextmanager
async def lived(app: Any) -> AsyncIterator[None]:
    """Start and stop an application as a server does."""
    to_app, from_app = (
        anyio.create_memory_object_stream[Any](1),
        anyio.create_memory_object_stream[Any](1),
    )
    async with to_app[0], to_app[1], from_app[0], from_app[1], anyio.create_task_group() as tasks:
        tasks.start_soon(
            app,
            {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}},
            to_app[1].receive,
            from_app[0].send,
        )
        for step in ("startup", "shutdown"):
            await to_app[0].send({"type": f"lifespan.{step}"})
            assert await from_app[1].receive() == {"type": f"lifespan.{step}.complete"}
            if step == "startup":
                yield


def routes_of(service: asgi.Lifespan) -> list[BaseRoute]:
    return [
        Route("/health", asgi.health(service)),
        Route("/ready", ready_of(service)),
        Route("/timeline", asgi.timeline(service, allow=everybody)),
    ]


def starlette_app(service: asgi.Lifespan) -> Any:
    return Starlette(lifespan=service, routes=routes_of(service))


def fastapi_app(service: asgi.Lifespan) -> Any:
    from fastapi import FastAPI  # noqa: PLC0415 - each process of the tests would import it

    return FastAPI(lifespan=service, routes=routes_of(service))


def litestar_app(service: asgi.Lifespan) -> Any:
    import litestar  # noqa: PLC0415 - as above

    return litestar.Litestar(
        lifespan=[service],
        route_handlers=[
            litestar.asgi("/health", copy_scope=True)(asgi.health(service)),
            litestar.asgi("/ready", copy_scope=True)(ready_of(service)),
            litestar.asgi("/timeline", copy_scope=True)(asgi.timeline(service, allow=everybody)),
        ],
    )


@pytest.mark.parametrize("make_app", [starlette_app, fastapi_app, litestar_app])
async def test_a_framework_runs_a_lifespan_and_mounts_the_endpoints(make_app: Any) -> None:
    service = asgi.lifespan(lambda: ActorSystem("shop"))
    app = make_app(service)
    async with lived(app):
        assert service.system.is_running
        assert (await get(app, "/health")).json() == {"alive": True}
        assert (await get(app, "/ready")).json()["ready"] is True
        assert (await get(app, "/timeline")).headers["content-type"].startswith("text/html")
        async with client(app) as http:
            assert (await http.head("/ready")).status_code == 200
            assert (await http.post("/ready")).status_code == 405
    assert not service.system.is_running


# The timeline


async def test_the_timeline_is_shown_to_those_alone_who_are_allowed_to_see_it() -> None:
    async def by_header(scope: Any) -> bool:
        return (b"x-role", b"operator") in scope["headers"]

    async with ActorSystem("shop") as system:
        await system.spawn(Echo, name="secret").ask(1)
        app = asgi.timeline(system, allow=by_header)
        for path in ("/", "/?after=0"):
            refused = await get(app, path)
            assert (refused.status_code, refused.text) == (403, "Forbidden\n")
            allowed = await get(app, path, **{"x-role": "operator"})
            assert allowed.status_code == 200
            assert "shop/secret" in allowed.text
        # What is not quite true is not allowed.
        vague: Any = lambda scope: "no"  # noqa: E731
        assert (await get(asgi.timeline(system, allow=vague))).status_code == 403


async def test_the_timeline_follows_from_the_position_that_it_was_given() -> None:
    async with ActorSystem("shop") as system:
        app = asgi.timeline(system, allow=everybody)
        await system.spawn(Echo, name="first").ask(1)
        await system.backend.flush()
        begun = msgspec.json.decode((await get(app, "/?after=0")).content, type=Timeline)
        assert [life.actor for life in begun.lives] == ["shop/first"]
        await system.backend.append(event(1))
        await system.spawn(Echo, name="second").ask(1)
        await system.backend.flush()
        more = msgspec.json.decode((await get(app, f"/?after={begun.head}")).content, type=Timeline)
        assert [life.actor for life in more.lives] == ["shop/second"]
        assert more.head == system.backend.last_seq
        assert not more.more


@pytest.mark.parametrize("records", [-1, 1.5, True])
def test_a_timeline_of_so_many_records_as_make_no_sense_is_refused(records: Any) -> None:
    with pytest.raises(InvalidPolicy):
        asgi.timeline(ActorSystem(), allow=everybody, records=records)


@pytest.mark.parametrize("after", ["", "-1", "x", "1.5", "9" * 30, "%F0%9F", "\u0661", "1e3"])
async def test_a_position_of_the_timeline_that_is_none_is_refused(after: str) -> None:
    async with ActorSystem() as system:
        answer = await get(asgi.timeline(system, allow=everybody), f"/?after={after}")
        assert answer.status_code == 400


async def test_a_position_that_the_store_has_not_reached_is_a_conflict() -> None:
    async with ActorSystem() as system:
        answer = await get(asgi.timeline(system, allow=everybody), "/?after=1000000")
        assert answer.status_code == 409


async def test_a_timeline_of_a_system_that_does_not_run_says_so() -> None:
    service = asgi.lifespan(ActorSystem)
    app = asgi.timeline(service, allow=everybody)
    assert (await get(app)).status_code == 503
    async with service():
        assert (await get(app)).status_code == 200
    assert (await get(app)).status_code == 503


async def test_hostile_names_are_escaped_in_the_page_and_whole_in_its_data() -> None:
    async with ActorSystem("shop") as system:
        app = asgi.timeline(system, allow=everybody)
        ref = system.entity(Echo, HOSTILE)
        hostile = type(HOSTILE, (Exception,), {})
        with pytest.raises(hostile):
            await ref.ask(hostile(HOSTILE))
        await system.backend.flush()
        page = (await get(app)).text
        assert "<img" not in page
        answer = await get(app, "/?after=0")
        assert answer.headers["content-type"] == "application/json"
        lives = msgspec.json.decode(answer.content, type=Timeline).lives
        assert [
            step.detail["error"] for life in lives for step in life.steps if step.what == "crashed"
        ] == [HOSTILE]
        # Nobody else may read it, put it into a frame, or learn where it is.
        headers = (await get(app)).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
