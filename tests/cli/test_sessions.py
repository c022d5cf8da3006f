"""What the README files show of the command is what it prints."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import anyio
import pytest

from tests.cli.conftest import Command
from tests.cli.shop import open_the_bank, open_the_shop, take_an_order
from tests.guides import BLOCKS, ROOT, Block

GUIDE = ROOT / "papyra" / "cli" / "README.md"
SESSIONS = [block for block in BLOCKS if block.language == "console"]
#: Each command, and what it is said to print.
CALLS = [
    (command, printed)
    for block in SESSIONS
    for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.code, re.MULTILINE)
]


def plain(text: str) -> list[str]:
    """Return lines without what no run has in common with another."""
    text = re.sub(r"\d+\w+( \d+\w+)? ago", "some time ago", text)
    text = re.sub(r"[\d,]+ a second", "so many a second", text)
    text = re.sub(r"due \S+Z", "due some time", text)
    text = re.sub(r"\S+Z (papyra\.event_skipped)", r"some time \1", text)  # just now
    text = re.sub(r"(some time ago.*?) *\r?\n {6,}", r"\1 ", text)  # which may need another line
    return [line.rstrip() for line in text.splitlines()]


@pytest.fixture
def shop(papyra: Command) -> Command:
    anyio.run(open_the_shop, papyra.home / "events.ndjson")
    for name in ("bank", "branch"):
        anyio.run(open_the_bank, papyra.home / f"{name}.ndjson")
    anyio.run(take_an_order, papyra.home / "shop.ndjson")
    shutil.copy(ROOT / "examples" / "bank.py", papyra.home)
    return papyra


def spoil(path: Path) -> None:
    """Do what the guide says: change a byte, lose a line, and end in the middle of another."""
    lines = path.read_text().splitlines(keepends=True)
    lines[39] = lines[39].replace("coffee", "toffee")
    del lines[89]
    path.write_text("".join(lines)[:-20])


@pytest.mark.parametrize("session", SESSIONS, ids=lambda block: block.place)
def test_every_console_session_in_a_guide_begins_with_a_command(session: Block) -> None:
    assert session.code.startswith("$ ")


def test_every_papyra_command_prints_what_the_guides_show(shop: Command) -> None:
    assert len(CALLS) >= 7
    for line, printed in CALLS:
        program, *arguments = shlex.split(line)
        if program != "papyra":
            assert program == "sed", line
            spoil(shop.home / "events.ndjson")
            continue
        done = shop.on_terminal(*arguments, columns=80)
        assert plain(done.text) == plain(printed), line


def test_every_papyra_command_is_in_the_guide() -> None:
    from papyra.cli.app import COMMANDS  # noqa: PLC0415

    for name in COMMANDS:
        assert re.search(rf"`(papyra )?{name}\b", GUIDE.read_text(encoding="utf-8")), name
