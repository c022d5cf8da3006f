"""Projections: tables, indexes and mails that are made of the events of a store, and kept so."""

from typing import TYPE_CHECKING

from papyra._lazy_imports import finder

if TYPE_CHECKING:
    from papyra.projections.builds import Build
    from papyra.projections.on_error import DeadLetter, OnError, Pause, Skip
    from papyra.projections.postgres import PostgresView
    from papyra.projections.projection import Projection
    from papyra.projections.runner import ProjectionRunner, Projections
    from papyra.projections.sqlite import SQLiteView
    from papyra.projections.status import ProjectionState, ProjectionStatus
    from papyra.projections.view import View
    from papyra.retry import Retry

__all__ = (
    "Build",
    "DeadLetter",
    "OnError",
    "Pause",
    "PostgresView",
    "Projection",
    "ProjectionRunner",
    "ProjectionState",
    "ProjectionStatus",
    "Projections",
    "Retry",
    "SQLiteView",
    "Skip",
    "View",
)

#: Where these names are, from the ground up.
_MODULES = ("builds", "on_error", "status", "view", "sqlite", "projection", "runner", "postgres")

if not TYPE_CHECKING:
    __getattr__ = finder(__name__, __all__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
