"""The retention policy: how much of a store reads show, and a compaction keeps."""

from __future__ import annotations

import msgspec

from papyra._durations import is_seconds
from papyra._safe_repr import shown
from papyra.exceptions import InvalidPolicy

__all__ = ("RetentionPolicy",)


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that apply to each kind of record by itself. `None` sets no limit.

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
