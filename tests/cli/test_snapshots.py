"""What commands do to a store with snapshots beside its records: nothing that they should not."""

from __future__ import annotations

import json

import anyio
import msgspec

from papyra.persistence import SaveSnapshot
from papyra.persistence.backends.snapshots import snapshots_of
from tests.cli.conftest import T0, Command, Store, event, new_store
from tests.redis_server import RedisServer

#: Revisions of the snapshots.
SAVED = (3, 6)


def fill(store: Store) -> None:
    """Write a history of six events, two snapshots, and what may be compacted."""

    async def write() -> None:
        async with store.backend() as backend:
            for revision in range(1, 7):
                step = event(revision, actor_address="shop/a", revision=revision)
                appended = await backend.append(step, event(revision))
                if revision in SAVED:
                    state = msgspec.Raw(b"%d" % revision)
                    seq = appended.first_seq
                    await backend.execute(SaveSnapshot("shop/a", revision, seq, state, T0))

    anyio.run(write)


def identity(store: Store) -> tuple[str | None, int]:
    """Return a store's id, and the revision of the snapshot that is given out, or 0."""

    async def look() -> tuple[str | None, int]:
        async with store.backend() as backend:
            found = (await backend.load_snapshot("shop/a")).snapshot
            return await backend.store_id(), found.revision if found else 0

    return anyio.run(look)


