"""``papyra scan``, ``recover`` and ``doctor``: on stores that somebody has damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias
from zlib import crc32

import anyio
import jq as libjq
import pexpect
import pytest

from papyra import ActorSystem
from papyra.conf import backend_from_url
from papyra.exceptions import StoreDamaged
from papyra.persistence import PersistenceStartupConfig, Record
from tests.cli.conftest import T0, Command, Done, Store, audit, dead_letter, event, new_store
from tests.redis_server import RedisServer

#: A record's position, and its own bytes as they are stored.
Fact: TypeAlias = tuple[int, bytes]

STREAMS = ("events", "audits", "dead_letters")
#: Records in a segment, and in a store.
SEGMENT, COUNT = 14, 56
#: So wide that no path is folded.
WIDE = 400

_HEAD = re.compile(rb'\{"crc":"[0-9a-f]{8}","v":\d+,"seq":(\d+),(?:"after":\d+,)?')

#: What an operator has to understand of each, whatever the words around it.
MEANINGS = {
    "torn": "never acknowledged",
    "corrupt": "lost",
    "checksum": "changed after it was written",
    "wrong_fields": "somebody else",
    "unknown_kind": "newer version",
    "gap": "not there any more",
    "duplicate": "twice",
    "foreign_file": "does not belong",
    "missing_segment": "whole file",
}


@dataclasses.dataclass(frozen=True)
class Wound:
    """What was done to a store, and where a scan must find it."""

    kind: str
    #: a file's path, or a stream's key
    place: str
    line: int | None = None
    #: what is in that line now
    data: bytes | None = None
    entry: str | None = None
    offset: int | None = None


def record(number: int) -> Record:
    """Return one of each kind in turn."""
    return (event, audit, dead_letter)[number % 3](number)


def fill(store: Store, count: int = COUNT, segment: int = SEGMENT) -> None:
    """Write records, in more than one segment where there are such."""
    append(store, *map(record, range(count)), segment=segment)


def append(store: Store, *records: Record, segment: int = SEGMENT) -> int:
    """Append records; return the position of the last."""
    url = f"{store.url}?max_segment_records={segment}" if store.kind == "rotating" else store.url

    async def write() -> int:
        async with backend_from_url(url) as backend:
            return (await backend.append(*records)).last_seq

    return anyio.run(write)


# What is in a store, found out without Papyra


def files_of(store: Store) -> list[Path]:
    """Return the files that hold records, the oldest first."""
    assert store.path is not None
    return sorted(store.path.glob("*.ndjson")) if store.path.is_dir() else [store.path]


def cli(store: Store, *words: str) -> str:
    assert store.server is not None
    return store.server.cli(*words)


def keys_of(store: Store) -> list[str]:
    return sorted(cli(store, "KEYS", f"{store.tag}*").split())


def contents(store: Store) -> dict[str, bytes]:
    """Return all that there is, but for who has it open."""
    if store.path is None:
        return {
            key: cli(
                store, *(("HGETALL", key) if key.endswith(":meta") else ("XRANGE", key, "-", "+"))
            ).encode()
            for key in keys_of(store)
        }
    return {
        str(path.relative_to(store.path.parent)): path.read_bytes()
        for path in store.path.parent.rglob(f"{store.path.name}*")
        if path.is_file() and not path.name.endswith(".lock")
    } | {
        str(path.relative_to(store.path.parent)): path.read_bytes()
        for path in store.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def facts(store: Store) -> list[Fact]:
    """Return every record that can be read, by its position."""
    if store.path is None:
        return sorted(fact for stream in STREAMS for fact in _entries(store, stream))
    found = []
    for path in files_of(store):
        for line in path.read_bytes().splitlines():
            head = _HEAD.match(line)
            assert head is not None, line
            body = b"{" + line[head.end() :]
            if json.loads(body)["kind"] != "tombstone":
                found.append((int(head[1]), body))
    return found


def _entries(store: Store, stream: str) -> Iterator[Fact]:
    lines = cli(store, "XRANGE", f"{store.tag}:{stream}", "-", "+").encode().split(b"\n")
    for start in range(0, len(lines) - 8, 9):
        identifier, name, body, *_ = lines[start : start + 9]
        assert name == b"record", name
        yield int(identifier.partition(b"-")[2]), body


def payloads(found: list[Fact]) -> list[Any]:
    return [json.loads(body)["payload"] for _, body in found]


# Damage


def line_of(seq: int, version: int = 1, **fields: Any) -> bytes:
    """Return a line whose checksum is right."""
    rest = json.dumps({"v": version, "seq": seq, **fields}, separators=(",", ":")).encode()[1:]
    return b'{"crc":"%08x",%b\n' % (crc32(rest), rest)


def without_some(facts: list[Fact], lost: set[int]) -> list[Fact]:
    return [fact for fact in facts if fact[0] not in lost]


def damage(store: Store, *, left: bool = False) -> tuple[list[Wound], set[int]]:
    """Do to a full store what can be done; return that, and the positions that are lost.

    With `left`, there is something that no repair takes away, too.
    """
    if store.path is None:
        return _damage_streams(store, left=left)
    wounds: list[Wound] = []
    lost: set[int] = set()
    files = files_of(store)
    if store.kind == "rotating":
        files[1].unlink()
        lost |= {*range(SEGMENT + 1, 2 * SEGMENT + 1)}
        wounds.append(Wound("missing_segment", str(store.path)))
        if left:
            (store.path / "notes.txt").write_text("mine")
            wounds.append(Wound("foreign_file", str(store.path / "notes.txt")))
    wounded = files[2] if store.kind == "rotating" else files[0]
    _damage_lines(wounded, wounds, lost, left=left)
    _tear(files[-1], wounds, lost)
    return [_with_offset(wound) for wound in wounds], lost


def _damage_lines(path: Path, wounds: list[Wound], lost: set[int], *, left: bool) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    first = json.loads(lines[0])["seq"]
    out: list[bytes] = []

    def put(data: bytes, *kinds: str) -> None:
        out.append(data)
        wounds.extend(Wound(kind, str(path), len(out), data) for kind in kinds)

    for number, line in enumerate(lines):
        match number:
            case 2:
                put(b"so what\n", "corrupt")
            case 4:
                put(line.replace(b".0}", b".7}"), "checksum")
            case 6:
                pass
            case 7:
                put(line, "gap")
            case 9:
                put(line)
                put(line, "duplicate")
            case 11 if left:
                put(line_of(first + number, kind="snapshot", state={}), "unknown_kind")
            case 12:  # which changes places with the next
                put(lines[13], "gap")
                put(line, "duplicate")
            case 13:
                pass
            case _:
                put(line)
    lost |= {first + number for number in (2, 4, 6)}
    if left:
        lost.add(first + 11)
    path.write_bytes(b"".join(out))


def _tear(path: Path, wounds: list[Wound], lost: set[int]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lost.add(json.loads(lines[-1])["seq"])
    torn = lines[-1][:40]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    wounds.append(Wound("torn", str(path), len(lines), torn))


def _with_offset(wound: Wound) -> Wound:
    """Say where the line begins, as ``head`` and ``wc`` count it."""
    if wound.line is None:
        return wound
    before = subprocess.run(
        ["head", "-n", str(wound.line - 1), wound.place], check=True, capture_output=True
    )
    return dataclasses.replace(wound, offset=len(before.stdout))


def sed(path: str, line: int) -> bytes:
    """Return a line of a file, as whoever looks for it with ``sed`` sees it."""
    command = ["sed", "-n", f"{line}p", path]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _damage_streams(store: Store, *, left: bool) -> tuple[list[Wound], set[int]]:
    events, audits, letters = (f"{store.tag}:{stream}" for stream in STREAMS)

    def add(key: str, entry: str, body: str, **changes: str) -> str:
        seq = int(entry.partition("-")[2])
        fields = {
            "record": body,
            "n": "99",
            "total": "99999",
            "crc": f"{crc32(body.encode(), seq):08x}",
        } | changes
        return cli(store, "XADD", key, entry, *(word for pair in fields.items() for word in pair))

    ids = [line for line in cli(store, "XRANGE", events, "-", "+").split("\n") if _is_id(line)]
    cli(store, "XDEL", events, ids[2])
    lost = {int(ids[2].partition("-")[2])}
    late = int(T0) * 1000 + 900_000
    last, *fields = cli(store, "XREVRANGE", audits, "+", "-", "COUNT", "1").split("\n")
    copied = f"{late}-{last.partition('-')[2]}"
    cli(store, "XADD", audits, copied, *fields)
    wounds = [
        Wound("gap", events),
        Wound("wrong_fields", events, entry=cli(store, "XADD", events, "*", "celsius", "21")),
        Wound("duplicate", audits, entry=copied),
        Wound("checksum", audits, entry=add(audits, f"{late + 1}-{COUNT}", "{}", crc="00000000")),
        Wound("corrupt", letters, entry=add(letters, f"{late}-{COUNT}", "so what")),
    ]
    if left:
        meta, snapshot = f"{store.tag}:meta", '{"kind":"snapshot","state":{}}'
        count = int(cli(store, "HGET", meta, "dead_letter:n")) + 1
        total = int(cli(store, "HGET", meta, "dead_letter:total")) + len(snapshot)
        entry = f"{late + 2}-{COUNT + 1}"
        add(letters, entry, snapshot, n=str(count), total=str(total))
        cli(
            store,
            *("HSET", meta, "last", str(COUNT + 1)),
            *("dead_letter:n", str(count), "dead_letter:total", str(total)),
        )
        wounds.append(Wound("unknown_kind", letters, entry=entry))
        lost.add(COUNT + 1)
    return wounds, lost


def _is_id(text: str) -> bool:
    return re.fullmatch(r"\d+-\d+", text) is not None


def jq(program: str, text: str) -> Any:
    """Return what ``jq`` makes of it."""
    (made,) = libjq.compile(program).input_text(text).all()
    return made


def one_line(done: Done) -> str:
    """Return the only line of an error."""
    (line,) = done.err.splitlines()
    assert line.startswith("error: "), line
    return line


def at_the_question(papyra: Command, key: str, *arguments: object) -> Done:
    """Press a key when a command asks, and return what becomes of it."""
    child = papyra.terminal(*arguments, columns=WIDE)
    child.delaybeforesend = None  # as soon as it asks
    child.expect(r"\[y/n\]")
    getattr(child, key)()
    child.expect(pexpect.EOF)
    child.close()
    return Done(child.exitstatus or 0, child.before or "")


def interrupted_while_it_reads(papyra: Command, store: Store, *arguments: object) -> Done:
    """Press Ctrl-C when a command has begun to read a store, and return what becomes of it."""
    halting = papyra.halting("--open", files_of(store)[-1])
    with halting.start(*arguments) as process:
        state = Path(f"/proc/{process.pid}/stat")
        while state.read_text().rpartition(") ")[2][0] != "T":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def wounds_in(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return sorted(
        (each["kind"], each["location"], each["line"] or 0, each["offset"], each["entry"] or "")
        for each in report["anomalies"]
    )


def as_reported(wounds: list[Wound]) -> list[tuple[Any, ...]]:
    return sorted(
        (wound.kind, wound.place, wound.line or 0, wound.offset, wound.entry or "")
        for wound in wounds
    )


# Somebody who has a store open

_WRITER = """
import signal, sys
import anyio
from papyra import ActorSystem
from papyra.conf import backend_from_url
from papyra.persistence import AppendMany, PersistedEvent, PersistenceStartupConfig

