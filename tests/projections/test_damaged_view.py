"""What Papyra keeps in a view, changed by somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from papyra.projections import SQLiteView
from tests.projections.balances import Balances, Deposits, balances_in, in_state, looking
from tests.projections.conftest import NewSystem


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("position", "'far'"),
        ("version", "'2b'"),
        ("state", "'strange'"),
        ("is_live", "'yes'"),
        ("record_kind", "'gossip'"),
        ("record_seq", "'one'"),
        ("live_position", "x'00'"),
        ("error_seq", "1.5"),
        ("lease_until", "'soon'"),
    ],
)
async def test_a_row_that_others_have_changed_is_named_and_it_goes_on_when_it_was_mended(
    new_system: NewSystem, path: Path, column: str, value: str
) -> None:
    async with new_system() as system:
        last = await Deposits(system).add(1)
        await system.project(Balances(SQLiteView(path))).wait_for(last, timeout=60)
    with looking(path) as view:
        ((was,),) = view.execute(f"SELECT {column} FROM papyra_projections").fetchall()
        view.execute(f"UPDATE papyra_projections SET {column} = {value}")
        view.commit()
    async with new_system() as system:
        runner = system.project(Balances(SQLiteView(path)))
        await in_state(runner, "paused")
        assert "ViewDamaged" in runner.status.error
        with looking(path) as view:
            view.execute(f"UPDATE papyra_projections SET {column} = ?", (was,))
            view.commit()
        await runner.resume()
        await runner.wait_for(await Deposits(system).add(2), timeout=60)
    assert balances_in(path) == {"ann": 3}
