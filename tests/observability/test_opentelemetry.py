"""Spans of OpenTelemetry: what is the parent of which, what links to which, and what they say."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as contexts
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from papyra import Actor, ActorSystem
from papyra.exceptions import InvalidSetting
from papyra.observability.opentelemetry import OpenTelemetry, context_of, links_to
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.persistence.records import PersistedEvent
from papyra.testing import ManualClock
from tests.conftest import event_loops
from tests.observability.traced import (
    Desk,
    Order,
    Orders,
    OutOfStock,
    Place,
    PlaceAt,
    Placed,
    Recording,
    Remind,
    hex_of,
)

anyio_backend = event_loops("asyncio", "trio")


@pytest.fixture
def recording() -> Recording:
    return Recording()


def child_of(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.context is not None
    assert parent.context is not None
    return (
        span.parent is not None
        and hex_of(span.parent) == hex_of(parent.context)
        and span.context.trace_id == parent.context.trace_id
        and not span.links
    )


def links_alone_to(span: ReadableSpan, cause: ReadableSpan) -> bool:
    assert span.context is not None
    assert cause.context is not None
    return (
        span.parent is None
        and span.context.trace_id != cause.context.trace_id
        and [hex_of(link.context) for link in span.links] == [hex_of(cause.context)]
        and span.kind is SpanKind.CONSUMER
    )


async def test_one_trace_leads_from_a_request_through_two_actors_to_the_append_and_is_linked_from_another_process(  # noqa: E501
    recording: Recording, tmp_path: Path, anyio_backend_name: str
) -> None:
    path = tmp_path / "shop.db"
    async with ActorSystem(
        "shop", persistence=SQLitePersistence(path), telemetry=recording.telemetry()
    ) as system:
        with recording.tracer.start_as_current_span("GET /another"):
            # What it was spawned by is nothing to it.
            desk = system.spawn(Desk, name="desk")
        with recording.tracer.start_as_current_span("POST /orders"):
            assert await desk.ask(PlaceAt("1")) == 1
    request = recording.find("POST /orders")
    to_desk, at_desk = recording.find("ask PlaceAt"), recording.find("receive PlaceAt")
    to_order, at_order = recording.find("ask Place"), recording.find("receive Place")
    persist = recording.find("persist")
    chain = [request, to_desk, at_desk, to_order, at_order, persist]
    assert all(child_of(below, above) for above, below in itertools.pairwise(chain))
    assert child_of(recording.find("recover"), to_order)

    command = [sys.executable, "-m", "tests.observability.traced", str(path), anyio_backend_name]
    done = await anyio.run_process(command, cwd=Path(__file__).parents[2])
    assert persist.context is not None
    assert json.loads(done.stdout) == [
        {"name": "project orders", "parent": None, "links": [[*hex_of(persist.context)]]}
    ]


async def test_what_is_told_is_a_trace_of_its_own_that_links_to_the_sender(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        desk = system.spawn(Desk)
        with recording.tracer.start_as_current_span("POST /orders"):
            await desk.tell(PlaceAt("1", told=True))
    at_desk, at_order = recording.find("receive PlaceAt"), recording.find("receive Place")
    assert links_alone_to(at_desk, recording.find("POST /orders"))
    assert links_alone_to(at_order, at_desk)
    assert links_alone_to(recording.find("recover"), at_desk)
    assert child_of(recording.find("persist"), at_order)


async def test_a_timer_links_to_what_has_scheduled_it_also_in_the_next_system_and_after_a_snapshot(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    clock = ManualClock()

    def shop() -> ActorSystem:
        return ActorSystem(
            "shop",
            persistence=persistence,
            telemetry=recording.telemetry(),
            clock=clock,
            entities=[Order],
            audit_interval=None,
        )

    async with shop() as system:
        with recording.tracer.start_as_current_span("POST /reminders"):
            await system.entity(Order, "1").ask(Remind())
    scheduled = recording.find("persist")
    async with shop() as system:
        with recording.tracer.start_as_current_span("POST /orders"):
            for _ in range(2):  # then it has a snapshot
                await system.entity(Order, "1").ask(Place(1))
    assert child_of(recording.find("save snapshot"), recording.find("receive Place", 2))
    async with shop() as system:
        await clock.advance(60)
        assert await system.entity(Order, "1").ask(Place(1)) == 4
    fired = recording.find("fire timer")
    assert links_alone_to(fired, scheduled)
    assert [each for each in recording.spans if each.name == "persist" and child_of(each, fired)]
    assert dict(fired.attributes or {}) == {
        "papyra.actor.address": "shop/Order/1",
        "papyra.timer.name": "again",
        "papyra.timer.late": 0.0,
    }


async def test_a_batch_of_a_projection_links_once_to_each_span_that_stored_some_of_it(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        for number in range(3):
            with recording.tracer.start_as_current_span(f"request {number}"):
                await system.entity(Order, str(number)).ask(Place(1))
        await system.entity(Order, "4").ask(Place(1))
        await system.project(Orders()).wait_for(persistence.last_seq, 60)
    stored = [each for each in recording.spans if each.name == "persist"]
    batch = recording.find("project orders")
    assert [hex_of(link.context) for link in batch.links] == [
        hex_of(each.context) for each in stored
    ]
    assert len(batch.links) == 4  # an ask outside of a trace has begun one
    assert dict(batch.attributes or {}) == {
        "papyra.projection.name": "orders",
        "papyra.records": 4,
    }


async def test_who_reads_events_finds_the_spans_in_which_they_were_stored(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        with recording.tracer.start_as_current_span("POST /orders"):
            await system.entity(Order, "1").ask(Place(1))
        async with system.subscribe(types=["Placed"]) as items:
            placed = await anext(aiter(items))
    assert isinstance(placed, PersistedEvent)
    stored = recording.find("persist")
    assert stored.context is not None
    (link,) = links_to([placed, placed])
    found = trace.get_current_span(context_of(placed)).get_span_context()
    assert hex_of(link.context) == hex_of(found) == hex_of(stored.context)
    assert found.is_remote


async def test_a_thread_asks_through_the_portal_in_its_own_trace(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        order = system.entity(Order, "1")

        def request() -> Any:
            with recording.tracer.start_as_current_span("in a thread"):
                return system.portal.call(order.ask, Place(1))

        assert await anyio.to_thread.run_sync(request) == 1
    asked = recording.find("ask Place")
    assert child_of(asked, recording.find("in a thread"))
    assert child_of(recording.find("receive Place"), asked)


class Chatter(Actor):
    """Says what it sees of whoever sent a message."""

    async def receive(self, message: Any) -> Any:
        span = trace.get_current_span()
        return baggage.get_baggage("tenant"), span.get_span_context().trace_id


async def test_baggage_travels_and_an_actor_keeps_no_trace_of_those_before(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=OpenTelemetry(TracerProvider(ALWAYS_OFF))
    ) as system:
        token = contexts.attach(baggage.set_baggage("tenant", "a"))
        with recording.tracer.start_as_current_span("GET /spawn"):
            chatter = system.spawn(Chatter)
            during = await chatter.ask("hello")
        spawner = recording.find("GET /spawn")
        contexts.detach(token)
        after = await chatter.ask("hello")
    assert spawner.context is not None
    assert (during[0], after) == ("a", (None, 0))


async def test_errors_are_on_the_spans_of_those_that_raise_and_of_those_that_ask(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        order = system.entity(Order, "1")
        with pytest.raises(ZeroDivisionError):
            await order.ask(ZeroDivisionError("by nought"))
        with pytest.raises(OutOfStock):
            await order.ask(Place(-1))
    for name, error in (("ZeroDivisionError", "ZeroDivisionError"), ("Place", "OutOfStock")):
        for span in (recording.find(f"ask {name}"), recording.find(f"receive {name}")):
            assert span.status.status_code is StatusCode.ERROR
            assert span.attributes is not None
            assert span.attributes["error.type"] == error
            (event,) = span.events
            assert event.attributes is not None
            assert (event.name, event.attributes["exception.type"]) == ("exception", error)
    (raised,) = recording.find("receive ZeroDivisionError").events
    assert raised.attributes is not None
    assert "raise message" in str(raised.attributes["exception.stacktrace"])


@pytest.mark.parametrize(
    "sampler", [ALWAYS_OFF, ParentBased(TraceIdRatioBased(0.0))], ids=["off", "ratio"]
)
async def test_in_a_trace_that_is_not_sampled_nothing_is_recorded_or_stored(sampler: Any) -> None:
    recording, store = Recording(sampler), InMemoryPersistence()
    async with ActorSystem("shop", persistence=store, telemetry=recording.telemetry()) as system:
        with recording.tracer.start_as_current_span("POST /orders") as request:
            trace_id = request.get_span_context().trace_id
            chatter = system.spawn(Chatter)
            assert await chatter.ask("hello") == (None, trace_id)
            await system.spawn(Desk).ask(PlaceAt("1"))
        await system.entity(Order, "1").ask(Place(1))
        await system.project(Orders()).wait_for(store.last_seq, 60)
    assert recording.spans == ()
    events = (await store.read_history("shop/Order/1")).events
    assert [each.metadata for each in events] == [{}, {}]


async def test_payloads_are_nowhere_and_hostile_names_are_harmless(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    secret = "4111-1111"

    class Hostile(Exception):
        def __str__(self) -> str:
            raise ValueError(secret)

    hostile: Any = type("Evil\n\x1b[31m" + "x" * 100_000, (), {"card": secret})
    kind: Any = type("Actor\r\n\x07" + "y" * 100_000, (Chatter,), {})
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        with recording.tracer.start_as_current_span("request"):
            await system.spawn(kind, name="a" * 1_000).ask(hostile())
            await system.entity(Order, "\n" * 1_000).ask({"card": secret})
            with pytest.raises(Hostile):
                await system.entity(Order, "1").ask(Hostile())
    text = "".join(each.to_json() for each in recording.spans)
    assert len(recording.spans) > 6
    assert secret not in text
    for span in recording.spans:
        for shown in (span.name, *map(str, (span.attributes or {}).values())):
            assert len(shown) < 1_000
            assert shown.isprintable()


async def test_metadata_that_is_no_trace_context_is_no_link(recording: Recording) -> None:
    odd = [
        *("", "00", "00-0-0-01", "x" * 20_000, "\n", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),
        "00-" + "a" * 32 + "-" + "b" * 16 + "-00",  # not sampled
    ]
    records = [
        PersistedEvent("s", "a", "E", None, 0.0, metadata={"traceparent": each}) for each in odd
    ]
    assert links_to(records) == []


async def test_what_users_say_in_metadata_goes_before_and_always_has_room(
    recording: Recording, persistence: InMemoryPersistence
) -> None:
    class Noting(Order):
        async def receive(self, message: Any) -> Any:
            await self.persist(Placed(1), metadata=message)

    full = {f"name {number}": "x" for number in range(64)}
    async with ActorSystem(
        "shop", persistence=persistence, telemetry=recording.telemetry()
    ) as system:
        for metadata in ({"traceparent": "mine"}, full, {"a": "b"}):
            await system.spawn(Noting, name=f"n{len(metadata)}{metadata.get('a', '')}").ask(
                metadata
            )
    stored = [each.metadata for each in persistence.events if each.event_type == "Placed"]
    assert stored[:2] == [{"traceparent": "mine"}, full]
    assert stored[2].keys() == {"a", "traceparent"}


def test_only_a_provider_of_tracers_will_do() -> None:
    with pytest.raises(InvalidSetting, match="tracer_provider is a TracerProvider"):
        OpenTelemetry(trace.get_tracer("x"))  # type: ignore[arg-type]


def test_without_the_extra_an_error_names_it() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from papyra.exceptions import MissingExtra\n"
        "try:\n    import papyra.observability.opentelemetry\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Papyra's extra 'otel'" in done.stdout
