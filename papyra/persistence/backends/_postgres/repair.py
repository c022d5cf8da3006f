"""The repair: rows that can't be read are removed, and columns say again what is in a record."""

from __future__ import annotations

from collections.abc import Sequence

from papyra.persistence.backends._postgres.blocks import rebuild
from papyra.persistence.backends._postgres.scan import checked_rows, column_values
from papyra.persistence.backends._postgres.system import System
from papyra.persistence.backends._sql.scan_result import CheckedRow
from papyra.persistence.backends._sql.tables import TABLES, RecordTable

__all__ = ("mend_rows", "wrong_rows")

_ONE = "system_id = %(system)s AND seq = %(seq)s"


def wrong_rows(system: System) -> list[tuple[RecordTable, CheckedRow]]:
    """Return the rows with which something is wrong, but for those of a kind that is not known."""
    return [
        (table, row)
        for table in TABLES.values()
        for row in checked_rows(system, table, lambda *_: None)
        if row.anomaly is not None and row.anomaly.kind != "unknown_kind"
    ]


def mend_rows(
    system: System, wrong: Sequence[tuple[RecordTable, CheckedRow]], *, quarantine: bool
) -> int:
    """Mend rows, count everything anew, and return how many records were removed."""
    removed = sum([_mend_row(system, *each, quarantine=quarantine) for each in wrong])
    for kind in TABLES:
        rebuild(system, kind)
    return removed


def _mend_row(system: System, table: RecordTable, row: CheckedRow, *, quarantine: bool) -> bool:
    """Mend a row; return True if it had to be removed."""
    if row.record is None:
        if quarantine:
            system.run(
                "INSERT INTO {schema}.quarantine (system_id, origin, data)"
                " VALUES (%(system)s, %(origin)s, %(data)b)",
                origin=f"{table.name}/{row.seq}",
                data=row.data,
            )
        statement = f"DELETE FROM {{schema}}.{table.name} WHERE {_ONE}"  # noqa: S608 - constants
        system.run(statement, seq=row.seq)
        return True
    names = (*table.columns[2:-2], "bytes")
    values = column_values(table, row.record, row.data)
    system.run(
        f"UPDATE {{schema}}.{table.name} SET"  # noqa: S608 - constants
        f" {', '.join(f'{name} = %({name})s' for name in names)} WHERE {_ONE}",
        seq=row.seq,
        **dict(zip(names, values, strict=True)),
    )
    return False
