"""The figures of systems, as OpenTelemetry's SDK reads them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from papyra import ActorSystem
from papyra.exceptions import InvalidSetting
from papyra.observability.instruments import instruments_of
from papyra.observability.opentelemetry import OpenTelemetry
from papyra.observability.series import described
from tests.actors import Echo
from tests.conftest import event_loops
from tests.observability.test_prometheus import EVIL, Still, numbered

anyio_backend = event_loops("asyncio")

ECHO = {"papyra.system.id": "shop", "papyra.actor.class": "tests.actors.Echo"}


class Metrics:
    """A provider, and what its reader has collected."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader])

    def collect(self) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
        """Return the attributes and the value of each point, by the names of the metrics."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: [
                (dict(point.attributes or {}), point.value)
                for point in metric.data.data_points
                if isinstance(point, NumberDataPoint)
            ]
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def system(self, name: str = "shop") -> ActorSystem:
        telemetry = OpenTelemetry(meter_provider=self.provider)
        return ActorSystem(name, telemetry=telemetry, measure=True)


async def test_a_provider_reads_what_a_system_does_and_has_done() -> None:
    metrics = Metrics()
    async with metrics.system() as system:
        ref = system.spawn(Echo)
        for number in range(7):
            await ref.tell(number)
        assert metrics.collect()["papyra.mailbox.messages"] == [(ECHO, 7)]
        await ref.stop()
        now = metrics.collect()
        assert now["papyra.messages.handled"] == [(ECHO, 7)]
        assert now["papyra.mailbox.wait.count"] == now["papyra.receive.count"] == [(ECHO, 7)]
        ((_, waited),) = now["papyra.mailbox.wait.sum"]
        assert waited > 0
        assert now["papyra.actors"] == [(ECHO, 0)]
        assert now["papyra.system.running"] == [({"papyra.system.id": "shop"}, 1)]
    after = metrics.collect()
    assert after["papyra.messages.handled"] == [(ECHO, 7)]


async def test_systems_share_the_instruments_of_a_provider_and_begin_anew() -> None:
    metrics = Metrics()
    async with metrics.system("shop") as shop, metrics.system("bank") as bank:
        for system in (shop, bank, bank):
            await system.spawn(Echo).ask("started?")
        both = {labels["papyra.system.id"]: n for labels, n in metrics.collect()["papyra.actors"]}
        assert both == {"shop": 1, "bank": 2}
    async with metrics.system("shop") as again:
        again.spawn(Echo)
        assert (ECHO, 1) in metrics.collect()["papyra.actors"]
        assert (ECHO, 0) in metrics.collect()["papyra.messages.handled"]


def test_every_family_is_observed_and_hostile_names_are_written_out() -> None:
    metrics = Metrics()
    instruments_of(metrics.provider).add(Still(numbered()))
    found = metrics.collect()
    for each in described():
        names = [each.name]
        if each.kind == "histogram":
            names = [f"{each.name}.sum", f"{each.name}.count"]
        assert set(names) <= found.keys()
    shown = EVIL.encode("unicode_escape").decode().replace("\\\\", "\\").replace("\\xe9", "é")
    assert found["papyra.actors"][0][0]["papyra.actor.class"] == shown
    assert all(
        text.isprintable() for ((labels, _), *_) in found.values() for text in labels.values()
    )


async def test_many_actors_make_no_more_series_than_few() -> None:
    metrics = Metrics()
    async with metrics.system() as system:
        system.spawn(Echo)
        few = metrics.collect()
        for _ in range(100):
            system.spawn(Echo)
        many = metrics.collect()
    assert {name: len(points) for name, points in many.items()} == {
        name: len(points) for name, points in few.items()
    }
    assert many["papyra.actors"] == [(ECHO, 101)]


async def test_the_instruments_of_one_export_show_the_same_moment() -> None:
    figures = numbered()
    looks = 0

    class Counted(Still):
        def figures(self) -> Any:
            nonlocal looks
            looks += 1
            return figures

    metrics = Metrics()
    instruments_of(metrics.provider).add(Counted(figures))
    for exports in range(1, 4):
        metrics.collect()
        assert looks == exports


async def test_a_system_is_let_go_of_when_it_has_stopped() -> None:
    metrics = Metrics()

    async def run() -> weakref.ref[ActorSystem]:
        async with metrics.system() as system:
            await system.spawn(Echo).ask("started?")
            return weakref.ref(system)

    left = await run()
    gc.collect()
    assert left() is None
    assert metrics.collect()["papyra.actor.starts"] == [(ECHO, 1)]


def test_a_meter_provider_is_one() -> None:
    with pytest.raises(InvalidSetting, match="meter_provider is a MeterProvider, not 5"):
        OpenTelemetry(meter_provider=5)  # type: ignore[arg-type]
