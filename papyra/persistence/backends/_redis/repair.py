"""The repair of a store: drop or quarantine what a scan has found, and count anew."""

from __future__ import annotations

import json

from papyra.persistence.backends._redis import scripts
from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.store_state import read_state
from papyra.persistence.backends._redis.stream_scan import Findings, Renumbering
from papyra.persistence.records import KINDS

__all__ = ("renumber", "repair")

#: Entries that one call removes, at most.
REMOVED_AT_ONCE = 500


async def repair(
    client: RedisClient, found: Findings, *, quarantine: bool
) -> tuple[int, list[str]] | None:
    """Remove what is bad; return how many entries that were, and where their copies are.

    `None` says that the store has been taken over meanwhile: it has to be scanned once more.
    """
    wrong = [word for field in found.wrong.items() for word in field]
    if wrong and await client.run(scripts.DROP, client.keys.all, found.mark, *wrong) < 0:
        return None
    if found.kept is not None:
        noted = b"" if "event:kept" in found.wrong else found.kept[0]
        note = found.mark, noted, found.kept[1]
        if await client.run(scripts.RECOUNT, client.keys.all, *note) < 0:
            return None
    removed, copies = await _remove_bases(client, found, quarantine=quarantine)
    if removed < 0:
        return None
    for number, kind in enumerate(KINDS, start=1):
        keys, bad = client.keys.all, found.bad[kind]
        if quarantine and bad:
            keys = [*keys, client.keys.quarantine(kind)]
            copies += [keys[-1]] if keys[-1] not in copies else []
        for start in range(0, len(bad), REMOVED_AT_ONCE):
            ids = bad[start : start + REMOVED_AT_ONCE]
            if await client.run(scripts.REMOVE, keys, number, found.mark, *ids) < 0:
                return None
            removed += len(ids)
        if found.gone[kind]:
            args = number, found.mark, json.dumps(found.gone[kind])
            if await client.run(scripts.FORGET, client.keys.all, *args) < 0:
                return None
    return removed, copies


async def _remove_bases(
    client: RedisClient, found: Findings, *, quarantine: bool
) -> tuple[int, list[str]]:
    """Remove the bases that can't be believed, as `repair`; -1 if they are to be scanned again."""
    removed, bad = 0, found.bad_bases
    copies = [client.keys.quarantine("event")] if quarantine and bad else []
    for start in range(0, len(bad), REMOVED_AT_ONCE):
        ids = bad[start : start + REMOVED_AT_ONCE]
        keys = [*client.keys.all, *copies]
        if await client.run(scripts.DROP_BASES, keys, found.mark, *ids) < 0:
            return -1, copies
        removed += len(ids)
    return removed, copies


async def renumber(client: RedisClient, found: Findings, epoch: int) -> None:
    """Count anew what has wrong numbers, and let go of ids that nothing can follow.

    For the writer, whose epoch it is: nobody else appends meanwhile.
    """
    state = await read_state(client)
    for number, (kind, stream) in enumerate(state.streams.items(), start=1):
        anew = found.renumberings.get(kind)
        if anew is None and stream.is_blocked:
            anew = Renumbering(b"+")
        if anew is not None:
            args = number, epoch, anew.id, anew.n, anew.total, int(stream.is_blocked)
            await client.run(scripts.RENUMBER, client.keys.all, *args)
