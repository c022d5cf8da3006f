"""The backends on files, as tests name either of them."""

from __future__ import annotations

from typing import TypeAlias

from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence

__all__ = ("FilePersistence",)

FilePersistence: TypeAlias = JsonFilePersistence | RotatingFilePersistence
