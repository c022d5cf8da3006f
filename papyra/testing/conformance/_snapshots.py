"""What a store keeps beside its records: an id of its own, and snapshots."""

from __future__ import annotations

import tempfile
from typing import Any

import msgspec
import pytest

from papyra.exceptions import InvalidRequest, SnapshotsUnsupported, StoreReadOnly
from papyra.persistence.backends import snapshots
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.snapshots import SnapshotStore, all_snapshots, snapshots_of
from papyra.persistence.backends.store import MAX_SEQ, Identified, StoredSnapshot
from papyra.persistence.messages import Recover, SaveSnapshot, Scan
from papyra.persistence.reports import PersistenceRecoveryConfig
from papyra.persistence.snapshots import checksum, decode_snapshot, encode_snapshot
from papyra.testing.conformance._fixtures import (
    T0,
    MakeBackend,
    a_record,
    again,
    an_event,
    files_outside,
    needs,
)
from papyra.testing.conformance._histories import mixed

#: Addresses that make poor names of files, and ones that are alike.
ADDRESSES = ("s/a", "s/A", "s/a/", "s/..", "s/é\n\0", "s/" + "x" * 5000, "")

#: What may go along with a state.
BOOKS = msgspec.Raw(b'{"commands":{"\xc3\xa9\\n":{"type":"Add","revision":1}}}')


def keeps_snapshots(backend: PersistenceBackend) -> bool:
    return snapshots.keeps_snapshots(backend.store)


async def save(
    backend: PersistenceBackend, revision: int, actor: str = "s/a", /, **changes: Any
) -> None:
    """Save a snapshot after an event that is stored, whose state is its revision."""
    page = await backend.read_history(actor, after_revision=revision - 1, limit=1)
    fields: dict[str, Any] = {
        "actor": actor,
        "revision": revision,
        "seq": page.events[0].seq,
        "state": msgspec.Raw(b"%d" % revision),
        "timestamp": T0,
    }
    await backend.execute(SaveSnapshot(**(fields | changes)))


async def loaded(
    backend: PersistenceBackend, actor: str = "s/a", version: int = 1
) -> tuple[list[int], int]:
    """Return the revisions of the snapshots that are given out, and how many are passed over."""
    revisions: list[int] = []
    before, passed_over = None, 0
    while True:
        found = await backend.load_snapshot(actor, version=version, before_revision=before)
        passed_over += len(found.passed_over)
        if found.snapshot is None:
            return revisions, passed_over
        assert (found.snapshot.actor, found.snapshot.version) == (actor, version)
        assert bytes(found.snapshot.state) == b"%d" % found.snapshot.revision
        before = found.snapshot.revision
        revisions.append(before)


async def rewrite(backend: PersistenceBackend, revision: int, /, **changes: Any) -> None:
    """Change what a snapshot says, and keep it whole."""
    store = snapshots_of(backend.store)
    snapshot = decode_snapshot(await store.load_snapshot("s/a", revision) or b"")
    data = encode_snapshot(msgspec.structs.replace(snapshot, **changes))
    await store.save_snapshot("s/a", revision, data)


async def a_history(backend: PersistenceBackend, length: int = 9) -> SnapshotStore:
    """Store a history of one actor, with others' records between its events."""
    await backend.append(*mixed("ab", range(1, length + 1)))
    return snapshots_of(backend.store)


async def bad_snapshots(backend: PersistenceBackend) -> SnapshotStore:
    """Have two good snapshots, and eight that are not right, each for another reason."""
    await backend.append(*mixed("abcde", range(1, 10)))
    store = snapshots_of(backend.store)
    for actor in ("s/a", "s/b"):
        for revision in (3, 5, 7, 9):
            await save(backend, revision, actor, keep=9)
    await rewrite(backend, 5, store_id="0" * 32)
    await rewrite(backend, 7, checksum="0" * 32)
    one, other = [await store.load_snapshot(actor, 9) or b"" for actor in ("s/a", "s/b")]
    await store.save_snapshot("s/a", 9, other)
    await store.save_snapshot("s/b", 9, one)
    whole = await store.load_snapshot("s/b", 5) or b""
    await store.save_snapshot("s/b", 5, whole[:-1])
    await store.save_snapshot("s/b", 7, whole)
    await store.save_snapshot("s/c", 1, b"")
    await store.save_snapshot("s/d", MAX_SEQ, b"%b {}\n" % checksum(b"{}\n").encode())
    return store


async def pages(store: SnapshotStore, limit: int) -> list[StoredSnapshot]:
    """Return all snapshots, listed so many at a time."""
    found: list[StoredSnapshot] = []
    while page := await store.list_snapshots(found[-1] if found else None, limit):
        assert len(page) <= limit
        found += page
    return found