url, pace, size = sys.argv[1], float(sys.argv[2] or -1), int(sys.argv[3])
startup = PersistenceStartupConfig(sys.argv[4]) if sys.argv[4] else None
options = {"persistence": backend_from_url(url), "startup": startup, "audit_interval": None}
ending = []
signal.signal(signal.SIGTERM, lambda *_: ending.append(True))

async def main():
    async with ActorSystem("live", **options) as system:
        number = 0
        while not ending:
            if pace >= 0 or not number:
                payloads = [{"n": number + i, "x": "x" * size} for i in range(20)]
                events = [PersistedEvent("live", "live/a", "Lived", p, 2e9) for p in payloads]
                number = (await system.persistence.ask(AppendMany(tuple(events)))).last_seq
                print(number, flush=True)
            await anyio.sleep(pace if pace >= 0 else 0.01)

anyio.run(main)
"""


@dataclasses.dataclass
class Live:
    """A system that writes a store."""

    process: subprocess.Popen[str]

    def written(self) -> int:
        """Return the position that it says next that it has written."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it has ended"
        return int(line)


@contextmanager
def a_live_system(
    url: str, *, pace: float | None = None, size: int = 10, startup: str = ""
) -> Iterator[Live]:
    """Let another process write, and go on so, with `pace` seconds between, or rest.

    `startup` is the mode of its check, if there is to be one. It must end well in the end.
    """
    pause = "" if pace is None else str(pace)
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, url, pause, str(size), startup],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            live = Live(process)
            live.written()
            yield live
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (0, "")
        finally:
            process.kill()


