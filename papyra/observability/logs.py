"""The fields of log records."""

from __future__ import annotations

from papyra._logs import FIELDS, LogFields

__all__ = ("FIELDS", "LogFields")
