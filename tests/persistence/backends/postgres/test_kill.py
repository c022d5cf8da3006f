"""Processes are killed while a store is written: its writer's, the server's, or single ones of it.

``PAPYRA_KILLS=100`` makes it a long run. What was acknowledged is counted (``-s``).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from papyra import ActorSystem
from papyra.exceptions import StoreError
from papyra.persistence import Append, CircuitBreakerPolicy, PersistenceActor
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.testing.conformance._fixtures import a_record, an_event
from tests.extent import CI, count
from tests.postgres_server import PostgresServer

KILLS = count("PAPYRA_KILLS", 2, 10)
WRITERS = 4
ROOT = Path(__file__).parents[4]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def appender(url: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that appends, and kill it in the end."""
    command = [sys.executable, "-m", "tests.persistence.backends.postgres.appender", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def acknowledged_by(process: subprocess.Popen[str], *, first: int | None = None) -> int:
    """Return the last position that a process was given: with `first` lines, or up to its end."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(first)] if first else list(process.stdout)
    # The last line may have been cut off in the pipe.
    whole = [line for line in said if line.endswith("\n") and line != "fenced\n"]
    return int(whole[-1].split()[1]) if whole else 0


async def whole(url: str) -> int:
    """Return how many records there are, each event at the position that it carries."""
    for read_only in (True, False):  # as another program sees it, and as the next writer does
        async with PostgresPersistence(url, read_only=read_only) as store:
            report = await store.scan()
            assert report.is_clean
            numbers = [(e.seq, e.payload["order_id"]) async for e in store.stream("event")]
            assert all(seq == number for seq, number in numbers)
            assert numbers == sorted(set(numbers))
            assert store.last_seq == report.records_scanned
    return report.records_scanned


@pytest.mark.timeout(300 + 10 * KILLS)
def test_a_killed_process_loses_no_acknowledged_record_in_postgres(
    own_server: PostgresServer,
) -> None:
    chance = random.Random("kill")
    for _ in range(KILLS):
        with appender(own_server.url) as process:
            known = acknowledged_by(process, first=chance.randint(1, 40))
            process.kill()
            known = max(known, acknowledged_by(process))
        assert process.returncode == -signal.SIGKILL
        assert anyio.run(whole, own_server.url) >= known > 0
    print(f"\n{KILLS} kills of the writer: {known:,} acknowledged")


@pytest.mark.timeout(300 + 10 * KILLS)
def test_a_postgres_writer_that_was_paused_stores_nothing_once_another_has_taken_over(
    own_server: PostgresServer,
) -> None:
    """Wherever in an append it stands still, and its transaction with it."""
    chance = random.Random("pause")

    async def take_over() -> int:
        async with PostgresPersistence(own_server.url) as store:
            # Waits for what the paused one has begun, which the server carries out without it.
            appended = await store.append(a_record(1))
            return appended.first_seq

    for _ in range(KILLS):
        with appender(own_server.url) as process:
            acknowledged_by(process, first=chance.randint(1, 20))
            process.send_signal(signal.SIGSTOP)
            taken = anyio.run(take_over)
            process.send_signal(signal.SIGCONT)
            assert acknowledged_by(process) < taken
            assert process.wait(60) == 0
        assert anyio.run(whole, own_server.url) == taken


def kill_all(server: PostgresServer) -> None:
    server.kill()
    server.start()


def kill_postmaster(server: PostgresServer) -> None:
    server.kill_postmaster()
    server.start()


def kill_backend(server: PostgresServer) -> None:
    for pid in server.backends()[:1]:
        server.kill_backend(pid)


def stop_at_once(server: PostgresServer) -> None:
    server.stop(signal.SIGQUIT)
    server.start()


def restart(server: PostgresServer) -> None:
    server.stop()
    server.start()


WAYS: list[Callable[[PostgresServer], None]] = [
    *(kill_all, kill_postmaster, kill_backend, stop_at_once, restart)
]


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize(
    "retry_for", [60.0, 0.01] if CI else [0.01], ids=lambda each: f"{each:g} s"
)
async def test_a_killed_postgres_server_keeps_acknowledged_records_and_none_that_raised(
    own_server: PostgresServer, retry_for: float
) -> None:
    chance = random.Random(KILLS)
    acknowledged: list[tuple[int, int]] = []
    raised = 0
    is_over = False

    async with ActorSystem(audit_interval=None) as system:
        store = PostgresPersistence(own_server.url, retry_for=retry_for)
        ref = system.spawn(PersistenceActor, store, CircuitBreakerPolicy(max_failures=None))

        async def write(writer: int) -> None:
            nonlocal raised
            number = 0
            while not is_over:
                number += 1
                record = an_event(number, actor_address=f"s/{writer}")
                try:
                    await ref.ask(Append(record))
                except StoreError:
                    raised += 1
                else:
                    acknowledged.append((writer, number))

        async with anyio.create_task_group() as tasks:
            for writer in range(WRITERS):
                tasks.start_soon(write, writer)
            for _, way in zip(range(KILLS), itertools.cycle(WAYS), strict=False):
                known = len(acknowledged)
                while len(acknowledged) < known + 2 * WRITERS:
                    await anyio.lowlevel.checkpoint()
                for _ in range(chance.randrange(400)):
                    await anyio.lowlevel.checkpoint()
                await anyio.to_thread.run_sync(way, own_server)
            is_over = True

    async with PostgresPersistence(own_server.url) as store:
        events = await store.list_events()
        stored = [(int(event.actor_address[2:]), event.payload["n"]) for event in events]
        assert sorted(stored) == sorted(acknowledged)
        for writer in range(WRITERS):
            mine = [number for who, number in stored if who == writer]
            assert mine == sorted(mine)
        assert (await store.scan()).is_clean
    assert len(acknowledged) >= 2 * WRITERS * KILLS
    print(f"\n{KILLS} kills of the server: {len(acknowledged):,} acknowledged, {raised:,} raised")
    if retry_for > 1:
        assert raised == 0
