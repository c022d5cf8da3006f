"""What users subclass."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from papyra.exceptions import InvalidActor
from papyra.supervision import Decision, OneForOne, SupervisionPolicy

if TYPE_CHECKING:
    from papyra.context import ActorContext
    from papyra.ref import ActorRef

__all__ = ("Actor", "Failure")


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A reply that is raised in the one who asked, while the actor goes on.

    To raise in ``receive`` is to crash, and supervision takes over. To return a `Failure` is to
    say no.
    """

    error: Exception

    def __post_init__(self) -> None:
        if not isinstance(self.error, Exception):
            raise TypeError(f"a Failure is made of an exception, not {self.error!r}")


class Actor(abc.ABC):
    """Handles messages one at a time.

    The life of an actor: ``__init__``, `on_start`, `receive` for each message, `on_stop`. When it
    fails and is restarted, `on_stop` is called and a new instance starts over with the same
    arguments. Every hook but ``__init__`` is a coroutine function.
    """

    #: what the runtime offers to this actor; set before ``__init__`` runs
    context: ActorContext

    #: how this actor supervises its children
    supervision: ClassVar[SupervisionPolicy] = OneForOne()
    #: messages the mailbox takes before senders wait; `None` for the system's own figure
    mailbox_capacity: ClassVar[int | None] = None
    #: messages of exactly these types are handed to `receive_batch`, a run of them at a time
    batch_types: ClassVar[tuple[type, ...]] = ()
    #: the longest run that `receive_batch` gets
    batch_limit: int = 1_000

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("on_start", "receive", "receive_batch", "on_stop", "on_child_failure"):
            hook = vars(cls).get(name)
            if isinstance(hook, FunctionType) and not inspect.iscoroutinefunction(hook):
                raise InvalidActor(f"{cls.__name__}.{name} must be 'async def'")
        if not isinstance(cls.supervision, SupervisionPolicy):
            raise InvalidActor(
                f"{cls.__name__}.supervision is OneForOne or OneForAll, not {cls.supervision!r}"
            )

    async def on_start(self) -> None:
        """Prepare for the first message. If this raises, the actor has failed, not started."""

    @abc.abstractmethod
    async def receive(self, message: Any) -> Any:
        """Handle one message; what it returns is the reply, if the message was asked.

        What it raises goes to the one who asked, and to supervision. A message that it has no use
        for belongs to `unhandled`, as here: ``case _: return self.unhandled(message)``.
        """
        return self.unhandled(message)

    def unhandled(self, message: Any) -> Failure:
        """Make a dead letter of `message`; whoever asked gets `UnhandledMessage`.

        It is called while `message` is handled. To return the failure that it returns, or to leave
        it, comes to the same.
        """
        return Failure(self.context.unhandled(message))

    async def receive_batch(self, messages: Sequence[Any]) -> Sequence[Any]:
        """Handle a run of adjacent messages, all of `batch_types`; return a reply for each.

        What it raises goes to everyone who asked in this run, and to supervision.
        """
        raise NotImplementedError

    async def on_stop(self) -> None:
        """Let go of what `on_start` took. Called once for each successful `on_start`."""

    async def on_child_failure(self, child: ActorRef, error: Exception) -> Decision:
        """Decide what happens to a child that failed. As it is, `supervision` decides.

        It is called at once, in the child's task, even while this actor is waiting in `receive`:
        were it to queue up, a parent that asks its failing child would wait for ever. So it must
        not wait for that child.
        """
        del child
        return self.supervision.decide(error)
