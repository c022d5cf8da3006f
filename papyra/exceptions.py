"""Every exception that Papyra raises. `PapyraError` is the root of all of them."""

from __future__ import annotations

from typing import Literal


class PapyraError(Exception):
    """The root of every exception that Papyra raises."""


# The runtime


class ActorInitializationError(PapyraError):
    """An actor's ``__init__`` raised: the actor was never started. `__cause__` says why."""


class ActorNotRunning(PapyraError):
    """An actor has timers and background tasks from ``on_start`` on, and until it stops."""


class ActorStopped(PapyraError):
    """The actor that was asked has stopped, or stopped before it could reply.

    `__cause__` is the error for which it stopped, its own or that of one above it. It is `None`
    where somebody had it stopped. `handled` says whether the message had an effect.
    """

    # With a default, as exceptions are copied and pickled by their message alone.
    def __init__(self, message: str, *, handled: Literal["never", "maybe"] = "never") -> None:
        super().__init__(message)
        #: ``"never"``: nobody looked at the message; ``"maybe"``: the actor was handling it
        self.handled = handled


class AskTimeout(PapyraError, TimeoutError):
    """No reply came within the timeout. The message may still be handled later."""


class DuplicateActorName(PapyraError, ValueError):
    """A living actor has this name under the same parent already."""


class DuplicateEntityName(PapyraError, ValueError):
    """Two classes of entities have one name in one system, or one class was registered twice."""


class EscalatedFailure(PapyraError):
    """A failure was escalated past the top-level actor, so the system stopped.

    `__cause__` is the actor's own error.
    """


class InvalidActor(PapyraError, TypeError):
    """A class that can't be spawned, or a hook that is no coroutine function."""


class InvalidActorName(PapyraError, ValueError):
    """The name of an actor, or the id of a system, must be a printable string without ``/``.

    Names of actors that start with ``$`` are the system's own.
    """


class IdempotencyKeysUnsupported(PapyraError, TypeError):
    """The actor that was asked keeps no idempotency keys: only event-sourced ones do."""


class InvalidIdempotencyKey(PapyraError, ValueError):
    """An idempotency key is a string of 1 to 1,024 characters, and is used for one command."""


class InvalidEntityId(PapyraError, ValueError):
    """The id of an entity must be a string, and not an empty one."""


class InvalidTimer(PapyraError, ValueError):
    """A durable timer whose name, time, message or time zone makes no sense."""


class MailboxClosed(PapyraError):
    """The mailbox takes no more messages, because its actor is stopping or has stopped."""


class MailboxFull(PapyraError):
    """The mailbox has no room, and the caller did not want to wait."""


class NoChildrenNow(PapyraError):
    """An actor can spawn children from ``on_start`` on, and until it stops."""


class NotAnEntity(PapyraError, RuntimeError):
    """An actor that was spawned has no entity's id, and can't be passivated."""


class RepeatedFailure(PapyraError):
    """What a repeated command raises if a `Failure` was its reply the first time."""

    # With a default, as exceptions are copied and pickled by their message alone.
    def __init__(self, message: str, *, error_type: str = "") -> None:
        super().__init__(message)
        #: the name of the type of the first error
        self.error_type = error_type


class ReplyNotKept(PapyraError):
    """A command with this idempotency key was handled before, and its reply is not known.

    What it has stored is there, and nothing more was done.
    """


class SystemAlreadyStarted(PapyraError):
    """An actor system lives once: make a new one for another run."""


class SystemForked(PapyraError, RuntimeError):
    """A system that was started before a fork is used in the child, which has to start its own."""


class SystemNotRunning(PapyraError):
    """The actor system has not been started, is stopping, or has stopped."""


class TaskGroupLeftOpen(PapyraError, RuntimeError):
    """An actor has ended within a task group, or a cancel scope, that it had entered."""


class UnhandledMessage(PapyraError, TypeError):
    """The actor that was asked has no use for a message like this. The message is a dead letter."""


class WouldDeadlock(PapyraError, RuntimeError):
    """An actor was about to wait for itself."""


