"""``papyra copy``: between stores of every kind, interrupted in every way.

``PAPYRA_FLIGHTS=path`` copies a whole year of flights instead of a day.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import anyio
import msgspec
import pexpect
import pytest

from examples.flights import FIRST_DAY, Progress, fly, read_flights
from papyra import ActorSystem
from papyra.persistence import (
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.retention import RetentionPolicy
from tests.cli.conftest import KINDS, T0, Command, Done, Store, audit, event, new_store
from tests.cli.halting import stuck_file
from tests.cli.test_checking import (
    STREAMS,
    WIDE,
    a_live_system,
    append,
    cli,
    contents,
    damage,
    facts,
    files_of,
    fill,
    jq,
    line_of,
    one_line,
    record,
)
from tests.conftest import kind_for
from tests.extent import CI, count
from tests.persistence.backends.files.test_full_disk import a_small_disk
from tests.redis_server import RedisServer, any_binary

FLIGHTS = Path(os.environ.get("PAPYRA_FLIGHTS", FIRST_DAY))
#: Records that take long enough to copy for somebody to interrupt that.
MANY = count("PAPYRA_COPIED", 20_000, 40_000)
#: Positions that such a copy does not go beyond, however late it is interrupted: behind its first
#: batch, be it the largest there is, and before its last one.
FIRST_BATCH, NOT_ALL = 12_000, 1_999 + MANY


@pytest.fixture(params=KINDS if CI else None)
def target(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Store:
    """Where to copy to."""
    return new_store(kind_for(request, KINDS), tmp_path, redis_server)


@pytest.fixture
def source(tmp_path: Path, redis_server: RedisServer) -> Store:
    """What to copy where it does not matter what sort it is."""
    return new_store("json", tmp_path, redis_server)


def varied() -> list[Record]:
    """Return records of all kinds with what may be in them, at times that go back and forth."""
    payloads = [
        None,
        True,
        0,
        -1,
        2**64 - 1,
        0.1 + 0.2,
        1e300,
        1e-7,
        100.0,
        "",
        'ünï 🎭 \u2028 \\ " \n\t\x00',
        [],
        {},
        [[1, [2, {"deep": [None]}]]],
        {"": {"ключ": 1.0}, "kind": "audit", "seq": 7},
        "x" * 5000,
    ]
    times = itertools.cycle([T0 + 0.123456, T0 - 1e6, 0.0, -5.5, 9e9, T0])
    return [
        made
        for payload in payloads
        for made in (
            PersistedEvent("shop", "shop/ä/b", "Ünï", payload, next(times)),
            PersistedAudit("shop", payload, next(times)),
            PersistedDeadLetter("shop", "shop/a", "str", payload, bool(payload), next(times)),
        )
    ]


def compact(store: Store, policy: RetentionPolicy) -> None:
    async def work() -> None:
        async with store.backend() as backend:
            await backend.compact(policy)

    anyio.run(work)


#: What a line says of itself: its checksum, its position, and the line before it.
_PLACE = re.compile(rb'\{"crc":"[0-9a-f]{8}","v":1,"seq":(\d+),(?:"after":(\d+),)?')


def _place(head: re.Match[bytes]) -> bytes:
    """Return a line's place without what it was written together with, which a copy has not."""
    follows = head[2] is None or int(head[2]) >= int(head[1])
    return b'{"seq":%b,"after":%d,' % (head[1], int(head[1]) - 1 if follows else int(head[2]))


def written(store: Store) -> dict[str, bytes]:
    """Return what holds the records, in full: what two copies of one source have the same of."""
    if store.path is not None:
        return {
            path.name if store.path.is_dir() else "file": _PLACE.sub(_place, path.read_bytes())
            for path in files_of(store)
        }
    found = {
        stream: cli(store, "XRANGE", f"{store.tag}:{stream}", "-", "+").encode()
        for stream in STREAMS
    }
    lines = cli(store, "HGETALL", f"{store.tag}:meta").split("\n")
    meta = dict(zip(lines[::2], lines[1::2], strict=True))
    kept = {name: meta[name] for name in sorted(meta) if name not in {"epoch", "writer"}}
    return found | {"meta": repr(kept).encode()}


def progress_of(store: Store) -> int:
    """Return how far a copy is: bytes, or entries."""
    if store.path is None:
        assert store.server is not None
        return sum(int(store.server.ask("XLEN", f"{store.tag}:{stream}")[1:]) for stream in STREAMS)
    try:
        return sum(path.stat().st_size for path in files_of(store))
    except FileNotFoundError:
        return 0


