"""Random programs of actors: nothing hangs, no reply and no message is lost, order is kept.

More of them: ``PAPYRA_PROGRAMS=1000 python -m pytest tests/runtime/test_programs.py``.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import itertools
import random
from typing import Any

import anyio
import pytest
import uvloop
from anyio.lowlevel import checkpoint

from papyra import Actor, ActorRef, ActorSystem, Decision, OneForAll, OneForOne, Terminated
from papyra.exceptions import ActorStopped, AskTimeout, EscalatedFailure, MailboxFull, WouldDeadlock
from papyra.persistence import Record
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.supervision import SupervisionPolicy
from papyra.testing import explore
from tests.extent import count

SEEDS = range(count("PAPYRA_PROGRAMS", 2, 25))
#: Those of one test: what it logs keeps their tasks, and whoever looks at all tasks sees these.
PARTS = [SEEDS[first : first + 25] for first in range(0, len(SEEDS), 25)]


class Crash(Exception):
    pass


class World:
    """What a program does, and what became of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.refs: list[ActorRef] = []
        self.numbers = itertools.count(1)
        #: (target, sender, number) in the order of handling
        self.handled: list[tuple[str, int, int]] = []
        #: numbers of messages that are in a mailbox for sure, and of those that may be
        self.sent: set[int] = set()
        self.perhaps_sent: set[int] = set()
        self.asks = collections.Counter[str]()
        self.watched = 0

    def policy(self, *, top: bool = False) -> SupervisionPolicy:
        decisions = [Decision.RESUME, Decision.RESTART, Decision.STOP]
        if not top:
            decisions.append(Decision.ESCALATE)
        kind = self.random.choice([OneForOne, OneForOne, OneForAll])
        return kind(default=self.random.choice(decisions), max_restarts=self.random.randint(0, 4))


class Node(Actor):
    def __init__(self, world: World, depth: int) -> None:
        self.world = world
        self.depth = depth
        self.policy = world.policy()

    async def on_start(self) -> None:
        random = self.world.random
        if random.random() < 0.1:
            raise Crash("on_start")
        if self.depth < 3:
            for _ in range(random.randint(0, 2)):
                self.world.refs.append(
                    self.context.spawn(
                        Node, self.world, self.depth + 1, mailbox_capacity=random.randint(1, 8)
                    )
                )

    async def receive(self, message: Any) -> Any:
        if isinstance(message, Terminated):
            return None
        sender, number, action = message
        world = self.world
        world.handled.append((str(self.context.self_ref.address), sender, number))
        other = world.random.choice(world.refs)
        match action:
            case "crash":
                raise Crash(str(number))
            case "stop":
                self.context.stop()
            case "wait":
                for _ in range(world.random.randint(1, 3)):
                    await checkpoint()
            case "watch":
                self.context.watch(other)
            case "unwatch":
                self.context.unwatch(other)
            case "stop other":
                with anyio.move_on_after(0.01):
                    await other.stop()
            case "ask other":
                mine = next(world.numbers)
                world.perhaps_sent.add(mine)
                try:
                    await other.ask((-number, mine, "note"), timeout=0.01)
                except (AskTimeout, ActorStopped, WouldDeadlock, Crash) as error:
                    return type(error).__name__
        return number

    async def on_stop(self) -> None:
        if self.world.random.random() < 0.1:
            raise Crash("on_stop")

    async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
        if self.world.random.random() < 0.05:
            raise Crash("on_child_failure")
        return self.policy.decide(error)


ACTIONS = ["note"] * 12 + ["wait"] * 4 + ["crash"] * 2
ACTIONS += ["watch", "unwatch", "ask other", "ask other", "stop", "stop other"]


async def sender(world: World, name: int) -> None:
    """Tell and ask actors at random; give up at random moments."""
    random = world.random
    for _ in range(40):
        ref = random.choice(world.refs)
        number = next(world.numbers)
        message = (name, number, random.choice(ACTIONS))
        match random.choice(["tell", "tell", "tell_nowait", "ask", "ask", "give up"]):
            case "tell":
                await ref.tell(message)
                world.sent.add(number)
            case "tell_nowait":
                try:
                    ref.tell_nowait(message)
                    world.sent.add(number)
                except MailboxFull:
                    await checkpoint()
            case "ask":
                world.perhaps_sent.add(number)
                try:
                    await ref.ask(message)
                    world.asks["reply"] += 1
                except (Crash, ActorStopped) as error:
                    world.asks[type(error).__name__] += 1
                world.sent.add(number)
            case "give up":
                world.perhaps_sent.add(number)
                with anyio.move_on_after(random.choice([0, 0, 0.001])):
                    if random.random() < 0.5:
                        await ref.tell(message)
                    else:
                        try:
                            await ref.ask(message)
                        except (Crash, ActorStopped):
                            world.asks["given up too late"] += 1