class WrongLoop(PapyraError, RuntimeError):
    """An actor was to be reached outside of its system's event loop. `ActorSystem.portal` can."""


class WrongTask(PapyraError, RuntimeError):
    """A system must be stopped, and its ``async with`` left, by the task that started it."""


# Settings, policies, installation


class MissingExtra(PapyraError, ImportError):
    """A part of Papyra was imported whose extra is not installed; the message names it."""


class InvalidPolicy(PapyraError, ValueError):
    """A policy, a capacity or a time limit that makes no sense."""


class InvalidPath(PapyraError, ValueError):
    """A path that no store can have: an empty one, say."""


class UnsupportedPlatform(PapyraError, NotImplementedError):
    """A backend needs what this system lacks; the message says what, and what can be done."""


class SettingsError(PapyraError):
    """The root of what wrong settings raise."""


class UnknownSetting(SettingsError, AttributeError):
    """There is no setting of this name."""


class InvalidSetting(SettingsError, TypeError):
    """A setting was given a value of the wrong type."""


class InvalidStoreURL(SettingsError, ValueError):
    """A URL that names no store, or one with options that make no sense."""


class InvalidEnvironment(SettingsError, ValueError):
    """An environment variable says something that Papyra can't follow."""


# Persistence


class PersistenceError(PapyraError):
    """The root of what a persistence backend raises."""


class BackendBusy(PersistenceError):
    """Two tasks used one backend at the same time while no persistence actor hosted it."""


class BackendClosed(PersistenceError):
    """The backend has been closed. Host it again, or enter it with ``async with``, to go on."""


class BackendInUse(PersistenceError):
    """A persistence actor hosts this backend already; `owner` names it."""

    # With a default, as exceptions are copied and pickled by their message alone.
    def __init__(self, message: str, *, owner: str = "") -> None:
        super().__init__(message)
        #: the address of the actor that hosts the backend
        self.owner = owner


class InvalidRecord(PersistenceError, TypeError):
    """A record, or a field of one, is of the wrong type. Nothing of its request was stored."""


class InvalidRequest(PersistenceError, ValueError):
    """A request that makes no sense, or that the persistence actor does not know."""


class RevisionConflict(PersistenceError):
    """An event's revision does not follow the last one of its actor. Nothing was stored.

    Somebody else has written this history, or the writer did not know it to its end.
    """

    def __init__(self, message: str, *, actor: str = "", expected: int = 0, found: int = 0) -> None:
        super().__init__(message)
        #: the actor's address
        self.actor = actor
        #: the revision that would have followed
        self.expected = expected
        #: the revision of the event that was refused
        self.found = found


class HistoriesUnsupported(PersistenceError):
    """The store keeps no histories, so no event may have a revision. Nothing was stored."""


class SnapshotsUnsupported(PersistenceError):
    """The store keeps no snapshots. Actors are recovered by their whole histories, then."""


class PositionsUnsupported(PersistenceError):
    """The store keeps no positions for those who follow it, who need another place for theirs."""


class InvalidEvent(PersistenceError, TypeError):
    """An event that is none of those that its actor declares, or a state that is none.

    Nothing was stored.
    """


class InvalidSchema(PapyraError, TypeError):
    """Events, or upcasters of them, from which a history could not be read back."""


class RecoveryFailed(PapyraError):
    """An actor can't be brought to the state that its history says, so it handles nothing.

    It is tried again with the first message after a while. `__cause__` is the error, if there is
    one.
    """

    def __init__(
        self, message: str, *, actor: str = "", revision: int = 0, event_type: str = ""
    ) -> None:
        super().__init__(message)
        #: the actor's address
        self.actor = actor
        #: the revision that could not be reached, or 0 if the history could not be read
        self.revision = revision
        #: the event that stands there, if any does
        self.event_type = event_type


class StoreError(PersistenceError):
    """The store below a backend failed. `__cause__` is its own error."""


class StoreReadOnly(PersistenceError):
    """A store that was opened to be read only can't be written, recovered or compacted."""