class Beside:
    """Part of the conformance suite."""

    async def test_a_store_keeps_its_id(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        if not isinstance(backend.store, Identified):
            async with backend:
                assert await backend.store_id() is None
            return
        async with backend:
            store_id = await backend.store_id()
            assert store_id
            await backend.append(*map(a_record, range(9)))
            await backend.compact(RetentionPolicy(max_records=1))
            await backend.recover()
            assert await backend.store_id() == store_id
        async with again(backend, make_backend) as backend:
            assert await backend.store_id() == store_id
            reader = backend.reader()
            if reader is not backend:
                async with reader:
                    assert await reader.store_id() == store_id

    async def test_a_store_without_snapshots_says_so(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            if keeps_snapshots(backend):
                assert (await backend.load_snapshot("s/a")).snapshot is None
                return
            with pytest.raises(SnapshotsUnsupported):
                await backend.load_snapshot("s/a")
            with pytest.raises(SnapshotsUnsupported):
                await backend.execute(SaveSnapshot("s/a", 1, 1, msgspec.Raw(b"1"), T0))

    @needs(keeps_snapshots)
    async def test_snapshots_come_back_newest_first(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 2, keep=3)
            await save(backend, 5, keep=3, shape="o", timestamp=T0 + 5, bookkeeping=BOOKS)
            await save(backend, 9, keep=3)
            assert await loaded(backend) == ([9, 5, 2], 0)
            assert await loaded(backend, "s/b") == ([], 0)
            snapshot = (await backend.load_snapshot("s/a", before_revision=9)).snapshot
            assert snapshot is not None
            assert (snapshot.shape, snapshot.timestamp) == ("o", T0 + 5)
            assert (snapshot.bookkeeping, bytes(snapshot.state)) == (BOOKS, b"5")
            assert snapshot.store_id == await backend.store_id()

    @needs(keeps_snapshots)
    async def test_snapshots_stay_when_the_store_is_closed_recovered_or_compacted(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 4)
            await save(backend, 9)
            await backend.recover()
            await backend.compact(RetentionPolicy(max_records=1))
            assert (await backend.scan()).is_clean
            assert await loaded(backend) == ([9, 4], 0)
        async with again(backend, make_backend) as backend:
            assert await loaded(backend) == ([9, 4], 0)
            reader = backend.reader()
            if reader is not backend:
                async with reader:
                    assert await loaded(reader) == ([9, 4], 0)
                    with pytest.raises(StoreReadOnly):
                        await save(reader, 9)

    @needs(keeps_snapshots)
    async def test_the_newest_snapshots_are_kept(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            store = await a_history(backend)
            for revision in range(1, 10):
                await save(backend, revision, keep=3)
            assert sorted(await store.snapshot_revisions("s/a")) == [7, 8, 9]
            await save(backend, 3, "s/b")
            assert sorted(await store.snapshot_revisions("s/b")) == [3]
            await save(backend, 9, keep=1)
            assert await loaded(backend) == ([9], 0)

    @needs(keeps_snapshots)
    async def test_what_another_past_has_left_is_removed(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            store = await a_history(backend)
            await save(backend, 9)
            await store.save_snapshot("s/a", 12, await store.load_snapshot("s/a", 9) or b"")
            await save(backend, 5)  # the one of 9 is right, so it stays
            assert sorted(await store.snapshot_revisions("s/a")) == [5, 9]

    @needs(keeps_snapshots)
    async def test_a_snapshot_takes_the_place_of_one_of_the_same_revision(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await a_history(backend)
            await save(backend, 5, version=1, state=msgspec.Raw(b'"' + b"long" * 5000 + b'"'))
            await save(backend, 5, version=2)
            assert await loaded(backend, version=2) == ([5], 0)

    @needs(keeps_snapshots)
    async def test_every_actor_has_its_own_snapshots(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            for number, actor in enumerate(ADDRESSES, 1):
                for revision in range(1, number + 1):
                    await backend.append(an_event(number, actor_address=actor, revision=revision))
                await save(backend, number, actor)
            for number, actor in enumerate(ADDRESSES, 1):
                assert await loaded(backend, actor) == ([number], 0)
            assert (await backend.scan()).is_clean

    @needs(keeps_snapshots)
    async def test_all_snapshots_are_listed_page_by_page(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            store = snapshots_of(backend.store)
            assert [stored async for stored in all_snapshots(store)] == []
            contents = {
                (store.snapshot_owner(actor), revision): f"{actor!r} {revision}".encode()
                for actor in ADDRESSES
                for revision in (MAX_SEQ, 10, 9)
            }
            for actor in ADDRESSES:
                for revision in (MAX_SEQ, 10, 9):
                    data = contents[store.snapshot_owner(actor), revision]
                    await store.save_snapshot(actor, revision, data)
            assert len(contents) == 3 * len(ADDRESSES)
            expected = [
                StoredSnapshot(*place, len(data)) for place, data in sorted(contents.items())
            ]
            assert [stored async for stored in all_snapshots(store)] == expected
            for limit in (1, 2, 4, len(expected)):
                assert await pages(store, limit) == expected
            for stored in expected:
                place = stored.owner, stored.revision
                assert await store.load_listed(stored) == contents[place]
            for number, stored in enumerate(expected, 1):
                await store.remove_listed(stored)
                assert await store.load_listed(stored) is None
                assert list(await store.list_snapshots(stored, 99)) == expected[number:]
                assert await pages(store, 2) == expected[number:]

    @needs(keeps_snapshots)
    async def test_a_snapshot_of_what_is_not_stored_is_refused(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            store = await a_history(backend)
            changes: dict[str, Any]
            for changes in ({"seq": 1}, {"revision": 8}, {"revision": 99}, {"actor": "s/b"}):
                with pytest.raises(InvalidRequest):
                    await save(backend, 9, **changes)
            bad: list[dict[str, Any]] = [{"keep": 0}, {"version": True}, {"state": b"1"}]
            for changes in bad:
                with pytest.raises(InvalidRequest):
                    await save(backend, 9, **changes)
            assert await store.snapshot_revisions("s/a") == []
            assert backend.metrics.snapshots_saved == 0

    async def test_a_summary_counts_snapshots(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            before = await backend.summarize()
            if not keeps_snapshots(backend):
                assert (before.snapshots, before.snapshot_bytes) == (None, None)
                return
            assert (before.snapshots, before.snapshot_bytes) == (0, 0)
            store = await bad_snapshots(backend)
            sizes = [stored.size async for stored in all_snapshots(store)]
            summary = await backend.summarize()
            assert (summary.snapshots, summary.snapshot_bytes) == (10, sum(sizes))

    @needs(keeps_snapshots)
    async def test_a_scan_finds_every_snapshot_that_is_not_right(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            store = await bad_snapshots(backend)
            before = [stored async for stored in all_snapshots(store)]
            for _ in range(2):
                report = await backend.scan()
                assert [anomaly.kind for anomaly in report.anomalies] == ["snapshot"] * 8
                assert all("nothing is lost" in each.detail for each in report.anomalies)
                assert report.records_scanned == (await backend.summarize()).total_records
            assert [stored async for stored in all_snapshots(store)] == before
            assert (await backend.execute(Scan(records_only=True))).is_clean

    @needs(keeps_snapshots)
    async def test_a_recovery_removes_every_snapshot_that_is_not_right(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            store = await bad_snapshots(backend)
            records = (await backend.read_history("s/a")).events
            await backend.execute(Recover(records_only=True))
            assert len((await backend.scan()).anomalies) == 8
            report = await backend.recover()
            assert report.scan.is_clean
            assert report.records_removed == 0
            assert (await backend.scan()).is_clean
            assert [(each.owner, each.revision) async for each in all_snapshots(store)] == sorted(
                (store.snapshot_owner(actor), 3) for actor in ("s/a", "s/b")
            )
            assert await loaded(backend) == ([3], 0)
            assert (await backend.read_history("s/a")).events == records

    @needs(keeps_snapshots)
    async def test_a_quarantine_keeps_every_snapshot_that_is_not_right(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            if not backend.capabilities.recovery:
                return
            await bad_snapshots(backend)
            with tempfile.TemporaryDirectory() as aside:
                report = await backend.recover(PersistenceRecoveryConfig("quarantine", aside))
                assert report.scan.is_clean
                assert report.quarantined
                assert not files_outside(aside, report.quarantined)
            assert (await backend.scan()).is_clean
            assert await loaded(backend) == ([3], 0)

    @needs(keeps_snapshots)
    async def test_a_snapshot_that_is_not_right_is_passed_over(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            store = await a_history(backend)
            await save(backend, 3)
            other = await backend.read_history("s/a", after_revision=7, limit=1)
            wrong: list[dict[str, Any]] = [
                {"actor": "s/b"},
                {"revision": 8},
                {"version": 2},
                {"store_id": "0" * 32},
                {"seq": other.events[0].seq},
                {"checksum": "0" * 32},
            ]
            for number, changes in enumerate(wrong, 1):
                await save(backend, 9)
                await rewrite(backend, 9, **changes)
                assert await loaded(backend) == ([3], 1), changes
                assert backend.metrics.snapshots_passed_over == 2 * number
            await save(backend, 9)
            assert await loaded(backend) == ([9, 3], 0)
            assert sorted(await store.snapshot_revisions("s/a")) == [3, 9]

    @needs(keeps_snapshots)
    async def test_a_damaged_snapshot_is_passed_over(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            store = await a_history(backend)
            await save(backend, 3)
            await save(backend, 9)
            whole = await store.load_snapshot("s/a", 9) or b""
            damaged = [whole[:length] for length in range(0, len(whole), 7)]
            damaged += [
                whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
                for place in range(len(whole))
            ]
            for data in (*damaged, whole + b"\n", b"\xff" * 100, b"[" * 100_000):
                await store.save_snapshot("s/a", 9, data)
                found = await backend.load_snapshot("s/a")
                assert found.snapshot is not None
                assert (found.snapshot.revision, len(found.passed_over)) == (3, 1), data
            await store.save_snapshot("s/a", 9, whole)
            assert await loaded(backend) == ([9, 3], 0)