def copy_of(store: Store, directory: Path) -> Store:
    """Return another store with the same in it."""
    if store.path is None:
        assert store.server is not None
        copied = new_store("redis", directory, store.server)
        for key in keys_of(store):
            cli(store, "COPY", key, key.replace(store.tag, copied.tag))
        return copied
    directory = directory / "copies"
    directory.mkdir(exist_ok=True)
    copied = new_store(store.kind, directory, RedisServer(Path(), port=1))
    assert copied.path is not None
    if store.path.is_dir():
        shutil.copytree(store.path, copied.path)
    elif store.path.exists():
        shutil.copy2(store.path, copied.path)
    return copied


# Scanning


def test_papyra_scan_of_a_sound_store_finds_nothing(papyra: Command, store: Store) -> None:
    fill(store)
    before = contents(store)
    done = papyra("scan", store.name)
    assert (done.code, done.out) == (0, "")
    assert f"{COUNT} records" in done.err
    assert "nothing is wrong" in done.err
    said = papyra("scan", store.name, "--json")
    assert (said.code, said.err) == (0, "")
    sizes = sum(len(body) for _, body in facts(store))
    assert jq("[.records_scanned, .anomalies, .is_clean]", said.out) == [COUNT, [], True]
    assert jq(".bytes_scanned", said.out) >= sizes
    shown = papyra.on_terminal("scan", store.name)
    assert shown.code == 0
    assert "nothing is wrong" in shown.text
    assert contents(store) == before


@pytest.mark.parametrize("where", ["piped", "json", "terminal"])
def test_papyra_scan_reports_the_kind_and_the_place_of_every_anomaly(
    papyra: Command, store: Store, where: str
) -> None:
    fill(store)
    wounds, _ = damage(store, left=True)
    before = contents(store)
    match where:
        case "piped":
            _check_lines(papyra("scan", store.name), wounds, store)
        case "json":
            _check_json(papyra("scan", store.name, "--json"), wounds)
        case _:
            _check_terminal(papyra.on_terminal("scan", store.name, columns=WIDE), wounds)
    assert contents(store) == before


