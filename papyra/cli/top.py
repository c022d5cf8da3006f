"""``papyra top``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

import anyio
import msgspec
from cyclopts import Parameter

from papyra.cli._endpoint import Endpoint, EndpointLook, is_endpoint
from papyra.cli._endpoint_picture import line_of, picture
from papyra.cli._exit_codes import WrongUse
from papyra.cli._output import AsJson, console, is_terminal, rows, show_json, tell, text, write
from papyra.cli._projections import (
    COLUMNS,
    NUMBERS,
    App,
    Row,
    Views,
    as_data,
    cells,
    look_once,
    style_of,
    views_of,
    with_rates,
)
from papyra.cli._records import styled
from papyra.cli._store_argument import StoreName, name_of, reading
from papyra.cli._units import Count, Duration, ago, format_bytes, format_count, format_time
from papyra.cli.inspect import sparkline
from papyra.exceptions import StoreError, StoreNotReady, StoreUnreachable, ViewUnavailable
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.messages import Read
from papyra.persistence.records import KINDS, Kind, PersistedEvent, Record, kind_of
from papyra.persistence.reports import StoreSummary
from papyra.persistence.subscription import Subscription

if TYPE_CHECKING:
    from rich.console import RenderableType

    from papyra.projections import View

LookT = TypeVar("LookT")

#: How many looks the picture of a rate goes back.
_HISTORY = 60
#: How many records of each kind are kept to be shown.
_KEPT = 50
#: New records that are taken in together, at most: more than are ever at hand.
_AT_ONCE = 1_000_000
#: Seconds for those records to come that there are, at most, before they are shown.
_LONGEST = 5.0


def top(
    store: StoreName = None,
    /,
    *,
    interval: Duration = 1.0,
    count: Annotated[Count | None, Parameter(name=("--count", "-n"))] = None,
    app: App = None,
    view: Views = (),
    as_json: AsJson = False,
) -> None:
    """Watch a store, or a running process, live.

    Rates, projections, the newest events, crashes and dead letters. Ends with q or Ctrl-C.
    Elsewhere than on a terminal, it prints a line for each look. Projections into views are shown
    with --view or --app. In place of a store it takes the URL of the metrics of a process, and
    shows what its actors do, by their classes.

    Examples
    --------
      papyra top ./journal/
      papyra top --interval 10s --count 6 --json
      papyra top http://localhost:8000/metrics

    Parameters
    ----------
    interval
        How long it is from one look to the next.
    count
        End after so many looks.

    """
    if interval <= 0 or (count is not None and count < 1):
        raise WrongUse("--interval and --count are more than 0")
    if is_endpoint(store) and (app is not None or view):
        raise WrongUse("--app and --view are for stores: an endpoint shows its projections anyway")
    views = views_of(app, view)
    try:
        if store is not None and is_endpoint(store):
            anyio.run(_top_of_endpoint, Endpoint(store), interval, count, as_json)
        else:
            anyio.run(_top, store, views, interval, count, as_json)
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
    #: as `papyra projections` has them
    projections: list[dict[str, Any]] = []


class Watch:
    """The newest records and the history of rates of a store that is watched."""

    def __init__(self, backend: PersistenceBackend, views: Sequence[View[Any]] = ()) -> None:
        self._backend = backend
        self._followed: Subscription | None = None
        self._views = views
        self.projections: list[Row] = []
        self.newest: dict[Kind, deque[Record]] = {kind: deque(maxlen=_KEPT) for kind in KINDS}
        self.crashes: deque[Record] = deque(maxlen=_KEPT)
        self.history: deque[Look] = deque(maxlen=_HISTORY)
        self.summary: StoreSummary
        self.away: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._followed is not None:
            await self._followed.__aexit__(None, None, None)

    async def look(self) -> Look:
        """See what is new."""
        now = time.time()
        new: Counter[str] = Counter()
        try:
            if self._followed is None:
                self._followed = await self._begin()
            else:
                await self._take_new(self._followed, new)
            self.summary = await self._backend.summarize()
            rows = await look_once(self._backend, self._views)
            self.projections = with_rates(self.projections, rows)
            self.away = None
        except (StoreUnreachable, StoreNotReady, ViewUnavailable) as error:
            if not self.history:
                raise
            self.away = str(error)
        # What was there before anybody looked is no rate.
        seconds = max(now - self.history[-1].time, 1e-3) if self.history else 1.0
        rates = {name: new[name] / seconds for name in (*KINDS, "crashes")}
        projections = [as_data(row) for row in self.projections]
        summary = self.summary
        look = Look(now, summary.total_records, summary.stored_bytes, rates, projections)
        self.history.append(look)
        return look

    async def _begin(self) -> Subscription:
        """Take in the newest records of today, and follow those after them."""
        head = (await self._backend.flush()).last_seq
        for kind in KINDS:
            page = await self._backend.execute(Read(kind, before=head + 1, newest=True))
            self._note(page.records, Counter())
        followed = self._backend.subscribe(after=head, kinds=KINDS, waiting=self._waits)
        return await followed.__aenter__()

    async def _take_new(self, followed: Subscription, new: Counter[str]) -> None:
        """Take in what is new by now, and count it."""
        head = (await self._backend.flush()).last_seq
        with anyio.move_on_after(_LONGEST):  # nothing may come: the last ones may be gone by now
            while followed.position < head:
                items = await followed.batch(_AT_ONCE)
                self._note([item for item in items if isinstance(item, Record)], new)

    def _waits(self, error: StoreError) -> None:
        self.away = str(error)

    def _note(self, records: Iterable[Record], new: Counter[str]) -> None:
        for record in records:
            kind = kind_of(record)
            self.newest[kind].append(record)
            new[kind] += 1
            if isinstance(record, PersistedEvent) and record.event_type == "ActorCrashed":
                self.crashes.append(record)
                new["crashes"] += 1


async def _top(
    store: str | None,
    views: Sequence[View[Any]],
    interval: float,
    count: int | None,
    as_json: bool,
) -> None:
    async with reading(store) as backend, Watch(backend, views) as watch:
        if is_terminal() and not as_json:
            name = name_of(backend)
            looks = _looks(watch.look, interval, count)
            await _show_live(looks, lambda _: _picture(watch, name))
            return
        async for look in _looks(watch.look, interval, count):
            if as_json:
                show_json(look)
            else:
                rates = [f"{rate:.1f}" for rate in look.rates.values()]
                write(rows([(format_time(look.time), str(look.records), *rates)]))
            sys.stdout.flush()


async def _top_of_endpoint(
    endpoint: Endpoint, interval: float, count: int | None, as_json: bool
) -> None:
    if is_terminal() and not as_json:
        newest = EndpointLook(0.0)

        def draw(look: EndpointLook) -> RenderableType:
            nonlocal newest
            newest = look if look.error is None else newest
            return picture(endpoint.name, newest, look.error)

        await _show_live(_looks(endpoint.look, interval, count), draw)
        return
    away = False
    async for look in _looks(endpoint.look, interval, count):
        if as_json:
            show_json(look)
        elif look.error is None:
            write(rows([line_of(look)]))
        elif not away:
            tell(look.error, "yellow")
        away = look.error is not None
        sys.stdout.flush()


async def _looks(
    look: Callable[[], Awaitable[LookT]], interval: float, count: int | None
) -> AsyncIterator[LookT]:
    number = 0
    while count is None or number < count:
        if number:
            await anyio.sleep(interval)
        number += 1
        yield await look()


async def _show_live(looks: AsyncIterator[LookT], draw: Callable[[LookT], RenderableType]) -> None:
    from rich.live import Live  # noqa: PLC0415

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_q, tasks.cancel_scope)
            async for look in looks:
                live.update(draw(look), refresh=True)
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


def _projections(found: Sequence[Row], room: int) -> list[RenderableType]:
    """Return a line for each projection, those that are wrong or behind first."""
    if not found:
        return []
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    for name in COLUMNS:
        table.add_column(justify="right" if name in NUMBERS else "left", no_wrap=True)
    urgent = sorted(found, key=lambda row: (row.inspected.state == "running", -(row.lag or 0)))
    for row in urgent[:room]:
        styled_cells = cells(row)
        table.add_row(*map(text, styled_cells), style=style_of(styled_cells))
    left = f", {len(found) - room} more" if len(found) > room else ""
    return ["", text(f"projections{left}", style="dim"), table]


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
    shown = min(len(watch.projections), max(1, height // 4))
    lines += [rates, *_projections(watch.projections, shown)]
    # A third of what is left for each list, and a line for its title.
    each = max(1, (height - 8 - (shown + 2 if shown else 0)) // 3 - 2)
    for title, records in (
        ("newest events", watch.newest["event"]),
        ("crashes", watch.crashes),
        ("dead letters", watch.newest["dead_letter"]),
    ):
        lines += ["", text(title, style="dim")]
        lines += [styled(record, width) for record in list(records)[-each:]]
    return Group(*lines)
