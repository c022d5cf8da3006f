"""A shop whose traces the tests look at. Run by itself, it is the process that reads events."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from papyra import Actor, ActorSystem, Failure
from papyra.eventsourcing import EventSourced, SnapshotPolicy
from papyra.observability.opentelemetry import OpenTelemetry
from papyra.persistence.backends.sqlite import SQLitePersistence
from papyra.projections import Projection


class Placed(msgspec.Struct, frozen=True):
    amount: int


class Place(msgspec.Struct, frozen=True):
    amount: int


class PlaceAt(msgspec.Struct, frozen=True):
    """Place an order with the entity of this id, by asking or by telling it."""

    order: str
    told: bool = False


class Remind(msgspec.Struct, frozen=True):
    """Set a timer."""


class OutOfStock(Exception):
    """There is nothing left."""


class Order(EventSourced[int]):
    events = (Placed,)
    timer_messages = (Place,)
    snapshots = SnapshotPolicy(every=3)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Placed) -> int:
        return state + event.amount

    async def receive(self, message: Any) -> Any:
        match message:
            case Place(amount) if amount < 0:
                return Failure(OutOfStock("none is left"))
            case Place(amount):
                await self.persist(Placed(amount))
                return self.state
            case Remind():
                await self.schedule("again", Place(1), after=60)
            case Exception():
                raise message
        return None


class Desk(Actor):
    """Passes orders on."""

    async def receive(self, message: Any) -> Any:
        match message:
            case PlaceAt(order, told=True):
                await self.context.entity(Order, order).tell(Place(1))
            case PlaceAt(order):
                return await self.context.entity(Order, order).ask(Place(1))
        return None


class Orders(Projection):
    name = "orders"
    events = (Placed,)

    async def handle(self, received: Any) -> None:
        del received


class Recording:
    """A provider of tracers, and the spans that it was told of."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """Those that have ended, in the order in which they ended."""
        return self.exporter.get_finished_spans()

    def find(self, name: str, count: int = 1) -> ReadableSpan:
        """Return the last span of that name, of which there are so many."""
        found = [each for each in self.spans if each.name == name]
        assert len(found) == count, [each.name for each in self.spans]
        return found[-1]

    def telemetry(self) -> OpenTelemetry:
        return OpenTelemetry(self.provider)


def hex_of(context: Any) -> tuple[str, str]:
    """Return the ids of a trace and a span."""
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def read(path: str) -> None:
    """Run the projection up to the end of a store; print the spans of that, and their links."""
    recording = Recording()
    async with ActorSystem(
        "shop", persistence=SQLitePersistence(path), telemetry=recording.telemetry()
    ) as system:
        head = system.backend.last_seq
        await system.project(Orders()).wait_for(head, 60)
    spans = [
        {
            "name": span.name,
            "parent": span.parent and hex_of(span.parent),
            "links": [hex_of(link.context) for link in span.links],
        }
        for span in recording.spans
    ]
    print(json.dumps(spans))


if __name__ == "__main__":
    anyio.run(read, sys.argv[1], backend=sys.argv[2])
