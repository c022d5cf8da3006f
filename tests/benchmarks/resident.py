"""Print how many bytes of resident memory a record takes: ``python -m ... COUNT``."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import anyio

from papyra.persistence.backends.memory import InMemoryPersistence
from tests.benchmarks.workload import fill

PAGE = 4096


def resident_bytes() -> int:
    """Return the resident memory of this process, from ``/proc``."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


async def main(count: int) -> None:
    warm = InMemoryPersistence()
    await fill(warm, 10_000)
    del warm
    backend = InMemoryPersistence()
    before = resident_bytes()
    await fill(backend, count)
    print((resident_bytes() - before) / count)
    assert backend.metrics.records_written == count


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]))