class StoreDamaged(PersistenceError):
    """A scan found damage, and the system was told not to start with it. `report` says what."""

    # Not typed as what it is, a PersistenceScanReport: that stands above this module.
    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        #: the `PersistenceScanReport`
        self.report = report


class PositionsExhausted(StoreError):
    """The store has no positions left for what was to be appended. Nothing was stored."""


class StoreUnavailable(StoreError):
    """The store has failed so often that it is not asked for a while. Nothing was stored."""


class StoreReplaced(StoreError):
    """What was read before is not in the store any more: it was made anew, or has lost its end.

    Whoever has kept a position in it has to begin again, or to ask somebody.
    """


# What may become of files


class StoreMoved(StoreError, OSError):
    """A store in files was renamed, removed or replaced while it was open.

    Nothing more is acknowledged until it has its name again, or the backend is opened anew.
    """


class StoreChanged(StoreError, OSError):
    """Another program has cut off, or written to, the file of a store that was open.

    Nothing more is acknowledged until it is recovered, or the backend is opened anew.
    """


class StoreForked(StoreError):
    """A store that was opened before a fork is used in the child, which has to open its own."""


# What a server may say


class StoreUnreachable(StoreError):
    """No server could be reached, or none answered in time."""


class StoreNotReady(StoreError):
    """It is there but can't serve now: a server that loads its data, a database that is locked."""


class StoreNotWritable(StoreError):
    """It takes no writes: a replica, a server with too few of them, or a file that is read only."""


class StoreFull(StoreError):
    """The server has reached its memory limit, or the disk is full."""


class StoreMissing(StoreError):
    """The server has no such database, or no such schema or table in it."""


class StoreAccessDenied(StoreError):
    """The server or the system wants another user or password, or this user may not do that."""


class StoreWrongType(StoreError):
    """What is there is something else than what Papyra keeps there: another key, file or table."""


class StoreOutdated(StoreError):
    """The tables of a store are of an older version, and have to be migrated before it is used."""


class StoreTooNew(StoreError):
    """The tables of a store are of a version that only a newer Papyra knows."""


class StoreFenced(StoreError):
    """Another writer has taken over this store. This one must not write to it any more."""


class StoreNotAcknowledged(StoreError):
    """The disk or the replicas that were asked for have not confirmed a write in time."""


class UnencodablePayload(InvalidRecord):
    """A payload holds a value that JSON cannot. Nothing of its request was stored."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        #: where the value is, as in ``payload["items"][2].price``
        self.path = path


class RecordTooLarge(UnencodablePayload):
    """A record, or all of a request together, would take up more than a store takes.

    That is 64 MiB of JSON for a record, and 256 MiB for the records of one request. Nothing of
    its request was stored.
    """


# Projections


class ProjectionError(PapyraError):
    """The root of what projections raise."""


class InvalidProjection(ProjectionError, TypeError):
    """A projection that can't be run as it is declared, or that can't do what is asked of it."""


class DuplicateProjection(ProjectionError):
    """A system runs one projection of a name at a time."""


class ProjectionOutdated(ProjectionError):
    """The view is of a greater version than the class that is to write it."""


class ProjectionBehind(ProjectionError, TimeoutError):
    """The projection has not come as far as was waited for, in time."""


class ProjectionStopped(ProjectionError):
    """The projection is paused, stands by or has stopped, so what was asked for can't be done."""


class SetupFailed(ProjectionError):
    """The tables of a projection could not be made. `__cause__` is the error."""


class HandlerCommitted(ProjectionError):
    """A handler has ended the view's transaction, or has tried to, which is not its own to end."""


class HandlerTimedOut(ProjectionError, TimeoutError):
    """A handler has not returned in time. Nothing of its batch is committed."""


class TooManyParked(ProjectionError):
    """So many events are parked or held back that there is no room for another one."""


class EventsCompacted(ProjectionError):
    """Events that a projection has not handled were removed from the store by a compaction."""


class ViewDamaged(ProjectionError):
    """What Papyra keeps in the view was changed by others, so that it can't be read any more."""


class ViewUnavailable(ProjectionError):
    """The database of a view can't be reached or used now."""
