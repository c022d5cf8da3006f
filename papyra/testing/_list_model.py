"""The plainest store there is, a list, to compare others with."""

from __future__ import annotations

import msgspec

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.messages import Read
from papyra.persistence.records import Kind, Record, kind_of
from papyra.testing._matchers import actor_of

#: More pages than this, one after the other, do not end.
_MANY = 10_000


class ListModel:
    """A list of numbered records and their encoded sizes, that reads as a backend does."""

    def __init__(self, policy: RetentionPolicy | None = None) -> None:
        self.policy = policy or RetentionPolicy()
        self.stored: list[tuple[Record, int]] = []

    def append(self, *records: Record) -> None:
        """Store `records` at the next positions."""
        for record in records:
            size = len(msgspec.json.encode(record))
            numbered = msgspec.structs.replace(record, seq=len(self.stored) + 1)
            # As it would be read back.
            plain = msgspec.convert(msgspec.to_builtins(numbered), type(numbered))
            self.stored.append((plain, size))

    def visible(self, kind: Kind, now: float) -> list[Record]:
        """Return what retention shows of one kind at Unix time `now`."""
        limits, shown, total = self.policy.of(kind), [], 0
        kept = [(record, size) for record, size in self.stored if kind_of(record) == kind]
        for newer, (record, size) in enumerate(reversed(kept)):
            total += size
            if limits.max_records is not None and newer >= limits.max_records:
                break
            if limits.max_total_bytes is not None and total > limits.max_total_bytes:
                break
            if limits.max_age_seconds is None or record.timestamp >= now - limits.max_age_seconds:
                shown.append(record)
        return shown[::-1]

    def read(self, request: Read, now: float) -> list[Record]:
        """Return what `request` asks for, on one page however long."""
        found = [
            record
            for record in self.visible(request.kind, now)
            if record.seq is not None
            and record.seq > request.after
            and (request.before is None or record.seq < request.before)
            and (request.since is None or record.timestamp >= request.since)
            and (request.until is None or record.timestamp <= request.until)
            and request.event_type in (None, getattr(record, "event_type", None))
            and request.actor in (None, actor_of(record))
        ]
        if request.limit is None:
            return found
        if request.newest:
            return found[max(0, len(found) - request.limit) :]
        return found[: request.limit]


async def read_pages(backend: PersistenceBackend, request: Read) -> list[tuple[Record, ...]]:
    """Return the pages of a read in the order they came, following them to the end."""
    pages: list[tuple[Record, ...]] = []
    left = request.limit
    for _ in range(_MANY):
        page = await backend.execute(msgspec.structs.replace(request, limit=left))
        pages.append(page.records)
        if left is not None:
            left -= len(page.records)
        if not page.more or left == 0:
            return pages
        if request.newest:
            request = msgspec.structs.replace(request, before=page.next_before)
        else:
            request = msgspec.structs.replace(request, after=page.next_after)
    raise AssertionError(f"the pages of {request} do not end")


async def read_to_the_end(backend: PersistenceBackend, request: Read) -> list[Record]:
    """Return everything that a read finds, oldest first."""
    pages = await read_pages(backend, request)
    if request.newest:
        pages.reverse()
    return [record for page in pages for record in page]
