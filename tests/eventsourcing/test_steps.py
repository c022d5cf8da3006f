"""What is decoded right into events is what plain data would have been converted to."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from papyra import ActorSystem
from papyra.eventsourcing import EventSourced, SnapshotPolicy, event, upcaster
from papyra.eventsourcing.steps import StepDecoder, decodes_alike
from papyra.exceptions import RecoveryFailed
from papyra.persistence import PersistedEvent
from papyra.persistence.backends._files import actor_index
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.codec import encode
from papyra.persistence.messages import EncodedRun
from papyra.testing import FaultyPersistence
from tests.conftest import event_loops, kind_for
from tests.extent import CI

pytestmark = pytest.mark.anyio

anyio_backend = event_loops("asyncio")

# Values


class Letter(enum.Enum):
    A = "a"
    ONE = "1"


class Number(enum.IntEnum):
    ONE = 1
    HUNDRED = 100


class Point(msgspec.Struct, frozen=True):
    x: int = 0
    y: str = ""


class Left(msgspec.Struct, tag="L"):
    x: int = 0


class Right(msgspec.Struct, tag="R"):
    x: float = 0


class Pair(msgspec.Struct, array_like=True):
    x: int
    y: Any = None


@dataclass
class Spot:
    x: int = 0
    y: str | None = None


ALIKE: list[Any] = [
    *(int, float, str, bool, None, Any, bytes, uuid.UUID, Letter, Number, Point, Pair, Spot),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
    *(Literal["a", "1"], Literal[1, 100], Left | Right, int | None, int | float, int | str),
    *(float | str | None, list[int] | int, dict[str, Any] | str, datetime.datetime | None),
    *(list, list[int], list[float], list[Any], list[Point], set[int], frozenset[str]),
    *(tuple[int, ...], tuple[int, str], dict, dict[str, int], dict[str, Point]),
    Annotated[int, msgspec.Meta(ge=0, le=10**6)],
    Annotated[float, msgspec.Meta(gt=0)],
    Annotated[str, msgspec.Meta(max_length=2)],
]
OTHERS: list[Any] = [
    *(decimal.Decimal, msgspec.Raw, bytearray, memoryview, msgspec.msgpack.Ext),
    *(dict[int, str], dict[Letter, int], list[decimal.Decimal], decimal.Decimal | None),
    *(dict[str, dict[int, int]], tuple[int, decimal.Decimal], Literal["a"] | dict[float, int]),
]
NUMBERS = [
    *("0", "-0", "-0.0", "1", "100", "1.0", "1e2", "1E2", "1.5", "0.30000000000000004", "1e15"),
    *("1e16", "1e19", "-1e20", "1e30", "1e308", "9007199254740993", "9223372036854775807"),
    *("9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("-9223372036854775809", "1" + 30 * "0", "1" + 400 * "0", "12345678901234567890123"),
]
TEXTS = ["", "a", "1", "YQ==", "YQ", "P1D", "12:00:00", "2020-01-01", "2020-01-01T00:00:00Z"]
TEXTS += [
    "2020-01-01T00:00:00",
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "\\ud83d\\ude00",
    "\\u0000",
]
JSON = [
    *NUMBERS,
    *[f'"{text}"' for text in TEXTS],
    *("true", "false", "null", "[]", "[1]", "[1.0,2]", '["a"]', '[1,"a"]', "[[1]]", "[null]"),
    *("[1,1]", "[1,1.0]", "[true,1]", "{}", '{"a":1}', '{"1":1}', '{"x":1,"y":"b"}', '{"x":1.0}'),
    *('{"type":"L","x":1}', '{"x":1,"type":"R"}', '{"type":"Q"}', '{"a":{"x":1}}', '[{"x":1}]'),
]


def outcome(make: Callable[[], Any]) -> str:
    """Return what is made, its types included; or that it can't be."""
    try:
        return repr(make())
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return "refused"


@pytest.mark.parametrize("kind", ALIKE, ids=str)
def test_json_becomes_the_same_value_at_once_as_by_way_of_plain_data(kind: Any) -> None:
    holder: Any = msgspec.defstruct("Holder", [("value", kind)])
    decoder = msgspec.json.Decoder(holder)
    assert decodes_alike(holder)
    made = set[str]()
    for text in JSON:
        data = b'{"value":%b}' % text.encode()
        at_once = outcome(partial(decoder.decode, data))
        plain = msgspec.json.decode(data)
        by_plain = outcome(partial(msgspec.convert, plain, holder, str_keys=True))
        assert at_once == by_plain, text
        made.add(at_once)
    assert len(made) > 1


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_of_other_types_it_is_not_known_that_they_become_the_same(kind: Any) -> None:
    assert not decodes_alike(msgspec.defstruct("Holder", [("value", kind)]))
    holder = msgspec.defstruct("Within", [("value", list[dict[str, kind]] | None)])
    assert not decodes_alike(holder)


class Folder(msgspec.Struct):
    folders: list[Folder] = []