def _check_lines(done: Done, wounds: list[Wound], store: Store) -> None:
    assert done.code == 3
    assert len(done.rows) == len(wounds)
    found: list[tuple[Any, ...]] = []
    for kind, where, detail in done.rows:
        assert detail
        if store.path is None:
            key, _, entry = where.partition(" ")
            found.append((kind, key, 0, None, entry))
            if entry:
                assert cli(store, "XRANGE", key, entry, entry).startswith(entry)
            continue
        match = re.fullmatch(r"(.*?)(?::(\d+) \(byte ([\d,]+)\))?", where)
        assert match is not None
        line = int(match[2] or 0)
        offset = None if match[3] is None else int(match[3].replace(",", ""))
        found.append((kind, match[1], line, offset, ""))
        if line:
            (data,) = {wound.data for wound in wounds if (wound.kind, wound.line) == (kind, line)}
            assert data is not None
            assert sed(match[1], line) == data
            assert Path(match[1]).read_bytes()[offset:].startswith(data)
        else:
            assert Path(where).exists()
    assert sorted(found) == as_reported(wounds)
    for kind in {wound.kind for wound in wounds}:
        count = sum(wound.kind == kind for wound in wounds)
        assert f"{count} {kind}" in done.err, "it is summed up"


def _check_json(done: Done, wounds: list[Wound]) -> None:
    assert (done.code, done.err) == (3, "")
    assert len(done.lines) == 1
    assert wounds_in(jq(".", done.out)) == as_reported(wounds)
    for kind, meaning in jq("[.anomalies[] | [.kind, .meaning]]", done.out):
        assert MEANINGS[kind] in meaning
    with pytest.raises(AssertionError):  # as jq -e has it, false is no success
        assert jq(".is_clean", done.out)


def _check_terminal(done: Done, wounds: list[Wound]) -> None:
    assert done.code == 3
    lines = [line.split() for line in done.text.splitlines()]
    for wound in wounds:
        place = wound.place if wound.line is None else f"{wound.place}:{wound.line}"
        (line,) = {
            " ".join(words)
            for words in lines
            if words[:2] == [wound.kind, place] and (wound.entry is None or wound.entry in words)
        }
        if wound.offset is not None:
            assert f"(byte {wound.offset:,})" in line
    for kind in {wound.kind for wound in wounds}:
        (said,) = [" ".join(words) for words in lines if words[:1] == [kind] and len(words) > 1][
            -1:
        ]
        assert MEANINGS[kind] in said
    assert "papyra recover" in done.text


@pytest.mark.parametrize("columns", [40, 100])
def test_papyra_scan_fits_the_width_of_a_terminal(
    papyra: Command, store: Store, columns: int
) -> None:
    fill(store)
    damage(store, left=True)
    done = papyra.on_terminal("scan", store.name, columns=columns, env={"NO_COLOR": "1"})
    assert done.code == 3
    assert not re.search(r"\x1b\[[0-9;]+m", done.out)
    table = done.text.partition(f"{store.name.partition('?')[0][:8]}")[0]
    assert max(map(len, table.splitlines()), default=0) <= columns


def test_papyra_scan_lists_some_anomalies_on_a_terminal_and_all_of_them_in_a_pipe(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("json", tmp_path, redis_server)
    fill(store, 250)
    path = files_of(store)[0]
    path.write_bytes(path.read_bytes().replace(b".0}\n", b".7}\n"))
    assert [row[0] for row in papyra("scan", store.name).rows] == ["checksum"] * 250
    shown = papyra.on_terminal("scan", store.name, columns=WIDE)
    assert shown.text.count("was changed") < 250
    assert "and 50 more" in shown.text


@pytest.mark.parametrize("what", ["a file", "a directory", "nothing at all", "a stream"])
def test_papyra_scan_and_recover_fail_on_a_missing_store_and_create_none(
    papyra: Command, tmp_path: Path, redis_server: RedisServer, what: str
) -> None:
    (tmp_path / "empty").mkdir()
    url = f"redis://127.0.0.1:{redis_server.port}/0?system_id=nobody"
    names = {
        "a file": "no.ndjson",
        "a directory": "empty",
        "nothing at all": "no/",
        "a stream": url,
    }
    for command in (["scan"], ["recover", "--yes"]):
        done = papyra(*command, names[what])
        assert (done.code, done.out) == (1, "")
        assert "no store" in one_line(done) or "no journal" in one_line(done)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []
    assert redis_server.cli("KEYS", "*nobody*") == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan"],
        ["recover", "--yes"],
        ["recover", "--dry-run"],
        ["doctor"],
        ["doctor", "--mode", "recover"],
    ],
    ids=" ".join,
)
def test_papyra_scan_recover_and_doctor_do_nothing_in_memory(
    papyra: Command, arguments: list[str]
) -> None:
    done = papyra(*arguments, "memory:")
    assert (done.code, done.err) == (0, "")
    assert "not supported" in done.out
    assert "nothing to do" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "--deep"],
        ["scan", "a.ndjson", "b.ndjson"],
        ["recover", "--mode", "magic"],
        ["recover", "--quarantine-dir", "aside"],
        ["recover", "--mode", "repair", "--quarantine-dir", "aside"],
        ["doctor", "--mode", "repair"],
    ],
    ids=" ".join,
)
def test_invalid_options_of_papyra_scan_recover_and_doctor_are_wrong_use(
    papyra: Command, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "a.ndjson").write_text("so what\n")
    command, *rest = arguments
    done = papyra(command, "a.ndjson", *rest)
    assert (done.code, done.out) == (2, "")
    one_line(done)
    assert (tmp_path / "a.ndjson").read_text() == "so what\n"


