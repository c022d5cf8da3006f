"""The tables that Papyra keeps in a view: the builds of projections, and the events parked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from papyra.exceptions import ViewDamaged
from papyra.persistence.messages import Anchor
from papyra.projections.database import ViewDatabase

__all__ = ("Build", "BuildState", "Builds", "Parked")

#: not yet caught up for the first time, caught up since, or replaced by a newer one
BuildState: TypeAlias = Literal["building", "running", "retired"]

_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS papyra_projections (
        name TEXT NOT NULL,
        build BIGINT NOT NULL,
        version BIGINT NOT NULL,
        state TEXT NOT NULL,
        is_live BIGINT NOT NULL,
        is_paused BIGINT NOT NULL,
        position BIGINT NOT NULL,
        store_id TEXT,
        record_kind TEXT,
        record_seq BIGINT,
        record_checksum TEXT,
        live_position BIGINT NOT NULL,
        error TEXT NOT NULL,
        error_seq BIGINT,
        owner TEXT,
        lease_until DOUBLE PRECISION NOT NULL,
        request TEXT NOT NULL,
        updated_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (name, build)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS papyra_parked (
        name TEXT NOT NULL,
        build BIGINT NOT NULL,
        seq BIGINT NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        is_held BIGINT NOT NULL,
        PRIMARY KEY (name, build, seq)
    )
    """,
)
_COLUMNS = (
    "name, build, version, state, is_live, is_paused, position, store_id, record_kind, record_seq,"
    " record_checksum, live_position, error, error_seq, owner, lease_until, request, updated_at"
)

_PARKED_COLUMNS = "seq, actor, reason, is_held"

RowT = TypeVar("RowT")


class Build(msgspec.Struct, frozen=True):
    """A row of ``papyra_projections``."""

    name: str
    build: int
    version: int
    state: BuildState
    #: whether it is the one that is read
    is_live: bool
    is_paused: bool
    #: everything up to it is in the view
    position: int
    #: the last record that was handled; `None` if there was none
    anchor: Anchor | None
    live_position: int
    error: str
    error_seq: int | None
    owner: str | None
    #: Unix time by the clock of the database
    lease_until: float
    request: str
    #: Unix time by the clock of the database
    updated_at: float


class Parked(msgspec.Struct, frozen=True):
    """A row of ``papyra_parked``."""

    seq: int
    actor: str
    reason: str
    #: whether it is only held back behind another one
    is_held: bool


