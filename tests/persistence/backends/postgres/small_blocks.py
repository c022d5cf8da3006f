"""Blocks of a few positions, which a test has enough records to complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from papyra.persistence.backends._postgres import blocks, reading

__all__ = ("small_blocks",)


@contextlib.contextmanager
def small_blocks() -> Iterator[None]:
    """Have a block be of three positions."""
    with mock.patch.object(blocks, "BLOCK", 3), mock.patch.object(reading, "BLOCK", 3):
        yield
