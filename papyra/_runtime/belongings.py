"""What one incarnation has beside its state: timers, and tasks in the background."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import anyio

from papyra._cancellation import (
    cancel_groups_left_open,
    cancelled_by_its_task,
    cancelled_within,
    enable_interrupts,
    meet_cancellation,
    shield_from_interrupts,
    wait_through,
    without_cancellation,
)
from papyra._home_loop import HomeLoop
from papyra._safe_repr import shown
from papyra.address import ActorAddress
from papyra.clock import Clock
from papyra.exceptions import (
    ActorNotRunning,
    MailboxClosed,
    MailboxFull,
    PapyraError,
    TaskGroupLeftOpen,
)
from papyra.mailbox import Mailbox
from papyra.ref import Values
from papyra.volatile_timers import Deadlines, OwnMessage, Timers, is_own_message


class Owner(Protocol):
    """The actor whose belongings they are."""

    address: ActorAddress
    mailbox: Mailbox[object]
    loop: HomeLoop
    clock: Clock

    @property
    def deadlines(self) -> Deadlines:
        """The deadlines of the system."""

    def captured_values(self) -> Values:
        """Return the context variables that are to travel with a message."""

    def start_task(
        self,
        name: str,
        function: Callable[[], Coroutine[Any, Any, None]],
        has_begun: Callable[[], bool],
    ) -> None:
        """Run `function` in a task of its own, in the context that there is here."""

    async def fail_in_background(self, error: Exception) -> None:
        """Fail as one does that raises `error` in ``receive``."""

    async def refuse(self, message: object, *, expects_reply: bool) -> None:
        """Make a dead letter of `message`; wait if the store has no room for it."""

    def interrupt(self, error: BaseException) -> None:
        """End the system with `error`."""

    async def park(self) -> None:
        """Return when all actors of the system have stopped."""


class Belongings:
    """The timers and the background tasks of one incarnation. They end with it."""

    __slots__ = ("_ended", "_idle", "_owner", "is_over", "tasks", "timers")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        # That of an entity's idle timeout, if it has one.
        self._idle = owner.mailbox.idle
        self.timers = Timers(owner)
        #: in the order they were started
        self.tasks: dict[OwnTask, None] = {}
        self._ended: anyio.Event | None = None
        self.is_over = False

    def set_receive_timeout(self, length: float | None, message: object) -> None:
        """Have `message` come whenever there was no other for `length` seconds."""
        self._idle = self._owner.mailbox.note_idleness(self._owner.clock)
        self.timers.set_receive_timeout(length, message, self._idle)

    def run(self, work: Awaitable[Any], pipe_to_self: Callable[[Any], object] | None) -> OwnTask:
        """Await `work` in a task of its own."""
        task = OwnTask(self._owner, self, work, pipe_to_self)
        # A Ctrl-C of trio's must not strike between the two steps in there.
        shield_from_interrupts(self._start)(task)
        return task

    def _start(self, task: OwnTask) -> None:
        self.tasks[task] = None
        try:
            task.start()
        except KeyboardInterrupt:
            # A second one, which asyncio raises anywhere: nobody waits for what has not begun.
            self.tasks.pop(task, None)
            raise

    def note_activity(self, item: object) -> None:
        """Take note that `item` is handled next."""
        if self._idle is not None:
            self._idle.is_still = is_own_message(item) and not item.is_activity

    async def end(self, refuse: Callable[[object], None]) -> None:
        """End them all, and wait for that; call `refuse` with each result that was not handled.

        Raises what strikes meanwhile, when they have ended. To call it again is to make sure.
        """
        self.is_over = True
        self.timers.end()
        if self._idle is not None:
            self._idle.is_still = False  # the mailbox may go on with another life
        blow = None
        if self.tasks:
            self._ended = anyio.Event()
            for task in tuple(self.tasks):
                task.cancel()
            blow = await wait_through(self._ended)
        mailbox = self._owner.mailbox
        left = [item for item in mailbox.peek(len(mailbox)) if is_own_message(item)]
        if left:
            mailbox.discard(is_own_message)
        for item in left:
            if item.is_activity:
                refuse(item.message)
        if blow is not None:
            raise blow

    def remove(self, task: OwnTask) -> None:
        """Take note that `task` has ended."""
        self.tasks.pop(task, None)
        if not self.tasks and self._ended is not None:
            self._ended.set()


class OwnTask:
    """A task that belongs to an incarnation, in a scope of its own."""

    __slots__ = (
        "_belongings",
        "_has_begun",
        "_owner",
        "_pipe_to_self",
        "_scope",
        "_task",
        "_work",
    )

    def __init__(
        self,
        owner: Owner,
        belongings: Belongings,
        work: Awaitable[Any],
        pipe_to_self: Callable[[Any], object] | None,
    ) -> None:
        self._owner = owner
        self._belongings = belongings
        self._work = work
        self._pipe_to_self = pipe_to_self
        # Shielded as the actor is, which cancels it in its own time.
        self._scope = anyio.CancelScope(shield=True)
        self._has_begun = False
        self._task: object = None

    def start(self) -> None:
        """Start it."""
        name = f"{self._owner.address} in the background"
        self._owner.start_task(name, shield_from_interrupts(self._run), lambda: self._has_begun)

    def cancel(self) -> None:
        """Cancel it; nothing comes of it any more."""
        self._scope.cancel()

    async def _run(self) -> None:
        left_open = False
        try:
            self._has_begun = True
            self._task = self._owner.loop.current_task()
            try:
                with self._scope:
                    await self._work_or_fail()
            except anyio.get_cancelled_exc_class():
                pass  # asyncio's own, which the scope lets pass, and which has been dealt with
            except Exception as error:  # noqa: BLE001 - the scope's: one within it stands open
                left_open = True
                await self._leave_open(error)
            await meet_cancellation()
        except KeyboardInterrupt as blow:
            # A second one, which asyncio raises anywhere.
            self._owner.interrupt(blow)
            raise
        finally:
            self._belongings.remove(self)
        if left_open:
            # A task that ended within a group of its own would end the group that it is in itself.
            await self._owner.park()

    async def _work_or_fail(self) -> None:
        try:
            await enable_interrupts(self._work_and_send)()
        except BaseException as caught:
            if isinstance(caught, GeneratorExit) and not self._owner.loop.is_in(self._task):
                raise  # the event loop is gone
            await self._fail(caught)

    async def _work_and_send(self) -> None:
        result = await self._work
        if self._pipe_to_self is not None:
            await self._send(self._pipe_to_self(result))

    async def _send(self, message: object) -> None:
        """Put `message` into the mailbox when there is room."""
        item = _Result(message, self._owner.captured_values())
        mailbox = self._owner.mailbox
        try:
            mailbox.put_nowait(item)
        except MailboxFull:
            await mailbox.queue_up(item)
        except MailboxClosed:
            await self._owner.refuse(message, expects_reply=False)

    async def _fail(self, caught: BaseException) -> None:
        rest = without_cancellation(caught)
        if rest is not None and not isinstance(rest, Exception):
            self._owner.interrupt(rest)
            return
        if rest is None:
            if self._scope.cancel_called or cancelled_within() or cancelled_by_its_task():
                return
            rest = PapyraError(
                f"something that {self._owner.address} waited for in the background was cancelled"
            )
            rest.__cause__ = caught
        await self._owner.fail_in_background(rest)

    async def _leave_open(self, caught: Exception) -> None:
        error = TaskGroupLeftOpen(
            f"a background task of {self._owner.address} has ended within a task group, or a "
            "cancel scope, that it entered"
        )
        error.__cause__ = caught
        cancel_groups_left_open()
        with anyio.CancelScope(shield=True):
            await self._owner.fail_in_background(error)


class _Result(OwnMessage):
    """The result of a background task."""

    __slots__ = ()

    @property
    def is_over(self) -> bool:
        return False

    def take(self) -> bool:
        return True


def checked_work(function: Any, args: tuple[Any, ...]) -> Awaitable[Any]:
    """Return what is to be awaited: `function` itself, or what ``function(*args)`` returns.

    Raises `TypeError` if it can't be.
    """
    if isinstance(function, Awaitable):
        if args:
            raise TypeError("arguments are for a function, not for a coroutine that was made")
        return function
    if not callable(function):
        raise TypeError(f"in the background runs a function or a coroutine, not {shown(function)}")
    work = function(*args)
    if not isinstance(work, Awaitable):
        raise TypeError(
            f"{shown(function)} returned {type(work).__name__}, which can't be awaited: a function "
            "that blocks is for run_in_background(self.context.run_in_thread, function)"
        )
    return work


def discard_work(work: object) -> None:
    """Let go of a coroutine that is not to run."""
    if isinstance(work, Coroutine):
        work.close()


def not_running(address: ActorAddress) -> ActorNotRunning:
    """Return the error of an actor that can have neither timers nor background tasks."""
    return ActorNotRunning(
        f"{address} can have timers and background tasks from on_start on, until it stops"
    )
