"""The one writer of a store: its epoch, its counters, and the batch that is in doubt."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import redis.exceptions

from papyra.exceptions import StoreError, StoreFenced, StoreNotAcknowledged
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.entries import checksums, milliseconds
from papyra.persistence.backends._redis.link import AnyClient, RedisLink, did_nothing
from papyra.persistence.backends._redis.state import StoreState
from papyra.persistence.backends.base import Batch
from papyra.persistence.records import (
    KINDS,
    PersistedAudit,
    PersistedDeadLetter,
    PersistedEvent,
    Record,
)

__all__ = ("Doubt", "Writer")

logger = logging.getLogger("papyra")

_encode = msgspec.json.Encoder().encode

#: Kinds as scripts count them, from 1, in ASCII.
_FIRST_DIGIT = ord("1")
_DIGITS: dict[type, int] = {
    PersistedEvent: _FIRST_DIGIT,
    PersistedAudit: _FIRST_DIGIT + 1,
    PersistedDeadLetter: _FIRST_DIGIT + 2,
}


class Doubt(msgspec.Struct, frozen=True, array_like=True):
    """A batch that may have been stored, though its append failed. ``CLAIM`` takes it so."""

    #: the last position before
    last_seq: int
    first_seq: int
    #: whether its positions may be given again
    restored: bool
    #: a digit for each record, or one for all
    kinds: str
    #: of the records, in milliseconds
    times: Sequence[int]

    @property
    def seqs(self) -> range:
        """Its positions."""
        return range(self.first_seq, self.first_seq + len(self.times))


class Writer:
    """Appends batches, each with one call of a script, exactly once however often it is called.

    Only the writer with the greatest epoch may write: the fencing of Kafka's transactional
    producers. A batch is known by its epoch and its first seq, so that the script can tell a batch
    that comes again from one that is new. One whose outcome remains unknown is taken back before
    anything else is written; as the epoch grows with that, a copy of it that is still on its way
    comes too late.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._keys = link.config.keys
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._epoch = 0
        #: whether this is, as far as it knows, the writer
        self.is_claimed = False
        self.last_seq = 0
        #: what may have been stored, though its append failed
        self.doubt: Doubt | None = None
        self._late = 0
        self._ms = 0
        self._counts = [0] * len(KINDS)
        self._totals = [0] * len(KINDS)
        self._confirmation: tuple[object, ...] | None = None
        #: whether anything was written since it was last synced
        self.is_dirty = False

    def lay_down(self) -> None:
        """Be no writer any more: the next `claim` takes over from whoever is."""
        self.is_claimed = False

    async def claim(self, *, retry: bool = True) -> int:
        """Become the writer, or stay it; take back what is in doubt. Return the last seq."""
        await self._check_acknowledge()
        if not self.is_claimed:
            state = StoreState.of(await self._link.run(scripts.STATE, self._keys.all, retry=retry))
            if state.epoch != self._epoch:
                self.doubt = None  # what is stored is another's to say
            self._epoch, self.last_seq = state.epoch, 0
            self._counts, self._totals = [0] * len(KINDS), [0] * len(KINDS)
        status, *reply = await self._link.run(
            scripts.CLAIM,
            self._keys.all,
            self._name,
            self._epoch,
            "" if self.doubt is None else _encode(self.doubt),
            self.last_seq,
            *self._counts,
            *self._totals,
            retry=retry,
        )
        if status != b"ok":
            self.doubt = None
            raise self._refusal(status, reply)
        self._epoch, self.last_seq, self._ms, self._late, taken_back, *counts = map(int, reply)
        self._counts, self._totals = counts[: len(KINDS)], counts[len(KINDS) :]
        if taken_back:
            logger.warning(
                "%s: %d records whose append had failed were stored after all, and are taken back",
                self._link.location,
                taken_back,
            )
        self.doubt = None
        self.is_claimed = True
        return self.last_seq

    async def append(self, batch: Batch) -> None:
        """Store a batch. If this raises, it is not stored, or in doubt."""
        status, *reply = await self._send(batch)
        if status == b"behind":
            logger.error(
                "%s: the server has lost what it had acknowledged: its last record is %d, not %d",
                self._link.location,
                reply[0],
                self.last_seq,
            )
            await self.claim()
            status, *reply = await self._send(batch)
        if status != b"ok":
            raise self._refusal(status, reply)
        self._ms, self._late = map(int, reply)
        self.last_seq = batch.first_seq + len(batch.records) - 1
        self._count(batch, _digits(batch.records))
        self.is_dirty = True

    async def sync(self) -> None:
        """Wait until what was written is on the server's disk, if it can tell."""
        if not self.is_dirty or not (await self._link.info()).can_wait_for_aof:
            return

        async def attempt(client: AnyClient) -> None:
            # WAITAOF waits for what its own connection has written.
            write = ("HSET", self._keys.meta, "synced", self.last_seq)
            _, synced = await self._confirmed(client, write, self._wait_for_aof())
            if synced[0] < 1:
                raise StoreNotAcknowledged("the server has not synced its file in time")

        await self._link.call(attempt, timeout=self._confirmed_within())
        self.is_dirty = False

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
        )
        args = (
            b"\n".join((*batch.encoded, b"")),
            checksums(batch.encoded, first),
            kinds,
            _encode(header),
        )

        async def attempt(client: AnyClient) -> list[Any]:
            try:
                return await self._store(client, args)
            except BaseException as error:
                if not did_nothing(error):
                    self.doubt = Doubt(self.last_seq, first, batch.restored, kinds.decode(), times)
                raise

        # What is on its way is waited for: whoever is cancelled would not know what became of it.
        timeout = None if self._confirmation is None else self._confirmed_within()
        reply = await self._link.call(attempt, shield=True, timeout=timeout)
        self.doubt = None
        return reply

    async def _store(self, client: AnyClient, args: tuple[Any, ...]) -> list[Any]:
        keys, script = self._keys.all, scripts.APPEND
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            reply, confirmed = await self._confirmed(client, command, self._confirmation)
        except redis.exceptions.NoScriptError:
            command = ("EVAL", script.source, *command[2:])
            reply, confirmed = await self._confirmed(client, command, self._confirmation)
        if confirmed is not None and reply[0] == b"ok":
            self._check_confirmed(confirmed)
        stored: list[Any] = reply
        return stored

    async def _confirmed(
        self, client: AnyClient, command: tuple[Any, ...], wait: tuple[Any, ...] | None
    ) -> tuple[Any, Any]:
        """Return the reply to a command, and to one that waits until it is confirmed."""
        commands = (command,) if wait is None else (command, wait)
        reply, *rest = await self._link.exchange(client, *commands)
        if isinstance(reply, Exception):
            raise reply
        confirmed = rest[0] if rest else None
        if isinstance(confirmed, Exception):
            raise StoreNotAcknowledged(
                f"{self._link.location}: {confirmed}, while waiting for a confirmation"
            ) from confirmed
        return reply, confirmed

    def _confirmed_within(self) -> float:
        """Return the seconds for a call that is to be confirmed."""
        return self._link.config.timeout + self._link.config.acknowledge_timeout

    def _wait_for_aof(self) -> tuple[object, ...]:
        return ("WAITAOF", 1, 0, int(self._link.config.acknowledge_timeout * 1000))

    async def _check_acknowledge(self) -> None:
        """Find out how a write is confirmed, and whether the server can do that."""
        config = self._link.config
        if config.replicas:
            self._confirmation = ("WAIT", config.replicas, int(config.acknowledge_timeout * 1000))
        elif config.acknowledge == "aof":
            info = await self._link.info()
            if info.can_wait_for_aof:
                self._confirmation = self._wait_for_aof()
            elif info.has_aof is False or not await self._syncs_always():
                raise StoreError(
                    f"{self._link.location}: acknowledge='aof' needs a server with appendonly yes, "
                    "and WAITAOF (Redis 7.2, Valkey 7.2) or appendfsync always"
                )

    async def _syncs_always(self) -> bool:
        async def look(client: AnyClient) -> bool:
            settings = await client.config_get("appendfsync")
            return b"always" in settings.values() or "always" in settings.values()

        return await self._link.call(look)

    def _check_confirmed(self, confirmed: Any) -> None:
        config = self._link.config
        wanted = config.replicas or 1
        got = confirmed if config.replicas else confirmed[0]
        if got < wanted:
            where = f"{got} of {wanted} replicas" if config.replicas else "no disk"
            raise StoreNotAcknowledged(
                f"{self._link.location}: after {config.acknowledge_timeout:g} seconds, "
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

    def _refusal(self, status: bytes, reply: list[Any]) -> StoreError:
        location, tag = self._link.location, self._keys.tag
        words = [
            part.decode(errors="replace") if isinstance(part, bytes) else part for part in reply
        ]
        if status == b"fenced":
            return StoreFenced(
                f"{location}: {words[0] or 'another writer'} has taken over {tag}: a system_id has "
                "one writer at a time. Stop one of the two, or give it another system_id"
            )
        if status == b"blocked":
            return StoreError(
                f"{location}: nothing can be added to {words[0]}, where somebody has put an entry "
                f"with the id {words[1]}"
            )
        if status == b"format":
            return StoreError(f"{location}: {tag} was written by a newer version of Papyra")
        return StoreError(f"{location}: {tag} can't be written: {status!r} {words}")


def _digits(records: Sequence[Record]) -> bytes:
    """Return the kind of each record, or one for all."""
    types: set[type] = set(map(type, records))
    if len(types) == 1:
        return bytes([_DIGITS[types.pop()]])
    return bytes([_DIGITS[type(record)] for record in records])
