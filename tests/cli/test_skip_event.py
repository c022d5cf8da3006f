"""`papyra skip-event`, beside a system that writes the store, and without one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.persistence import PersistedEvent, SkipEvent
from papyra.persistence.backends.base import PersistenceBackend
from tests.cli.conftest import KINDS, Command, Done, Store, iso, new_store
from tests.cli.test_app import is_one_error
from tests.cli.test_history import bank, fact
from tests.cli.test_hostile import EVIL, is_harmless
from tests.conftest import kind_for
from tests.eventsourcing.accounts import Account, Look
from tests.extent import CI
from tests.redis_server import RedisServer

__all__ = ("bank",)

ROOT = Path(__file__).parents[2]
ANN = "bank/ann"
DECISION = "papyra.event_skipped"


WITH_INBOX = [*KINDS, "sqlite"]


@pytest.fixture(params=WITH_INBOX if CI else None)
def store(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Store:
    """A store of each kind that has an inbox, with nothing in it yet."""
    return new_store(kind_for(request, WITH_INBOX), tmp_path, redis_server)


def skip(papyra: Command, store: Store, revision: int, *options: object) -> Done:
    reason = ("--reason", "paid twice")
    return papyra("skip-event", ANN, revision, store.name, *reason, "--yes", "--json", *options)


def history(store: Store) -> list[PersistedEvent]:
    async def read() -> list[PersistedEvent]:
        async with store.backend().reader() as backend:
            events: list[PersistedEvent] = []
            more = True
            while more:
                page = await backend.read_history(ANN, after_revision=len(events))
                events += page.events
                more = page.more
            return events

    return anyio.run(read)


def decisions(store: Store) -> list[Any]:
    return [each.payload for each in history(store) if each.event_type == DECISION]


def state(store: Store) -> Any:
    async def look() -> Any:
        async with ActorSystem("bank", persistence=store.backend()) as system:
            return await system.spawn(Account, name="ann").ask(Look())

    return anyio.run(look)


class Teller:
    """A process that writes a store, and what it has said so far."""

    def __init__(self, store: Store) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.teller", store.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.said.append(line.strip())
                self._changed.notify_all()

    def wait(self, condition: Callable[[list[str]], object]) -> None:
        """Wait until what was said meets a condition."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.said), timeout=60), self.said[-5:]

    def end(self) -> None:
        """Let it stop in order."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        assert self._process.wait(60) == 0
        self._listening.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def writing(store: Store) -> Iterator[Teller]:
    teller = Teller(store)
    try:
        yield teller
    finally:
        teller.end()


def deposits(said: list[str]) -> int:
    return sum(each.isdigit() for each in said)


def stored(store: Store, teller: Teller) -> int:
    """Return how many deposits are stored: all of which it was said, and the last one, maybe."""
    count = sum(each.event_type == "Deposited" for each in history(store))
    assert count - deposits(teller.said) in (0, 1)
    return count


# Beside a system that writes


def test_a_system_that_could_not_recover_an_actor_goes_on_after_the_decision(
    papyra: Command, store: Store
) -> None:
    store.append(fact(1), fact(2, "Bitten"), fact(3))
    with writing(store) as teller:
        teller.wait(lambda said: "RecoveryFailed" in said)
        done = skip(papyra, store, 2)
        assert done.code == 0, done.err
        assert json.loads(done.out) == {
            "done": True,
            "actor": ANN,
            "revision": 2,
            "decision": 4,
            "reason": "paid twice",
            "by": "system",
        }
        teller.wait(lambda said: deposits(said) > 10)
    assert decisions(store) == [{"revision": 2, "reason": "paid twice"}]
    kept = len(history(store)) - 4
    assert kept - deposits(teller.said) in (0, 1)
    assert state(store) == (4 + kept, 4 + kept)


def test_a_system_loses_nothing_that_it_writes_meanwhile(papyra: Command, store: Store) -> None:
    with writing(store) as teller:
        teller.wait(lambda said: deposits(said) > 10)
        for revision in (3, 5):
            done = skip(papyra, store, revision)
            assert done.code == 0, done.err
            assert json.loads(done.out)["by"] == "system"
        again = skip(papyra, store, 3)
        assert (again.code, json.loads(again.out)["done"]) == (0, False)
        before = len(teller.said)
        teller.wait(lambda said: deposits(said[before:]) > 10)
    assert [each["revision"] for each in decisions(store)] == [3, 5]
    kept = stored(store, teller)
    assert [each for each in teller.said if not each.isdigit()] == ["RevisionConflict"] * 2
    assert state(store) == (kept - 2, kept + 2)


def test_of_giving_up_and_being_answered_at_once_exactly_one_counts(
    papyra: Command, store: Store
) -> None:
    with writing(store) as teller:
        teller.wait(lambda said: deposits(said) > 20)
        done = {
            revision: skip(papyra, store, revision, "--timeout", f"{revision * 70}ms")
            for revision in range(1, 16 if CI else 8)
        }
    made = [each["revision"] for each in decisions(store)]
    assert len(made) == len(set(made))
    for revision, each in done.items():
        if each.code == 0:
            assert json.loads(each.out)["by"] == "system"
            assert revision in made
        else:
            assert "answered" in each.err
            assert revision not in made or "papyra history shows" in each.err
    assert state(store)[0] == stored(store, teller) - len(made)


def test_a_writer_in_files_that_does_not_look_keeps_its_place(
    papyra: Command, file_store: Store
) -> None:
    async def hold() -> None:
        async with file_store.backend() as backend:
            await backend.append(fact(1), fact(2))
            done = await anyio.to_thread.run_sync(
                lambda: skip(papyra, file_store, 1, "--timeout", "300ms")
            )
            assert is_one_error(done, 1)
            assert "It has not answered within 0.3 seconds, and nothing was changed" in done.err
            assert len((await backend.read_history(ANN)).events) == 2
            await backend.append(fact(3))

    anyio.run(hold)
    assert file_store.path is not None
    assert list(file_store.path.parent.rglob("*.request*/*")) == []
    assert decisions(file_store) == []


def test_a_writer_on_a_server_that_does_not_look_keeps_its_place(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("redis", tmp_path, redis_server)

    async def hold(store: Store, *, writes: bool) -> None:
        ended = anyio.Event()

        async def write(backend: PersistenceBackend) -> None:
            while writes and not ended.is_set():
                await backend.append(fact(None))

        async with store.backend() as backend:
            await backend.append(fact(1), fact(2))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, backend)
                done = await anyio.to_thread.run_sync(
                    lambda: skip(papyra, store, 1, "--timeout", "300ms")
                )
                ended.set()
            assert done.code == 1
            assert "has not answered within 0.3 seconds: nothing was changed" in done.err
            await backend.append(fact(3))

    anyio.run(functools.partial(hold, store, writes=False))
    assert decisions(store) == []
    # One that is not found among the connections, but writes.
    named = new_store("redis", tmp_path, redis_server)
    named = dataclasses.replace(named, name=f"{named.name}&client_name=me")
    anyio.run(functools.partial(hold, named, writes=True))
    assert decisions(named) == []


# Without one


def test_without_a_writer_the_command_writes_itself(papyra: Command, store: Store) -> None:
    store.append(fact(1), fact(2, "Bitten"), fact(3))
    done = skip(papyra, store, 2, "--timeout", "100ms")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["done"], told["decision"], told["by"]) == (True, 4, "command")
    assert decisions(store) == [{"revision": 2, "reason": "paid twice"}]
    assert state(store) == (4, 4)
    again = papyra("skip-event", ANN, 2, store.name, "--reason", "again", "--yes")
    assert (again.code, again.out) == (0, "")
    assert "is skipped already, by revision 4: paid twice" in again.err
    assert len(history(store)) == 4


def test_what_can_not_be_skipped_is_refused_and_nothing_is_stored(
    papyra: Command, store: Store
) -> None:
    store.append(fact(1), fact(2), fact(None, "Noted"))
    assert skip(papyra, store, 1, "--timeout", "100ms").code == 0
    for actor, revision, said in (
        (ANN, 4, "has no event of revision 4"),
        (ANN, 3, "is a decision itself"),
        ("bank/bob", 1, "has no event of revision 1"),
    ):
        done = papyra("skip-event", actor, revision, store.name, "--reason", "x", "--yes")
        assert is_one_error(done, 1)
        assert said in done.err
    assert len(history(store)) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        [ANN, 1, "--yes"],
        [ANN, 1, "--yes", "--reason", ""],
        [ANN, 1, "--yes", "--reason", " \n "],
        [ANN, 1, "--yes", "--reason", "x" * 1001],
        [ANN, 0, "--yes", "--reason", "x"],
        [ANN, -1, "--yes", "--reason", "x"],
        [ANN, 10**15, "--yes", "--reason", "x"],
        [ANN, "first", "--yes", "--reason", "x"],
        ["", 1, "--yes", "--reason", "x"],
        [ANN, "--yes", "--reason", "x"],
        [ANN, 1, "--yes", "--reason", "x", "--timeout", "soon"],
    ],
)
def test_a_call_that_makes_no_sense_is_wrong_use(
    papyra: Command, file_store: Store, arguments: list[object]
) -> None:
    file_store.append(fact(1))
    place = 2 if len(arguments) > 1 and arguments[1] != "--yes" else 1
    done = papyra("skip-event", *arguments[:place], file_store.name, *arguments[place:])
    assert is_one_error(done, 2)
    assert len(history(file_store)) == 1


def test_a_store_that_is_not_there_is_not_made(papyra: Command) -> None:
    missing = papyra.home / "missing.ndjson"
    done = papyra("skip-event", ANN, 1, missing, "--reason", "x", "--yes")
    assert is_one_error(done, 1)
    assert not missing.exists()


def test_on_a_terminal_it_shows_the_event_and_asks(papyra: Command, file_store: Store) -> None:
    file_store.append(fact(1), fact(2, "Bitten"), fact(3))
    call = ("skip-event", ANN, 2, file_store.name, "--reason", "no dog")
    done = papyra.on_terminal(*call, answers=["n"], columns=300)
    assert done.code == 1
    assert "Bitten" in done.text
    assert "without revision 2?" in done.text
    assert "nothing was changed" in done.text
    assert len(history(file_store)) == 3
    done = papyra.on_terminal(*call, answers=["y"], columns=300)
    assert done.code == 0
    assert f"revision 2 of {ANN} is skipped from now on, as revision 4 says" in done.text
    assert decisions(file_store) == [{"revision": 2, "reason": "no dog"}]


def test_nothing_that_it_shows_is_obeyed_by_a_terminal(papyra: Command, file_store: Store) -> None:
    evil = PersistedEvent(EVIL, EVIL, EVIL, {EVIL: EVIL}, 1.0, revision=1)
    file_store.append(evil)
    for options in (["--yes"], ["--yes", "--json"]):
        done = papyra("skip-event", EVIL, 1, file_store.name, "--reason", EVIL, *options)
        assert done.code == 0, done.err
        assert is_harmless(done.out)
        assert is_harmless(done.err)
    done = papyra("history", EVIL, file_store.name)
    assert done.code == 0
    assert is_harmless(done.out)


# What papyra history shows of it


def decide(store: Store, *revisions: int) -> None:
    async def write() -> None:
        async with store.backend() as backend:
            for revision in revisions:
                await backend.execute(SkipEvent(ANN, revision, "no dog"))

    anyio.run(write)


def test_a_history_shows_what_is_skipped_and_by_what(bank: Command, file_store: Store) -> None:
    file_store.append(fact(1), fact(2, "Bitten"), fact(3))
    assert bank("history", ANN, file_store.name, "--app", "bank").code == 3
    decide(file_store, 2)
    plain = bank("history", ANN, file_store.name)
    assert [row[5:] for row in plain.rows] == [[], ["skipped: no dog"], [], ["skips revision 2"]]
    done = bank("history", ANN, file_store.name, "--app", "bank")
    assert (done.code, done.err) == (0, "2 of 3 decode with bank:Account, and 1 skipped\n")
    assert [row[-1] for row in done.rows] == [
        "decodes",
        "skipped: no dog",
        "decodes",
        "skips revision 2",
    ]
    _, second, _, decision = map(
        json.loads, bank("history", ANN, file_store.name, "--app", "bank", "--json").lines
    )
    assert (second["decodes"], second["problem"], second["skipped"]) == (False, None, "no dog")
    assert (decision["event_type"], decision["payload"]["revision"]) == (DECISION, 2)
    assert "decodes" not in decision


def test_a_history_with_a_hole_that_is_skipped_ends_with_0(
    bank: Command, file_store: Store
) -> None:
    async def write() -> None:
        async with file_store.backend() as backend:
            for revision in (1, 4):
                await backend.restore(msgspec.structs.replace(fact(revision), seq=revision))

    anyio.run(write)
    decide(file_store, 2)
    done = bank("history", ANN, file_store.name)
    assert (done.code, done.err) == (3, f"revisions 2 to 3 are missing in the history of {ANN}\n")
    decide(file_store, 3)
    done = bank("history", ANN, file_store.name)
    assert (done.code, done.err) == (0, "revisions 2 to 3 are missing and skipped: no dog\n")


def test_on_a_terminal_a_history_says_below_an_event_that_it_is_skipped(
    bank: Command, file_store: Store
) -> None:
    file_store.append(fact(1), fact(2, "Bitten"))
    decide(file_store, 2)
    done = bank.on_terminal("history", ANN, file_store.name, columns=120)
    assert done.code == 0
    first, second, why, third, what = done.text.splitlines()
    assert iso(1_751_328_001.0) in first
    assert "Bitten" in second
    assert why == "        skipped: no dog"
    assert DECISION in third
    assert what == "        skips revision 2"
