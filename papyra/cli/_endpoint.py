"""The figures of a running process, as its metrics endpoint shows them."""

from __future__ import annotations

import base64
import functools
import http.client
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import msgspec

from papyra.cli._exit_codes import CommandFailed, WrongUse, format_error, without_secrets

#: Seconds that an endpoint has to answer.
PATIENCE = 10.0
#: Bytes of an answer that are read, at most: five hundred classes make a quarter of it.
MOST_BYTES = 16 * 1024 * 1024

_URL = re.compile(r"https?://", re.IGNORECASE)

#: Values by their labels, of each metric.
Samples: TypeAlias = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]


class ClassLook(msgspec.Struct, frozen=True):
    """What the actors of a class do. Rates are a second, since the look before."""

    system_id: str
    actor_class: str
    actors: float
    entities_awake: float
    #: `None` unless the system measures, as the rest that may be
    messages_waiting: float | None
    handled: float | None
    #: seconds on average, of those that were handled since the look before
    mailbox_seconds: float | None
    receive_seconds: float | None
    crashes: float
    #: since the system started
    restarts: float
    dead_letters: float


class ProjectionLook(msgspec.Struct, frozen=True):
    """How a projection does."""

    system_id: str
    projection: str
    state: str
    lag: float
    lag_seconds: float
    #: a second
    handled: float


class SystemLook(msgspec.Struct, frozen=True):
    """What a system does. Rates are a second, since the look before."""

    system_id: str
    is_running: bool
    started_at: float | None
    commits: float
    records: float
    write_errors: float
    #: seconds on average; `None` unless the system measures
    commit_seconds: float | None
    persistence_waiting: float
    last_seq: float
    timers_pending: float
    subscriptions: float


class EndpointLook(msgspec.Struct, frozen=True):
    """What an endpoint shows at one moment, or why it shows nothing."""

    time: float
    error: str | None = None
    systems: list[SystemLook] = []
    classes: list[ClassLook] = []
    projections: list[ProjectionLook] = []


class NoAnswer(Exception):
    """The endpoint does not show figures; the text says why."""


def is_endpoint(name: str | None) -> bool:
    """Return whether this names an endpoint, and no store."""
    return name is not None and _URL.match(name) is not None


class Endpoint:
    """Looks at one endpoint again and again."""

    def __init__(self, url: str) -> None:
        """Raise `WrongUse` for a URL that is none."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise WrongUse(f"this is no URL ({error}): {without_secrets(url)}") from None
        if not host:
            raise WrongUse(f"this URL names no host: {without_secrets(url)}")
        self.name = without_secrets(url)
        self._headers = {"Accept": "text/plain; version=0.0.4"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        place = parts.netloc.rpartition("@")[2]
        self._url = parts._replace(netloc=place, fragment="").geturl()
        self._before: _Seen | None = None

    async def look(self) -> EndpointLook:
        """Return what it shows now. That there is nothing is no error but the first time."""
        try:
            seen = _Seen(time.time(), time.monotonic(), await self._fetch())
        except NoAnswer as error:
            if self._before is None:
                raise CommandFailed(str(error)) from None
            return EndpointLook(time.time(), str(error))
        look = _look(seen, self._before)
        self._before = seen
        return look

    async def _fetch(self) -> Samples:
        """Return its samples. Raises `NoAnswer`."""
        with anyio.move_on_after(PATIENCE):
            # Where an answer comes byte by byte, the thread is left to itself.
            return await anyio.to_thread.run_sync(
                functools.partial(_get, self._url, self._headers, self.name), abandon_on_cancel=True
            )
        raise NoAnswer(f"{self.name} has not answered in {PATIENCE:g} seconds")


class _Seen(NamedTuple):
    time: float
    monotonic: float
    samples: Samples


def _get(url: str, headers: Mapping[str, str], name: str) -> Samples:
    """Return the samples that an endpoint answers with. Raises `NoAnswer`."""
    try:
        request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - http or https
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            body: bytes = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise NoAnswer(f"{name} answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        why = format_error(reason) if isinstance(reason, BaseException) else str(reason)
        raise NoAnswer(f"{name} can't be reached: {why}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"{name} can't be read: {format_error(error)}") from None
    if len(body) > MOST_BYTES:
        raise NoAnswer(f"{name} answers with more than {MOST_BYTES:,} bytes")
    return _parsed(body.decode("utf-8", "replace"), name)


def _parsed(text: str, name: str) -> Samples:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    # What else the process shows, and however much that is, is nobody's business here.
    own = "".join(f"{line}\n" for line in text.split("\n") if line.startswith("papyra_"))
    try:
        for family in text_string_to_metric_families(own):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    except Exception as error:  # noqa: BLE001 - the parser raises whatever it stumbles over
        raise NoAnswer(
            f"{name} answers with something that are no metrics: {format_error(error)}"
        ) from None
    if "papyra_system_running" not in samples:
        raise NoAnswer(f"{name} answers, but with no figures of a system of Papyra")
    return samples


def _look(seen: _Seen, before: _Seen | None) -> EndpointLook:
    now, past = _Values(seen.samples), None if before is None else _Values(before.samples)
    seconds = max(seen.monotonic - before.monotonic, 1e-3) if before else 1.0
    rates = _Rates(now, past, seconds)
    return EndpointLook(
        seen.time,
        None,
        [_system(now, rates, key) for key in now.keys("papyra_system_running", "system_id")],
        [_class(now, rates, key) for key in now.keys("papyra_actors", "system_id", "actor_class")],
        [
            _projection(now, rates, key)
            for key in now.keys("papyra_projection_lag", "system_id", "projection")
        ],
    )


class _Values:
    """Values by the name of their metric, and by some of their labels."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._known: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
            (name, tuple(sorted(labels.items()))): value
            for name, found in samples.items()
            for labels, value in found
        }

    def keys(self, metric: str, *labels: str) -> list[dict[str, str]]:
        """Return these labels of each sample of a metric that has them all, in order."""
        found = [
            {label: sample[label] for label in labels}
            for sample, _ in self._samples.get(metric, ())
            if all(label in sample for label in labels)
        ]
        return sorted(found, key=lambda each: [each[label] for label in labels])

    def get(self, metric: str, labels: Mapping[str, str]) -> float | None:
        """Return a value, if there is one with just these labels."""
        return self._known.get((metric, tuple(sorted(labels.items()))))


