"""What commands do to a store with snapshots beside its records: nothing that they should not."""

from __future__ import annotations

import anyio
import msgspec

from papyra.persistence import SaveSnapshot
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


def test_a_copy_has_an_id_of_its_own_and_no_snapshots(
    papyra: Command, file_store: Store, redis_server: RedisServer
) -> None:
    fill(file_store)
    before = identity(file_store)
    for kind in ("json", "rotating"):
        target = new_store(kind, papyra.home, redis_server)
        assert papyra("copy", file_store.name, target.name).code == 0
        store_id, revision = identity(target)
        assert store_id not in (None, before[0])
        assert revision == 0
    assert identity(file_store) == before


def test_nothing_is_copied_onto_what_is_beside_a_store(papyra: Command, file_store: Store) -> None:
    fill(file_store)
    before = identity(file_store)
    name = file_store.name
    beside = [".id", ".snapshots"] if name.endswith("/") else [f"{name}.id", f"{name}.snapshots"]
    for place in beside:
        target = f"{name}{place}" if name.endswith("/") else place
        assert papyra("copy", name, target).code != 0
    assert identity(file_store) == before
