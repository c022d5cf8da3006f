"""Shutdown of a system: stop its actors, record the last audit, then stop the store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import anyio
from anyio.abc import TaskGroup

from papyra._cancellation import shield_from_interrupts, start_surely, take_cancellation
from papyra._runtime.cell import Cell
from papyra._runtime.children import Children

logger = logging.getLogger("papyra")

#: Addresses that a line of the log names at most.
_MOST_LISTED = 20
#: Seconds that actors which were cancelled get to end, before the store is closed without them.
GRACE = 5.0


class Shutdown:
    """Stops everything, in order, in a task of its own.

    What strikes the task that waits for it only makes it quicker: then every actor finishes the
    message at hand only, and the next time it is cancelled at once.
    """

    def __init__(self, timeout: float, actors: Children[Cell], store: Children[Cell]) -> None:
        #: seconds for the actors, and again for the store
        self.timeout = timeout
        #: the addresses of the actors that did not stop in time
        self.cancelled: list[str] = []
        #: set when it begins: nothing can be spawned any more
        self.begun = anyio.Event()
        #: set when everybody has stopped, or can't be made to
        self.ended = anyio.Event()
        self._actors = actors
        self._store = store
        self._drain = True
        self._cause: BaseException | None = None
        self._actors_time: anyio.CancelScope | None = None
        self._is_started = self._is_running = False

    def begin(
        self, tasks: TaskGroup, before_store: Callable[[], None], cause: BaseException | None
    ) -> None:
        """Begin, once, in a task of `tasks`.

        If there is a `cause`, actors finish the message at hand only. `before_store` is called
        before the store stops, and after everybody else has.
        """
        if self._is_started:
            return
        self.begun.set()
        self._drain, self._cause = cause is None, cause
        self._actors_time = time = anyio.CancelScope(shield=True)
        if not self._drain:
            # At once: by the time the task runs, they may have taken the next message.
            self._actors.finish_at_hand(cause)
        run = shield_from_interrupts(self._run)
        start_surely(
            lambda begin: tasks.start_soon(begin, name="papyra shutdown"),
            lambda: run(time, before_store),
            lambda: self._is_running,
        )
        # Last: if a second Ctrl-C has struck before that, somebody else has to begin it.
        self._is_started = True

    def hurry(self) -> None:
        """Let actors finish the message at hand only; if they do that already, cancel them."""
        if not self._drain and self._actors_time is not None:
            self._actors_time.cancel()
        self._drain = False
        self._actors.finish_at_hand(self._cause)

    async def _run(self, time: anyio.CancelScope, before_store: Callable[[], None]) -> None:
        try:
            self._is_running = True
            await self._stop_all(self._actors, time, drain=self._drain)
            before_store()
            # What was told is still written, however much of a hurry somebody is in.
            await self._stop_all(self._store, anyio.CancelScope(shield=True), drain=True)
        except KeyboardInterrupt:
            # A second one, which asyncio raises anywhere. Nobody stops them in order any more.
            self._actors.cancel()
            before_store()
            self._store.cancel()
            raise
        finally:
            self.ended.set()

    async def _stop_all(
        self, children: Children[Cell], time: anyio.CancelScope, *, drain: bool
    ) -> None:
        if await _all_stop(children, time, self.timeout, drain=drain, cause=self._cause):
            return
        late = _addresses(children)
        self.cancelled += late
        logger.warning("cancelled, as they had not stopped in time: %s", _listed(late))
        children.cancel()
        if not await _all_stop(children, anyio.CancelScope(shield=True), GRACE, drain=False):
            logger.error(
                "still running %g seconds after they were cancelled: %s. Something there does not "
                "let cancellation pass, and the system can't be left before it ends",
                GRACE,
                _listed(_addresses(children)),
            )


async def _all_stop(
    children: Children[Cell],
    time: anyio.CancelScope,
    seconds: float,
    *,
    drain: bool,
    cause: BaseException | None = None,
) -> bool:
    """Stop `children`; return False if `time` is up, after so many seconds or before."""
    time.deadline = anyio.current_time() + seconds
    # asyncio's own cancellation, when the event loop is being closed, strikes this task like any
    # other, and may strike together with the scope's.
    with contextlib.suppress(anyio.get_cancelled_exc_class()), time:
        while len(children):
            try:
                await children.stop(drain=drain, cause=cause)
            except anyio.get_cancelled_exc_class():
                if time.cancel_called:
                    raise
                take_cancellation()
    take_cancellation()
    return not len(children)


def _addresses(children: Children[Cell]) -> list[str]:
    return [str(cell.address) for cell in descendants(children)]


def _listed(addresses: Sequence[str]) -> str:
    """Return addresses in words: the first of them, where there are many, and how many others."""
    text = ", ".join(addresses[:_MOST_LISTED])
    others = len(addresses) - _MOST_LISTED
    return f"{text} and {others} others" if others > 0 else text


def descendants(children: Children[Cell]) -> Iterator[Cell]:
    """Yield the cells in `children`, and those below them."""
    ahead = list(children)
    while ahead:
        cell = ahead.pop()
        yield cell
        ahead += cell.children
