"""The table of positions, by names as `column_text` has them."""

from __future__ import annotations

from collections.abc import Sequence

from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._postgres.text import column_text, text_of_column

__all__ = ("list_positions", "load", "remove", "save")


def load(system: System, name: str) -> bytes | None:
    """Return what a name has, or `None`."""
    rows = system.rows(
        "SELECT data FROM {schema}.papyra_positions"
        " WHERE system_id = %(system)s AND name = %(name)s",
        name=column_text(name),
    )
    return bytes(rows[0][0]) if rows else None


def save(system: System, name: str, data: bytes) -> None:
    """Store what a name is to have, in place of what is there."""
    system.run(
        "INSERT INTO {schema}.papyra_positions VALUES (%(system)s, %(name)s, %(data)b)"
        " ON CONFLICT (system_id, name) DO UPDATE SET data = excluded.data",
        name=column_text(name),
        data=data,
    )


def remove(system: System, name: str) -> None:
    """Remove what a name has."""
    system.run(
        "DELETE FROM {schema}.papyra_positions WHERE system_id = %(system)s AND name = %(name)s",
        name=column_text(name),
    )


def list_positions(system: System, after: str | None, limit: int) -> Sequence[str]:
    """Return up to `limit` names in the order of their columns, after one of them."""
    rows = system.rows(
        "SELECT name FROM {schema}.papyra_positions"
        " WHERE system_id = %(system)s AND name > %(after)s ORDER BY name LIMIT %(limit)s",
        after=column_text(after or ""),
        limit=limit,
    )
    return [text_of_column(name) for (name,) in rows]
