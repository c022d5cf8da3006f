"""The figures of systems, as Prometheus reads them."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from itertools import count
from typing import Any

import anyio
import msgspec
import pytest
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from papyra import Actor, ActorSystem
from papyra._histogram import RECORDS, SECONDS, Distribution
from papyra.durable_timers import TimerFigures
from papyra.exceptions import InvalidSetting
from papyra.figures import ClassFigures, Figures, SubscriptionFigures
from papyra.observability.prometheus import PapyraCollector, Scrape, scrape
from papyra.persistence.metrics import MetricsSnapshot
from papyra.projections.status import ProjectionStatus
from tests.actors import Echo
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
#: Quotes, a backslash, ends of lines, what ends a label or a line, controls, no character at all.
EVIL = 'a"b\\c\nd\r# HELP x{y="z"} 1\t\x1b[31m\u2028\udc80é'


def distribution(bounds: tuple[float, ...], first: int) -> Distribution:
    return Distribution(bounds, tuple(range(first, first + len(bounds) + 1)), first + 0.5)


def numbered() -> Figures:
    """Return figures each of which is another number."""
    counts: dict[str, Any] = dict(zip(ClassFigures.__struct_fields__[1:14], count(1_001)))
    of_class = ClassFigures(
        **{"name": EVIL, **counts},
        mailbox_seconds=distribution(SECONDS, 2_000),
        receive_seconds=distribution(SECONDS, 3_000),
    )
    names = [name for name in ProjectionStatus.__struct_fields__ if name != "state"]
    projection: dict[str, Any] = dict(zip(names, count(4_001)))
    projection |= {"name": EVIL, "state": "paused", "position": 4_050, "head": 4_099}
    return Figures(
        system_id="shop",
        timestamp=1.0,
        started_at=5_000.0,
        is_running=True,
        classes=(of_class,),
        persistence=MetricsSnapshot(*range(6_000, 6_000 + len(MetricsSnapshot()))),
        persistence_waiting=5_001,
        last_seq=5_002,
        timers=TimerFigures(*range(5_003, 5_010)),
        subscriptions=SubscriptionFigures(5_010, 5_011),
        projections=(ProjectionStatus(**projection),),
        commit_seconds=distribution(SECONDS, 7_000),
        commit_records=distribution(RECORDS, 8_000),
    )


class Still:
    """A system whose figures a test says."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self.system_id = figures.system_id

    def figures(self) -> Figures:
        return self._figures


def read(scraped: Scrape) -> dict[str, Metric]:
    """Return what the parser of the format makes of a scrape; each family is there once."""
    text = scraped.body.decode()
    for what in ("HELP", "TYPE"):
        names = re.findall(rf"^# {what} (\S+) ", text, re.MULTILINE)
        assert len(names) == len(set(names)) > 0
    if scraped.content_type.startswith("application/openmetrics-text"):
        parsed = openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        return {each.name: each for each in parsed}
    assert scraped.content_type.startswith("text/plain")
    return {each.name: each for each in text_string_to_metric_families(text)}


@pytest.mark.parametrize("accept", ["", "text/html", OPENMETRICS])
def test_every_figure_is_exposed_with_its_value(accept: str) -> None:
    families = read(scrape([Still(numbered())], accept))
    values = {sample.value for family in families.values() for sample in family.samples}
    assert set(range(1_001, 1_014)) <= values, "of the class"
    assert set(range(5_000, 5_012)) <= values, "of the system"
    assert set(range(6_000, 6_000 + len(MetricsSnapshot()))) <= values, "of the store"
    for name in ("mailbox_wait", "receive", "commit"):
        family = families[f"papyra_{name}_seconds"]
        assert family.type == "histogram"
        buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
        assert len(buckets) == len(SECONDS) + 1
        (total,) = (s.value for s in family.samples if s.name.endswith("_count"))
        assert buckets == sorted(buckets)
        assert buckets[-1] == total
    states = {s.labels["state"]: s.value for s in families["papyra_projection_state"].samples}
    assert (states["paused"], sum(states.values())) == (1, 1)
    assert families["papyra_projection_lag"].samples[0].value == 49


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_hostile_names_are_labels_and_nothing_else(accept: str) -> None:
    scraped = scrape([Still(numbered())], accept)
    shown = 'a"b\\c\nd\\r# HELP x{y="z"} 1\\t\\x1b[31m\\u2028\\udc80é'
    for name, label in (("actors", "actor_class"), ("projection_lag", "projection")):
        (sample,) = read(scraped)[f"papyra_{name}"].samples
        assert sample.labels[label] == shown
    assert all(each.isprintable() for each in scraped.body.decode().split("\n"))


