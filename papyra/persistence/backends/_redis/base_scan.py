"""The scan of the bases of histories, which are kept beside the stream of events."""

from __future__ import annotations

from papyra.persistence import codec
from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import AnyClient, RedisClient
from papyra.persistence.backends._redis.entry_format import (
    RawEntry,
    Rebased,
    Wrong,
    check,
    id_of,
    raw_entries,
    read,
)
from papyra.persistence.backends._redis.stream_scan import PAGE_ENTRIES, Findings
from papyra.persistence.reports import PersistenceAnomaly

__all__ = ("BaseScan",)


class BaseScan:
    """Looks whether each base can be believed, and has an event in the place of which it is read.

    A recovery removes those that can't: then that event is read again. So the history is whole, if
    nothing of it was removed yet; and else it begins behind a hole, but the snapshots that name the
    event are good, and the next compaction makes the base anew.
    """

    def __init__(self, client: RedisClient, found: Findings) -> None:
        self._client = client
        self._found = found
        self._seen: set[bytes] = set()

    def checked(self, raw: RawEntry) -> RawEntry:
        """Return an entry, without its base if that can't be believed."""
        if not isinstance(raw[1], Rebased):
            return raw
        self._seen.add(raw[0])
        wrong = _wrong_with(raw)
        if wrong is None:
            return raw
        self._reject(raw[0], wrong)
        return raw[0], dict(raw[1])

    def note_stray(self, raw: RawEntry) -> RawEntry:
        """Return an entry that compactions have not looked at yet without its base, if any."""
        if not isinstance(raw[1], Rebased):
            return raw
        self._found.stray_base = max(self._found.stray_base or b"0-0", raw[0], key=id_of)
        detail = f"the base at {raw[0].decode()} is behind what is noted as kept by compactions"
        self._found.anomalies.append(self._anomaly(("corrupt", detail), raw[0]))
        return raw[0], dict(raw[1])

    async def finish(self) -> None:
        """Report bases without an event in the place of which they could be read."""
        unseen = [each for each in await self._names() if each not in self._seen]
        for start in range(0, len(unseen), PAGE_ENTRIES):
            part = unseen[start : start + PAGE_ENTRIES]
            ids = [each for each in part if _is_id(each)]
            found = await self._client.run(scripts.PAGE, self._client.keys.all, "ids", *ids)
            # Some may have been written since.
            there = {identifier for identifier, _ in raw_entries(*found)}
            for each in part:
                if each not in there:
                    self._reject(each, ("corrupt", "there is a base, and no event at its place"))

    async def _names(self) -> list[bytes]:
        async def fetch(client: AnyClient) -> list[bytes]:
            names: list[bytes] = await client.hkeys(self._client.keys.bases)
            return names

        return await self._client.call(fetch)

    def _reject(self, identifier: bytes, wrong: Wrong) -> None:
        self._found.bad_bases.append(identifier)
        self._found.anomalies.append(self._anomaly(wrong, identifier))

    def _anomaly(self, wrong: Wrong, identifier: bytes) -> PersistenceAnomaly:
        kind, detail = wrong
        name = identifier.decode(errors="replace")
        seq = id_of(identifier)[1] if _is_id(identifier) else None
        return PersistenceAnomaly(kind, detail, self._client.keys.bases, seq=seq, entry=name)


def _wrong_with(raw: RawEntry) -> Wrong | None:
    """Return what is wrong with the base at an entry, if anything."""
    entry, wrong = read(raw)
    if entry is None:
        return wrong
    _, wrong = check(entry, "event")
    if wrong is not None:
        return wrong[0] if wrong[0] != "unknown_kind" else "corrupt", f"the base: {wrong[1]}"
    stands_for = codec.concerned(raw[1].get(b"record", b""))
    if stands_for[0] is not None and stands_for != codec.concerned(entry.record):
        return "corrupt", f"the base in place of record {entry.seq} is that of another event"
    return None


def _is_id(identifier: bytes) -> bool:
    ms, _, seq = identifier.partition(b"-")
    return ms.isdigit() and seq.isdigit() and len(identifier) < 40
