"""Turns given to actors one at a time, in an order that a seed decides."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import anyio

from papyra._runtime.shutdown import descendants
from papyra._trio import running_trio
from papyra.dispatcher import Dispatcher
from papyra.persistence.backends.base import PersistenceBackend
from papyra.ref import ActorRef
from papyra.system import PERSISTENCE_NAME, ActorSystem
from papyra.testing.clock import ManualClock
from papyra.testing.wait_idle import wait_until_idle

ReplyT = TypeVar("ReplyT")

#: Seconds for which nothing may happen: whoever is at work then waits for something outside,
#: a thread or the network. Longer than an expectation waits, since that can say better what is
#: missing.
PATIENCE = 4.0

#: They are waited for in so many pieces: a machine that stands still uses up one of them, not all.
_PIECES = 40

#: How often time may pass with nobody taking a turn: whoever only sleeps gets nowhere.
_IDLE_WAITS = 1_000


class Stuck(AssertionError):
    """Nobody can go on: everybody waits for somebody else."""


class SeededDispatcher(Dispatcher):
    """Lets one actor at a time handle one message, chosen by a seed among all that have one.

    The next is chosen when every task waits: so an order of turns decides all that happens, and
    the same seed gives the same order. Everybody waits for the store while that is at work, in a
    thread or elsewhere. Time, by `clock`, passes when nobody has a turn to take.
    """

    throughput = 0
    finds_deadlocks = True

    def __init__(self, seed: int, clock: ManualClock) -> None:
        self._random = random.Random(seed)  # noqa: S311 - for the same order again, no secret
        self._clock = clock
        self._waiting: dict[str, anyio.Event] = {}
        self._arrived = anyio.Event()
        self._is_storing = False
        #: the addresses of the actors in the order of their turns
        self.turns: list[str] = []
        self._free = False

    async def next_turn(self, ref: ActorRef) -> None:
        """Wait for a turn."""
        if self._free:
            await super().next_turn(ref)
            return
        turn = self._waiting[str(ref.address)] = anyio.Event()
        self._arrived.set()
        try:
            await turn.wait()
        finally:
            if self._waiting.get(str(ref.address)) is turn:
                del self._waiting[str(ref.address)]

    async def handle(
        self, ref: ActorRef, messages: Sequence[Any], handling: Coroutine[Any, Any, ReplyT]
    ) -> ReplyT:
        """Run `handling`; while it is the store's, nobody else gets a turn."""
        del messages
        if ref.address.name != PERSISTENCE_NAME:
            return await handling
        self._is_storing = True
        try:
            return await handling
        finally:
            self._is_storing = False
            self._arrived.set()

    async def give_turns(self) -> None:
        """Give turns until cancelled. Raises `Stuck` when there are none to give."""
        idle_waits = 0
        while idle_waits < _IDLE_WAITS:
            await wait_until_idle()
            if self._is_storing:
                if not await self._somebody_arrives():
                    self._is_storing = False  # it hangs, and is not waited for again
            elif self._waiting:
                # Sorted, as the order in which they came may depend on the event loop.
                address = self._random.choice(sorted(self._waiting))
                self.turns.append(address)
                self._waiting.pop(address).set()
                idle_waits = 0
            elif self._clock.next_deadline is not None:
                self._clock.pass_to_next_deadline()
                idle_waits += 1
            elif not await self._somebody_arrives():
                break
        raise Stuck("nobody can go on: everybody waits for somebody else")

    async def _somebody_arrives(self) -> bool:
        """Return whether anybody comes from outside, a thread or the network, before long."""
        self._arrived = anyio.Event()
        for _ in range(_PIECES):
            with anyio.move_on_after(PATIENCE / _PIECES):
                await self._arrived.wait()
                return True
        return False

    def free(self) -> None:
        """Let everybody go on as they like."""
        self._free = True
        while self._waiting:
            self._waiting.popitem()[1].set()


class ScheduledSystem(ActorSystem):
    """A system whose actors take turns by seed, and whose time passes when nobody has one."""

    # As audits at intervals, these looks would come for ever.
    _looks_into_inbox = False

    def __init__(
        self,
        system_id: str,
        persistence: PersistenceBackend,
        clock: ManualClock,
        dispatcher: SeededDispatcher,
    ) -> None:
        # Audits at intervals would come for ever, as time passes whenever nobody does anything.
        super().__init__(
            system_id,
            persistence=persistence,
            audit_interval=None,
            clock=clock,
            dispatcher=dispatcher,
        )

    def give_up(self) -> str:
        """Cancel every actor, now and when it stops; return who there was, in words."""
        self._shutdown.timeout = 0.0
        actors = ", ".join(
            f"{cell.address} ({len(cell.mailbox)} messages waiting)"
            for cell in descendants(self._guardian.children)
        )
        self._guardian.children.cancel()
        return actors


async def run_scheduled(
    seed: int,
    dispatcher: SeededDispatcher,
    program: Callable[[], Awaitable[None]],
    give_up: Callable[[], str],
) -> None:
    """Run `program`, whose systems use `dispatcher`; raise what it raises.

    When nobody can go on, call `give_up`, cancel the program, and raise `Stuck`.
    """
    error: Exception | None = None
    with _deterministic(seed):
        async with anyio.create_task_group() as tasks:

            async def give_turns() -> None:
                nonlocal error
                try:
                    await dispatcher.give_turns()
                except Stuck as stuck:
                    error = Stuck(f"{stuck}; alive: {give_up()}")
                    dispatcher.free()
                    tasks.cancel_scope.cancel()

            tasks.start_soon(give_turns)
            try:
                await program()
            except Exception as caught:  # noqa: BLE001 - raised again below, out of the group
                error = caught if error is None else error
            tasks.cancel_scope.cancel()
    if error is not None:
        raise error


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Have trio, which shuffles the tasks that can run, do so by `seed`.

    It offers no other way than the one that its own plugin for hypothesis takes.
    """
    if running_trio() is None:
        yield
        return
    run = sys.modules["trio._core._run"]
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[attr-defined]
        run._r.setstate(before[1])
