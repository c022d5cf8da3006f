"""``papyra timeline``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rich.cells import cell_len

from papyra.persistence import PersistedDeadLetter, PersistedEvent
from tests.cli.conftest import COUNTS, RECORDS, T0, Command, Store, iso, life, widest

LANES = ["shop/till", "shop/printer", "shop/printer/tray", "shop/lost"]


def lanes(text: str) -> dict[str, str]:
    """Return the pictures of the actors by their names."""
    found = [line.partition(" ") for line in text.splitlines() if line.startswith("shop/")]
    return {name: picture.strip() for name, _, picture in found}


def marks(picture: str) -> str:
    return re.sub(r"[ ─╌]", "", picture)


def test_papyra_timeline_has_a_lane_for_each_actor_with_its_steps(
    papyra: Command, shop: Store
) -> None:
    done = papyra("timeline", shop.name)
    assert (done.code, done.err) == (0, "")
    assert list(lanes(done.out)) == LANES
    pictures = lanes(papyra.on_terminal("timeline", shop.name, columns=600).text)
    assert list(pictures) == LANES
    assert marks(pictures["shop/till"]) == "●"
    assert marks(pictures["shop/printer"]) == "●✗↻✗■◆"
    assert marks(pictures["shop/printer/tray"]) == "●■"
    assert marks(pictures["shop/lost"]) == "✗↻"
    assert pictures["shop/till"].endswith("─")
    assert "╌" in pictures["shop/lost"]
    legend = done.lines[-1]
    for mark, what in zip(
        "●✗↻■◆", ("started", "crashed", "restarted", "stopped", "dead letter"), strict=True
    ):
        assert f"{mark} {what}" in legend
    assert iso(T0) in done.lines[-2]


def test_papyra_timeline_selects_by_time_and_by_actor(papyra: Command, shop: Store) -> None:
    def actors(*options: object) -> list[str]:
        done = papyra("timeline", shop.name, "--json", *options)
        assert done.code == 0
        assert ("did you mean shop/printer" in done.err) == ("shop/print" in options)
        return [json.loads(line)["actor"] for line in done.lines]

    assert actors() == LANES
    assert actors("--actor", "shop/printer") == ["shop/printer", "shop/printer/tray"]
    assert actors("-a", "shop/print") == []
    assert actors("--limit", 0) == []
    assert actors("-n", 2) == ["shop/printer", "shop/lost"]
    assert actors("--since", iso(T0 + 1200)) == ["shop/printer/tray", "shop/lost"]
    assert actors("--until", iso(T0 + 599)) == ["shop/till"]
    assert actors("--since", iso(T0 + 610), "--until", iso(T0 + 610)) == ["shop/printer"]


def test_papyra_timeline_json_holds_the_events_of_each_actors_life(
    papyra: Command, shop: Store
) -> None:
    done = papyra("timeline", shop.name, "--json")
    for line in done.lines:
        said = json.loads(line)
        events = [
            (seq, record)
            for seq, record in enumerate(RECORDS, start=1)
            if isinstance(record, PersistedEvent)
            and record.actor_address == said["actor"]
            and record.event_type != "Counted"
        ]
        assert said["steps"] == [
            {
                "seq": seq,
                "time": record.timestamp,
                "what": record.event_type.removeprefix("Actor").lower(),
                "detail": record.payload,
            }
            for seq, record in events
        ]


def test_papyra_timeline_says_how_many_actors_it_leaves_out(papyra: Command, store: Store) -> None:
    store.append(
        *(PersistedEvent("shop", f"shop/a{n:02}", "ActorStarted", {}, T0 + n) for n in range(40))
    )
    done = papyra.on_terminal("timeline", store.name)
    assert len(lanes(done.text)) == 30
    assert "30 of 40" in done.text
    assert len(lanes(papyra("timeline", store.name).out)) == 40
    limited = papyra("timeline", store.name, "--limit", 7)
    assert len(lanes(limited.out)) == 7
    assert "7 of 40" in limited.err


def test_papyra_timeline_in_ascii_has_marks_of_its_own(papyra: Command, ledger: Store) -> None:
    done = papyra("timeline", ledger.name, env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\\u" not in done.out
    assert set(lanes(done.out)["shop/printer"]) <= set("oxr#!-. ")


def test_lanes_of_papyra_timeline_begin_in_one_column_however_wide_the_names_are(
    papyra: Command, store: Store
) -> None:
    names = ["shop/a", "shop/界界界界", "shop/e\u0301\u0301", "shop/🎭"]
    for number, name in enumerate(names):
        started, stopped = ("ActorStarted", {"actor_type": "A"}), ("ActorStopped", {"n": number})
        store.append(*life(name, T0, started, stopped))
    for columns in (100, 40):
        text = papyra.on_terminal("timeline", store.name, columns=columns).text
        pictures = [line for line in text.splitlines() if line.startswith("shop/")]
        starts = {cell_len(line.partition("●")[0]) for line in pictures}
        ends = {cell_len(line.rstrip()) for line in pictures}
        assert len(pictures) == len(names)
        assert len(starts) == len(ends) == 1
        assert all(line.rstrip().endswith("■") for line in pictures)
    in_ascii = papyra.on_terminal(
        "timeline", store.name, columns=60, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    )
    ends = {len(line.rstrip()) for line in in_ascii.lines if line.startswith("shop/")}
    assert len(ends) == 1
    assert widest(in_ascii.text) <= 60


def test_papyra_timeline_html_writes_a_page_with_the_actors_in_it(
    papyra: Command, ledger: Store, tmp_path: Path
) -> None:
    done = papyra("timeline", ledger.name, "--html", tmp_path / "lives.html")
    assert (done.code, done.out) == (0, "")
    assert "lives.html" in done.err
    page = (tmp_path / "lives.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    [data] = re.findall(
        r'<script type="application/json" id="lives">(.*?)</script>', page, re.DOTALL
    )
    lives = json.loads(data)
    assert [each["actor"] for each in lives["lives"]] == LANES
    assert len(lives["dead_letters"]) == COUNTS[PersistedDeadLetter]
    some = papyra.on_terminal(
        *("timeline", ledger.name, "--html", "some.html", "-a", "shop/lost", "-n", 1)
    )
    assert some.code == 0
    assert "shop/till" not in (tmp_path / "some.html").read_text("utf-8")
    assert "shop/lost" in (tmp_path / "some.html").read_text("utf-8")


def test_papyra_timeline_html_over_the_store_itself_is_refused(
    papyra: Command, file_store: Store
) -> None:
    file_store.append(*RECORDS[:20])
    before = file_store.file.read_bytes()
    done = papyra("timeline", file_store.name, "--html", file_store.file)
    assert file_store.file.read_bytes() == before
    assert done.code != 0
    assert len(done.err.splitlines()) == 1


def test_papyra_timeline_html_that_cannot_be_written_fails_with_one_line(
    papyra: Command, ledger: Store
) -> None:
    done = papyra("timeline", ledger.name, "--html", "/dev/full")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: .*No space left on device\n", done.err)
