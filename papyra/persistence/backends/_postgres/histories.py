"""Histories: where those of actors end, by the index over their revisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from papyra.persistence.backends._postgres.arrays import TextArray
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text

__all__ = ("last_revisions",)


def last_revisions(system: System, actors: Collection[str]) -> Mapping[str, int]:
    """Return the greatest revision of each of `actors` that has a history."""
    columns = {column_text(actor): actor for actor in actors}
    rows = system.rows(
        "SELECT a.actor, (SELECT revision FROM {schema}.events AS e"
        " WHERE e.system_id = %(system)s AND e.actor = a.actor AND e.revision IS NOT NULL"
        " ORDER BY e.revision DESC LIMIT 1)"
        " FROM unnest(%(actors)b) AS a(actor)",
        actors=TextArray.of(list(columns)),
    )
    return {columns[actor]: revision for actor, revision in rows if revision is not None}
