"""A projection that tells entities what to do: at least once, and each command is done once."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from papyra import Actor, ActorSystem, EventSourced
from papyra.eventsourcing import event, upcaster
from papyra.exceptions import ActorStopped, InvalidProjection
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.projections import Pause, Projection, Retry, SQLiteView
from papyra.testing import FaultyPersistence
from tests.projections.balances import in_state, until
from tests.projections.conftest import NewSystem
from tests.projections.shop import Customer, Order, Ordered, Pack, Packing, Parcel

pytestmark = pytest.mark.anyio


async def parcel(system: ActorSystem) -> list[str]:
    found: list[str] = await system.entity(Parcel, "p").ask("look")
    return found


async def order(system: ActorSystem, *items: str) -> int:
    for item in items:
        await system.entity(Customer, "c").ask(Order(item))
    return system.backend.last_seq


async def test_what_happens_to_one_entity_is_told_to_another(new_system: NewSystem) -> None:
    async with new_system() as system:
        packing = system.project(Packing())
        await packing.wait_for(await order(system, "tea", "milk"), timeout=60)
        assert await parcel(system) == ["tea", "milk"]
        ordered = await system.backend.read_history("bank/Customer/c")
        packed = await system.backend.read_history("bank/Parcel/p")
        causes = [each.metadata.get("papyra.idempotency_key") for each in packed.events]
        assert causes[::2] == [f"packing/{each.seq}" for each in ordered.events]


async def test_what_is_handled_again_is_done_once(new_system: NewSystem) -> None:
    class Failing(Packing):
        name = "packing"
        failures = 2
        replies: list[int] = []  # noqa: RUF012 - of this test alone

        async def handle(self, received: Any) -> None:
            reply = await self.command(Parcel, "p", Pack(received.event.item))
            self.replies.append(reply)
            if self.failures:
                self.failures -= 1
                raise OSError("no network")

    async with new_system() as system:
        packing = system.project(Failing())
        await packing.wait_for(await order(system, "tea", "milk"), timeout=60)
        assert await parcel(system) == ["tea", "milk"]
        assert Failing.replies == [1, 1, 1, 2]


async def test_several_commands_for_one_event_are_told_apart(new_system: NewSystem) -> None:
    class Twice(Packing):
        name = "packing"
        failures = 1

        async def handle(self, received: Any) -> None:
            for each in ("one", "one", "two"):
                await self.command(Parcel, "p", Pack(f"{each} {received.event.item}"))
            await self.command(Parcel, "other", Pack("one"))
            if self.failures:
                self.failures -= 1
                raise OSError("no network")

    async with new_system() as system:
        packing = system.project(Twice())
        await packing.wait_for(await order(system, "tea"), timeout=60)
        assert await parcel(system) == ["one tea", "one tea", "two tea"]
        assert await system.entity(Parcel, "other").ask("look") == ["one"]


@pytest.mark.parametrize("kind", ["json", "sqlite"])
def test_it_is_killed_between_the_command_and_the_position(kind: str, tmp_path: Path) -> None:
    def run(orders: int, dies_at: str = "-") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.projections.shop", kind, str(tmp_path / "shop")]
        return subprocess.run(
            [*command, str(orders), dies_at], capture_output=True, text=True, check=False
        )

    killed = run(3, "0")
    assert killed.returncode == -signal.SIGKILL
    recovered = run(0)
    assert recovered.returncode == 0, recovered.stderr
    packed = ast.literal_eval(recovered.stdout)
    assert packed == [f"{number}" for number in range(len(packed))]
    assert packed


async def test_a_new_version_begins_anew_and_repeats_no_command(new_system: NewSystem) -> None:
    async with new_system() as system:
        packing = system.project(Packing())
        await packing.wait_for(await order(system, "tea", "milk"), timeout=60)

    class Anew(Packing):
        name, version = "packing", 2

    async with new_system() as system:
        packing = system.project(Anew())
        await packing.wait_for(await order(system, "sugar"), timeout=60)
        assert await parcel(system) == ["tea", "milk", "sugar"]


async def test_a_system_that_stops_in_the_middle_goes_on_with_the_command(
    new_system: NewSystem, store: InMemoryPersistence
) -> None:
    begun = anyio.Event()

    class Patient(Packing):
        name = "packing"

        async def handle(self, received: Any) -> None:
            begun.set()
            while system.is_running:
                await anyio.lowlevel.checkpoint()
            await super().handle(received)

    async with new_system() as system:
        packing = system.project(Patient())
        await order(system, "tea")
        await begun.wait()
    assert packing.status.state == "stopped"
    async with new_system() as system:
        packing = system.project(Packing())
        await packing.wait_for(1, timeout=60)
        assert await parcel(system) == ["tea"]


async def test_side_effects_of_new_events_are_commands_too(
    new_system: NewSystem, path: Path
) -> None:
    class Shown(Projection):
        name = "shown"
        events = (Ordered,)
        on_error = Retry(3).then(Pause())
        failures = 1

        def setup(self, tx: Any) -> None:
            tx.execute("CREATE TABLE shown (item TEXT)")

        def handle(self, received: Any, tx: Any) -> None:
            tx.execute("INSERT INTO shown VALUES (?)", (received.event.item,))

        async def live(self, received: Any) -> None:
            assert self.causation_id == f"shown/live/{received.seq}"
            await self.command(Parcel, "p", Pack(received.event.item))
            if self.failures:
                self.failures -= 1
                raise OSError("no network")

    async with new_system() as system:
        shown = system.project(Shown(SQLiteView(path)))
        await in_state(shown, "running")
        await shown.wait_for(await order(system, "tea", "milk"), timeout=60)
        with anyio.fail_after(60):
            while await parcel(system) != ["tea", "milk"]:  # noqa: ASYNC110 - nothing tells of it
                await anyio.sleep(0.01)


@event("Ordered", version=2)
class Half(msgspec.Struct, frozen=True):
    item: str


class NewCustomer(EventSourced[int]):
    """An order has become two halves."""

    entity_name = "Customer"
    events = (Half,)

    @staticmethod
    @upcaster("Ordered", from_version=1)
    def halves(payload: Any) -> Any:
        return [payload, payload]

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Half) -> int:
        return state + 1

    async def receive(self, message: Any) -> Any:
        return self.state


@pytest.mark.parametrize("where", ["handle", "live"])
async def test_events_that_one_has_become_have_commands_of_their_own(
    where: str, new_system: NewSystem, path: Path
) -> None:
    async def told(projection: Projection, received: Any) -> None:
        await projection.command(Parcel, "p", Pack(f"{received.event.item} {len(failures)}"))
        failures.append("no network")
        if len(failures) in (1, 3):
            raise OSError(failures[-1])

    class Halves(Projection):
        name = "halves"
        entity = NewCustomer
        on_error = Retry(5).then(Pause())

        if where == "handle":

            async def handle(self, received: Any) -> None:
                await told(self, received)

        else:

            def handle(self, received: Any, tx: Any) -> None: ...  # type: ignore[misc]

            async def live(self, received: Any) -> None:
                await told(self, received)

    failures: list[str] = []
    async with new_system() as system:
        halves = system.project(Halves(SQLiteView(path) if where == "live" else None))
        await in_state(halves, "running")
        last = await order(system, "tea")
        await halves.wait_for(last, timeout=60)
        with anyio.fail_after(60):
            while len(failures) < (5 if where == "handle" else 4):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert len(await parcel(system)) == 2


async def test_commands_belong_to_an_event(new_system: NewSystem, path: Path) -> None:
    class Wrong(Projection):
        name = "wrong"
        events = (Ordered,)
        on_error = Pause()

        def handle(self, received: Any, tx: Any) -> None:
            assert self.causation_id

    async with new_system() as system:
        wrong = system.project(Wrong(SQLiteView(path)))
        with pytest.raises(InvalidProjection, match="at hand"):
            await wrong.projection.command(Parcel, "p", Pack("tea"))
        await order(system, "tea")
        await in_state(wrong, "paused")
        assert "InvalidProjection" in wrong.status.error


class Plain(Actor):
    async def receive(self, message: Any) -> Any:
        return message


async def test_who_keeps_no_keys_is_told_nothing(new_system: NewSystem) -> None:
    class Wrong(Packing):
        on_error = Retry(1).then(Pause())

        async def handle(self, received: Any) -> None:
            await self.command(Plain, "p", "pack")

    async with new_system() as system:
        wrong = system.project(Wrong())
        await order(system, "tea")
        await in_state(wrong, "paused")
        assert "IdempotencyKeysUnsupported" in wrong.status.error


async def test_an_answer_that_got_lost_is_no_failure_of_the_event() -> None:
    store = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("bank", persistence=store, audit_interval=None) as system:
        packing = system.project(Packing())
        last = await order(system, "tea")
        await packing.wait_for(last, timeout=60)
        assert await parcel(system) == ["tea"]
        store.fail_when(_is_packing_of_milk_the_first_time())
        await packing.wait_for(await order(system, "milk"), timeout=60)
        assert await parcel(system) == ["tea", "milk"]


def _is_packing_of_milk_the_first_time() -> Any:
    seen: list[object] = []

    def is_it(operation: Any) -> bool:
        found = any(getattr(each, "event_type", "") == "Packed" for each in operation.records)
        if found:
            seen.append(operation)
        return found and len(seen) == 1

    return is_it


async def test_who_can_not_be_asked_as_the_system_stops_is_asked_at_the_next_start(
    new_system: NewSystem,
) -> None:
    """By a handler that asks an entity itself, and wraps what that raises."""

    class Desk(Actor):
        """Is busy until the system stops."""

        async def receive(self, message: Any) -> None:
            if message == "be busy":
                is_busy.set()
                await until(lambda: not system.is_running)

    class Last(Actor):
        """Keeps the system from stopping, until a projection could have paused."""

        async def receive(self, message: Any) -> None:
            await until(lambda: raised)
            for _ in range(20):
                await system.backend.flush()

    class Asking(Projection):
        name = "asking"
        events = (Ordered,)
        on_error = Pause()

        async def handle(self, received: Any) -> None:
            has_begun.set()
            try:
                await system.entity(Desk, "d").ask(received.event.item)
            except Exception as error:
                raised.append(error)
                raise ValueError("nobody is there") from error
            handled.append(received.event.item)

    is_busy, has_begun = anyio.Event(), anyio.Event()
    raised, handled = list[Exception](), list[str]()
    with pytest.raises(ZeroDivisionError):
        async with new_system() as system:
            await system.entity(Desk, "d").tell("be busy")
            await is_busy.wait()
            await system.spawn(Last).tell("last")
            await order(system, "tea")
            system.project(Asking())
            await has_begun.wait()
            raise ZeroDivisionError  # so nobody takes any message more
    assert [type(error) for error in raised] == [ActorStopped]
    async with new_system() as system:
        asking = system.project(Asking())
        await asking.wait_for(await order(system, "milk"), timeout=60)
        assert handled == ["tea", "milk"]
