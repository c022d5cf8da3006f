"""Small disks in memory, for tests of what a full one does. Making them takes root."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Never

import pytest

from tests.extent import CI

__all__ = ("give_up_mounting", "mount_small_disk")


def mount_small_disk(path: Path, size: str) -> None:
    """Mount an empty disk that everybody may write, of so many bytes, as in ``12m``."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        give_up_mounting()


def give_up_mounting() -> Never:
    """Leave out the test where nobody but root may mount a disk; in CI, fail it."""
    reason = "only root may mount a disk"
    assert not CI, reason
    pytest.skip(reason)
