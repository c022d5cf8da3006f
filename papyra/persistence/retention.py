"""The retention policy: how much of a store reads show, and a compaction keeps."""

from __future__ import annotations

import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy
from papyra.persistence.records import Kind

__all__ = ("Limits", "RetentionPolicy")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for the records of one kind. `None` sets no limit, and so `Limits()` sets none at all.

    A record is kept when it is within every limit. Each is judged against all that is stored, so
    `max_records` and `max_total_bytes` count back from the newest record, old ones included.

    Raises `InvalidPolicy` when a limit is not a number greater than zero.
    """

    #: keep this many, the newest
    max_records: int | None = None
    #: keep what is no older than this, by its timestamp; seconds
    max_age_seconds: float | None = None
    #: keep the newest that fit into this many encoded bytes
    max_total_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_records", "max_total_bytes"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidPolicy(f"{name} is a whole number greater than 0, not {shown(value)}")
        age = self.max_age_seconds
        if age is not None and not is_seconds(age, above=True, finite=True):
            raise InvalidPolicy(f"max_age_seconds is a number greater than 0, not {shown(age)}")

    def oldest_time(self, now: float) -> float | None:
        """Return the timestamp below which records are too old at Unix time `now`."""
        return None if self.max_age_seconds is None else now - self.max_age_seconds


class RetentionPolicy(Limits, frozen=True, kw_only=True):
    """The limits of a store. They apply to each kind of record by itself.

    `events`, `audits` and `dead_letters` are for a kind that has limits of its own: they replace
    the general ones for that kind, all three of them. With `Limits()` all of that kind is kept::

        RetentionPolicy(max_age_seconds=86400, events=Limits(), audits=Limits(max_records=1000))

    Raises `InvalidPolicy` for a limit that `Limits` refuses, and for limits that are none.
    """

    events: Limits | None = None
    audits: Limits | None = None
    dead_letters: Limits | None = None
    #: whether a compaction may remove the beginnings of histories, too, where they are hidden: up
    #: to the oldest of two snapshots or more, which a history begins with from then on
    trim_histories: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("events", "audits", "dead_letters"):
            own = getattr(self, name)
            if own is not None and type(own) is not Limits:
                raise InvalidPolicy(f"{name} takes Limits or None, not {shown(own)}")
        trims: object = self.trim_histories
        if type(trims) is not bool:
            raise InvalidPolicy(f"trim_histories is True or False, not {shown(trims)}")

    @property
    def names_kinds(self) -> bool:
        """Whether some kind has limits of its own."""
        return (self.events, self.audits, self.dead_letters) != (None, None, None)

    def of(self, kind: Kind) -> Limits:
        """Return the limits for records of a kind."""
        own = {"event": self.events, "audit": self.audits, "dead_letter": self.dead_letters}[kind]
        if own is not None:
            return own
        return Limits(
            max_records=self.max_records,
            max_age_seconds=self.max_age_seconds,
            max_total_bytes=self.max_total_bytes,
        )
