"""The one writer of a store: its epoch, its counters, and the batch that is in doubt."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import redis.exceptions

from papyra.exceptions import (
    PositionsExhausted,
    StoreError,
    StoreFenced,
    StoreNotAcknowledged,
)
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.actor_index import concerned, revisions_of
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import LATEST_MS, checksums, milliseconds
from papyra.persistence.backends._redis.errors import is_refusal
from papyra.persistence.backends._redis.store_state import StoreState, read_state
from papyra.persistence.backends.store import MAX_SEQ, Batch
from papyra.persistence.records import (
    KINDS,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

__all__ = ("InDoubtBatch", "Writer")

logger = logging.getLogger("papyra")

_encode = msgspec.json.Encoder().encode

#: What scripts reply that have written.
_WRITTEN = (b"ok", b"kept", b"gone")

#: How many batches are known that were taken back.
TAKEN_BACK = 16

#: Kinds as scripts count them, from 1, in ASCII.
_FIRST_DIGIT = ord("1")
_DIGITS: dict[type, int] = {
    PersistedEvent: _FIRST_DIGIT,
    PersistedAudit: _FIRST_DIGIT + 1,
    PersistedDeadLetter: _FIRST_DIGIT + 2,
}


class _Known(msgspec.Struct, frozen=True):
    """The end of a store: its last position, and the counters of each kind."""

    last: int = 0
    #: of each kind
    counts: tuple[int, ...] = (0,) * len(KINDS)
    totals: tuple[int, ...] = (0,) * len(KINDS)


class InDoubtBatch(msgspec.Struct, frozen=True):
    """A batch that may have been stored, though its append failed."""

    #: the last position before
    last_seq: int
    first_seq: int
    #: whether its positions may be given again
    restored: bool
    #: a digit for each record, or one for all
    kinds: str
    #: of the records, in milliseconds
    times: Sequence[int]
    #: of the records, as ``APPEND`` has them; for ``SETTLE``
    sums: str
    #: how the member of each record in the index begins and ends
    concerned: Sequence[tuple[str, str]] = ()

    @property
    def encoded(self) -> bytes:
        """The batch as scripts take it."""
        return _encode(
            (
                self.last_seq,
                self.first_seq,
                self.restored,
                self.kinds,
                self.times,
                self.concerned,
            )
        )

    @property
    def seqs(self) -> range:
        """Its positions."""
        return range(self.first_seq, self.first_seq + len(self.times))


def with_actors(batch: InDoubtBatch, records: Sequence[Record]) -> InDoubtBatch:
    """Return the batch with the actors that its records concern."""
    return msgspec.structs.replace(batch, concerned=concerned(records))


class Writer:
    """Appends batches, each with one call of a script, exactly once however often it is called.

    Only the writer with the greatest epoch may write: the fencing of Kafka's transactional
    producers. A batch is known by its epoch and its first seq, so that the script can tell a batch
    that comes again from one that is new. One whose outcome remains unknown is taken back before
    anything else is written; as the epoch grows with that, a copy of it that is still on its way
    comes too late.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keys = client.keys
        self._name = client.name
        self._epoch = 0
        #: whether this is, as far as it knows, the writer
        self.is_claimed = False
        self.last_seq = 0
        #: what may have been stored, though its append failed
        self.in_doubt: InDoubtBatch | None = None
        #: the last batches that were in doubt, and are not stored
        self._taken_back: deque[InDoubtBatch] = deque(maxlen=TAKEN_BACK)
        self._late = 0
        self._ms = 0
        self._counts = [0] * len(KINDS)
        self._totals = [0] * len(KINDS)
        self._confirmation: tuple[object, ...] | None = None
        #: where the store ended when this looked, and the end that was said to be wrong
        self._known = _Known()
        self._said = -1
        #: whether anything was written since it was last synced
        self.is_dirty = False

    @property
    def epoch(self) -> int:
        """The epoch in which this has written last."""
        return self._epoch

    def release(self) -> None:
        """Be no writer any more: the next `claim` takes over from whoever is."""
        if self.is_claimed and self.last_seq >= self._known.last:
            self._known = _Known(self.last_seq, tuple(self._counts), tuple(self._totals))
        self.is_claimed = False

    def note(self, state: StoreState) -> int:
        """Take in where the store ends; return the last seq that is known of.

        A store that ends before that has been lost by its server, in part at least, which is said.
        """
        known = self._known
        if state.last >= known.last:
            streams = state.streams.values()
            self._known = _Known(
                state.last,
                tuple(stream.n for stream in streams),
                tuple(stream.total for stream in streams),
            )
        elif state.last != self._said:
            self._said = state.last
            self._log_loss(state.last, known.last)
        return max(state.last, known.last)

    def _log_loss(self, last: int, known: int) -> None:
        logger.error(
            "%s: the server has lost what it had acknowledged: the last record of %s is %d, not %d",
            self._client.location,
            self._keys.tag,
            last,
            known,
        )

    async def claim(self, *, tries: int = 1, anew: bool = False) -> int:
        """Become the writer, or stay it; take back what is in doubt. Return the last seq.

        With `anew`, what is not known about the streams is made of what is in them. Whoever takes
        over while others do so comes after them.
        """
        await self._check_acknowledge()
        was_claimed, status = self.is_claimed, b"fenced"
        while status == b"fenced":
            if not was_claimed:
                await self._look(tries)
            status, *reply = await self._claim(tries, anew=anew or was_claimed)
            if was_claimed:
                break
        if status == b"fenced" and self.in_doubt is not None:
            await self._settle(self.in_doubt, keep=False)
        if status != b"ok":
            raise self.refusal(status, reply)
        self._epoch, self.last_seq, self._ms, self._late, taken_back, *counts = map(int, reply)
        self._counts, self._totals = counts[: len(KINDS)], counts[len(KINDS) :]
        if self.in_doubt is not None:
            self._was_taken_back(self.in_doubt, taken_back)
        self.in_doubt = None
        self.is_claimed = True
        return self.last_seq

    async def _look(self, tries: int) -> None:
        """Find out on whom to build, before taking over."""
        state = await read_state(self._client, tries=tries)
        if self.in_doubt is not None and state.epoch != self._epoch:
            await self._settle(self.in_doubt, keep=False)
        if "epoch" in state.wrong:
            # Greater than any that was counted from 1.
            state.epoch = int(time.time() * 1000)
        # Whatever the server has lost: a copy of a batch that is still on its way comes too late.
        self._epoch = max(self._epoch, state.epoch)
        known = self._known if self.note(state) > state.last else _Known()
        self.last_seq, self._counts, self._totals = known.last, [*known.counts], [*known.totals]

    async def _claim(self, tries: int, *, anew: bool) -> list[Any]:
        args = (
            self._name,
            self._epoch,
            "" if self.in_doubt is None else self.in_doubt.encoded,
            self.last_seq,
            *self._counts,
            *self._totals,
            int(anew),
            self._keys.mark,
        )
        if self.in_doubt is None or self._confirmation is None:
            reply: list[Any] = await self._client.run(
                scripts.CLAIM, self._keys.all, *args, tries=tries
            )
            return reply

        # Unconfirmed, what is taken back could come back with a failover.
        return await self._call_confirmed(scripts.CLAIM, args, tries)

    async def _settle(self, in_doubt: InDoubtBatch, *, keep: bool) -> bool:
        """Settle what is in doubt, now that somebody else is the writer.

        It belongs to the store with what that one has written since. Where its append still goes
        on (`keep`), that has succeeded if all of the batch is there; where it has raised, what
        there is of it is removed. Returns whether it was kept.
        """
        args = (in_doubt.encoded, in_doubt.sums, int(keep))
        outcome, count = await self._call_confirmed(scripts.SETTLE, args)
        self.in_doubt = None
        if outcome != b"kept":
            self._was_taken_back(in_doubt, count)
        return bool(outcome == b"kept")

    def _was_taken_back(self, batch: InDoubtBatch, count: int) -> None:
        if not batch.restored and batch not in self._taken_back:  # nobody has its positions again
            self._taken_back.append(batch)
        if count:
            logger.warning(
                "%s: %d records whose append had failed were stored after all, and are taken back",
                self._client.location,
                count,
            )

    async def append(self, batch: Batch) -> None:
        """Store a batch. If this raises, it is not stored, or in doubt."""
        self._check_room(batch)
        status, *reply = await self._send(batch)
        if status == b"behind":
            self._log_loss(reply[0], self.last_seq)
            for taken_back in tuple(self._taken_back):
                # A replica that was promoted may not know that yet.
                await self._settle(taken_back, keep=False)
            await self.claim()
            self._check_still_follows(batch)
            status, *reply = await self._send(batch)
        if (
            status == b"fenced"
            and self.in_doubt is not None
            and await self._settle(self.in_doubt, keep=True)
        ):
            status, reply = b"ok", [self._ms, self._late]
        if status != b"ok":
            raise self.refusal(status, reply)
        self._ms, self._late = map(int, reply)
        self.last_seq = batch.first_seq + len(batch.records) - 1
        self._count(batch, _digits(batch.records))
        self.is_dirty = True

    def _check_still_follows(self, batch: Batch) -> None:
        """Refuse revisions that were checked against what the server has lost since."""
        if revisions_of(batch.records) and not batch.restored:
            raise StoreError(
                f"{self._client.location}: the server has lost what it had acknowledged of "
                f"{self._keys.tag}: read the histories again before going on with them"
            )

    def _check_room(self, batch: Batch) -> None:
        last, size = batch.first_seq + len(batch.records) - 1, sum(map(len, batch.encoded))
        if last > MAX_SEQ or max(self._totals) + size > LATEST_MS:
            raise PositionsExhausted(
                f"{self._client.location}: {self._keys.tag} has no room for {len(batch.records)} "
                f"records more: positions, and bytes, are counted up to {MAX_SEQ}. Copy what is "
                "needed to a new store"
            )

    async def sync(self) -> None:
        """Wait until what was written is on the server's disk, if it can tell."""
        if not self.is_dirty or not (await self._client.info()).can_wait_for_aof:
            return

        async def attempt(client: AnyClient) -> None:
            # WAITAOF waits for what its own connection has written.
            write = ("HSET", self._keys.meta, "synced", self.last_seq)
            _, synced = await self._confirmed(client, write, self._wait_for_aof())
            if synced[0] < 1:
                raise StoreNotAcknowledged("the server has not synced its file in time")

        await self._client.call(attempt, timeout=self._confirmed_within())
        self.is_dirty = False

    async def identify(self, store_id: str) -> str:
        """Give the store this id if it has none, and return the one that it has."""
        await self._check_acknowledge()
        status, *reply = await self._call_confirmed(
            scripts.IDENTIFY, (store_id, self._keys.mark), keys=[self._keys.meta]
        )
        if status != b"ok":
            raise self.refusal(status, reply)
        identity: bytes = reply[0]
        return identity.decode()

    async def epoch_beside(self) -> int:
        """Return the epoch in which to write beside the records.

        That is its own for the writer, and for one that is fenced and does not know it. Whoever has
        never written goes by that of the writer, as whoever compacts a store does.
        """
        return self._epoch if self.is_claimed else (await read_state(self._client)).epoch

    async def run_confirmed(self, script: scripts.Script, args: tuple[Any, ...]) -> list[Any]:
        """Return what a script about records returns, confirmed as an append is."""
        await self._check_acknowledge()
        reply = await self._call_confirmed(script, args)
        self.is_dirty = True
        return reply

    async def write_beside(self, script: scripts.Script, keys: Sequence[str], *args: Any) -> None:
        """Have a script write beside the records, confirmed as they are.

        It gets the epoch first, and refuses what comes from a writer that is fenced.
        """
        if not await self.change_beside(script, keys, *args):
            raise self.refusal(b"differs", [])

    async def change_beside(self, script: scripts.Script, keys: Sequence[str], *args: Any) -> bool:
        """Do as `write_beside` does; return False where the script replies ``differs``."""
        epoch = await self.epoch_beside()
        status, *reply = await self._call_confirmed(script, (epoch, *args), keys=keys)
        if status == b"differs":
            return False
        if status != b"ok":
            raise self.refusal(status, reply)
        self.is_dirty = True
        return True

    async def _send(self, batch: Batch) -> list[Any]:
        first, count = batch.first_seq, len(batch.records)
        times, late = milliseconds([record.timestamp for record in batch.records], self._ms)
        kinds = _digits(batch.records)
        header = (
            self._epoch,
            self.last_seq,
            first,
            count,
            max(late, self._late),
            self._counts,
            self._totals,
            times,
            revisions_of(batch.records),
        )
        sums = checksums(batch.encoded, first)
        args = (b"\n".join((*batch.encoded, b"")), sums, kinds, _encode(header))

        sent = InDoubtBatch(self.last_seq, first, batch.restored, kinds.decode(), times, sums)

        async def attempt(client: AnyClient) -> list[Any]:
            try:
                reply = await self._run_confirmed(client, scripts.APPEND, args)
            except BaseException as error:
                if not is_refusal(error):
                    self.in_doubt = with_actors(sent, batch.records)
                raise
            if reply[0] == b"half":
                self.in_doubt = with_actors(sent, batch.records)
                raise redis.exceptions.ResponseError(reply[1].decode(errors="replace"))
            return reply

        # What is on its way is waited for: whoever is cancelled would not know what became of it.
        reply = await self._client.call(
            attempt, shield=True, timeout=self._timeout, size=len(args[0])
        )
        if reply[0] != b"fenced":
            self.in_doubt = None  # else the first of several tries may have been in time
        return reply

    async def _call_confirmed(
        self,
        script: scripts.Script,
        args: tuple[Any, ...],
        tries: int = 1,
        keys: Sequence[str] | None = None,
    ) -> list[Any]:
        async def attempt(client: AnyClient) -> list[Any]:
            return await self._run_confirmed(client, script, args, keys)

        size = sum(len(arg) for arg in args if isinstance(arg, bytes))
        return await self._client.call(attempt, timeout=self._timeout, tries=tries, size=size)

    async def _run_confirmed(
        self,
        client: AnyClient,
        script: scripts.Script,
        args: tuple[Any, ...],
        keys: Sequence[str] | None = None,
    ) -> list[Any]:
        """Return what a script returns, once what it has written is confirmed as configured."""
        keys = self._keys.all if keys is None else keys
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            reply, confirmed = await self._confirmed(client, command, self._confirmation)
        except redis.exceptions.NoScriptError:
            command = ("EVAL", script.source, *command[2:])
            reply, confirmed = await self._confirmed(client, command, self._confirmation)
        if confirmed is not None and reply[0] in _WRITTEN:
            self._check_confirmed(confirmed)
        stored: list[Any] = reply
        return stored

    async def _confirmed(
        self, client: AnyClient, command: tuple[Any, ...], wait: tuple[Any, ...] | None
    ) -> tuple[Any, Any]:
        """Return the reply to a command, and to one that waits until it is confirmed."""
        commands = (command,) if wait is None else (command, wait)
        reply, *rest = await self._client.exchange(client, *commands)
        if isinstance(reply, Exception):
            raise reply
        confirmed = rest[0] if rest else None
        if isinstance(confirmed, Exception):
            raise StoreNotAcknowledged(
                f"{self._client.location}: {confirmed}, while waiting for a confirmation"
            ) from confirmed
        return reply, confirmed

    @property
    def _timeout(self) -> float | None:
        """Seconds for a call of a script that writes; `None` for what every call has."""
        return None if self._confirmation is None else self._confirmed_within()

    def _confirmed_within(self) -> float:
        """Return the seconds for a call that is to be confirmed."""
        return self._client.config.timeout + self._client.config.acknowledge_timeout

    def _wait_for_aof(self) -> tuple[object, ...]:
        return ("WAITAOF", 1, 0, int(self._client.config.acknowledge_timeout * 1000))

    async def _check_acknowledge(self) -> None:
        """Find out how a write is confirmed, and whether the server can do that."""
        config = self._client.config
        if config.replicas:
            self._confirmation = ("WAIT", config.replicas, int(config.acknowledge_timeout * 1000))
        elif config.acknowledge == "aof":
            info = await self._client.info()
            if info.can_wait_for_aof:
                self._confirmation = self._wait_for_aof()
            elif info.has_aof is False or not await self._syncs_always():
                raise StoreError(
                    f"{self._client.location}: acknowledge='aof' needs a server with appendonly "
                    "yes, and WAITAOF (Redis 7.2, Valkey 7.2) or appendfsync always"
                )

    async def _syncs_always(self) -> bool:
        async def look(client: AnyClient) -> bool:
            settings = await client.config_get("appendfsync")
            return b"always" in settings.values() or "always" in settings.values()

        return await self._client.call(look)

    def _check_confirmed(self, confirmed: Any) -> None:
        config = self._client.config
        wanted = config.replicas or 1
        got = confirmed if config.replicas else confirmed[0]
        if got < wanted:
            where = f"{got} of {wanted} replicas" if config.replicas else "no disk"
            raise StoreNotAcknowledged(
                f"{self._client.location}: after {config.acknowledge_timeout:g} seconds, "
                f"{where} had it"
            )

    def _count(self, batch: Batch, kinds: bytes) -> None:
        if len(kinds) == 1:
            kind = kinds[0] - _FIRST_DIGIT
            self._counts[kind] += len(batch.records)
            self._totals[kind] += sum(map(len, batch.encoded))
            return
        for digit, encoded in zip(kinds, batch.encoded, strict=True):
            self._counts[digit - _FIRST_DIGIT] += 1
            self._totals[digit - _FIRST_DIGIT] += len(encoded)

    def refusal(self, status: bytes, reply: list[Any]) -> StoreError:
        """Return the error that a script's reply means."""
        location, tag = self._client.location, self._keys.tag
        words = [
            part.decode(errors="replace") if isinstance(part, bytes) else part for part in reply
        ]
        if status == b"fenced":
            return StoreFenced(
                f"{location}: {words[0] or 'another writer'} has taken over {tag}: a system_id has "
                "one writer at a time. Stop one of the two, or give it another system_id"
            )
        if status == b"behind":
            return StoreError(f"{location}: the server has lost what it had acknowledged of {tag}")
        if status == b"blocked":
            return StoreError(
                f"{location}: nothing can be added to {words[0]}, where somebody has put an entry "
                f"with the id {words[1]}"
            )
        if status == b"other":
            return StoreError(
                f"{location}: {tag} is the store of the prefix {words[0]!r}, which another system "
                "id than this makes it: close this backend, and open it again"
            )
        if status == b"damaged":
            return StoreError(
                f"{location}: what is known about the streams of {tag} is missing or wrong "
                f"({words[0]}): recover it"
            )
        if status == b"missing":
            return StoreError(f"{location}: record {words[0]}, or its base, is not in {tag}")
        if status == b"format":
            return StoreError(f"{location}: {tag} was written by a newer version of Papyra")
        return StoreError(f"{location}: {tag} can't be written: {status!r} {words}")


def _digits(records: Sequence[Record]) -> bytes:
    """Return the kind of each record, or one for all."""
    types: set[type] = set(map(type, records))
    if len(types) == 1:
        return bytes([_DIGITS[types.pop()]])
    return bytes([_DIGITS[type(record)] for record in records])
