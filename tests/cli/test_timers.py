"""`papyra timers`, beside a system that writes the store, and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from papyra import ActorSystem
from papyra.persistence import PersistedEvent
from papyra.persistence.backends.json import JsonFilePersistence
from tests.cli.conftest import Command
from tests.cli.test_app import is_one_error
from tests.eventsourcing.orders import Do, Look, Order, Remind, Set


async def stored(system: ActorSystem, change: str) -> None:
    """Wait until it is in the store that a timer has come to this."""
    async with system.subscribe(types=["papyra.timer"]) as items:
        with anyio.fail_after(60):
            async for item in items:
                if isinstance(item, PersistedEvent) and item.payload["change"] == change:
                    return


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a shop with three orders, each of which has a timer; one has failed."""
    file = tmp_path / "shop.ndjson"

    async def fill() -> None:
        store = JsonFilePersistence(file, fsync="no")
        async with ActorSystem("shop", persistence=store, entities=[Order]) as system:
            order = system.entity(Order, "1").ask
            await order(Set("pay", {"after": 600}, "ordered", Remind("pay")))
            await system.entity(Order, "2").ask(Set("tick", {"every": 3_600}))
            await system.entity(Order, "3").ask(Set("bad", {"after": 0}, None, Do("raise")))
            await stored(system, "failed")

    anyio.run(fill)
    return file


def listed(papyra: Command, path: Path) -> dict[str, Any]:
    done = papyra("timers", path, "--json")
    return {each["name"]: each for each in map(json.loads, done.out.splitlines())}


def test_what_is_pending_is_listed_by_when_it_comes(papyra: Command, path: Path) -> None:
    lines = [line.split("\t") for line in papyra("timers", path).out.splitlines()]
    assert [line[2:] for line in lines] == [
        ["shop/Order/3", "bad", "Do", "1", "ValueError: not today"],
        ["shop/Order/1", "pay", "Remind", "0", ""],
        ["shop/Order/2", "tick", "Remind", "0", ""],
    ]
    found = listed(papyra, path)
    assert found["tick"]["every"] == 3_600
    assert found["pay"]["message"] == {"text": "pay"}
    assert found["bad"]["not_before"] > found["bad"]["due"]


def test_a_timer_is_cancelled_and_fired_where_nobody_writes(papyra: Command, path: Path) -> None:
    done = papyra("timers", "cancel", "shop/Order/2", "tick", path, "--yes", "--json")
    assert json.loads(done.out) == {
        "done": True,
        "action": "cancel",
        "actor": "shop/Order/2",
        "name": "tick",
        "revision": 2,
        "by": "command",
    }
    assert papyra("timers", "fire", "shop/Order/1", "pay", path, "--yes").code == 0
    again = papyra("timers", "fire", "shop/Order/1", "pay", path, "--yes", "--json")
    assert not json.loads(again.out)["done"]
    assert set(listed(papyra, path)) == {"pay", "bad"}

    async def look() -> Any:
        store = JsonFilePersistence(path, fsync="no")
        async with ActorSystem("shop", persistence=store, entities=[Order]) as system:
            await stored(system, "fired")
            return await system.entity(Order, "1").ask(Look())

    assert anyio.run(look) == ("ordered", "pay")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("cancel", "shop/Order/9", "pay"), 1),
        (("cancel", "shop/Order/1", "other"), 1),
        (("fire", "", "pay"), 2),
        (("cancel", "shop/Order/1"), 2),
        (("shop", "and", "more"), 2),
    ],
)
def test_what_is_not_pending_or_makes_no_sense_is_one_error(
    arguments: tuple[str, ...], code: int, papyra: Command, path: Path
) -> None:
    done = papyra("timers", *arguments, *([] if len(arguments) == 2 else [path]), "--yes")
    assert is_one_error(done, code)
    assert len(listed(papyra, path)) == 3


def test_nothing_is_changed_where_nobody_confirms(papyra: Command, path: Path) -> None:
    assert papyra("timers", "cancel", "shop/Order/1", "pay", path).code == 2
    assert len(listed(papyra, path)) == 3


@pytest.mark.anyio
async def test_the_system_that_writes_the_store_is_asked_and_the_actor_knows(path: Path) -> None:
    async def call(*arguments: str) -> Any:
        command = [sys.executable, "-m", "papyra.cli", "timers", *arguments, str(path), "--json"]
        done = await anyio.run_process([*command, "--yes"], stderr=subprocess.STDOUT)
        return json.loads(done.stdout)

    store = JsonFilePersistence(path, fsync="no")
    async with ActorSystem("shop", persistence=store, entities=[Order]) as system:
        paid, ticking = system.entity(Order, "1"), system.entity(Order, "2")
        await paid.ask(Look())
        await ticking.ask(Look())
        after = system.backend.last_seq
        async with system.subscribe(after=after, types=["papyra.timer"]) as changes:
            fired = await call("fire", "shop/Order/1", "pay")
            assert (fired["done"], fired["by"]) == (True, "system")
            with anyio.fail_after(60):
                async for each in changes:
                    if isinstance(each, PersistedEvent) and each.payload["change"] == "fired":
                        break
        assert await paid.ask(Look()) == ("ordered", "pay")
        assert (await call("cancel", "shop/Order/2", "tick"))["by"] == "system"
        assert await ticking.ask(()) == {}
        assert await ticking.ask(Set("new", {"after": 60})) == 3  # its history is known to it
        events = (await system.backend.read_history("shop/Order/2")).events
    assert [event.payload["change"] for event in events] == [
        "scheduled",
        "unscheduled",
        "scheduled",
    ]
