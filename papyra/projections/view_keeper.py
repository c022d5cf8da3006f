"""The keeper of a projection into a view: positions and events in one transaction, exactly once."""

from __future__ import annotations

import itertools
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import msgspec

from papyra._durations import seconds
from papyra._safe_repr import is_really, shown, type_and_text
from papyra.exceptions import (
    HandlerCommitted,
    HandlerTimedOut,
    ProjectionError,
    ProjectionOutdated,
    SetupFailed,
    ViewUnavailable,
)
from papyra.persistence.anchors import anchor_of
from papyra.persistence.backends._io.commit_token import CommitToken
from papyra.persistence.backends._io.worker_thread import WorkerThread
from papyra.persistence.records import Record
from papyra.projections.builds import Build, Builds, Parked
from papyra.projections.database import ViewDatabase
from papyra.projections.decoding import Decoder
from papyra.projections.facts import actor_of
from papyra.projections.keeper import HandlerFailed, Taken, TakenOver
from papyra.projections.projection import Projection, hand_over, table_name, writing
from papyra.projections.view import View

__all__ = ("ViewKeeper",)

logger = logging.getLogger("papyra")

ResultT = TypeVar("ResultT")


class ViewKeeper:
    """Keeps the builds of one projection in its view, on a thread of its own.

    `number` is the build to run, for a rebuild beside the live one; otherwise that is found out.
    """

    def __init__(
        self,
        projection: Projection,
        view: View[Any],
        decode: Decoder,
        *,
        store_id: str | None,
        number: int | None = None,
    ) -> None:
        self.lease = view.lease
        self.has_begun_build = False
        self._projection = projection
        self._view = view
        self._decode = decode
        self._store_id = store_id
        self._number = number
        self._owner = uuid.uuid4().hex
        #: once the system stops
        self._seconds_left = math.inf
        self._worker: WorkerThread | None = None
        self._database: ViewDatabase[Any] = view.database()
        self._builds = Builds(self._database, projection.name)
        #: the actors whose events are held back; read again where it may have changed
        self._parked_actors: set[str] = set()

    async def open(self) -> None:
        """Connect anew, in a thread anew, as the one before may hang."""
        await self._let_go()
        self._database = self._view.database()
        self._builds = Builds(self._database, self._projection.name)
        self._worker = WorkerThread(f"papyra projection {self._projection.name}")
        await self._run(self._open)

    def hurry(self, seconds: float) -> None:
        """Give up what is under way after so many seconds; what it has written is rolled back."""
        self._seconds_left = seconds
        if self._worker is not None:
            self._worker.hurry(seconds)

    async def close(self, build: Build | None) -> None:
        """Let go of the build, so that another runner need not wait for the lease."""
        if build is not None and self._worker is not None:
            try:
                timeout = min(self.lease, self._seconds_left)
                await self._run(self._release, build, timeout=timeout)
            except Exception as error:  # noqa: BLE001 - whatever is wrong there, this is the end
                logger.info("the lease of %s runs out by itself: %s", build.name, shown(error))
        await self._let_go()

    async def claim(self) -> Build | None:
        """Return the build to go on with, if nobody else has it."""
        return await self._run(self._claim)

    async def parked(self, build: Build) -> Sequence[Parked]:
        """Return the parked events."""
        return await self._run(self._builds.parked, build.build)

    async def handle(self, build: Build, records: Sequence[Record]) -> Taken:
        """Handle some of these records in one transaction."""
        token = CommitToken()
        try:
            return await self._run(
                *(self._handle, build, records, token),
                timeout=seconds(self._projection.handle_timeout),
                token=token,
            )
        except TimeoutError as error:
            if isinstance(error, ProjectionError):
                raise
            self._database.interrupt()
            if self._seconds_left < math.inf:
                logger.warning(
                    "projection %s: the batch from position %d on was given up, as the system "
                    "stops; it is handled when it is there again",
                    *(self._projection.name, records[0].seq),
                )
                await anyio.sleep_forever()  # until the cancellation strikes that has come before
            raise HandlerTimedOut(
                f"{self._projection.name}: a batch from position {records[0].seq} on has not been "
                f"handled in {self._projection.handle_timeout:g} seconds"
            ) from None

    async def move(self, build: Build, position: int, live_position: int) -> Build:
        """Move positions on, keep the lease, and look what is asked for."""
        return await self._run(self._move, build, position, live_position)

    async def handle_parked(self, build: Build, record: Record) -> None:
        """Handle a parked event in a transaction of its own."""
        await self._run(self._handle_parked, build, record)

    async def park(self, build: Build, record: Record, reason: str) -> Build:
        """Park an event, and move the position behind it."""
        return await self._run(self._park, build, record, reason)

    async def unpark(self, build: Build, seq: int) -> None:
        """Park an event no more."""
        await self._run(self._unpark, build, seq)

    async def pause(self, build: Build, reason: str, seq: int | None) -> Build:
        """Note that it is paused, and why."""
        return await self._run(
            self._note, build, {"is_paused": 1, "error": reason, "error_seq": seq}
        )

    async def resume(self, build: Build) -> Build:
        """Note that it goes on."""
        return await self._run(self._note, build, {"is_paused": 0, "error": "", "error_seq": None})

    async def answer(self, build: Build) -> Build:
        """Empty the request."""
        return await self._run(self._note, build, {"request": ""})

    async def catch_up(self, build: Build) -> Build | None:
        """Note that the end was reached, or swap."""
        return await self._run(self._catch_up, build)

    async def drop_old(self) -> int:
        """Drop the tables of retired builds."""
        return await self._run(self._drop_old)

    async def add_build(self) -> int:
        """Make the tables of a further build, to be built beside the live one; return its number.

        One that was begun before, and is not at its end, is gone on with.
        """
        return await self._run(self._add_build)

    # In the worker thread

    def _open(self) -> None:
        self._database.open()
        with self._transaction():
            self._builds.make_tables()

    def _claim(self) -> Build | None:
        with self._transaction() as tx:
            number = self._number if self._number is not None else self._choose(tx)
            if not self._builds.claim(number, self._owner, self.lease):
                return None
            build = self._own(number)
            self.has_begun_build = self._number is None and build.is_live and bool(self._begun())
        self._read_parked(number)
        return build

    def _choose(self, tx: Any) -> int:
        """Return the build for the version of this class, made if there is none."""
        name, version = self._projection.name, self._projection.version
        builds = [each for each in self._builds.own() if each.state != "retired"]
        live = next((each for each in builds if each.is_live), None)
        if live is not None and live.version > version:
            raise ProjectionOutdated(
                f"{name}: the view is of version {live.version}, and this is version {version}: "
                "deploy the newer class, or give this one a greater version"
            )
        if live is not None and live.version == version:
            return live.build
        waiting = [each.build for each in builds if each.version == version]
        return waiting[0] if waiting else self._create(tx, is_live=live is None)

    def _create(self, tx: Any, *, is_live: bool) -> int:
        number = max((each.build for each in self._builds.own()), default=0) + 1
        self._builds.create(number, self._projection.version, is_live=is_live)
        try:
            with self._for_user(number):
                self._projection.setup(tx)
            if is_live:
                self._publish(number)
        except BaseException as error:
            if self._database.outage(error) is not None:
                raise
            raise SetupFailed(
                f"{self._projection.name}: its tables can't be made: {type_and_text(error)}"
            ) from error
        return number

    def _add_build(self) -> int:
        with self._transaction() as tx:
            begun = self._begun()
            return begun[0] if begun else self._create(tx, is_live=False)

    def _begun(self) -> list[int]:
        """Return the builds that are not at their end, of the version of this class."""
        version = self._projection.version
        builds = [each for each in self._builds.own() if each.version == version]
        return [each.build for each in builds if not each.is_live and each.state == "building"]

    def _handle(self, was: Build, records: Sequence[Record], token: CommitToken) -> Taken:
        try:
            with self._transaction() as tx:
                self._require(was)
                count, held = self._call(tx, was, records)
                last = records[count - 1]
                position = last.seq or 0
                build = msgspec.structs.replace(
                    was,
                    position=position,
                    anchor=anchor_of(last, self._store_id),
                    live_position=position if self._moves_live(was) else was.live_position,
                )
                token.take_or_raise()
                if not self._builds.advance(was, build, self.lease):
                    raise TakenOver
        except (HandlerFailed, ProjectionError, TakenOver, TimeoutError):
            raise
        except Exception as error:
            # The commit has failed, for one of them.
            raise HandlerFailed(None, error) from error
        return Taken(build, count, held)

    def _call(
        self, tx: Any, build: Build, records: Sequence[Record]
    ) -> tuple[int, tuple[int, ...]]:
        """Call the handler; return how many records it has handled, and which are held back."""
        parked = self._parked_actors
        with self._for_user(build.build):
            if self._projection.handle_batch is None:
                count = self._call_for_each(tx, records)
            else:
                count = self._call_for_all(tx, records)
        if not self._database.transaction_check()():
            raise HandlerCommitted(self._committed(records[count - 1].seq))
        held = [each for each in records[:count] if actor_of(each) in parked] if parked else []
        for record in held:
            why = "held back behind a parked event"
            self._builds.park(build.build, Parked(record.seq or 0, actor_of(record), why, True))
        return count, tuple(record.seq or 0 for record in held)

    def _call_for_each(self, tx: Any, records: Sequence[Record]) -> int:
        """Call the handler for one record after the other, until it takes long."""
        handle, is_in_transaction = self._projection.handle, self._database.transaction_check()
        monotonic, count = time.monotonic, 0
        end = monotonic() + seconds(self._projection.batch_seconds)
        try:
            for given in self._given(records):
                for received in given:
                    handle(received, tx)
                count += 1
                if not is_in_transaction() or monotonic() > end:
                    break
        except BaseException as error:
            raise self._named(count, error) from error
        return count

    def _call_for_all(self, tx: Any, records: Sequence[Record]) -> int:
        """Call the handler once. If it fails, nobody knows for which of them."""
        try:
            given = [*itertools.chain.from_iterable(self._given(records))]
            if given:
                hand_over(self._projection, given, tx)
        except BaseException as error:
            raise self._named(None if len(records) > 1 else 0, error) from error
        return len(records)

    def _given(self, records: Sequence[Record]) -> Iterable[Sequence[Any]]:
        """Yield what the handler is given for each record: nothing for those held back."""
        parked = self._parked_actors
        if not parked:
            return self._decode.each(records)
        return (() if actor_of(each) in parked else self._decode(each) for each in records)

    def _handle_parked(self, build: Build, record: Record) -> None:
        try:
            with self._transaction() as tx:
                self._require(build)
                with self._for_user(build.build):
                    try:
                        hand_over(self._projection, self._decode(record), tx)
                    except BaseException as error:
                        raise self._named(0, error) from error
                if not self._database.transaction_check()():
                    raise HandlerCommitted(self._committed(record.seq))
                self._builds.unpark(build.build, record.seq or 0)
        except (HandlerFailed, ProjectionError, TakenOver):
            raise
        except Exception as error:
            raise HandlerFailed(0, error) from error
        self._read_parked(build.build)

    def _move(self, was: Build, position: int, live_position: int) -> Build:
        with self._transaction():
            build = msgspec.structs.replace(was, position=position, live_position=live_position)
            if not self._builds.advance(was, build, self.lease):
                raise TakenOver
            return self._own(was.build)

    def _park(self, was: Build, record: Record, reason: str) -> Build:
        seq = record.seq or 0
        with self._transaction():
            live = seq if self._moves_live(was) else was.live_position
            build = msgspec.structs.replace(was, position=seq, live_position=live)
            if not self._builds.advance(was, build, self.lease):
                raise TakenOver
            self._builds.park(was.build, Parked(seq, actor_of(record), reason, False))
        self._read_parked(was.build)
        return build

    def _unpark(self, build: Build, seq: int) -> None:
        with self._transaction():
            self._require(build)
            self._builds.unpark(build.build, seq)
        self._read_parked(build.build)

    def _note(self, was: Build, columns: dict[str, Any]) -> Build:
        with self._transaction():
            if not self._builds.note(was.build, self._owner, **columns):
                raise TakenOver
            return self._own(was.build)

    def _catch_up(self, was: Build) -> Build | None:
        with self._transaction():
            self._require(was)
            columns: dict[str, Any] = {"state": "running"}
            if not was.is_live:
                live = [each for each in self._builds.own() if each.is_live]
                found = self._builds.find(live[0].build) if live else None
                if found is not None and found.position > was.position:
                    return None
                if found is not None:
                    columns["live_position"] = min(found.live_position, was.position)
                self._builds.retire([each.build for each in live])
                self._publish(was.build)
                columns["is_live"] = 1
            self._builds.note(was.build, self._owner, **columns)
            return self._own(was.build)

    def _publish(self, number: int) -> None:
        for table in self._projection.tables:
            self._builds.publish(table, table_name(table, number))

    def _drop_old(self) -> int:
        with self._transaction():
            old = [each for each in self._builds.own() if each.state == "retired"]
            for each in old:
                for table in reversed(self._projection.tables):
                    self._builds.drop_table(table_name(table, each.build))
                self._builds.remove(each.build)
        return len(old)

    def _release(self, build: Build) -> None:
        with self._transaction():
            self._builds.release(build.build, self._owner)

    def _require(self, was: Build) -> None:
        """Raise `TakenOver` if a build is not as it was."""
        build = self._builds.find(was.build)
        if build is None or (build.owner, build.position) != (self._owner, was.position):
            raise TakenOver
        if build.state == "retired":
            raise TakenOver

    def _own(self, number: int) -> Build:
        build = self._builds.find(number)
        if build is None:
            raise TakenOver
        return build

    def _moves_live(self, build: Build) -> bool:
        """Return whether nothing that is handled now is new to anybody."""
        return build.state == "building" or not self._projection.has_live

    def _read_parked(self, number: int) -> None:
        self._parked_actors = {each.actor for each in self._builds.parked(number) if each.actor}

    def _named(self, index: int | None, error: BaseException) -> Exception:
        text = self._database.outage(error)
        if text is not None:
            return ViewUnavailable(text)
        if self._database.is_refused(error):
            return HandlerCommitted(f"{self._projection.name}: {shown(error)}")
        if is_really(error, Exception):
            return HandlerFailed(index, error)
        # What ends a program in its own thread ends none here.
        return HandlerFailed(index, RuntimeError(f"handle has raised {type_and_text(error)}"))

    def _committed(self, seq: int | None) -> str:
        return (
            f"{self._projection.name}: handle has ended the view's transaction at event {seq}, "
            "which is not its own to commit: what it was given before may be in the view already"
        )

    @contextmanager
    def _for_user(self, build: int) -> Iterator[None]:
        self._database.in_handler = True
        try:
            with writing(build):
                yield
        finally:
            self._database.in_handler = False

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Hold a transaction within; raise what is about the database as `ViewUnavailable`."""
        try:
            with self._database.transaction() as tx:
                yield tx
        except (ProjectionError, TakenOver, HandlerFailed):
            raise
        except Exception as error:
            text = self._database.outage(error)
            if text is None:
                raise
            raise ViewUnavailable(text) from error

    # In the event loop

    async def _run(
        self,
        function: Callable[..., ResultT],
        *args: object,
        timeout: float | None = None,
        token: CommitToken | None = None,
    ) -> ResultT:
        if self._worker is None:
            raise ViewUnavailable(f"{self._view.location}: it is not open")
        return await self._worker.run(function, *args, timeout=timeout, token=token)

    async def _let_go(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop(self._database.close)
