"""The commands that look at a store, on any output."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.conftest import COLOUR, LOOKS, Command, Store, widest


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_papyra_prints_colours_only_on_terminals_and_none_with_no_color(
    papyra: Command, ledger: Store, look: list[str]
) -> None:
    on_terminal = papyra.on_terminal(*look, ledger.name)
    without = papyra.on_terminal(*look, ledger.name, env={"NO_COLOR": "1"})
    piped = papyra(*look, ledger.name)
    assert [done.code for done in (on_terminal, without, piped)] == [0, 0, 0]
    assert without.text == on_terminal.text
    assert not COLOUR.search(without.out)
    assert "\x1b" not in piped.out
    assert piped.err == ""
    if look != ["metrics"]:
        assert COLOUR.search(on_terminal.out)


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_papyra_commands_that_only_read_fit_a_terminal_of_40_columns(
    papyra: Command, shop: Store, look: list[str]
) -> None:
    done = papyra.on_terminal(*look, shop.name, columns=40)
    assert done.code == 0
    assert widest(done.text) <= 40
    in_ascii = papyra.on_terminal(
        *look, shop.name, columns=40, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    )
    assert in_ascii.code == 0
    assert in_ascii.out.isascii()
    assert widest(in_ascii.text) <= 40


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_no_content_of_a_record_controls_the_terminal_of_a_papyra_command(
    papyra: Command, hostile: Store, look: list[str]
) -> None:
    done = papyra.on_terminal(*look, hostile.name, columns=200)
    assert done.code == 0
    for sequence in ("\x1b[31m", "\x9b", "\u202e", "\t"):
        assert sequence not in done.out or (sequence == "\x1b[31m" and "31m\\x9b" in done.out)
    assert done.text.replace("\n", "").isprintable()
    piped = papyra(*look, hostile.name)
    assert piped.code == 0
    assert re.sub("[\t\n]", "", piped.out).isprintable()


@pytest.mark.parametrize("look", [*LOOKS, ["top", "--count", "1"]], ids=" ".join)
def test_papyra_prints_json_as_one_document_a_line(
    papyra: Command, ledger: Store, look: list[str]
) -> None:
    piped = papyra(*look, ledger.name, "--json")
    assert (piped.code, piped.err) == (0, "")
    documents = [json.loads(line) for line in piped.lines]
    assert documents
    on_terminal = papyra.on_terminal(*look, ledger.name, "--json")
    assert on_terminal.code == 0
    assert [json.loads(line).keys() for line in on_terminal.lines] == [d.keys() for d in documents]