class _Rates:
    """What counters have grown by, a second."""

    def __init__(self, now: _Values, past: _Values | None, seconds: float) -> None:
        self._now, self._past, self._seconds = now, past, seconds

    def growth(self, metric: str, labels: Mapping[str, str]) -> float | None:
        """Return what a counter has grown by; all of it if it has begun anew."""
        value = self._now.get(metric, labels)
        if value is None or self._past is None:
            return None if value is None else 0.0
        before = self._past.get(metric, labels)
        return value if before is None or value < before else value - before

    def of(self, metric: str, labels: Mapping[str, str]) -> float | None:
        """Return the rate of a counter."""
        growth = self.growth(metric, labels)
        return None if growth is None else growth / self._seconds

    def mean(self, metric: str, labels: Mapping[str, str]) -> float | None:
        """Return the mean of what a histogram has got since, if anything."""
        total = self.growth(f"{metric}_sum", labels)
        count = self.growth(f"{metric}_count", labels)
        return total / count if total is not None and count else None


def _system(now: _Values, rates: _Rates, key: dict[str, str]) -> SystemLook:
    return SystemLook(
        key["system_id"],
        bool(now.get("papyra_system_running", key)),
        now.get("papyra_system_start_timestamp_seconds", key),
        rates.of("papyra_persistence_commits_total", key) or 0.0,
        rates.of("papyra_persistence_records_written_total", key) or 0.0,
        now.get("papyra_persistence_write_errors_total", key) or 0.0,
        rates.mean("papyra_commit_seconds", key),
        now.get("papyra_persistence_mailbox_messages", key) or 0.0,
        now.get("papyra_store_last_seq", key) or 0.0,
        now.get("papyra_timers_pending", key) or 0.0,
        now.get("papyra_subscriptions", key) or 0.0,
    )


def _class(now: _Values, rates: _Rates, key: dict[str, str]) -> ClassLook:
    return ClassLook(
        *(key["system_id"], key["actor_class"]),
        now.get("papyra_actors", key) or 0.0,
        now.get("papyra_entities_awake", key) or 0.0,
        now.get("papyra_mailbox_messages", key),
        rates.of("papyra_messages_handled_total", key),
        rates.mean("papyra_mailbox_wait_seconds", key),
        rates.mean("papyra_receive_seconds", key),
        rates.of("papyra_actor_crashes_total", key) or 0.0,
        now.get("papyra_actor_restarts_total", key) or 0.0,
        now.get("papyra_dead_letters_total", key) or 0.0,
    )


def _projection(now: _Values, rates: _Rates, key: dict[str, str]) -> ProjectionLook:
    states: list[Any] = [
        each["state"]
        for each in now.keys("papyra_projection_state", *key, "state")
        if {name: each[name] for name in key} == key
        and now.get("papyra_projection_state", each) == 1
    ]
    return ProjectionLook(
        *(key["system_id"], key["projection"]),
        states[0] if states else "?",
        now.get("papyra_projection_lag", key) or 0.0,
        now.get("papyra_projection_lag_time_seconds", key) or 0.0,
        rates.of("papyra_projection_handled_total", key) or 0.0,
    )
