"""Whatever somebody does to snapshots, in files, in a table or in Redis: no state is wrong.

What is spoiled has another state in it, so that whoever believes it is wrong.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec
import pytest
import redis

from papyra import ActorSystem
from papyra.eventsourcing import SnapshotPolicy
from papyra.persistence import Snapshot
from papyra.persistence.backends._redis.snapshots import owner_of
from papyra.persistence.backends._sqlite.store import DEFAULT_SYSTEM
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.snapshots import decode_snapshot, encode_snapshot
from papyra.testing._redis_server import shared_server
from tests.conftest import event_loops
from tests.eventsourcing.accounts import Account, Deposit, Look

pytestmark = pytest.mark.anyio
anyio_backend = event_loops("asyncio")

#: Every how many-th byte is flipped; without actors, the conformance suite flips each.
EVERY = 8
#: What is there of each snapshot, by actor and revision.
Contents: TypeAlias = dict[tuple[str, int], bytes]

ANN, BOB = "ann", "bob"
#: The newest snapshot of `ANN`, which is spoiled.
SPOILED = (ANN, 10)
WRONG = msgspec.Raw(b'{"amount":999,"movements":10}')


class Saved(Account):
    snapshots = SnapshotPolicy(every=5)


class Place(Protocol):
    """A store, and its snapshots as others get at them."""

    def backend(self) -> PersistenceBackend:
        """Return a backend on the store."""

    def put(self, contents: Contents) -> None:
        """Have these snapshots and no others."""


class Files:
    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._directory = path / ".snapshots"
        if kind == "json":
            self._directory = path.with_name(f"{path.name}.snapshots")

    def backend(self) -> PersistenceBackend:
        if self._kind == "json":
            return JsonFilePersistence(self._path, fsync="no")
        return RotatingFilePersistence(self._path, fsync="no", max_segment_records=7)

    def put(self, contents: Contents) -> None:
        for file in self._directory.glob("*/*"):
            file.unlink()
        for (name, revision), data in contents.items():
            place = self._directory / owner_of(f"bank/{name}")
            place.mkdir(exist_ok=True)
            (place / f"{revision:014}.json").write_bytes(data)


class Database:
    def __init__(self, path: Path) -> None:
        self._path = path

    def backend(self) -> PersistenceBackend:
        return SQLitePersistence(self._path, synchronous="off")

    def put(self, contents: Contents) -> None:
        rows = [
            (DEFAULT_SYSTEM, f"bank/{actor}", revision, data)
            for (actor, revision), data in contents.items()
        ]
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("DELETE FROM snapshots")
            connection.executemany("INSERT INTO snapshots VALUES (?, ?, ?, ?)", rows)


class Redis:
    def __init__(self, admin: redis.Redis, url: str) -> None:
        self._admin = admin
        self.config = RedisStreamsConfig(url=url, prefix="test", system_id=uuid.uuid4().hex)

    def backend(self) -> PersistenceBackend:
        return RedisStreamsPersistence(self.config)

    def put(self, contents: Contents) -> None:
        keys = self.config.keys
        self._admin.delete(keys.snapshots, keys.snapshot_names)
        for (actor, revision), data in contents.items():
            name = f"{owner_of(f'bank/{actor}')}:{revision:014}"
            self._admin.hset(keys.snapshots, name, data)
            self._admin.zadd(keys.snapshot_names, {name: 0})


@pytest.fixture(params=["json", "rotating", "sqlite", "redis"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    made: list[Redis] = []
    if request.param == "sqlite":
        yield lambda: Database(tmp_path / f"{uuid.uuid4().hex}.db")
        return
    if request.param != "redis":
        yield lambda: Files(tmp_path / uuid.uuid4().hex, request.param)
        return
    url = shared_server().url
    with redis.Redis.from_url(url) as admin:

        def make() -> Place:
            made.append(Redis(admin, url))
            return made[-1]

        yield make
        for each in made:
            admin.delete(*each.config.keys.everything)


async def filled(place: Place) -> Contents:
    """Deposit 1 twelve times to one account, and 2 to another; return what is saved."""
    async with ActorSystem("bank", persistence=place.backend()) as system:
        for name, amount in ((ANN, 1), (BOB, 2)):
            account = system.spawn(Saved, name=name)
            for _ in range(12):
                await account.ask(Deposit(amount))
    contents: Contents = {}
    async with place.backend() as backend:
        for name in (ANN, BOB):
            for before in (None, 10):
                found = await backend.load_snapshot(f"bank/{name}", before_revision=before)
                assert found.snapshot is not None
                contents[name, found.snapshot.revision] = encode_snapshot(found.snapshot)
    assert sorted(contents) == [(ANN, 5), (ANN, 10), (BOB, 5), (BOB, 10)]
    return contents


async def recovered(system: ActorSystem) -> list[tuple[int, int]]:
    """Return balance and revision of both accounts, each in a life of its own."""
    found = []
    for name in (ANN, BOB):
        account = system.spawn(Saved, name=name)
        found.append(await account.ask(Look()))
        await account.stop()
    return found


async def assert_right_with(place: Place, contents: Contents, spoiled: list[bytes | None]) -> None:
    """Recover with each of these as the newest snapshot of one actor, and nothing else changed."""
    store = place.backend()
    async with ActorSystem("bank", persistence=store) as system:
        for data in spoiled:
            others = {at: each for at, each in contents.items() if at != SPOILED}
            place.put(others if data is None else {**others, SPOILED: data})
            before = store.metrics.snapshots_passed_over
            assert await recovered(system) == [(12, 12), (24, 12)], data
            assert store.metrics.snapshots_passed_over == before + (data is not None), data


async def test_a_snapshot_with_one_bit_flipped_is_not_believed(
    places: Callable[[], Place],
) -> None:
    place = places()
    contents = await filled(place)
    whole = contents[SPOILED]
    spoiled: list[bytes | None] = [
        whole[:at] + bytes([whole[at] ^ 1 << at // EVERY % 8]) + whole[at + 1 :]
        for at in range(0, len(whole), EVERY)
    ]
    assert len(spoiled) > 30
    await assert_right_with(place, contents, spoiled)


async def test_a_snapshot_that_is_cut_or_gone_or_longer_is_not_believed(
    places: Callable[[], Place],
) -> None:
    place = places()
    contents = await filled(place)
    whole = contents[SPOILED]
    spoiled = [whole[:length] for length in range(0, len(whole), 2 * EVERY)]
    spoiled += [whole[:-1], whole + b"\n", whole + whole, whole[1:], bytes(len(whole))]
    await assert_right_with(place, contents, [None, *spoiled])


async def test_a_snapshot_from_elsewhere_is_not_believed_whatever_its_checksum_says(
    places: Callable[[], Place],
) -> None:
    place, other = places(), places()
    contents, elsewhere = await filled(place), await filled(other)
    own = [decode_snapshot(contents[at]) for at in (SPOILED, (ANN, 5), (BOB, 10), (BOB, 5))]
    newest = own[0]
    wrong: list[Snapshot] = [
        # swapped between actors, or between revisions; as it is, or renamed in part
        *(msgspec.structs.replace(each, state=WRONG) for each in own[1:]),
        *(msgspec.structs.replace(each, state=WRONG, actor=newest.actor) for each in own[1:]),
        *(msgspec.structs.replace(each, state=WRONG, revision=10) for each in own[1:]),
        # of another store, which has the same events
        msgspec.structs.replace(decode_snapshot(elsewhere[SPOILED]), state=WRONG),
        msgspec.structs.replace(newest, state=WRONG, store_id=""),
        # of another past
        msgspec.structs.replace(newest, state=WRONG, checksum=own[1].checksum),
        msgspec.structs.replace(newest, state=WRONG, seq=own[1].seq),
        msgspec.structs.replace(newest, state=WRONG, checksum=own[2].checksum, seq=own[2].seq),
        # of another meaning
        msgspec.structs.replace(newest, state=WRONG, version=2),
        msgspec.structs.replace(newest, state=WRONG, shape="another"),
        msgspec.structs.replace(newest, state=msgspec.Raw(b'{"amount":"much"}')),
    ]
    await assert_right_with(place, contents, [encode_snapshot(each) for each in wrong])


async def test_snapshots_swapped_between_two_actors_are_both_passed_over(
    places: Callable[[], Place],
) -> None:
    place = places()
    contents = await filled(place)
    swapped = {
        (BOB if name == ANN else ANN, revision): data for (name, revision), data in contents.items()
    }
    store = place.backend()
    async with ActorSystem("bank", persistence=store) as system:
        place.put(swapped)
        assert await recovered(system) == [(12, 12), (24, 12)]
        assert store.metrics.snapshots_passed_over == 4