# From damage to a sound store


def test_papyra_recover_repairs_a_store_and_keeps_every_readable_record(
    papyra: Command, store: Store
) -> None:
    fill(store)
    sound = facts(store)
    wounds, lost = damage(store)
    before = contents(store)
    assert papyra("scan", store.name).code == 3

    shown = papyra("recover", store.name, "--dry-run")
    assert shown.code == 3
    counts = {row[0]: int(row[1]) for row in shown.rows}
    kinds = [wound.kind for wound in wounds]
    assert counts == {kind: kinds.count(kind) for kind in kinds}
    assert contents(store) == before
    said = papyra("recover", store.name, "--dry-run", "--json")
    assert said.code == 3
    assert wounds_in(jq("if .done then null else .scan end", said.out)) == as_reported(wounds)
    assert contents(store) == before

    unasked = papyra("recover", store.name)
    assert unasked.code == 2
    assert "--yes" in unasked.err.splitlines()[-1]
    assert contents(store) == before

    done = papyra("recover", store.name, "--yes")
    assert done.code == 0
    assert f"kept {len(sound) - len(lost)} records" in done.out
    assert "nothing is wrong" in done.err
    assert papyra("scan", store.name).code == 0
    assert facts(store) == without_some(sound, lost)
    # The position of what was torn was never given.
    assert append(store, event(99)) == COUNT + (store.path is None)
    assert papyra("scan", store.name).code == 0


def test_papyra_recover_on_a_terminal_repairs_a_store_only_after_a_yes(
    papyra: Command, store: Store
) -> None:
    fill(store)
    sound = facts(store)
    wounds, lost = damage(store)
    before = contents(store)

    refused = papyra.on_terminal("recover", store.name, columns=WIDE, answers=["n"])
    assert refused.code == 1
    assert refused.text.count("nothing was changed") == 1
    assert "recover " in refused.text
    for wound in wounds:
        assert wound.kind in refused.text
    assert contents(store) == before

    silent = at_the_question(papyra, "sendeof", "recover", store.name)
    assert silent.code == 1
    assert "no answer: nothing was changed" in silent.text
    assert contents(store) == before

    mended = papyra.on_terminal("recover", store.name, columns=WIDE, answers=["y"])
    assert mended.code == 0
    assert "nothing is wrong" in mended.text
    assert papyra.on_terminal("scan", store.name).code == 0
    assert facts(store) == without_some(sound, lost)
    again = papyra.on_terminal("recover", store.name)
    assert again.code == 0, "and nobody is asked about nothing"
    assert "nothing to do" in again.text