def test_commands_find_nothing_wrong_with_snapshots_and_keep_them(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    before = identity(file_store)
    assert before[1] == SAVED[-1]
    for call in (
        ["scan"],
        ["doctor"],
        ["inspect"],
        ["recover", "--yes"],
        ["compact", "--max-records", "1", "--yes"],
        ["scan"],
    ):
        command, *options = call
        done = papyra(command, file_store.name, *options)
        assert done.code == 0, (call, done)
    assert identity(file_store) == before


def spoil(store: Store) -> None:
    """Have one more snapshot that is damaged, and one of another actor."""

    async def write() -> None:
        async with store.backend() as backend:
            kept = snapshots_of(backend.store)
            await kept.save_snapshot("shop/a", 5, b"rubbish")
            await kept.save_snapshot("shop/b", 6, await kept.load_snapshot("shop/a", 6) or b"")

    anyio.run(write)


def test_a_copy_has_an_id_of_its_own_and_the_good_snapshots(
    papyra: Command, file_store: Store, redis_server: RedisServer
) -> None:
    fill(file_store)
    spoil(file_store)
    before = identity(file_store)
    for kind in ("json", "rotating", "redis"):
        target = new_store(kind, papyra.home, redis_server)
        for copied in (12, 0):
            done = papyra("copy", file_store.name, target.name, "--json")
            assert done.code == 0
            told = json.loads(done.out)
            assert (told["copied"], told["snapshots"], told["snapshots_left_out"]) == (copied, 2, 2)
        store_id, revision = identity(target)
        assert store_id not in (None, before[0])
        assert revision == SAVED[-1]
        assert papyra("scan", target.name).code == 0
        back = new_store("json", papyra.home, redis_server)
        assert papyra("copy", target.name, back.name).code == 0
        assert identity(back)[1] == SAVED[-1]
        assert papyra("scan", back.name).code == 0
    assert identity(file_store) == before


def test_a_bad_snapshot_is_reported_and_mended_and_keeps_no_system_from_starting(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    spoil(file_store)
    done = papyra("scan", file_store.name)
    assert done.code == 3
    assert done.out.count("snapshot") >= 2
    assert "nothing is lost with it but time" in done.out
    assert papyra("doctor", file_store.name).code == 0
    assert papyra("recover", file_store.name, "--dry-run").code == 3
    assert papyra("recover", file_store.name, "--yes").code == 0
    assert papyra("scan", file_store.name).code == 0
    assert identity(file_store)[1] == SAVED[-1]


def test_inspect_counts_snapshots(papyra: Command, file_store: Store) -> None:
    fill(file_store)
    told = json.loads(papyra("inspect", file_store.name, "--json").out)
    assert told["snapshots"] == 2
    assert 200 < told["snapshot_bytes"] < 2000
    lines = papyra("inspect", file_store.name).out.splitlines()
    assert [line for line in lines if line.startswith("snapshots")]

    async def remove_all() -> None:
        async with file_store.backend() as backend:
            for revision in SAVED:
                await snapshots_of(backend.store).remove_snapshot("shop/a", revision)

    anyio.run(remove_all)
    told = json.loads(papyra("inspect", file_store.name, "--json").out)
    assert (told["snapshots"], told["snapshot_bytes"]) == (0, 0)
    lines = papyra("inspect", file_store.name).out.splitlines()
    assert not [line for line in lines if line.startswith("snapshots")]


def test_nothing_is_copied_onto_what_is_beside_a_store(papyra: Command, file_store: Store) -> None:
    fill(file_store)
    before = identity(file_store)
    name = file_store.name
    beside = [".id", ".snapshots"] if name.endswith("/") else [f"{name}.id", f"{name}.snapshots"]
    for place in beside:
        target = f"{name}{place}" if name.endswith("/") else place
        assert papyra("copy", name, target).code != 0
    assert identity(file_store) == before


TRIM = ("--max-records", "1", "--trim-histories")


def test_papyra_compact_trims_a_history_as_its_dry_run_says(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    told = papyra("compact", file_store.name, *TRIM, "--dry-run")
    assert "trimmed\t1\t2 events to remove: they begin with a snapshot" in told.out
    kept = papyra("compact", file_store.name, "--max-records", "1", "--dry-run")
    assert "trimmed" not in kept.out
    assert papyra("history", "shop/a", file_store.name).out.count("\n") == 6

    plan = json.loads(papyra("compact", file_store.name, *TRIM, "--dry-run", "--json").out)
    done = json.loads(papyra("compact", file_store.name, *TRIM, "--yes", "--json").out)
    assert done == plan | {"done": True}
    assert done["retention"]["trim_histories"]
    assert done["histories"] == {
        "supported": True,
        "trimmed": 1,
        "events_removed": 2,
        "without_snapshots": 0,
        "still_shown": 0,
    }
    shown = papyra("history", "shop/a", file_store.name)
    assert shown.code == 0, "it is whole"
    assert [line.split("\t")[::2][:2] for line in shown.out.splitlines()] == [
        ["3", "papyra.base"],
        *([str(revision), "Counted"] for revision in range(4, 7)),
    ]
    assert papyra("scan", file_store.name).code == 0


def test_papyra_compact_says_why_a_history_is_not_trimmed(
    papyra: Command, file_store: Store
) -> None:
    fill(file_store)
    done = papyra("compact", file_store.name, "--max-records", "8", *TRIM[2:], "--dry-run")
    assert "kept\t1\tthe limits keep what the oldest snapshot sums up" in done.out
    trim_away = papyra("compact", file_store.name, *TRIM, "--yes")
    assert trim_away.code == 0
    again = papyra("compact", file_store.name, *TRIM, "--yes")
    assert "trimmed" not in again.out


def test_papyra_compact_trims_a_history_beside_the_writer_of_a_store_in_redis(
    papyra: Command, redis_server: RedisServer
) -> None:
    store = new_store("redis", papyra.home, redis_server)
    fill(store)

    def trim() -> None:
        plan = json.loads(papyra("compact", store.name, *TRIM, "--dry-run", "--json").out)
        done = json.loads(papyra("compact", store.name, *TRIM, "--yes", "--json").out)
        assert done == plan | {"done": True}
        assert (done["histories"]["trimmed"], done["histories"]["events_removed"]) == (1, 2)

    async def write_on() -> None:
        async with store.backend() as backend:
            await backend.append(event(7, actor_address="shop/a", revision=7))
            await anyio.to_thread.run_sync(trim)
            await backend.append(event(8, actor_address="shop/a", revision=8))

    anyio.run(write_on)
    shown = papyra("history", "shop/a", store.name)
    assert shown.code == 0, "it is whole"
    assert shown.out.startswith("3\t")
    assert "papyra.base" in shown.out
    assert shown.out.count("\n") == 6
    assert papyra("scan", store.name).code == 0


def test_papyra_copy_takes_a_base_along(papyra: Command, file_store: Store) -> None:
    fill(file_store)
    papyra("compact", file_store.name, *TRIM, "--yes")
    copy = str(papyra.home / "copied.ndjson")
    assert papyra("copy", file_store.name, copy).code == 0
    before = papyra("history", "shop/a", file_store.name)
    assert "papyra.base" in before.out
    assert papyra("history", "shop/a", copy).out == before.out
    assert papyra("scan", copy).code == 0
