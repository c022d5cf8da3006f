"""What tests of more than one file backend share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.conftest import kind_for
from tests.extent import CI
from tests.persistence.backends.files.file_persistence import FilePersistence

MakeStore: TypeAlias = Callable[..., FilePersistence]

FILES = ("json", "rotating")


@pytest.fixture(params=FILES if CI else None)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    kind = kind_for(request, FILES)

    def make_store(**options: Any) -> FilePersistence:
        options = {"fsync": "no"} | options
        if kind == "json":
            return JsonFilePersistence(tmp_path / "store", **options)
        return RotatingFilePersistence(tmp_path / "store", max_segment_records=10, **options)

    return make_store
