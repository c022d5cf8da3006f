"""The keeper of a projection without a view: its position is in Papyra's own store."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import anyio
import msgspec
from msgspec import structs

from papyra._cancellation import enable_interrupts
from papyra._durations import seconds
from papyra._safe_repr import is_really
from papyra.exceptions import (
    HandlerTimedOut,
    InvalidProjection,
    ProjectionOutdated,
    TooManyParked,
)
from papyra.persistence.anchors import anchor_of
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Anchor, LoadPosition, RemovePosition, SavePosition
from papyra.persistence.positions import MAX_POSITION_BYTES
from papyra.persistence.records import Record
from papyra.projections.builds import Build, Parked
from papyra.projections.cause import caused_by
from papyra.projections.decoding import Decoder
from papyra.projections.facts import actor_of
from papyra.projections.keeper import HandlerFailed, Taken, TakenOver
from papyra.projections.projection import Projection
from papyra.projections.user_code import user_code

__all__ = ("PREFIX", "Kept", "StoreKeeper", "request_of")

#: How the names of positions begin that are those of projections.
PREFIX = "projections/"

#: Characters of a reason, at most.
_REASON = 500


class Kept(msgspec.Struct, frozen=True):
    """The position of a projection without a view."""

    build: Build
    parked: tuple[Parked, ...] = ()


class StoreKeeper:
    """Keeps the position in the store of the events, by compare-and-set; at least once.

    One process writes a store, so there is no lease: who was fenced there can't save anything.
    """

    has_begun_build = False
    lease = math.inf

    def __init__(
        self,
        projection: Projection,
        backend: PersistenceBackend,
        decode: Decoder,
        store_id: str | None,
    ) -> None:
        self._projection = projection
        self._backend = backend
        self._decode = decode
        self._store_id = store_id
        self._asked = request_of(projection.name)
        #: what is asked for, as it was looked at last
        self._request: bytes | None = None
        self._kept: bytes | None = None
        self._parked: tuple[Parked, ...] = ()
        self._build: Build | None = None
        #: what the handler has raised, by the position of the event, until that is told
        self._failed: dict[int, Exception] = {}

    @property
    def _name(self) -> str:
        return PREFIX + self._projection.name

    async def open(self) -> None:
        """Nothing is to be opened: the store is."""

    async def close(self, build: Build | None) -> None:
        """Nothing is to be closed."""

    def hurry(self, seconds: float) -> None:
        """Nothing is to be given up: what is under way is cancelled."""

    async def claim(self) -> Build:
        """Return where the projection is; at the beginning, if its version is a greater one."""
        name, version = self._projection.name, self._projection.version
        self._kept = (await self._backend.execute(LoadPosition(self._name))).data
        if self._kept is not None:
            kept = msgspec.json.decode(self._kept, type=Kept)
            self._build, self._parked = kept.build, kept.parked
            if self._build.version > version:
                raise ProjectionOutdated(
                    f"{name}: it was of version {self._build.version}, and this is version "
                    f"{version}: deploy the newer class, or give this one a greater version"
                )
            if self._build.version == version:
                return self._build
        number = 1 if self._build is None else self._build.build + 1
        return await self._save(_first_build(name, number, version), ())

    async def parked(self, build: Build) -> Sequence[Parked]:
        """Return the parked events."""
        del build
        return self._parked

    async def handle(self, build: Build, records: Sequence[Record]) -> Taken:
        """Handle some of these records, one after the other, and save the position behind them."""
        actors = {each.actor for each in self._parked if each.actor}
        held: list[Parked] = []
        end = time.monotonic() + seconds(self._projection.batch_seconds)
        count, failure = 0, self._failed.pop(records[0].seq or 0, None)
        for record in records if failure is None else ():
            if actors and actor_of(record) in actors:
                held.append(_held(record))
            else:
                try:
                    await enable_interrupts(self._call)(record)
                except Exception as error:  # noqa: BLE001 - users' code
                    failure = error
                    break
            count += 1
            if time.monotonic() > end:
                break
        if failure is not None and count == 0:
            if is_really(failure, HandlerTimedOut):
                raise failure
            raise HandlerFailed(0, failure) from failure
        if failure is not None:
            # It is told of, and not called again, when the position is behind those before it.
            self._failed = {records[count].seq or 0: failure}
        last = records[count - 1]
        build = self._moved(build, last.seq or 0, anchor_of(last, self._store_id))
        build = await self._save(build, (*self._parked, *held))
        return Taken(build, count, tuple(each.seq for each in held))

    async def move(self, build: Build, position: int, live_position: int) -> Build:
        """Move positions on, if they are others, and look what is asked for."""
        if (position, live_position) != (build.position, build.live_position):
            moved = structs.replace(build, position=position, live_position=live_position)
            build = await self._save(moved, self._parked)
        self._request = (await self._backend.execute(LoadPosition(self._asked))).data
        request = (self._request or b"").decode(errors="replace")
        return structs.replace(build, request=request)

    async def handle_parked(self, build: Build, record: Record) -> None:
        """Handle a parked event."""
        try:
            await enable_interrupts(self._call)(record)
        except Exception as error:
            raise HandlerFailed(0, error) from error
        await self.unpark(build, record.seq or 0)

    async def park(self, build: Build, record: Record, reason: str) -> Build:
        """Park an event, and move the position behind it."""
        seq = record.seq or 0
        parked = Parked(seq, actor_of(record), reason[:_REASON], is_held=False)
        return await self._save(self._moved(build, seq, build.anchor), (*self._parked, parked))

    async def unpark(self, build: Build, seq: int) -> None:
        """Park an event no more."""
        await self._save(build, tuple(each for each in self._parked if each.seq != seq))

    async def pause(self, build: Build, reason: str, seq: int | None) -> Build:
        """Note that it is paused, and why."""
        paused = structs.replace(build, is_paused=True, error=reason[:_REASON], error_seq=seq)
        return await self._save(paused, self._parked)

    async def resume(self, build: Build) -> Build:
        """Note that it goes on."""
        resumed = structs.replace(build, is_paused=False, error="", error_seq=None)
        return await self._save(resumed, self._parked)

    async def catch_up(self, build: Build) -> Build:
        """Note that the end was reached."""
        return await self._save(structs.replace(build, state="running"), self._parked)

    async def answer(self, build: Build) -> Build:
        """Remove the request, unless it is another one by now."""
        if self._request is not None:
            await self._backend.execute(RemovePosition(self._asked, self._request))
        return structs.replace(build, request="")

    async def add_build(self) -> int:
        """Nothing is built beside anything."""
        raise InvalidProjection(f"{self._projection.name}: it has no view that could be rebuilt")

    async def drop_old(self) -> int:
        """Nothing is left by anything."""
        return 0

    async def _call(self, record: Record) -> None:
        with (
            anyio.move_on_after(seconds(self._projection.handle_timeout)) as scope,
            caused_by(self._projection.name, record.seq),
            user_code("handle"),
        ):
            for received in self._decode(record):
                await self._projection.handle(received)
            return
        if scope.cancelled_caught:
            raise HandlerTimedOut(
                f"{self._projection.name}: event {record.seq} has not been handled in "
                f"{self._projection.handle_timeout:g} seconds"
            )

    def _moved(self, build: Build, position: int, anchor: Anchor | None) -> Build:
        is_new = build.state != "building" and self._projection.has_live
        live = build.live_position if is_new else position
        return structs.replace(build, position=position, live_position=live, anchor=anchor)

    async def _save(self, build: Build, parked: tuple[Parked, ...]) -> Build:
        """Save a build if it is as it was. Raises `TakenOver`."""
        data = msgspec.json.encode(Kept(structs.replace(build, request=""), parked))
        if len(data) > MAX_POSITION_BYTES:
            raise TooManyParked(
                f"{build.name}: {len(parked)} events are parked or held back, and no more can be"
            )
        saved = await self._backend.execute(SavePosition(self._name, data, self._kept))
        if not saved.is_saved:
            raise TakenOver
        self._kept, self._build, self._parked = data, build, parked
        return build


def request_of(name: str) -> str:
    """Return the name of the position in which a projection without a view is asked for things."""
    return f"{PREFIX}{name}/request"


def _first_build(name: str, number: int, version: int) -> Build:
    return Build(
        name,
        number,
        version,
        state="building",
        is_live=True,
        is_paused=False,
        position=0,
        anchor=None,
        live_position=0,
        error="",
        error_seq=None,
        owner=None,
        lease_until=0.0,
        request="",
        updated_at=0.0,
    )


def _held(record: Record) -> Parked:
    return Parked(
        record.seq or 0, actor_of(record), "held back behind a parked event", is_held=True
    )
