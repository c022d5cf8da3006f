"""An application that servers serve in tests: a counter whose every number is stored.

Environment variables: ``STORE`` is its file, ``RELEASE`` a file that requests in flight wait for,
``HANGS`` has the store hang when it is closed: ``task``, or ``thread`` where nothing ends it.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForOne, PapyraError
from papyra.observability import asgi
from papyra.persistence.backends.json import JsonFilePersistence

RELEASE = anyio.Path(os.environ["RELEASE"])


class Counter(Actor):
    """Stores each number that it is told, and replies when it is stored."""

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        await self.context.persist(("Counted", {"number": message}))
        return message


async def hang() -> None:
    """Do not close a store."""
    say("closing")
    if os.environ["HANGS"] == "task":
        await anyio.sleep_forever()
    await anyio.to_thread.run_sync(threading.Event().wait)


def say(text: str) -> None:
    """Print a line in one piece, whoever else prints."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


def make_system() -> ActorSystem:
    store = JsonFilePersistence(os.environ["STORE"], fsync="no")
    hangs = "HANGS" in os.environ
    if hangs:
        store.store.close = hang  # type: ignore[method-assign]
    return ActorSystem(
        "served",
        persistence=store,
        supervision=OneForOne(default=Decision.ESCALATE),
        shutdown_timeout=0.5 if hangs else 60,
    )


def spawn_counter(system: ActorSystem) -> None:
    counters.append(system.spawn(Counter))


counters: list[ActorRef] = []
service = asgi.lifespan(make_system, setup=spawn_counter)


async def count(request: Request) -> Response:
    """Store a number at once, or when it is let."""
    if request.query_params.get("when") == "released":
        say("in flight")
        while not await RELEASE.exists():  # noqa: ASYNC110 - what another process makes
            await anyio.sleep(0.01)
    try:
        number = await counters[-1].ask(int(request.path_params["number"]), timeout=60)
    except PapyraError as error:
        return PlainTextResponse(type(error).__name__, 503)
    return PlainTextResponse(str(number))


async def fail(request: Request) -> Response:
    """Have a failure escalated."""
    await counters[-1].tell(ValueError("boom"))
    return PlainTextResponse("told")


app = Starlette(
    lifespan=service,
    routes=[
        Route("/count/{number}", count, methods=["POST"]),
        Route("/fail", fail, methods=["POST"]),
        Route("/health", asgi.health(service)),
        Route("/ready", asgi.ready(service)),
        Route("/timeline", asgi.timeline(service, allow=lambda scope: True)),
    ],
)
