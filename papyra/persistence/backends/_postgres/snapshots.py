"""The table of snapshots. Those who own them are as `column_text` has their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends.store import StoredSnapshot

__all__ = ("list_snapshots", "load", "quarantine", "remove", "revisions", "save")

_ONE = "system_id = %(system)s AND actor = %(owner)s AND revision = %(revision)s"


def save(system: System, owner: str, revision: int, data: bytes) -> None:
    """Store a snapshot, in place of what was there."""
    system.run(
        "INSERT INTO {schema}.snapshots VALUES (%(system)s, %(owner)s, %(revision)s, %(data)b)"
        " ON CONFLICT (system_id, actor, revision) DO UPDATE SET data = excluded.data",
        owner=owner,
        revision=revision,
        data=data,
    )


def revisions(system: System, owner: str) -> list[int]:
    """Return the revisions of an actor's snapshots."""
    rows = system.rows(
        "SELECT revision FROM {schema}.snapshots"
        " WHERE system_id = %(system)s AND actor = %(owner)s",
        owner=owner,
    )
    return [revision for (revision,) in rows]


def load(system: System, owner: str, revision: int) -> bytes | None:
    """Return a snapshot, or `None`."""
    rows = system.rows(
        f"SELECT data FROM {{schema}}.snapshots WHERE {_ONE}",  # noqa: S608 - a constant
        owner=owner,
        revision=revision,
    )
    return bytes(rows[0][0]) if rows else None


def remove(system: System, owner: str, revision: int) -> None:
    """Remove a snapshot, if it is there."""
    system.run(
        f"DELETE FROM {{schema}}.snapshots WHERE {_ONE}",  # noqa: S608 - a constant
        owner=owner,
        revision=revision,
    )


def list_snapshots(
    system: System, after: StoredSnapshot | None, limit: int
) -> Sequence[StoredSnapshot]:
    """Return up to `limit` snapshots by actor and revision, after one of them."""
    owner, revision = ("", -1) if after is None else (after.owner, after.revision)
    rows = system.rows(
        "SELECT actor, revision, octet_length(data)::bigint FROM {schema}.snapshots"
        " WHERE system_id = %(system)s AND (actor, revision) > (%(owner)s, %(revision)s)"
        " ORDER BY actor, revision LIMIT %(limit)s",
        owner=owner,
        revision=revision,
        limit=limit,
    )
    return [StoredSnapshot(*row) for row in rows]


def quarantine(system: System, owner: str, revision: int) -> None:
    """Move a snapshot to the table for damaged originals."""
    system.run(
        "WITH removed AS ("  # noqa: S608
        f"DELETE FROM {{schema}}.snapshots WHERE {_ONE} RETURNING *"
        ") INSERT INTO {schema}.quarantine (system_id, origin, data)"
        " SELECT system_id, 'snapshots/' || actor || '/' || revision, data FROM removed",
        owner=owner,
        revision=revision,
    )
