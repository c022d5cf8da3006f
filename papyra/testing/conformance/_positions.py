"""Small values that those who follow a store keep in it, by name."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from papyra.exceptions import (
    BackendInUse,
    InvalidRequest,
    PersistenceError,
    PositionsUnsupported,
    StoreFenced,
    StoreReadOnly,
)
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.positions import positions_of
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.backends.store import Positions
from papyra.persistence.positions import MAX_POSITION_BYTES, MAX_POSITION_NAME
from papyra.testing.conformance._fixtures import (
    MakeBackend,
    a_record,
    again,
    an_event,
    everything,
    hosted,
    needs,
)

#: Names that make poor names of files and fields, and ones that are alike.
NAMES = (
    *("a", "A", "a ", "a/", "..", "/", "%61", "-", "*", "'", '"', "\0", "a\0", "a\n"),
    *("é", "e\u0301", "\u2400", "\u24000", "\N{SNOWMAN}" * MAX_POSITION_NAME),
    *("\U0001f600" * MAX_POSITION_NAME, "x" * MAX_POSITION_NAME),
)
#: What is saved, of which nothing is changed on the way.
VALUES = (b"", b"\0", b"\xff\xfe\n", b'{"seq":1}\n', bytes(range(256)), b"x" * MAX_POSITION_BYTES)


def keeps_positions(backend: PersistenceBackend) -> bool:
    return isinstance(backend.store, Positions)


async def pages(store: Positions, limit: int) -> list[str]:
    """Return all names, listed so many at a time."""
    names: list[str] = []
    while page := await store.list_positions(names[-1] if names else None, limit):
        assert len(page) <= limit
        names += page
    return names


class Noting:
    """Part of the conformance suite."""

    async def test_a_store_without_positions_says_so(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            if keeps_positions(backend):
                assert await backend.load_position("a") is None
                assert await backend.list_positions() == []
                return
            with pytest.raises(PositionsUnsupported):
                await backend.load_position("a")
            with pytest.raises(PositionsUnsupported):
                await backend.save_position("a", b"1", None)
            with pytest.raises(PositionsUnsupported):
                await backend.remove_position("a", b"1")
            with pytest.raises(PositionsUnsupported):
                await backend.list_positions()

    @needs(keeps_positions)
    async def test_a_position_is_what_was_saved_last(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        async with backend:
            last: bytes | None = None
            for data in VALUES:
                assert await backend.save_position("a", data, last)
                assert await backend.load_position("a") == data
                last = data
        async with again(backend, make_backend) as backend:
            assert await backend.load_position("a") == last

    @needs(keeps_positions)
    async def test_a_position_is_set_if_it_is_as_expected_and_else_not_changed(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            assert not await backend.save_position("a", b"1", b"0")
            assert not await backend.save_position("a", b"1", b"")
            assert await backend.load_position("a") is None
            assert await backend.save_position("a", b"1", None)
            for expected in (None, b"", b"2", b"11"):
                assert not await backend.save_position("a", b"2", expected)
                assert await backend.load_position("a") == b"1"
            # That it is what was to be set is no reason.
            assert not await backend.save_position("a", b"1", None)
            assert await backend.save_position("a", b"", b"1")
            assert not await backend.save_position("a", b"3", None)
            assert await backend.save_position("a", b"3", b"")
            assert await backend.load_position("a") == b"3"

    @needs(keeps_positions)
    async def test_a_position_is_removed_if_it_is_as_expected(
        self, make_backend: MakeBackend
    ) -> None:
        backend = make_backend()
        async with backend:
            assert not await backend.remove_position("a", b"")
            for name in ("a", "b"):
                assert await backend.save_position(name, b"1", None)
            assert not await backend.remove_position("a", b"2")
            assert await backend.load_position("a") == b"1"
            assert await backend.remove_position("a", b"1")
            assert not await backend.remove_position("a", b"1")
        async with again(backend, make_backend) as backend:
            assert await backend.load_position("a") is None
            assert await backend.list_positions() == ["b"]
            assert await backend.save_position("a", b"2", None)
            assert await backend.load_position("a") == b"2"

    @needs(keeps_positions)
    async def test_every_name_has_a_position_of_its_own(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        async with backend:
            for number, name in enumerate(NAMES):
                assert await backend.load_position(name) is None
                assert await backend.save_position(name, b"%d" % number, None)
        async with again(backend, make_backend) as backend:
            for number, name in enumerate(NAMES):
                assert await backend.load_position(name) == b"%d" % number
            assert sorted(await backend.list_positions()) == sorted(NAMES)

    @needs(keeps_positions)
    async def test_names_of_positions_are_listed_page_by_page(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            store = positions_of(backend.store)
            names = sorted({*NAMES, *map(str, range(9))})
            for name in names:
                assert await backend.save_position(name, b"", None)
            for limit in (1, 2, len(names) - 1, len(names), 1000):
                assert sorted(await pages(store, limit)) == names
            first = list(await store.list_positions(None, 5))
            gone = first[-1]
            assert await backend.remove_position(gone, b"")
            behind = await store.list_positions(gone, 1000)
            assert sorted((*first, *behind)) == names

    @needs(keeps_positions)
    async def test_positions_are_no_records_and_nothing_takes_them_away(
        self, make_backend: MakeBackend
    ) -> None:
        async with hosted(make_backend()) as (backend, _):
            await backend.append(*map(a_record, range(9)))
            before = await everything(backend)
            assert await backend.save_position("a", b"1", None)
            assert await everything(backend) == before
            assert (await backend.scan()).is_clean
            assert (await backend.summarize()).positions == 1
            await backend.compact(RetentionPolicy(max_records=1))
            await backend.recover()
            assert await backend.load_position("a") == b"1"
            appended = await backend.append(an_event(9))
            assert appended.first_seq == 10
            assert await backend.save_position("a", b"2", b"1")
            assert (await backend.append(an_event(10))).first_seq == 11

    @needs(keeps_positions)
    async def test_a_position_that_can_not_be_kept_is_refused(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            names: tuple[Any, ...] = ("", "x" * (MAX_POSITION_NAME + 1), "\ud800", b"a", 1, None)
            for name in names:
                with pytest.raises(InvalidRequest):
                    await backend.load_position(name)
                with pytest.raises(InvalidRequest):
                    await backend.save_position(name, b"1", None)
                with pytest.raises(InvalidRequest):
                    await backend.remove_position(name, b"1")
            large = b"x" * (MAX_POSITION_BYTES + 1)
            values: tuple[Any, ...] = (large, "1", 1, bytearray(b"1"))
            for data in values:
                with pytest.raises(InvalidRequest):
                    await backend.save_position("a", data, None)
                with pytest.raises(InvalidRequest):
                    await backend.save_position("a", b"1", data)
                with pytest.raises(InvalidRequest):
                    await backend.remove_position("a", data)
            assert await backend.list_positions() == []

    @needs(keeps_positions)
    async def test_a_reader_sees_positions_and_changes_none(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            reader = backend.reader()
            if reader is backend:
                return
            await backend.append(an_event(0))
            async with reader:
                assert await reader.load_position("a") is None
                assert await backend.save_position("a", b"1", None)
                assert await reader.load_position("a") == b"1"
                assert await reader.list_positions() == ["a"]
                assert await backend.save_position("a", b"2", b"1")
                assert await backend.save_position("b", b"2", None)
                assert await reader.load_position("a") == b"2"
                assert sorted(await reader.list_positions()) == ["a", "b"]
                with pytest.raises(StoreReadOnly):
                    await reader.save_position("a", b"3", b"2")
                with pytest.raises(StoreReadOnly):
                    await reader.remove_position("a", b"2")
                assert await backend.load_position("a") == b"2"

    @needs(keeps_positions)
    async def test_a_writer_that_another_has_taken_over_from_changes_no_position(
        self, make_backend: MakeBackend
    ) -> None:
        first, second = make_backend(), make_backend()
        if not first.capabilities.durable:
            return  # each has a store of its own
        assert await first.save_position("a", b"1", None)
        try:
            has_taken_over = await second.save_position("a", b"2", b"1")
        except BackendInUse:
            has_taken_over = False  # it is kept out
        else:
            assert has_taken_over
            with pytest.raises(StoreFenced):
                await first.save_position("a", b"3", b"2")
            with pytest.raises(StoreFenced):
                await first.remove_position("a", b"2")
            with pytest.raises(StoreFenced):
                await first.save_position("b", b"3", None)
            assert await second.save_position("c", b"2", None)
        for backend in (first, second):
            with contextlib.suppress(PersistenceError):
                await backend.aclose()
        async with make_backend() as backend:
            names = sorted(await backend.list_positions())
            assert names == (["a", "c"] if has_taken_over else ["a"])
            assert await backend.load_position("a") == (b"2" if has_taken_over else b"1")
