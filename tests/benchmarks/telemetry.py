"""The rows about telemetry: what spans cost, recorded or not, beside a system without any."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import Link, SpanKind

from papyra import Actor, ActorRef, ActorSystem
from papyra.observability.opentelemetry import OpenTelemetry
from tests.benchmarks.table import Loop, Options, Result, Row, times_as_long

__all__ = ("TELEMETRY_ROWS",)

#: What a row does so often with an actor.
Workload = Callable[[ActorRef, int], Awaitable[None]]


class Last:
    """Says that it is the last message."""


class Counter(Actor):
    """Does next to nothing with a message."""

    def __init__(self) -> None:
        self.count = 0

    async def receive(self, message: Any) -> int:
        self.count += 1
        return self.count


async def tells(ref: ActorRef, count: int) -> None:
    for number in range(count):
        await ref.tell(number)
    await ref.ask(Last())


async def asks(ref: ActorRef, count: int) -> None:
    for number in range(count):
        await ref.ask(number)


class Dropping(SpanProcessor):
    """Takes spans that have ended, and does nothing with them."""

    def __init__(self) -> None:
        self.count = 0

    def on_end(self, span: ReadableSpan) -> None:
        del span
        self.count += 1


def provider_of(sampler: Sampler) -> TracerProvider:
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(Dropping())
    return provider


async def timed(
    work: Workload, count: int, provider: TracerProvider | None, request: bool
) -> float:
    """Return the seconds that it takes; within the span of a request, if it is to be in one."""
    telemetry = None if provider is None else OpenTelemetry(provider)
    within: AbstractContextManager[Any] = nullcontext()
    if provider is not None and request:
        within = provider.get_tracer("request").start_as_current_span("request")
    async with ActorSystem(audit_interval=None, telemetry=telemetry) as system:
        ref = system.spawn(Counter)
        await ref.ask(0)
        with within:
            started = time.perf_counter()
            await work(ref, count)
            return time.perf_counter() - started


def spans_alone(work: Workload, count: int) -> float:
    """Return the seconds that the SDK takes for as many spans, each current for a moment."""
    tracer = provider_of(ALWAYS_ON).get_tracer("papyra")
    with tracer.start_as_current_span("request") as request:
        sender = request.get_span_context()
        started = time.perf_counter()
        for _ in range(count):
            attributes = {"address": "papyra/counter", "actor": "Counter", "message": "int"}
            if work is asks:
                asked = {"address": "papyra/counter", "message": "int"}
                with (
                    tracer.start_as_current_span("ask int", attributes=asked),
                    tracer.start_as_current_span("receive int", attributes=attributes),
                ):
                    pass
            else:
                links = [Link(sender)]
                with tracer.start_as_current_span(
                    "receive int", None, SpanKind.CONSUMER, attributes, links
                ):
                    pass
        return time.perf_counter() - started


def not_sampled(work: Workload, request: bool) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        count = options.count(50_000)
        return times_as_long(
            options,
            count,
            lambda: loop.run(timed, work, count, None, False),
            lambda: loop.run(timed, work, count, provider_of(ALWAYS_OFF), request),
        )

    return measure


def recorded(work: Workload) -> Callable[[Loop, Options], Result]:
    def measure(loop: Loop, options: Options) -> Result:
        count = options.count(20_000)
        return times_as_long(
            options,
            count,
            lambda: loop.run(timed, work, count, None, False) + spans_alone(work, count),
            lambda: loop.run(timed, work, count, provider_of(ALWAYS_ON), True),
        )

    return measure


_OFF, _SPANS = "without telemetry", "without, and as many spans"

TELEMETRY_ROWS = [
    Row("tell, outside of traces", _OFF, 1.3, True, not_sampled(tells, False)),
    Row("tell, in a trace that is not sampled", _OFF, 1.3, True, not_sampled(tells, True)),
    Row("tell, recorded", _SPANS, 1.3, True, recorded(tells)),
    Row("ask, outside of traces", _OFF, 1.3, True, not_sampled(asks, False)),
    Row("ask, in a trace that is not sampled", _OFF, 1.3, True, not_sampled(asks, True)),
    Row("ask, recorded", _SPANS, 1.3, True, recorded(asks)),
]