def check_messages(world: World, persistence: InMemoryPersistence) -> None:
    handled = [number for _, _, number in world.handled]
    dead = [
        letter.payload[1] for letter in persistence.dead_letters if letter.message_type == "tuple"
    ]
    fate = collections.Counter(handled + dead)
    assert all(count == 1 for count in fate.values()), "a message was handled twice"
    assert world.sent <= fate.keys(), "a message was lost"
    assert fate.keys() <= world.sent | world.perhaps_sent

    seen: dict[tuple[str, int], int] = {}
    for target, name, number in world.handled:
        if name > 0:
            assert seen.get((target, name), 0) < number, "mailbox order was not kept"
            seen[target, name] = number


def check_lives(persistence: InMemoryPersistence) -> None:
    lives: dict[str, list[str]] = {}
    stopped: list[str] = []
    for event in persistence.events:
        lives.setdefault(event.actor_address, []).append(event.event_type)
        if event.event_type == "ActorStopped":
            alive = lives.keys() - set(stopped)
            children = [other for other in alive if other.startswith(f"{event.actor_address}/")]
            assert not children, f"{event.actor_address} stopped before {children}"
            stopped.append(event.actor_address)
    for address, life in lives.items():
        assert life.count("ActorStopped") == 1, address
        assert life[-1] == "ActorStopped", (address, life)
        assert "ActorStarted" not in life[1:], (address, life)
        assert life[0] in ("ActorStarted", "ActorCrashed", "ActorStopped"), (address, life)


async def live(world: World, persistence: InMemoryPersistence) -> None:
    async with ActorSystem(
        "world",
        persistence=persistence,
        supervision=world.policy(top=True),
        mailbox_capacity=world.random.choice([1, 2, 10, 1000]),
        shutdown_timeout=5,
    ) as system:
        for _ in range(4):
            world.refs.append(system.spawn(Node, world, 1))
        async with anyio.create_task_group() as tasks:
            for name in range(1, 6):
                tasks.start_soon(sender, world, name)


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_random_program_of_actors_hangs_or_loses_a_message(
    seed: int, persistence: InMemoryPersistence
) -> None:
    world = World(seed)
    await live(world, persistence)
    assert not any(ref.is_alive for ref in world.refs)
    check_messages(world, persistence)
    check_lives(persistence)
    assert persistence.metrics.snapshot().write_errors == 0
    stored: list[Record] = [*persistence.events, *persistence.audits, *persistence.dead_letters]
    assert sorted(record.seq or 0 for record in stored) == list(range(1, len(stored) + 1))


@pytest.mark.parametrize("seeds", PARTS, ids=lambda seeds: f"from-{seeds[0]}")
async def test_no_random_program_of_actors_loses_a_message_in_any_order_of_turns(
    seeds: range,
) -> None:
    """The same, with the order of turns decided by seeds, and nothing left to the event loop."""
    stores: list[InMemoryPersistence] = []

    def new_store() -> InMemoryPersistence:
        stores.append(InMemoryPersistence())
        return stores[-1]

    async def program(system: ActorSystem) -> None:
        world = worlds[-1]
        for _ in range(3):
            world.refs.append(system.spawn(Node, world, 1))
        async with anyio.create_task_group() as tasks:
            for name in range(1, 4):
                tasks.start_soon(sender, world, name)

    worlds: list[World] = []
    for seed in seeds:
        worlds.append(World(seed))
        await explore(program, [seed], persistence=new_store, system_id="world")
        check_messages(worlds[-1], stores[-1])
        check_lives(stores[-1])


class Strikes:
    """Cancels tasks of asyncio in some turns of the loop: actors', the system's own, or all."""

    def __init__(self, seed: int, host: asyncio.Task[None]) -> None:
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._spared = asyncio.current_task()
        self._host = host
        self._victims = self._random.choice(["actors", "sweep", "host", "$persistence", "some"])
        self._turns = self._random.choices(range(300), k=4)
        self._turn = 0

    def count(self) -> None:
        if self._turn in self._turns:
            for task in asyncio.all_tasks(self._loop) - {self._spared}:
                if self._strikes(task.get_name()):
                    task.cancel()
        self._turn += 1
        if not self._host.done():
            self._loop.call_soon(self.count)

    def _strikes(self, name: str) -> bool:
        match self._victims:
            case "sweep":
                return True
            case "some":
                return self._random.random() < 0.2
            case "actors":
                return name.startswith("world/Node") and self._random.random() < 0.3
            case victim:
                return name.endswith(victim)


# asyncio never runs a task of the test's own that is cancelled before it has begun.
@pytest.mark.filterwarnings("ignore:coroutine 'sender' was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings(
    "ignore:.*coroutine object sender:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_random_program_of_actors_hangs_whichever_tasks_are_cancelled(
    seed: int, new_loop: Any
) -> None:
    persistence, world = InMemoryPersistence(), World(seed)

    async def main() -> None:
        host = asyncio.create_task(live(world, persistence), name="host")
        Strikes(seed, host).count()
        await asyncio.wait([host])
        if not host.cancelled() and (error := host.exception()) is not None:
            assert isinstance(error, EscalatedFailure), error
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert not any(ref.is_alive for ref in world.refs)
    check_lives(persistence)
    persistence.attach(Host())  # nobody hosts it any more
    gc.collect()  # now, and not in another test


class Host:
    owner = "the test"

    def ask(self, request: Any) -> Any:
        raise NotImplementedError
