"""``papyra top``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._exit_codes import WrongUse
from papyra.cli._output import AsJson, console, is_terminal, rows, show_json, text, write
from papyra.cli._records import styled
from papyra.cli._store_argument import StoreName, name_of, reading
from papyra.cli._units import Count, Duration, ago, format_bytes, format_count, format_time
from papyra.cli.inspect import sparkline
from papyra.exceptions import StoreNotReady, StoreUnreachable
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Read
from papyra.persistence.records import KINDS, Kind, PersistedEvent, Record
from papyra.persistence.reports import StoreSummary

if TYPE_CHECKING:
    from rich.console import RenderableType

#: How many looks the picture of a rate goes back.
_HISTORY = 60
#: How many records of each kind are kept to be shown.
_KEPT = 50


def top(
    store: StoreName = None,
    /,
    *,
    interval: Duration = 1.0,
    count: Annotated[Count | None, Parameter(name=("--count", "-n"))] = None,
    as_json: AsJson = False,
) -> None:
    """Watch a store live.

    Rates, the newest events, crashes and dead letters. Ends with q or Ctrl-C. Elsewhere than on a
    terminal, it prints a line for each look.

    Examples
    --------
      papyra top ./journal/
      papyra top --interval 10s --count 6 --json

    Parameters
    ----------
    interval
        How long it is from one look to the next.
    count
        End after so many looks.

    """
    if interval <= 0 or (count is not None and count < 1):
        raise WrongUse("--interval and --count are more than 0")
    try:
        anyio.run(_top, store, interval, count, as_json)
    except KeyboardInterrupt:
        if not is_terminal() or as_json:
            raise
        # Somebody has seen enough, which is how this ends.


class Look(msgspec.Struct, frozen=True):
    """The sizes and rates at one look."""

    time: float
    records: int
    stored_bytes: int | None
    #: of each kind, and crashes, since the look before; a second
    rates: dict[str, float]


class Watch:
    """The newest records and the history of rates of a store that is watched."""

    def __init__(self, backend: PersistenceBackend) -> None:
        self._backend = backend
        self._after: dict[Kind, int] = {}
        self.newest: dict[Kind, deque[Record]] = {kind: deque(maxlen=_KEPT) for kind in KINDS}
        self.crashes: deque[Record] = deque(maxlen=_KEPT)
        self.history: deque[Look] = deque(maxlen=_HISTORY)
        self.summary: StoreSummary
        self.away: str | None = None

    async def look(self) -> Look:
        """See what is new."""
        now = time.time()
        new: dict[str, int] = dict.fromkeys((*KINDS, "crashes"), 0)
        is_first = not self._after
        try:
            for kind in KINDS:
                new[kind], crashes = await self._take_new(kind)
                new["crashes"] += crashes
            self.summary = await self._backend.summarize()
            self.away = None
        except (StoreUnreachable, StoreNotReady) as error:
            if is_first:
                raise
            self.away = str(error)
        # What was there before anybody looked is no rate.
        seconds = max(now - self.history[-1].time, 1e-3) if self.history else 1.0
        rates = {name: 0.0 if is_first else number / seconds for name, number in new.items()}
        look = Look(now, self.summary.total_records, self.summary.stored_bytes, rates)
        self.history.append(look)
        return look

    async def _take_new(self, kind: Kind) -> tuple[int, int]:
        """Take in the new records of a kind; return how many there are, and how many crashes."""
        if kind not in self._after:
            page = await self._backend.read(kind, newest=True)
            self._after[kind] = max(
                page.next_after, self._backend.last_seq if not page.records else 0
            )
            return len(page.records), self._note(kind, page.records)
        count = crashes = 0
        more = True
        while more:
            page = await self._backend.execute(Read(kind, after=self._after[kind]))
            self._after[kind], more = max(self._after[kind], page.next_after), page.more
            count += len(page.records)
            crashes += self._note(kind, page.records)
        return count, crashes

    def _note(self, kind: Kind, records: tuple[Record, ...]) -> int:
        self.newest[kind].extend(records)
        crashes = [
            record
            for record in records
            if isinstance(record, PersistedEvent) and record.event_type == "ActorCrashed"
        ]
        self.crashes.extend(crashes)
        return len(crashes)


async def _top(store: str | None, interval: float, count: int | None, as_json: bool) -> None:
    async with reading(store) as backend:
        watch = Watch(backend)
        if is_terminal() and not as_json:
            await _show_live(watch, name_of(backend), interval, count)
            return
        async for look in _looks(watch, interval, count):
            if as_json:
                show_json(look)
            else:
                rates = [f"{rate:.1f}" for rate in look.rates.values()]
                write(rows([(format_time(look.time), str(look.records), *rates)]))
            sys.stdout.flush()


async def _looks(watch: Watch, interval: float, count: int | None) -> AsyncIterator[Look]:
    number = 0
    while count is None or number < count:
        if number:
            await anyio.sleep(interval)
        number += 1
        yield await watch.look()


async def _show_live(watch: Watch, name: str, interval: float, count: int | None) -> None:
    from rich.live import Live  # noqa: PLC0415

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_q, tasks.cancel_scope)
            async for _ in _looks(watch, interval, count):
                live.update(_picture(watch, name), refresh=True)
            tasks.cancel_scope.cancel()


async def _until_q(scope: anyio.CancelScope) -> None:
    """End with the key q, where there are keys."""
    with _keys() as fd:
        while fd is not None:
            await anyio.wait_readable(fd)
            key = os.read(fd, 1)
            if key in (b"q", b"Q"):
                scope.cancel()
            if not key:
                return


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Let keys be read one by one, as they are pressed."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield None
        return
    try:
        import termios  # noqa: PLC0415
        import tty  # noqa: PLC0415
    except ImportError:  # as on Windows, where Ctrl-C ends it
        yield None
        return

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _picture(watch: Watch, name: str) -> RenderableType:
    """Return what fits on the terminal."""
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    width, height = console().size
    summary, look = watch.summary, watch.history[-1]
    head = f"{name}  {look.records:,} records"
    if look.stored_bytes is not None:
        head += f"  {format_bytes(look.stored_bytes)}"
    if summary.newest is not None:
        head += f"  newest {ago(summary.newest, look.time)}"
    lines: list[RenderableType] = [text(head, style="bold", cut=True)]
    if watch.away is not None:
        lines.append(text(f"waiting: {watch.away}", style="yellow", cut=True))
    rates = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left"):
        rates.add_column(justify=justify, no_wrap=True)
    room = max(0, width - 40)
    for kind in (*KINDS, "crashes"):
        history = [round(one.rates[kind] * 10) for one in watch.history][-room:] if room else []
        total = f"{summary.records[kind]:,}" if kind in summary.records else ""
        label = kind.replace("_", " ")
        rate = f"{format_count(round(look.rates[kind], 1))}/s"
        rates.add_row(label, total, rate, text(sparkline(history), style="green"))
    lines += [rates]
    # A third of what is left for each list, and a line for its title.
    each = max(1, (height - 8) // 3 - 2)
    for title, records in (
        ("newest events", watch.newest["event"]),
        ("crashes", watch.crashes),
        ("dead letters", watch.newest["dead_letter"]),
    ):
        lines += ["", text(title, style="dim")]
        lines += [styled(record, width) for record in list(records)[-each:]]
    return Group(*lines)
