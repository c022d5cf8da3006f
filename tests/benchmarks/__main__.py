"""Print the table: ``python -m tests.benchmarks``.

Needs the extra ``bench``. Ratios compare a subject with a reference measured in the same run, the
two taking turns; the table shows the median of the repetitions, so it means the same on a slow or
a noisy machine. The bars are for asyncio.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.rows import ROWS
from tests.benchmarks.table import LOOPS, Options


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of each row")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--loops", default="asyncio,uvloop,trio", help="columns")
    parser.add_argument(
        "--flights",
        type=Path,
        help="flights.csv.zip, which examples/flights.py says how to get; without it, the last row"
        " is left out",
    )
    arguments = parser.parse_args()
    options = Options(arguments.repeat, arguments.scale, arguments.flights)
    loops = [loop for loop in LOOPS if loop.name in arguments.loops.split(",")]

    head = "".join(f"{loop.name:>9}{'':12}" for loop in loops)
    print(f"{'row':38} {'reference':22} {'bar':>7} {head}")
    for row in ROWS:
        if arguments.only not in row.name or (row.needs_flights and not options.flights):
            continue
        bar = f"{'≤' if row.at_most else '≥'} {row.bar:g}"
        print(f"{row.name:38} {row.reference:22} {bar:>7} ", end="", flush=True)
        for loop in loops:
            result = row.measure(loop, options)
            mark = " " if row.meets_bar(result) else "!"
            print(f"{result.ratio:8.2f}{mark} {result.subject:>10} ", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
