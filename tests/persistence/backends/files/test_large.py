"""The memory that a store needs does not grow with it.

Larger: ``PAPYRA_LARGE=1000000``, or ``python -m tests.persistence.backends.files.large``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.extent import count, some
from tests.persistence.backends.files.large import MAKERS, figures

RECORDS = count("PAPYRA_LARGE", 100_000, 200_000)


@pytest.mark.parametrize("name", some(MAKERS, every=2))
def test_operations_on_a_large_file_store_need_little_memory(tmp_path: Path, name: str) -> None:
    for found in figures(name, RECORDS, tmp_path):
        # The records alone, decoded, would be several times as much.
        assert found["most_kb"] - found["before_kb"] < 40_000, found