def wait_for(store: Store, least: int, stuck: Path, is_running: Callable[[], bool]) -> None:
    """Return once a copy has come so far, or is stuck as it was told to be."""
    give_up_at = time.monotonic() + 60
    while progress_of(store) < least and not stuck.exists():
        assert is_running(), "it has ended"
        assert time.monotonic() < give_up_at
        os.sched_yield()  # the copy is to have the processor


def name_of(store: Store) -> str:
    """Return what to call a target, so that it has several segments."""
    if store.kind == "rotating":
        return f"rotating:{store.path}?max_segment_records=9000"
    return store.name


def is_a_beginning(part: Store, whole: dict[str, bytes]) -> bool:
    """Return whether what is there is what a copy writes first, but for a line that was torn."""
    for name, data in written(part).items():
        # Of a torn line it can't be told what of it is no part of the record.
        lines = data if part.path is None else data[: data.rfind(b"\n") + 1]
        if name != "meta" and not whole[name].startswith(lines):
            return False
    return True


# From each kind to each


def test_papyra_copy_keeps_records_and_their_positions(
    papyra: Command, store: Store, target: Store
) -> None:
    append(store, *varied(), segment=9)
    compact(store, RetentionPolicy(max_records=12))
    append(store, *varied(), audit(1), event(2), segment=9)
    before, wanted = contents(store), facts(store)
    assert len(wanted) == 36 + 50, "there is a gap, and what follows it"

    done = papyra("copy", store.name, target.name)
    assert (done.code, done.out) == (0, "")
    assert "86 records copied" in done.err
    assert "86 verified" in done.err
    assert facts(target) == wanted
    assert papyra("scan", target.name).code == 0

    append(store, *varied()[:20], segment=9)
    there = papyra("copy", store.name, target.name, "--json")
    assert (there.code, there.err) == (0, "")
    assert jq("[.copied, .there_before, .verified]", there.out) == [20, 86, 106]
    assert facts(target) == facts(store)
    if {store.kind, target.kind} == {"json"}:
        assert written(target) == written(store)

    rest = contents(target)
    again = papyra.on_terminal("copy", store.name, target.name, columns=WIDE)
    assert again.code == 0
    assert "0 records copied (106 were there before)" in again.text
    assert contents(target) == rest
    if store.path is not None:
        assert all(contents(store)[name].startswith(data) for name, data in before.items())