async def test_a_registry_collects_what_a_system_does_from_its_start_to_its_end() -> None:
    system, registry = ActorSystem("shop", measure=True), CollectorRegistry(auto_describe=True)
    registry.register(PapyraCollector(system))
    of_echo = {"system_id": "shop", "actor_class": "tests.actors.Echo"}
    assert registry.get_sample_value("papyra_system_running", {"system_id": "shop"}) == 0
    async with system:
        ref = system.spawn(Echo)
        for number in range(7):
            await ref.tell(number)
        assert registry.get_sample_value("papyra_mailbox_messages", of_echo) == 7
        await ref.stop()
        assert registry.get_sample_value("papyra_messages_handled_total", of_echo) == 7
        assert registry.get_sample_value("papyra_mailbox_wait_seconds_count", of_echo) == 7
    assert registry.get_sample_value("papyra_actors", of_echo) == 0
    assert registry.get_sample_value("papyra_system_running", {"system_id": "shop"}) == 0


def test_systems_of_one_registry_share_a_collector() -> None:
    shop, bank = ActorSystem("shop"), ActorSystem("bank")
    registry = CollectorRegistry(auto_describe=True)
    registry.register(PapyraCollector(shop, bank))
    running = read(scrape([shop, bank]))["papyra_system_running"]
    assert [sample.labels["system_id"] for sample in running.samples] == ["shop", "bank"]
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PapyraCollector(ActorSystem("third")))
    with pytest.raises(InvalidSetting, match="can't be told apart: shop, shop"):
        PapyraCollector(shop, ActorSystem("shop"))


async def test_the_clients_own_server_scrapes_from_its_thread_while_actors_come_and_go() -> None:
    class Parent(Actor):
        async def receive(self, message: int) -> None:
            kind = type(f"Child{message % 20}", (Echo,), {"__module__": "made"})
            await self.context.spawn(kind).ask(message)

    registry = CollectorRegistry()
    async with ActorSystem(measure=True) as system:
        registry.register(PapyraCollector(system))
        server, thread = start_http_server(0, "127.0.0.1", registry)
        scrapes = 0

        def fetch() -> bytes:
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            with urllib.request.urlopen(url, timeout=60) as response:
                return bytes(response.read())

        async def fetch_often() -> None:
            nonlocal scrapes
            while scrapes < 3:
                read(Scrape(await anyio.to_thread.run_sync(fetch), "text/plain"))
                scrapes += 1

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fetch_often)
                parent, number = system.spawn(Parent), 0
                while scrapes < 3:
                    await parent.ask(number)
                    number += 1
        finally:
            await anyio.to_thread.run_sync(server.shutdown)
            server.server_close()
            await anyio.to_thread.run_sync(thread.join)


def test_figures_become_json_and_are_read_back() -> None:
    figures = msgspec.structs.replace(numbered(), classes=(), projections=())
    assert msgspec.json.decode(msgspec.json.encode(figures), type=Figures) == figures


def test_without_the_client_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
import papyra.observability.series, papyra.figures
try:
    import papyra.observability.prometheus
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtra metrics for Prometheus need prometheus_client")
    assert "pip install '.[prometheus]'" in done.stdout
