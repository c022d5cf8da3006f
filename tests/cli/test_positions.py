"""What commands do to a store with positions beside its records: count them, and leave them."""

from __future__ import annotations

import json

import anyio

from tests.cli.conftest import Command, Store, event


def positions_of(store: Store) -> dict[str, bytes | None]:
    async def look() -> dict[str, bytes | None]:
        async with store.backend() as backend:
            names = await backend.list_positions()
            return {name: await backend.load_position(name) for name in names}

    return anyio.run(look)


def fill(store: Store) -> None:
    async def write() -> None:
        async with store.backend() as backend:
            await backend.append(*(event(number) for number in range(1, 7)))
            for name in ("balances", "bills"):
                await backend.save_position(name, b"6", None)

    anyio.run(write)


def test_inspect_counts_positions_and_no_command_takes_them_away(
    papyra: Command, file_store: Store
) -> None:
    assert not papyra("inspect", file_store.name).facts.get("positions")
    fill(file_store)
    assert papyra("inspect", file_store.name).facts["positions"] == "2 of those who follow it"
    assert json.loads(papyra("inspect", file_store.name, "--json").out)["positions"] == 2
    for call in (
        ["scan"],
        ["doctor"],
        ["recover", "--yes"],
        ["compact", "--max-records", "1", "--yes"],
        ["scan"],
    ):
        command, *options = call
        assert papyra(command, file_store.name, *options).code == 0, call
    assert positions_of(file_store) == {"balances": b"6", "bills": b"6"}


def test_a_copy_has_no_positions_as_they_are_about_the_store_that_it_was_made_of(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    assert papyra("copy", file_store.name, "copy.ndjson").code == 0
    told = json.loads(papyra("inspect", "copy.ndjson", "--json").out)
    assert (told["positions"], told["records"]["event"]) == (0, 6)
    assert positions_of(file_store) == {"balances": b"6", "bills": b"6"}