def test_papyra_copy_of_flights_to_redis_and_back_is_the_same_byte_for_byte(
    papyra: Command, tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (new_store("json", tmp_path, redis_server) for _ in range(2))
    server = new_store("redis", tmp_path, redis_server)
    rotating = new_store("rotating", tmp_path, redis_server)
    assert first.path is not None
    assert second.path is not None
    backend = JsonFilePersistence(first.path, fsync="no")

    async def work() -> None:
        async with ActorSystem("flights", persistence=backend) as system:
            await fly(system, read_flights(FLIGHTS), Progress())

    anyio.run(work)
    rates = []
    steps = [(first, server), (server, rotating), (rotating, second)]
    for origin, destination in steps:
        with papyra.start("copy", origin.name, destination.name, "--json") as process:
            out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        copied, seconds = jq("[.verified, .seconds]", out)
        rates.append(f"{origin.kind} to {destination.kind}: {copied:,} in {seconds:.1f} s")
    assert written(first) == written(second)
    lines = first.path.read_bytes().count(b"\n")
    assert copied == lines
    assert sum(int(cli(server, "XLEN", f"{server.tag}:{each}")) for each in STREAMS) == lines
    with capsys.disabled():
        if FLIGHTS != FIRST_DAY:
            print(f"\n{first.path.stat().st_size:,} bytes, the same; {'; '.join(rates)}")


if FLIGHTS != FIRST_DAY:  # a year of them
    test_papyra_copy_of_flights_to_redis_and_back_is_the_same_byte_for_byte = pytest.mark.timeout(
        1800
    )(test_papyra_copy_of_flights_to_redis_and_back_is_the_same_byte_for_byte)


def test_papyra_copy_goes_on_at_later_positions_after_the_source_was_compacted_empty(
    papyra: Command, store: Store, source: Store
) -> None:
    fill(store, 10)
    compact(store, RetentionPolicy(max_age_seconds=1))
    assert papyra("copy", store.name, source.name).code == 0
    assert append(store, *varied()[:3]) == 13
    assert papyra("copy", store.name, source.name).code == 0
    assert [seq for seq, _ in facts(source)] == [11, 12, 13]
    assert facts(source) == facts(store)


# Interrupted


@pytest.fixture(scope="module")
def long_source(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Store:
    """A store that takes its time, of all kinds of records, and with gaps."""
    store = new_store("json", tmp_path_factory.mktemp("long"), redis_server)
    store.append(*map(record, range(2_000)))
    compact(store, RetentionPolicy(max_records=100))
    store.append(*map(record, range(MANY)))
    return store


def test_papyra_copy_that_is_killed_again_and_again_comes_to_its_end(
    papyra: Command, long_source: Store, target: Store, tmp_path: Path, redis_server: RedisServer
) -> None:
    whole = new_store(target.kind, tmp_path, redis_server)
    assert papyra("copy", long_source.name, name_of(whole)).code == 0
    wanted, end = written(whole), progress_of(whole)
    reached = []
    copying = papyra.halting("--copied", NOT_ALL)
    for part in (0.02, 0.4, 0.8) if CI else (0.02, 0.5):
        with copying.start("copy", long_source.name, name_of(target)) as process:
            stuck = stuck_file(papyra.home, process.pid)
            wait_for(target, int(end * part), stuck, lambda: process.poll() is None)
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached.append(progress_of(target))
        assert is_a_beginning(target, wanted)
    assert reached[0] < end
    done = papyra("copy", long_source.name, name_of(target), "--json")
    assert done.code == 0
    total = jq(".verified", done.out)
    assert total == MANY + 300
    assert 0 < jq(".there_before", done.out) < total
    assert written(target) == wanted
    assert papyra("scan", target.name).code == 0


def test_papyra_copy_writes_a_torn_line_of_its_target_anew(
    papyra: Command, file_store: Store, source: Store
) -> None:
    fill(source, 40)
    assert papyra("copy", source.name, file_store.name).code == 0
    whole = written(file_store)
    path = files_of(file_store)[-1]
    data = path.read_bytes()
    for length in (len(data) - 1, len(data) - 30, len(data) // 2, 10, 0):
        path.write_bytes(data[:length])
        done = papyra("copy", source.name, file_store.name, "--json")
        assert done.code == 0
        assert jq(".verified", done.out) == 40
        assert jq(".there_before", done.out) == data[:length].count(b"\n")
        assert written(file_store) == whole


def test_papyra_copy_that_is_interrupted_says_how_to_go_on(
    papyra: Command, long_source: Store, target: Store
) -> None:
    copying = papyra.halting("--copied", FIRST_BATCH)
    with copying.start("copy", long_source.name, name_of(target)) as process:
        stuck = stuck_file(papyra.home, process.pid)
        wait_for(target, sys.maxsize, stuck, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "goes on" in err.splitlines()[-1]
    assert "verified" not in err, "it has ended before its end"
    first = progress_of(target)

    copying = papyra.halting("--copied", NOT_ALL)
    child = copying.terminal("copy", long_source.name, name_of(target))
    # A batch that is on its way then is taken back; what came before it stays.
    wait_for(target, first + 1, stuck_file(papyra.home, child.pid), child.isalive)
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "goes on" in (child.before or "")
    assert "Traceback" not in (child.before or "")
    assert "verified" not in (child.before or "")

    done = papyra("copy", long_source.name, name_of(target), "--json")
    assert done.code == 0
    assert jq(".there_before", done.out) > 0
    assert facts(target) == facts(long_source)


# What is no copy


def test_papyra_copy_leaves_a_target_with_other_records_alone(
    papyra: Command, source: Store, target: Store
) -> None:
    fill(source, 40)
    others = [record(number) for number in range(30)]
    append(target, *others[:19], event(99), *others[20:])
    before = contents(target)
    done = papyra("copy", source.name, target.name)
    assert (done.code, done.out) == (1, "")
    assert "differs from the source at record 20" in one_line(done)
    assert contents(target) == before


def test_papyra_copy_leaves_a_target_with_more_records_than_the_source_alone(
    papyra: Command, store: Store, target: Store
) -> None:
    fill(store, 20)
    fill(target, 25)
    before = contents(target)
    done = papyra("copy", store.name, target.name)
    assert (done.code, done.out) == (1, "")
    assert "25" in one_line(done)
    assert "20" in one_line(done)
    assert contents(target) == before


def test_papyra_copy_refuses_a_target_with_a_record_that_the_source_has_not(
    papyra: Command, source: Store, target: Store
) -> None:
    append(source, *map(event, range(30)))
    compact(source, RetentionPolicy(max_records=10))
    append(target, *map(event, range(20)))
    append(source, event(30))
    before = contents(target)
    done = papyra("copy", source.name, target.name)
    assert done.code == 1
    assert "source" in one_line(done)
    assert contents(target) == before


@pytest.mark.parametrize("how", ["changed", "broken", "removed"])
@pytest.mark.parametrize("seq", [1, 17, 39])
def test_papyra_copy_refuses_a_target_that_was_changed_since_the_last_copy(
    papyra: Command, source: Store, target: Store, how: str, seq: int
) -> None:
    fill(source, 40)
    assert papyra("copy", source.name, target.name).code == 0
    append(source, event(41))
    tamper(target, seq, how)
    before = contents(target)
    done = papyra("copy", source.name, target.name)
    assert (done.code, done.out) == (1, "")
    error = done.err.splitlines()[-1]
    # What is broken is seen before anything is compared.
    is_damaged = how != "changed" and "anomalies" in error
    assert is_damaged or f"differs from the source at record {seq}" in error
    assert contents(target) == before


def tamper(store: Store, seq: int, how: str) -> None:
    if store.path is None:
        _tamper_with_stream(store, seq, how)
        return
    path = files_of(store)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    match how:
        case "changed":
            lines[seq - 1] = line_of(
                seq, kind="audit", system_id="shop", payload="mine", timestamp=T0
            )
        case "broken":
            lines[seq - 1] = b"so what\n"
        case _:
            del lines[seq - 1]
    path.write_bytes(b"".join(lines))


def _tamper_with_stream(store: Store, seq: int, how: str) -> None:
    for stream in STREAMS:
        key = f"{store.tag}:{stream}"
        lines = cli(store, "XRANGE", key, "-", "+").split("\n")
        entries = [lines[start : start + 9] for start in range(0, len(lines), 9)]
        if not any(entry[0].endswith(f"-{seq}") for entry in entries):
            continue
        cli(store, "DEL", key)
        for identifier, *fields in entries:
            if identifier.endswith(f"-{seq}"):
                if how == "removed":
                    continue
                fields[1] = fields[1].replace("shop", "mine")
                if how == "changed":
                    fields[7] = f"{crc32(fields[1].encode(), seq):08x}"
            cli(store, "XADD", key, identifier, *fields)


# What can't be copied


def test_papyra_copy_refuses_a_damaged_source(papyra: Command, store: Store, target: Store) -> None:
    fill(store)
    damage(store)
    before = contents(store)
    done = papyra("copy", store.name, target.name)
    assert (done.code, done.out) == (3, "")
    assert "papyra recover" in one_line(done)
    assert contents(target) == {}
    assert contents(store) == before


def test_papyra_copy_of_a_source_with_a_torn_tail_copies_every_whole_record(
    papyra: Command, file_store: Store, target: Store
) -> None:
    fill(file_store, 20)
    path = files_of(file_store)[-1]
    wanted = facts(file_store)[:-1]
    path.write_bytes(path.read_bytes()[:-20])
    before = contents(file_store)
    assert papyra("copy", file_store.name, target.name).code == 0
    assert facts(target) == wanted
    assert contents(file_store) == before


def test_papyra_copy_does_not_copy_a_store_onto_itself(
    papyra: Command, store: Store, tmp_path: Path
) -> None:
    fill(store)
    before = contents(store)
    if store.path is None:
        others = [store.name.replace("/0?", "?"), f"{store.name}&retry_for=1"]
    else:
        link = tmp_path / "link.ndjson"
        link.symlink_to(store.path)
        others = [store.url, f"./{store.path.name}", f"{tmp_path}/../{tmp_path.name}", str(link)]
        others[2] += f"/{store.path.name}"
    done = papyra("copy", store.name, store.name)
    assert (done.code, done.out) == (2, "")
    one_line(done)
    for other in others:
        for arguments in ([store.name, other], [other, store.name]):
            done = papyra("copy", *arguments)
            assert done.code == 2 or (store.path is None and "0 records copied" in done.err)
    assert contents(store) == before


@pytest.mark.parametrize("arguments", [["copy"], ["copy", "memory:"], ["copy", "a", "b", "c"]])
def test_papyra_copy_without_a_source_and_a_target_is_wrong_use(
    papyra: Command, arguments: list[str]
) -> None:
    done = papyra(*arguments)
    assert (done.code, done.out) == (2, "")
    one_line(done)


def test_papyra_copy_to_or_from_memory_does_nothing(papyra: Command, store: Store) -> None:
    assert contents(store) == {}
    for arguments in (["memory:", store.name], ["memory:", "memory:"]):
        done = papyra("copy", *arguments)
        assert (done.code, done.err) == (0, "")
        assert "nothing to do" in done.out
    assert contents(store) == {}
    fill(store, 5)
    done = papyra("copy", store.name, "memory:")
    assert (done.code, done.err) == (0, "")
    assert "not supported" in done.out


def test_papyra_copy_of_a_missing_source_creates_no_target(
    papyra: Command, store: Store, target: Store
) -> None:
    done = papyra("copy", store.name, target.name)
    assert (done.code, done.out) == (1, "")
    assert "no store" in one_line(done)
    assert contents(store) == contents(target) == {}


# While somebody else is at work


def test_papyra_copy_leaves_records_written_meanwhile_to_the_next_copy(
    papyra: Command, store: Store, tmp_path: Path, redis_server: RedisServer
) -> None:
    target = new_store("redis" if store.kind == "json" else "json", tmp_path, redis_server)
    with a_live_system(store.url, pace=0.003) as live:
        for _ in range(2):
            done = papyra("copy", store.name, target.name, "--json")
            assert done.code == 0, done.err
        assert jq(".there_before", done.out) > 0
        live.written()
        live.process.send_signal(signal.SIGTERM)
        live.process.communicate()
    part = facts(target)
    assert part == facts(store)[: len(part)]
    assert papyra("copy", store.name, target.name).code == 0
    assert facts(target) == facts(store)
    assert len(facts(target)) > len(part)


def test_papyra_copy_leaves_a_target_that_a_system_has_open_alone(
    papyra: Command, source: Store, target: Store
) -> None:
    fill(source, 400)
    with a_live_system(target.url, pace=0.003 if target.kind == "redis" else None) as live:
        before = contents(target)
        done = papyra("copy", source.name, target.name)
        assert (done.code, done.out) == (1, "")
        if target.path is not None:
            assert f"process {live.process.pid} " in one_line(done)
            assert contents(target) == before
        else:
            one_line(done)
            live.written()  # and goes on
    assert papyra("scan", target.name).code == 0


# Without room


def append_with_gaps(store: Store, count: int, every: int) -> None:
    numbered = [
        msgspec.structs.replace(event(number), seq=1 + number + number // every)
        for number in range(count)
    ]

    async def work() -> None:
        async with store.backend() as backend:
            await backend.restore(*numbered)

    anyio.run(work)


def is_full(done: Done) -> bool:
    said = one_line(done)
    return "No space left" in said or "too large" in said


def test_papyra_copy_to_a_full_disk_goes_on_once_there_is_room(
    papyra: Command, source: Store, tmp_path: Path, redis_server: RedisServer
) -> None:
    # What has no gap between is written at once, and so as a whole or not at all.
    append_with_gaps(source, 1_400, 100)
    disk = tmp_path / "disk"
    with a_small_disk(disk) as free:
        for kind in ("json", "rotating"):
            target = new_store(kind, disk, redis_server)
            ballast = disk / "ballast"
            for _ in range(2):
                done = papyra("copy", source.name, target.name)
                assert done.code == 1
                assert is_full(done)
                assert 0 < progress_of(target) < progress_of(source)
            free()
            done = papyra("copy", source.name, target.name, "--json")
            assert done.code == 0
            assert jq(".verified", done.out) == 1_400
            assert b"".join(written(target).values()) == b"".join(written(source).values())
            for path in files_of(target):
                path.unlink()
            ballast.write_bytes(b"x" * 100_000)


def test_papyra_copy_to_a_redis_out_of_memory_goes_on_once_there_is_some(
    papyra: Command, source: Store, tmp_path: Path
) -> None:
    fill(source, 20_000, 20_000)
    with RedisServer(any_binary()) as server:
        target = new_store("redis", tmp_path, server)
        info = dict(
            line.split(":", 1) for line in server.cli("INFO", "memory").split("\n") if ":" in line
        )
        server.cli("CONFIG", "SET", "maxmemory", str(int(info["used_memory"]) + 2_000_000))
        done = papyra("copy", source.name, target.name)
        assert (done.code, done.out) == (1, "")
        one_line(done)
        assert 0 < progress_of(target) < 20_000
        server.cli("CONFIG", "SET", "maxmemory", "0")
        assert papyra("copy", source.name, target.name).code == 0
        assert facts(target) == facts(source)
