"""The figures of systems for Prometheus: a collector for its client, and the text of a scrape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from papyra._histogram import Distribution
from papyra._safe_repr import one_line, shown
from papyra.exceptions import InvalidSetting, MissingExtra
from papyra.figures import Figures
from papyra.observability.series import Family, families_of

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise MissingExtra(
        f"metrics for Prometheus need prometheus_client ({error}), which Papyra's extra "
        "'prometheus' brings: pip install '.[prometheus]' in Papyra's checkout"
    ) from error

__all__ = ("PapyraCollector", "Scrape", "expose", "scrape")


@runtime_checkable
class HasFigures(Protocol):
    """A system, as it is scraped."""

    @property
    def system_id(self) -> str:
        """The system's name."""

    def figures(self) -> Figures:
        """Return what there is to count; from any thread."""


class PapyraCollector:
    """The figures of one or more systems, for a registry of ``prometheus_client``.

    ``REGISTRY.register(PapyraCollector(system))``, before the system starts or after it. A scrape
    costs as much as there are classes of actors, however many actors there are, and may come from
    any thread. All systems of a registry belong into one collector: another one would have the same
    names, which the registry refuses with a ``ValueError``.
    """

    def __init__(self, *systems: HasFigures) -> None:
        """Raise `InvalidSetting` for two systems of one name: nobody could tell them apart.

        And for what is no system.
        """
        for each in systems:
            if not isinstance(each, HasFigures):
                raise InvalidSetting(f"the figures are those of systems, not of {shown(each)}")
        names = [system.system_id for system in systems]
        if len(set(names)) < len(names):
            raise InvalidSetting(f"two systems of one name can't be told apart: {', '.join(names)}")
        self._systems = systems

    def collect(self) -> Iterator[Metric]:
        """Yield each metric as it is now. The registry calls it."""
        for family in families_of([system.figures() for system in self._systems]):
            yield metric_of(family)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics that are known by now. The registry calls it."""
        return self.collect()


class Scrape(NamedTuple):
    """The answer to a scrape."""

    body: bytes
    content_type: str


def scrape(systems: Sequence[HasFigures], accept: str = "") -> Scrape:
    """Return the figures of these systems, in the format that the header ``Accept`` asks for.

    That is the text format of Prometheus, or OpenMetrics.
    """
    return expose(PapyraCollector(*systems).collect(), accept)


def expose(metrics: Iterable[Metric], accept: str = "") -> Scrape:
    """Return metrics in the format that the header ``Accept`` asks for."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(metrics))
    return Scrape(encode(registry), content_type)


class _Collected:
    """What was collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def metric_of(family: Family) -> Metric:
    """Return a family as Prometheus has it: ``papyra.mailbox.wait`` is in seconds by its name."""
    name = family.name.replace(".", "_")
    unit = "seconds" if family.unit == "s" else ""
    metric = Metric(name, family.documentation, family.kind, unit)
    for labels, value in family.series:
        shown = {label: label_text(text) for label, text in labels.items()}
        if isinstance(value, Distribution):
            _add_distribution(metric, shown, value)
        else:
            suffix = "_total" if family.kind == "counter" else ""
            metric.add_sample(metric.name + suffix, shown, as_float(value))
    return metric


def _add_distribution(metric: Metric, labels: dict[str, str], value: Distribution) -> None:
    below = 0
    for bound, count in zip((*value.bounds, math.inf), value.counts, strict=True):
        below += count
        bucket = {**labels, "le": _bound_text(bound)}
        metric.add_sample(f"{metric.name}_bucket", bucket, below)
    metric.add_sample(f"{metric.name}_count", labels, below)
    metric.add_sample(f"{metric.name}_sum", labels, value.total)


def label_text(text: str) -> str:
    """Return a label's value with what can't be shown written out.

    Ends of lines stay, and the client escapes them: a name forges no line.
    """
    return "\n".join(map(one_line, text.split("\n")))


def as_float(value: float) -> float:
    """Return the nearest number that Prometheus has."""
    try:
        return float(value)
    except OverflowError:  # an integer that no float holds
        return math.inf if value > 0 else -math.inf


def _bound_text(bound: float) -> str:
    return "+Inf" if bound == math.inf else str(bound)