def test_types_that_hold_themselves_are_looked_through_once() -> None:
    assert decodes_alike(Folder)


# Runs


def a_run(*events: PersistedEvent) -> EncodedRun:
    return EncodedRun(b"".join(encode(events)), len(events))


def a_point(revision: int, **changes: Any) -> PersistedEvent:
    record = PersistedEvent("s", "s/a", "Point", {"x": revision}, 1.0, revision=revision)
    return msgspec.structs.replace(record, **changes)


def decoded(run: EncodedRun, after: int = 0, *, is_own: bool = False) -> list[Any] | None:
    steps = StepDecoder({"Point": (Point, 1)}, ()).decode(run, "s/a", after, is_own=is_own)
    return None if steps is None else [step.payload for step in steps]


@pytest.mark.parametrize("is_own", [True, False])
def test_a_run_is_decoded_into_its_events(is_own: bool) -> None:
    run = a_run(a_point(4), a_point(5))
    assert decoded(run, 3, is_own=is_own) == [Point(4), Point(5)]
    lines = EncodedRun(run.data.replace(b"}{", b"}\n{"), 2)
    assert decoded(lines, 3, is_own=is_own) == [Point(4), Point(5)]


@pytest.mark.parametrize(
    "records",
    [
        [a_point(1), a_point(3)],
        [a_point(1), a_point(1)],
        [a_point(2)],
        [a_point(1), a_point(2, actor_address="s/b")],
        [a_point(1), a_point(2, event_type="Line")],
        [a_point(1), a_point(2, event_version=2)],
        [a_point(1), a_point(2, payload={"x": "far"})],
        [PersistedEvent("s", "s/a", "Point", {}, 1.0)],
    ],
    ids=["hole", "doubled", "late", "foreign", "unknown", "version", "payload", "no step"],
)
def test_a_run_of_anything_else_is_left_to_who_can_tell_what_it_is(
    records: list[PersistedEvent],
) -> None:
    assert decoded(a_run(*records)) is None


def test_a_run_with_fewer_records_than_it_says_is_left_to_who_can_tell() -> None:
    assert decoded(EncodedRun(a_run(a_point(1)).data, 2)) is None


# Recoveries


@event("priced", version=2)
class Priced(msgspec.Struct, frozen=True):
    price: decimal.Decimal


@event("counted")
class Counted(msgspec.Struct, frozen=True):
    number: int
    by_number: dict[int, float] = {}


@event("noted")
class Noted(msgspec.Struct, frozen=True):
    what: Any
    at: datetime.datetime | None = None


@event("moved", version=2)
class Moved(msgspec.Struct, frozen=True):
    x: int


@upcaster("moved", from_version=1)
def moved_in_metres(payload: Any) -> Any:
    return {"x": payload["kilometres"] * 1000}


@upcaster("removed", from_version=1, to="noted")
def removed_is_noted(payload: Any) -> Iterable[Any]:
    return [("noted", {"what": payload}), ("noted", {"what": "gone"})]


class Diary(EventSourced[tuple[Any, ...]]):
    events = (Priced, Counted, Noted, Moved, Point)
    upcasters = (moved_in_metres, removed_is_noted)

    def initial_state(self) -> tuple[Any, ...]:
        return ()

    def apply(self, state: tuple[Any, ...], event: Any) -> tuple[Any, ...]:
        if event == Point(-1):
            raise ValueError("there is no such point")
        return (*state, event)

    async def receive(self, message: Any) -> Any:
        if message == "look":
            return self.state
        await self.persist(*message)
        return self.revision


MakeStore = Callable[[Path], PersistenceBackend]
STORES: dict[str, MakeStore] = {
    "memory": lambda _: InMemoryPersistence(),
    "json": lambda path: JsonFilePersistence(path / "store.ndjson", fsync="no"),
    "rotating": lambda path: RotatingFilePersistence(
        path / "store", fsync="no", max_segment_records=7
    ),
    "sqlite": lambda path: SQLitePersistence(path / "store.sqlite", synchronous="off"),
    "faulty": lambda _: FaultyPersistence(InMemoryPersistence()),
}


@pytest.fixture(params=STORES if CI else None)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PersistenceBackend]:
    kind = kind_for(request, list(STORES))
    return lambda: STORES[kind](tmp_path)


async def recovered(store: PersistenceBackend, name: str = "a") -> tuple[Any, ...]:
    async with ActorSystem("s", persistence=store, audit_interval=None) as system:
        state: tuple[Any, ...] = await system.spawn(Diary, name=name).ask("look")
        return state