class Builds:
    """The builds of one projection. Each method is to be called in a transaction, but reads."""

    def __init__(self, database: ViewDatabase[Any], name: str) -> None:
        self._database = database
        self._name = name

    def make_tables(self) -> None:
        """Make Papyra's own tables, where they are missing."""
        for table in _TABLES:
            self._database.change(table)

    def all(self) -> Sequence[Build]:
        """Return the builds of all projections, by name and number."""
        sql = f"SELECT {_COLUMNS} FROM papyra_projections ORDER BY name, build"
        return [_build(row) for row in self._database.rows(sql)]

    def own(self) -> Sequence[Build]:
        """Return all builds of this projection, by number."""
        sql = f"SELECT {_COLUMNS} FROM papyra_projections WHERE name = ? ORDER BY build"
        return [_build(row) for row in self._database.rows(sql, self._name)]

    def find(self, build: int) -> Build | None:
        """Return a build, which nobody else changes until the transaction ends."""
        sql = f"SELECT {_COLUMNS} FROM papyra_projections WHERE name = ? AND build = ?"
        rows = self._database.rows(sql + self._database.for_update, self._name, build)
        return _build(rows[0]) if rows else None

    def create(self, build: int, version: int, *, is_live: bool) -> None:
        """Add a build that begins at the beginning."""
        self._database.change(
            f"INSERT INTO papyra_projections ({_COLUMNS}) VALUES"
            " (?, ?, ?, 'building', ?, 0, 0, NULL, NULL, NULL, NULL, 0, '', NULL, NULL, 0.0, '',"
            f" {self._database.now})",
            *(self._name, build, version, int(is_live)),
        )

    def claim(self, build: int, owner: str, lease: float) -> bool:
        """Take a build for so many seconds, if nobody else has it; return whether that is so."""
        now = self._database.now
        return bool(
            self._database.change(
                f"UPDATE papyra_projections SET owner = ?, lease_until = {now} + ?,"
                f" updated_at = {now} WHERE name = ? AND build = ? AND state <> 'retired'"
                f" AND (owner IS NULL OR owner = ? OR lease_until < {now})",
                *(owner, lease, self._name, build, owner),
            )
        )

    def release(self, build: int, owner: str) -> None:
        """Let go of a build."""
        self._database.change(
            "UPDATE papyra_projections SET owner = NULL, lease_until = 0.0"
            " WHERE name = ? AND build = ? AND owner = ?",
            *(self._name, build, owner),
        )

    def advance(self, was: Build, now: Build, lease: float) -> bool:
        """Move a build on to another position, if it is where it was; return whether it was."""
        clock, anchor = self._database.now, now.anchor
        named: tuple[object, ...] = (None, None, None, None)
        if anchor is not None:
            named = (anchor.store_id, anchor.kind, anchor.seq, anchor.checksum)
        return bool(
            self._database.change(
                "UPDATE papyra_projections SET position = ?, live_position = ?, store_id = ?,"
                " record_kind = ?, record_seq = ?, record_checksum = ?,"
                f" lease_until = {clock} + ?, updated_at = {clock} WHERE name = ? AND build = ?"
                " AND owner = ? AND position = ? AND state <> 'retired'",
                *(now.position, now.live_position, *named, lease, self._name, was.build),
                *(was.owner, was.position),
            )
        )

    def note(self, build: int, owner: str, **columns: Any) -> bool:
        """Set columns of a build that `owner` has; return whether it has it."""
        given = ", ".join(f"{name} = ?" for name in columns)
        return bool(
            self._database.change(
                f"UPDATE papyra_projections SET {given}, updated_at = {self._database.now}"
                " WHERE name = ? AND build = ? AND owner = ?",
                *(*columns.values(), self._name, build, owner),
            )
        )

    def post(self, request: str) -> bool:
        """Ask whoever runs the newest build for something; return whether there is one."""
        return bool(
            self._database.change(
                "UPDATE papyra_projections SET request = ? WHERE name = ? AND build ="
                " (SELECT max(build) FROM papyra_projections WHERE name = ? AND is_live = 1)",
                *(request, self._name, self._name),
            )
        )

    def park(self, build: int, parked: Parked) -> None:
        """Add a parked event."""
        self._database.change(
            "INSERT INTO papyra_parked (name, build, seq, actor, reason, is_held)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            *(self._name, build, parked.seq, parked.actor, parked.reason, int(parked.is_held)),
        )

    def unpark(self, build: int, seq: int) -> None:
        """Remove a parked event."""
        self._database.change(
            "DELETE FROM papyra_parked WHERE name = ? AND build = ? AND seq = ?",
            *(self._name, build, seq),
        )

    def parked(self, build: int) -> Sequence[Parked]:
        """Return the parked events of a build, by their positions."""
        sql = (
            f"SELECT {_PARKED_COLUMNS} FROM papyra_parked WHERE name = ? AND build = ? ORDER BY seq"
        )
        rows = self._database.rows(sql, self._name, build)
        return [_checked(_by_column(_PARKED_COLUMNS, row), Parked) for row in rows]

    def publish(self, name: str, table: str) -> None:
        """Have readers find a table under a name, in place of the one that they found there."""
        self._database.change(f"DROP VIEW IF EXISTS {name}")
        self._database.change(f"CREATE VIEW {name} AS SELECT * FROM {table}")

    def drop_table(self, table: str) -> None:
        """Drop a table of a build, if it is there."""
        self._database.change(f"DROP TABLE IF EXISTS {table}")

    def retire(self, builds: Collection[int]) -> None:
        """Make builds those that nobody runs any more."""
        for build in builds:
            self._database.change(
                "UPDATE papyra_projections SET state = 'retired', is_live = 0, owner = NULL"
                " WHERE name = ? AND build = ?",
                *(self._name, build),
            )

    def remove(self, build: int) -> None:
        """Remove a build, and what is parked of it."""
        for table in ("papyra_parked", "papyra_projections"):
            self._database.change(
                f"DELETE FROM {table} WHERE name = ? AND build = ?", self._name, build
            )


def _build(row: tuple[Any, ...]) -> Build:
    values = _by_column(_COLUMNS, row)
    if values["record_kind"] is not None:
        names = ("kind", "seq", "checksum")
        anchor = {name: values[f"record_{name}"] for name in names}
        values["anchor"] = {**anchor, "store_id": values["store_id"]}
    return _checked({"anchor": None, **values}, Build)


def _by_column(columns: str, row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(columns.split(", "), row, strict=True))


def _checked(values: dict[str, Any], kind: type[RowT]) -> RowT:
    """Return a row. Raises `ViewDamaged` if others have put something else there."""
    try:
        return msgspec.convert(values, kind, strict=False)  # 0 and 1 for a bool
    except msgspec.ValidationError as error:
        raise ViewDamaged(f"somebody has changed what Papyra keeps in the view: {error}") from error
