"""Events with a revision that compactions have left among those that they removed."""

from __future__ import annotations

from collections.abc import Mapping

from papyra.persistence.backends._redis.client import RedisClient
from papyra.persistence.backends._redis.entry_format import Rebased, id_of
from papyra.persistence.backends._redis.stream_scan import PAGE_ENTRIES

__all__ = ("KeptEvents",)


class KeptEvents:
    """Finds which of the kept events a read may show. Runs on asyncio.

    Their numbers have holes, so that they have to be counted: from the newest on, each time that a
    policy shows some of them, but not all; that is one that shows more than the one by which the
    store was compacted.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._keys = client.keys
        #: what was asked last, and the answer
        self._last = ("", "")

    async def start(self, asked: str) -> str:
        """Return the id from which on events are visible.

        `asked` is what `scripts.FIND` has replied: how many there may be, and of how many bytes,
        up to which id, and the id with which to begin at the earliest.
        """
        if self._last[0] != asked:
            self._last = (asked, await self._count_back(asked))
        return self._last[1]

    async def _count_back(self, asked: str) -> str:
        visible, size, upto, first = asked.split(" ")
        count, room = int(visible), int(size)
        start, stop = f"({upto}", upto
        while page := await self._client.entries(
            self._keys.streams["event"], "-", stop, min(count, PAGE_ENTRIES), newest=True
        ):
            for identifier, fields in page:
                count, room = count - 1, room - _size_of(fields)
                if room < 0 or (first != "-" and id_of(identifier) < id_of(first.encode())):
                    return start
                start = identifier.decode()
                if not count:
                    return start
            stop = f"({start}"
        return start


def _size_of(fields: Mapping[bytes, bytes]) -> int:
    """Return the bytes of the record that is read at an entry."""
    return len(fields.record if isinstance(fields, Rebased) else fields.get(b"record", b""))
