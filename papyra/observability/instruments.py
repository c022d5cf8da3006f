"""The figures of systems as observable instruments of OpenTelemetry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from papyra._histogram import Distribution
from papyra.exceptions import MissingExtra
from papyra.figures import Figures
from papyra.observability.semantics import PROJECTION_NAME, named
from papyra.observability.series import Described, Family, described, families_of

try:
    from opentelemetry import metrics
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
except ImportError as error:
    raise MissingExtra(
        f"metrics need OpenTelemetry's API ({error}), which Papyra's extra 'otel' brings: "
        "pip install '.[otel]' in Papyra's checkout"
    ) from error

__all__ = ("Instruments", "instruments_of")

#: The names of attributes, by those of labels.
_ATTRIBUTES: Final = {
    "system_id": "papyra.system.id",
    "actor_class": "papyra.actor.class",
    "projection": PROJECTION_NAME,
    "state": "papyra.projection.state",
}


class HasFigures(Protocol):
    """A system, as it is observed."""

    @property
    def system_id(self) -> str:
        """The system's name."""

    def figures(self) -> Figures:
        """Return what there is to count; from any thread."""


class Instruments:
    """Observes systems for one provider of meters.

    All of them share the instruments: a provider takes each name once. What a system has counted is
    still observed when it has stopped, until another one of its name starts.
    """

    def __init__(self, meter: Meter) -> None:
        self._systems: dict[str, Callable[[], Figures]] = {}
        self._lock = threading.Lock()
        #: what one export shows, and by whom it was asked for already
        self._families: dict[str, Family] = {}
        self._asked: set[str] = set()
        for each in described():
            self._create(meter, each)

    def add(self, system: HasFigures) -> None:
        """Observe a system from now on."""
        self._systems[system.system_id] = system.figures

    def end(self, system: HasFigures) -> None:
        """Observe what it was in the end, and let go of the system."""
        if self._systems.get(system.system_id) == system.figures:
            last = system.figures()
            self._systems[system.system_id] = lambda: last

    def _create(self, meter: Meter, each: Described) -> None:
        """Create what observes a family: of a distribution, the sum and the count."""
        if each.kind == "histogram":
            for part, unit in (("sum", each.unit), ("count", "")):
                name, observe = f"{each.name}.{part}", self._observer(each.name, part)
                meter.create_observable_counter(name, [observe], unit, each.documentation)
            return
        create = (
            meter.create_observable_counter
            if each.kind == "counter"
            else meter.create_observable_gauge
        )
        create(each.name, [self._observer(each.name, "")], each.unit, each.documentation)

    def _observer(self, name: str, part: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            del options
            family = self._family(name, part)
            for labels, value in () if family is None else family.series:
                attributes = {_ATTRIBUTES[label]: named(text) for label, text in labels.items()}
                yield Observation(_number(value, part), attributes)

        return observe

    def _family(self, name: str, part: str) -> Family | None:
        """Return the family of the same moment for all instruments of one export.

        An instrument that asks again belongs to the next one.
        """
        asker = f"{name}.{part}"
        with self._lock:
            if asker in self._asked or not self._asked:
                self._asked.clear()
                figures = [look() for look in tuple(self._systems.values())]
                self._families = {each.name: each for each in families_of(figures)}
            self._asked.add(asker)
            return self._families.get(name)


def _number(value: float | Distribution, part: str) -> float:
    if isinstance(value, Distribution):
        return value.count if part == "count" else value.total
    return value


_of_providers: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
_of_process: list[Instruments] = []


def instruments_of(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a provider; without one, of that which is set for the process."""
    if provider is None or provider is metrics.get_meter_provider():
        if not _of_process:
            _of_process.append(Instruments(metrics.get_meter("papyra")))
        return _of_process[0]
    found = _of_providers.get(provider)
    if found is None:
        found = _of_providers[provider] = Instruments(provider.get_meter("papyra"))
    return found
