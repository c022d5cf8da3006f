"""What tests of more than one file backend share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.rotating import RotatingFilePersistence
from tests.persistence.backends.files.file_persistence import FilePersistence

MakeStore: TypeAlias = Callable[..., FilePersistence]


@pytest.fixture(params=["json", "rotating"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    def make_store(**options: Any) -> FilePersistence:
        options = {"fsync": "no"} | options
        if request.param == "json":
            return JsonFilePersistence(tmp_path / "store", **options)
        return RotatingFilePersistence(tmp_path / "store", max_segment_records=10, **options)

    return make_store
