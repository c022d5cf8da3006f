"""Servers that are told to end while requests are in flight: what is answered, what is stored.

Only in CI, or if it is named; `tests.test_web_example` has one that runs everywhere.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest

from papyra.persistence.backends.json import JsonFilePersistence
from tests.observability.serving import COMMANDS, Served
from tests.redis_server import RedisServer, any_binary
from tests.test_web_example import serve as serve_bank

IN_FLIGHT = 10


every_server = pytest.mark.parametrize("server", COMMANDS)


def is_uvicorn(server: str) -> bool:
    return server.startswith("uvicorn")


Serve: TypeAlias = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    def serve(server: str, **env: str) -> Served:
        places = {"STORE": str(tmp_path / "store"), "RELEASE": str(tmp_path / "release")}
        root = Path(__file__).parent.parent.parent
        return Served(server, "tests.observability.served:app", places | env, root)

    return serve


@contextmanager
def in_flight(served: Served) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """Send requests, and wait until all of them are in flight; give what returns the answers."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:

        def send(number: int) -> tuple[int, str]:
            try:
                answer = served.post(f"/count/{number}?when=released")
            except httpx.TransportError as error:
                return 0, repr(error)  # cut off
            return answer.status_code, answer.text

        sent = [pool.submit(send, number) for number in range(IN_FLIGHT)]
        served.wait_for(re.compile(rf"(?:in flight\n.*?){{{IN_FLIGHT}}}", re.DOTALL).search)
        yield lambda: [answer.result() for answer in sent]


def release(path: Path) -> None:
    """Let the requests go on that are in flight."""
    (path / "release").touch()


def stored(path: Path) -> set[int]:
    """Return the numbers in the store, which was closed or can be mended."""

    async def read() -> set[int]:
        async with JsonFilePersistence(path / "store") as store:
            await store.recover()  # a torn end, where the process was ended at once
            assert (await store.scan()).is_clean
            events = await store.list_events()
        return {event.payload["number"] for event in events if event.event_type == "Counted"}

    return asyncio.run(read())


EVERY = {*range(IN_FLIGHT)}
ANSWERED = [(200, str(number)) for number in range(IN_FLIGHT)]


@every_server
def test_a_server_that_gets_sigterm_answers_and_stores_what_is_in_flight(
    server: str, serve: Serve, tmp_path: Path
) -> None:
    with serve(server) as served:
        with in_flight(served) as answers:
            served.signal(signal.SIGTERM)
            release(tmp_path)
            assert answers() == ANSWERED
        # uvicorn raises the signal again when it is done.
        assert served.wait() == (-signal.SIGTERM if is_uvicorn(server) else 0), served.output
        assert "Traceback" not in served.output
    assert stored(tmp_path) == EVERY


@every_server
def test_a_server_that_gets_sigterm_under_load_has_stored_all_that_it_acknowledged(
    server: str, serve: Serve, tmp_path: Path
) -> None:
    acknowledged: list[int] = []
    begun = threading.Event()

    def load(client: int) -> None:
        number = client
        while True:
            try:
                answer = served.post(f"/count/{number}")
            except httpx.TransportError:
                return  # the server listens no more
            assert answer.status_code == 200, answer.text
            acknowledged.append(int(answer.text))
            number += 8
            if number > 24:
                begun.set()

    with serve(server) as served:
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(load, client) for client in range(8)]
            assert begun.wait(100)
            served.signal(signal.SIGTERM)
            for client in clients:
                client.result()
        assert served.wait() == (-signal.SIGTERM if is_uvicorn(server) else 0), served.output
    assert set(acknowledged) <= stored(tmp_path)
    assert len(acknowledged) > 10


@every_server
def test_a_server_that_gets_two_sigints_ends_and_has_stored_all_that_it_acknowledged(
    server: str, serve: Serve, tmp_path: Path
) -> None:
    with serve(server) as served:
        assert served.post("/count/100").text == "100"
        with in_flight(served) as answers:
            served.signal(signal.SIGINT)
            if is_uvicorn(server):
                served.wait_for(re.compile("Waiting for connections").search)
            served.signal(signal.SIGINT)
            if not is_uvicorn(server):  # which cuts them off; the others wait
                release(tmp_path)
            answered = {int(text) for status, text in answers() if status == 200}
        assert served.wait() == 0, served.output
    assert {100, *answered} <= stored(tmp_path)
    assert answered == (set() if is_uvicorn(server) else EVERY)


@every_server
def test_a_server_whose_store_hangs_at_shutdown_answers_and_ends_all_the_same(
    server: str, serve: Serve, tmp_path: Path
) -> None:
    with serve(server, HANGS="task") as served:
        with in_flight(served) as answers:
            served.signal(signal.SIGTERM)
            release(tmp_path)
            assert answers() == ANSWERED
        assert served.wait() == (-signal.SIGTERM if is_uvicorn(server) else 0), served.output
        assert "closing" in served.output
        assert "had not stopped in time: served/$persistence" in served.output
    assert stored(tmp_path) == EVERY


@every_server
def test_a_server_whose_system_has_failed_answers_what_is_in_flight_and_ends(
    server: str, serve: Serve, tmp_path: Path
) -> None:
    with serve(server) as served:
        assert served.post("/count/100").text == "100"
        with in_flight(served) as answers:
            served.post("/fail")
            served.wait_for(re.compile("has ended by itself.*ValueError: boom").search)
            release(tmp_path)
            # hypercorn's worker waits for some seconds only.
            late = [answer for answer in answers() if answer != (503, "ActorStopped")]
            assert [status for status, _ in late if status or is_uvicorn(server)] == []
        # That of the worker is another, which hypercorn does not hand on.
        assert served.wait() == (-signal.SIGTERM if is_uvicorn(server) else 0), served.output
    assert stored(tmp_path) == {100}


def test_the_bank_on_the_web_ends_though_its_store_hangs_at_shutdown(tmp_path: Path) -> None:
    with (
        RedisServer(any_binary()) as redis,
        serve_bank(f"{redis.url}?system_id=bank", tmp_path) as served,
    ):
        assert served.post("/accounts/ann/deposits", {"amount": 1}).status_code == 200
        redis.pause()
        try:
            served.signal(signal.SIGTERM)
            assert served.wait() == -signal.SIGTERM, served.output
        finally:
            redis.go_on()
