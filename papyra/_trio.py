"""Detection of trio, which only those import who run on it."""

from __future__ import annotations

import sys
from types import ModuleType


def running_trio() -> ModuleType | None:
    """Return the module trio if the running event loop is trio's.

    Ask this before asking asyncio: trio's guest mode runs inside that.
    """
    trio = sys.modules.get("trio")
    # While a thread imports trio, it is there, and has no `lowlevel` yet.
    lowlevel = getattr(trio, "lowlevel", None)
    return trio if lowlevel is not None and lowlevel.in_trio_task() else None