MIXED = [
    Point(1, "a"),
    Priced(decimal.Decimal("1.10")),
    Counted(2**70, {1: 1.5, 2**70: -0.0}),
    Noted({"1": [1, 2.5, None, True], "deep": [[[{"x": 10**40}]]]}, None),
    Moved(2**64),
    Noted("2020-01-01T00:00:00Z", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    Point(-(2**63) - 1, "\u2028\n\x00 é"),
    Noted(1.0),
    Noted(10**300),
]


async def test_events_come_back_as_they_were_whichever_way_they_are_decoded(
    make: Callable[[], PersistenceBackend],
) -> None:
    store, expected = make(), MIXED * 100
    async with ActorSystem("s", persistence=store, audit_interval=None) as system:
        diary = system.spawn(Diary, name="a")
        for start in range(0, len(expected), 9):
            await diary.ask(expected[start : start + 9])
    reads = store.metrics.reads
    state = await recovered(store)
    assert list(map(repr, state)) == list(map(repr, expected))
    assert store.metrics.reads == reads + 1  # nothing had to be looked at once more


async def test_old_events_among_new_ones_pass_their_upcasters(
    make: Callable[[], PersistenceBackend],
) -> None:
    store, expected = make(), list[Any]()
    async with store:
        for revision in range(1, 601, 3):
            await store.append(
                a_point(revision),
                a_point(revision + 1, event_type="moved", payload={"kilometres": revision}),
                a_point(revision + 2, event_type="removed", payload=[revision]),
            )
            expected += [Point(revision), Moved(revision * 1000), Noted([revision]), Noted("gone")]
    assert list(await recovered(store)) == expected


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (a_point(300, event_type="Line"), "has no event 'Line'"),
        (a_point(300, event_version=7), "newer than the 1"),
        (a_point(300, payload={"x": "far"}), "it is no such event"),
        (a_point(300, payload={"x": -1}), "ValueError: there is no such point"),
        (a_point(300, event_type="priced", event_version=2, payload={}), "it is no such event"),
        (a_point(300, event_type="moved", payload={}), "KeyError"),
    ],
    ids=["unknown", "version", "payload", "apply", "plain payload", "upcaster"],
)
async def test_a_recovery_that_fails_names_the_event_in_whichever_way_it_is_decoded(
    make: Callable[[], PersistenceBackend], wrong: PersistedEvent, why: str
) -> None:
    store = make()
    async with store:
        await store.append(*[a_point(revision) for revision in range(1, 300)])
        await store.append(wrong, *[a_point(revision) for revision in range(301, 900)])
    with pytest.raises(RecoveryFailed, match=why) as caught:
        await recovered(store)
    assert caught.value.revision == 300
    assert caught.value.event_type == wrong.event_type


async def test_a_history_with_a_hole_is_not_recovered(
    make: Callable[[], PersistenceBackend],
) -> None:
    store = make()
    async with store:
        whole = [*range(1, 301), *range(302, 900)]
        records = [a_point(n, seq=seq) for seq, n in enumerate(whole, 1)]
        await store.restore(*records)
    with pytest.raises(RecoveryFailed, match="revision 301 is missing"):
        await recovered(store)


async def test_lines_of_others_that_the_index_takes_for_ones_own_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_index, "_hash", lambda actor: 7)
    monkeypatch.setattr(actor_index, "_RECENT", 10)
    store = RotatingFilePersistence(tmp_path / "store", fsync="no", max_segment_records=50)
    async with store:
        for revision in range(1, 101):
            await store.append(
                a_point(revision, actor_address="s/b"),
                a_point(revision),
                a_point(revision, payload={"x": 0}, actor_address="s/c"),
            )
    assert await recovered(store) == tuple(map(Point, range(1, 101)))
    assert await recovered(store, "c") == (Point(0),) * 100


async def test_a_damaged_line_is_a_hole_in_a_history_that_is_given_out_encoded(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.ndjson"
    async with JsonFilePersistence(path, fsync="no") as store:
        await store.append(*[a_point(revision) for revision in range(1, 900)])
    store = JsonFilePersistence(path, fsync="no")
    async with ActorSystem("s", persistence=store, audit_interval=None) as system:
        await store.read_history("s/a", limit=1)
        data = path.read_bytes()
        # Behind the back of who has opened it: with another checksum it would be another event.
        path.write_bytes(data.replace(b'{"x":300}', b'{"x":301}'))
        with pytest.raises(RecoveryFailed, match="revision 300 is missing"):
            await system.spawn(Diary, name="a").ask("look")


async def test_snapshots_are_taken_of_histories_that_are_given_out_encoded(
    make: Callable[[], PersistenceBackend],
) -> None:
    class Kept(Diary):
        snapshots = SnapshotPolicy(every=50)

        def initial_state(self) -> tuple[Point, ...]:
            return ()

    store = make()
    async with store:
        await store.append(*[a_point(revision) for revision in range(1, 500)])
    for _ in range(2):
        async with ActorSystem("s", persistence=store, audit_interval=None) as system:
            assert await system.spawn(Kept, name="a").ask("look") == tuple(
                map(Point, range(1, 500))
            )
        async with store:
            loaded = await store.load_snapshot("s/a")
            assert loaded.snapshot is not None
            assert loaded.snapshot.revision == 499
            assert not loaded.passed_over