def test_an_interrupt_at_the_question_of_papyra_recover_changes_nothing(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    damage(file_store)
    before = contents(file_store)
    interrupted = at_the_question(papyra, "sendintr", "recover", file_store.name)
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.text
    assert contents(file_store) == before


def test_an_interrupt_right_before_papyra_recover_waits_for_an_answer_ends_it(
    papyra: Command, tmp_path: Path
) -> None:
    """Python looks for signals between two steps of its own, and there is none any more."""
    (path := tmp_path / "events.ndjson").write_text("so what\n")
    papyra.program = [sys.executable, "-c", _INTERRUPTED_AT_LAST]
    done = papyra.on_terminal("recover", path, "--mode", "quarantine", columns=WIDE)
    assert "[y/n]" in done.text
    assert done.code == 130
    assert path.read_text() == "so what\n"


#: Has Ctrl-C come when what waits for standard input, in C, asks for its number.
_INTERRUPTED_AT_LAST = """
import ctypes, functools, signal, sys
from papyra.cli import main

class Input:
    # what raises a signal returns 0, and that is the number
    fileno = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT)

    def __init__(self, stdin):
        self.stdin = stdin

    def __getattr__(self, name):
        return getattr(self.stdin, name)

sys.stdin = Input(sys.stdin)
main()
"""


def test_an_interrupt_while_papyra_recover_scans_changes_nothing(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store, 40_000, 40_000)
    with files_of(file_store)[-1].open("ab") as file:
        file.write(b"so what\n")
    before = contents(file_store)
    done = interrupted_while_it_reads(papyra, file_store, "recover", file_store.name, "--yes")
    assert done.code == 130
    assert "Traceback" not in done.err
    is_unchanged = contents(file_store) == before
    assert is_unchanged


def test_papyra_recover_dry_run_on_a_terminal_asks_nothing(papyra: Command, store: Store) -> None:
    fill(store)
    damage(store)
    before = contents(store)
    done = papyra.on_terminal("recover", store.name, "--dry-run", columns=WIDE)
    assert done.code == 3
    assert "[y/n]" not in done.text
    assert "what is done" in done.text
    assert contents(store) == before


@pytest.mark.parametrize("elsewhere", [False, True])
def test_papyra_recover_quarantines_original_files_that_can_be_put_back(
    papyra: Command, file_store: Store, tmp_path: Path, elsewhere: bool
) -> None:
    store = file_store
    fill(store)
    sound = facts(store)
    wounds, lost = damage(store)
    if store.kind == "rotating":
        assert store.path is not None
        (store.path / "notes.txt").write_bytes(b"mine\0")
        wounds.append(Wound("foreign_file", str(store.path / "notes.txt")))
    before = contents(store)
    place = tmp_path / "var" / "damaged"
    options = ["--quarantine-dir", place] if elsewhere else []
    done = papyra("recover", store.name, "-m", "quarantine", *options, "--yes", "--json")
    assert done.code == 0
    assert facts(store) == without_some(sound, lost)

    assert store.path is not None
    originals = {Path(path) for path in jq(".quarantined", done.lines[-1])}
    damaged = {Path(wound.place) for wound in wounds if wound.kind != "missing_segment"}
    assert len(originals) == len(damaged)
    assert all(path.is_relative_to(place if elsewhere else store.path.parent) for path in originals)
    for path in originals:
        (target,) = [
            each for each in damaged if each.name == path.name or path.name.startswith(each.name)
        ]
        assert path.read_bytes() == before[str(target.relative_to(store.path.parent))]
        if store.kind == "json":
            path.replace(target)
        else:
            shutil.copy(path, target)
    back = papyra("scan", store.name, "--json")
    # But for what the segment that is gone has been replaced with.
    expected = [wound for wound in wounds if wound.kind != "missing_segment"]
    assert wounds_in(jq(".", back.out)) == as_reported(expected)


def test_papyra_recover_quarantines_original_entries_on_a_redis_server(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("redis", tmp_path, redis_server)
    fill(store)
    sound = facts(store)
    wounds, lost = damage(store)
    bad = [wound for wound in wounds if wound.entry is not None]
    originals = [
        cli(store, "XRANGE", wound.place, wound.entry or "", wound.entry or "") for wound in bad
    ]
    done = papyra("recover", store.name, "--mode", "quarantine", "--yes", "--json")
    assert done.code == 0
    assert facts(store) == without_some(sound, lost)
    kept = []
    for key in jq(".quarantined", done.lines[-1]):
        lines = cli(store, "XRANGE", key, "-", "+").split("\n")
        starts = [number for number, line in enumerate(lines) if line == "id"]
        kept += [
            "\n".join(lines[start + 1 : end - 1 if end else None])
            for start, end in zip(starts, [*starts[1:], None], strict=True)
        ]
    assert sorted(kept) == sorted(originals)


def test_papyra_recover_says_where_the_quarantined_originals_are(
    papyra: Command, store: Store
) -> None:
    fill(store)
    damage(store)
    done = papyra("recover", store.name, "--mode", "quarantine", "--yes")
    start = "the original is at "
    places = [line.removeprefix(start) for line in done.lines if line.startswith(start)]
    assert places
    for place in places:
        if store.path is None:
            assert place in keys_of(store)
        else:
            assert Path(place).is_file()


def but_for_indexes(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is there without indexes, which say when their segments were written."""
    return {name: data for name, data in found.items() if not name.endswith(".index")}


@pytest.mark.parametrize("mode", ["repair", "quarantine"])
def test_papyra_recover_reports_the_anomalies_that_no_recovery_removes(
    papyra: Command, store: Store, mode: str
) -> None:
    fill(store)
    wounds, _ = damage(store, left=True)
    kinds = {"unknown_kind"} | ({"foreign_file"} if store.kind == "rotating" else set())
    if mode == "quarantine":
        kinds -= {"foreign_file"}
    (snapshot,) = [wound for wound in wounds if wound.kind == "unknown_kind"]
    done = papyra("recover", store.name, "--mode", mode, "--yes", "--json")
    assert done.code == 4
    assert {each["kind"] for each in jq(".scan.anomalies", done.lines[-1])} == kinds
    after = but_for_indexes(contents(store))
    assert papyra("scan", store.name).code == 3
    again = papyra("recover", store.name, "--mode", "repair", "--yes")
    assert again.code == 4
    assert {row[0] for row in again.rows if len(row) == 3} == kinds
    assert but_for_indexes(contents(store)) == after
    if snapshot.data is not None:
        assert snapshot.data in files_of(store)[2 if store.kind == "rotating" else 0].read_bytes()
    if store.kind == "rotating" and mode == "repair":
        assert store.path is not None
        assert (store.path / "notes.txt").read_text() == "mine"


NO_STORES = {
    "flights.csv": (Path(__file__).parents[2] / "examples/flights-2013-01-01.csv").read_bytes(),
    "passwd": Path("/etc/passwd").read_bytes(),
    "picture.png": bytes(range(256)) * 20,
    "zeros.ndjson": bytes(5000),
}


@pytest.mark.parametrize("name", NO_STORES)
def test_papyra_recover_does_not_empty_a_file_that_is_no_store(
    papyra: Command, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    data = NO_STORES[name]
    path.write_bytes(data)
    assert papyra("scan", path).code == 3
    done = papyra("recover", path, "--yes")
    assert done.code == 1
    assert "quarantine" in done.err.splitlines()[-1]
    assert path.read_bytes() == data
    kept = papyra("recover", path, "--yes", "--mode", "quarantine", "--json")
    assert kept.code == 0
    (copy,) = jq(".quarantined", kept.lines[-1])
    assert Path(copy).read_bytes() == data


@pytest.mark.parametrize("name", ["flights.csv", "passwd", "picture.png"])
def test_papyra_doctor_does_not_empty_a_file_that_is_no_store(
    papyra: Command, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(NO_STORES[name])
    assert papyra("doctor", path).code == 3
    papyra("doctor", path, "--mode", "recover")
    assert path.read_bytes() == NO_STORES[name]


@pytest.mark.parametrize("mode", ["repair", "quarantine"])
def test_papyra_recover_json_prints_one_document_and_nothing_else(
    papyra: Command, store: Store, mode: str
) -> None:
    fill(store)
    sound = papyra("recover", store.name, "--json")
    assert jq("[.done, .scan.is_clean]", sound.out) == [False, True]
    _, lost = damage(store)
    done = papyra("recover", store.name, "--mode", mode, "--yes", "--json")
    assert done.code == 0
    assert len(done.lines) == 1
    kept = COUNT - len(lost)
    assert jq("[.done, .records_kept, .scan.is_clean]", done.out) == [True, kept, True]


# Doctor

MODES: tuple[Literal["ignore", "fail_on_anomaly", "recover"], ...] = (
    "ignore",
    "fail_on_anomaly",
    "recover",
)


def bring_into(store: Store, state: str) -> None:
    if state != "missing":
        fill(store)
    if state == "torn":
        _tear(files_of(store)[-1], [], set())
    elif state in {"damaged", "left"}:
        damage(store, left=state == "left")


def starts(store: Store, mode: Literal["ignore", "fail_on_anomaly", "recover"]) -> bool:
    """Return whether a system starts on it."""

    async def start() -> bool:
        startup = PersistenceStartupConfig(mode)
        try:
            async with ActorSystem("shop", persistence=store.backend(), startup=startup):
                return True
        except StoreDamaged:
            return False

    return anyio.run(start)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", ["clean", "torn", "damaged", "left", "missing"])
def test_papyra_doctor_predicts_whether_a_system_starts_on_a_store(
    papyra: Command, store: Store, tmp_path: Path, state: str, mode: Any
) -> None:
    if store.kind == "redis" and state == "torn":
        state = "damaged"  # nothing is ever torn there
    bring_into(store, state)
    before = contents(store)
    can_start = starts(copy_of(store, tmp_path), mode)
    assert can_start == (mode != "fail_on_anomaly" or state in {"clean", "torn", "missing"})
    done = papyra("doctor", store.name, "--mode", mode, "--json")
    assert done.code == (0 if can_start else 3)
    # jq -e says with its exit code whether that is so, as a script wants it.
    assert jq("if .can_start then [.mode] else [] end", done.out) == ([mode] if can_start else [])
    assert contents(store) == before
    if state in {"damaged", "left"}:
        plans = {"ignore": "start", "fail_on_anomaly": "refuse", "recover": "recover"}
        assert jq(".plan", done.out) == plans[mode]
    elif state == "torn":
        assert jq(".plan", done.out) == ("start" if mode == "ignore" else "truncate")
    else:
        assert jq(".plan", done.out) == "start"


def test_papyra_doctor_says_how_many_bytes_of_a_torn_tail_a_start_would_cut_off(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    with file_store.file.open("ab") as file:
        file.write(b'{"crc":"00000000","v":1,"seq":')
    before = contents(file_store)
    done = papyra("doctor", file_store.name)
    assert done.code == 0
    assert "a system can start: it would cut off a torn end of 30 bytes" in done.err
    assert [row[0] for row in done.rows] == ["torn"]
    assert contents(file_store) == before


def test_papyra_doctor_says_where_a_store_is_damaged(papyra: Command, store: Store) -> None:
    fill(store)
    wounds, _ = damage(store)
    done = papyra("doctor", store.name)
    assert done.code == 3
    assert sorted(row[0] for row in done.rows) == sorted(wound.kind for wound in wounds)
    assert "would not start" in done.err
    shown = papyra.on_terminal("doctor", store.name, columns=WIDE)
    assert shown.code == 3
    for wound in wounds:
        assert wound.place in shown.text
    assert "would not start" in shown.text


def test_papyra_doctor_says_that_a_start_would_recover_a_damaged_store(
    papyra: Command, file_store: Store
) -> None:
    bring_into(file_store, "damaged")
    before = contents(file_store)
    done = papyra("doctor", file_store.name, "--mode", "recover")
    assert done.code == 0
    assert "would recover" in done.err
    assert "checksum" in done.out
    assert contents(file_store) == before


def test_papyra_doctor_says_which_path_keeps_a_system_from_starting(
    papyra: Command, tmp_path: Path
) -> None:
    done = papyra("doctor", tmp_path / "no" / "directory" / "events.ndjson")
    assert done.code == 1
    assert "no directory" in one_line(done)
    (tmp_path / "file").touch()
    done = papyra("doctor", f"{tmp_path}/file/journal/")
    assert done.code == 1
    assert "no directory" in one_line(done)
    (tmp_path / "far.ndjson").symlink_to(tmp_path / "no" / "directory" / "events.ndjson")
    done = papyra("doctor", tmp_path / "far.ndjson")
    assert done.code == 1
    assert "no directory" in one_line(done)
    for name in ("circle", "circle.ndjson"):
        (tmp_path / name).symlink_to(name)
        done = papyra("doctor", tmp_path / name)
        assert done.code == 1
        assert "leads nowhere" in one_line(done)


@pytest.mark.parametrize(
    "note",
    [
        {"pid": 1, "host": "a-container-of-before"},
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        },  # another's number
        {"pid": 2**30, "host": socket.gethostname()},
    ],
)
def test_papyra_doctor_does_not_take_the_lock_note_of_a_crashed_process_for_a_writer(
    papyra: Command, file_store: Store, note: dict[str, Any]
) -> None:
    fill(file_store)
    assert file_store.path is not None
    path = file_store.path
    lock = path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock")
    lock.write_text(json.dumps(note))
    assert starts(copy_of(file_store, papyra.home), "fail_on_anomaly")
    assert papyra("doctor", file_store.name).code == 0


def test_papyra_doctor_on_a_missing_store_succeeds_and_creates_none(
    papyra: Command, store: Store
) -> None:
    for done in (papyra("doctor", store.name), papyra.on_terminal("doctor", store.name)):
        assert done.code == 0
        assert "start" in (done.err or done.text)
    assert contents(store) == {}


def test_papyra_scan_recover_and_doctor_fail_when_the_redis_server_is_away(papyra: Command) -> None:
    for command in ("scan", "recover", "doctor"):
        done = papyra(command, "redis://127.0.0.1:1/0?retry_for=0")
        assert (done.code, done.out) == (1, "")
        assert "127.0.0.1:1" in one_line(done)


# While somebody has it open


@pytest.mark.parametrize(("size", "pace"), [(10, 0), (10_000, 0.01)])
def test_papyra_scan_finds_a_store_clean_while_a_system_writes_it(
    papyra: Command, store: Store, size: int, pace: float
) -> None:
    url = f"{store.url}?max_segment_records=150" if store.kind == "rotating" else store.url
    # Faster than that, it is more each time than a scan reads while it is written.
    with a_live_system(url, pace=pace if store.path else max(pace, 0.003), size=size) as live:
        counts = []
        for _ in range(5):
            done = papyra("scan", store.name, "--json")
            assert (done.code, done.err) == (0, ""), done.out
            counts.append(jq(".records_scanned", done.out))
        assert counts == sorted(counts)
        assert counts[-1] > counts[0]
        live.process.send_signal(signal.SIGTERM)
        live.process.communicate()
    assert papyra("scan", store.name).code == 0


def test_papyra_recover_and_doctor_name_the_process_that_has_a_file_store_open(
    papyra: Command, file_store: Store
) -> None:
    store = file_store
    fill(store)
    # A wound that a reader sees, and a writer that has the store open passes over.
    damage(store)
    with a_live_system(store.url, size=1, startup="ignore") as live:
        before = contents(store)
        assert papyra("scan", store.name).code == 3
        for arguments in (
            ["recover", "--yes"],
            ["recover", "--yes", "--json", "--mode", "quarantine"],
            ["doctor"],
            ["doctor", "--mode", "ignore"],
            ["doctor", "--mode", "recover", "--json"],
        ):
            done = papyra(arguments[0], store.name, *arguments[1:])
            assert done.code == 1
            assert "Traceback" not in done.err
            error = done.err.splitlines()[-1]
            assert f"process {live.process.pid} " in error
            assert store.name.rstrip("/") in error
            assert contents(store) == before
        shown = papyra.on_terminal("recover", store.name, columns=WIDE, answers=["y"])
        assert shown.code == 1
        assert f"process {live.process.pid} " in shown.text
        assert papyra("recover", store.name, "--dry-run").code == 3
        assert contents(store) == before
    assert papyra("recover", store.name, "--yes").code == 0


def test_a_system_on_redis_goes_on_writing_while_papyra_doctor_and_recover_run(
    papyra: Command, tmp_path: Path, redis_server: RedisServer
) -> None:
    store = new_store("redis", tmp_path, redis_server)
    with a_live_system(store.url, pace=0.003) as live:
        for arguments in (["doctor"], ["recover", "--yes"], ["recover", "--dry-run"]):
            assert papyra(arguments[0], store.name, *arguments[1:]).code == 0
            live.written()
        cli(store, "XADD", f"{store.tag}:audits", "*", "celsius", "21")
        assert papyra("scan", store.name).code == 3
        assert papyra("recover", store.name, "--yes").code == 0
        live.written()
    assert papyra("scan", store.name).code == 0
