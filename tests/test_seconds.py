"""A length of time that makes no sense is refused by name; one without end is no limit."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from papyra import ActorSystem, OneForOne, Retry, SystemClock
from papyra.exceptions import InvalidPolicy, InvalidRequest
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.breaker import CircuitBreakerPolicy
from papyra.testing import FaultyPersistence, ManualClock, TestProbe, wait_until_idle
from tests.actors import Echo, Gate

NAN = float("nan")
INF = float("inf")

#: No length of time, whatever it is for.
SENSELESS: list[Any] = [NAN, True, False, "5", b"5", 1j, [], object(), decimal.Decimal(1)]
SENSELESS += [datetime.timedelta(seconds=1), -INF, -(10**400), -(10**5000), -1, -0.001]

#: Longer than anybody waits.
ENDLESS: list[Any] = [INF, 1e400, 10**400, 10**5000, 1e308, 1e300, 10**20, 1e10]

#: Of these, what is no finite number.
INFINITE: list[Any] = [INF, 10**400, 10**5000]


def name_of(value: object) -> str:
    return type(value).__name__


TAKES_ANY: dict[str, Callable[[Any], object]] = {
    "shutdown_timeout": lambda s: ActorSystem(shutdown_timeout=s),
    "audit_interval": lambda s: ActorSystem(audit_interval=s),
    "within": lambda s: OneForOne(within=s),
    "delay": lambda s: FaultyPersistence(InMemoryPersistence()).delay(s),
}
TAKES_FINITE: dict[str, Callable[[Any], object]] = {
    "backoff": lambda s: OneForOne(backoff=s).delay(2_000),
    "max_backoff": lambda s: OneForOne(backoff=1.0, max_backoff=s).delay(2_000),
    "retry.backoff": lambda s: Retry(2, backoff=s).delay(2_000),
    "retry.max_backoff": lambda s: Retry(2, 1.0, max_backoff=s).delay(2_000),
    "reset_timeout": lambda s: CircuitBreakerPolicy(reset_timeout=s),
    "max_age_seconds": lambda s: RetentionPolicy(max_age_seconds=s).oldest_time(1e9),
    "call_timeout": lambda s: JsonFilePersistence("never-opened.ndjson", call_timeout=s),
}
POSTGRES = ("connect_timeout", "statement_timeout", "lock_timeout", "retry_for")
REDIS = ("acknowledge_timeout", "connect_timeout", "timeout", "retry_for")


@pytest.mark.parametrize("value", SENSELESS, ids=name_of)
@pytest.mark.parametrize("make", [*TAKES_ANY.items(), *TAKES_FINITE.items()], ids=lambda m: m[0])
def test_an_option_in_seconds_refuses_what_is_no_length_of_time(make: Any, value: Any) -> None:
    with pytest.raises(InvalidPolicy, match=r"seconds|a number greater than 0"):
        make[1](value)


@pytest.mark.parametrize("value", ENDLESS, ids=name_of)
@pytest.mark.parametrize("make", TAKES_ANY.items(), ids=lambda m: m[0])
def test_an_option_in_seconds_takes_infinity_as_no_limit(make: Any, value: Any) -> None:
    make[1](value)


@pytest.mark.parametrize("value", ENDLESS, ids=name_of)
@pytest.mark.parametrize("make", TAKES_FINITE.items(), ids=lambda m: m[0])
def test_an_option_in_seconds_that_must_be_finite_refuses_infinity(make: Any, value: Any) -> None:
    if value in INFINITE:
        with pytest.raises(InvalidPolicy, match=r"seconds|a number greater than 0"):
            make[1](value)
    else:
        make[1](value)


@pytest.mark.parametrize("value", [*SENSELESS, *ENDLESS], ids=name_of)
@pytest.mark.parametrize("name", REDIS)
def test_a_redis_config_refuses_seconds_that_the_server_cannot_count(name: str, value: Any) -> None:
    with pytest.raises(InvalidPolicy, match=f"{name} is seconds"):
        RedisStreamsConfig(system_id="shop", **{name: value})


@pytest.mark.parametrize("value", [*SENSELESS, *ENDLESS], ids=name_of)
@pytest.mark.parametrize("name", POSTGRES)
def test_a_postgres_store_refuses_seconds_that_the_server_cannot_count(
    name: str, value: Any
) -> None:
    with pytest.raises(InvalidPolicy, match=f"{name} is seconds"):
        PostgresPersistence("dbname=shop", **{name: value})


@pytest.mark.parametrize("value", [*SENSELESS, *ENDLESS], ids=name_of)
async def test_a_redis_consumer_refuses_a_claim_after_that_is_no_length_of_time(value: Any) -> None:
    store = RedisStreamsPersistence(RedisStreamsConfig(system_id="shop"))
    with pytest.raises(InvalidRequest, match="no number of seconds"):
        async for _ in store.consume("billing", "one", claim_after=value):
            break


@pytest.mark.parametrize("value", SENSELESS, ids=name_of)
async def test_ask_probe_and_manual_clock_refuse_what_is_no_length_of_time(value: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidPolicy, match="timeout is seconds"):
            await system.spawn(Echo).ask("x", timeout=value)
        with pytest.raises(InvalidPolicy, match="timeout is seconds"):
            await TestProbe(system).expect_message("x", timeout=value)
    clock = ManualClock()
    with pytest.raises(InvalidPolicy, match="a clock is advanced by seconds"):
        await clock.advance(value)


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=name_of)
async def test_a_clock_refuses_what_is_no_number_and_never_waits_for_negative_seconds(
    clock: Any,
) -> None:
    for value in SENSELESS:
        if type(value) in (int, float) and value < 0:
            await clock.sleep(value)
            with clock.move_on_after(value) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
        else:
            with pytest.raises(InvalidPolicy, match="a wait takes seconds"):
                await clock.sleep(value)
            with (
                pytest.raises(InvalidPolicy, match="a wait takes seconds"),
                clock.move_on_after(value),
            ):
                pass


@pytest.mark.parametrize("value", ENDLESS, ids=name_of)
@pytest.mark.parametrize("clock", [SystemClock, ManualClock], ids=str)
async def test_an_ask_or_sleep_with_an_infinite_timeout_lasts_until_it_is_over(
    clock: Any, value: Any
) -> None:
    over: list[str] = []

    async with ActorSystem(clock=clock(), shutdown_timeout=value, audit_interval=value) as system:
        gate = system.spawn(Gate)
        entered, release = anyio.Event(), anyio.Event()

        async def ask() -> None:
            await gate.ask((entered, release), timeout=value)
            over.append("answered")

        async def sleep() -> None:
            with system.clock.move_on_after(value):
                await system.clock.sleep(value)
            over.append("slept")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(sleep)
            await entered.wait()
            if isinstance(system.clock, ManualClock):
                await system.clock.advance(1e9)
            await wait_until_idle()
            assert over == []
            release.set()
            await wait_until_idle()
            tasks.cancel_scope.cancel()
    assert over == ["answered"]


@pytest.mark.parametrize("value", [NAN, INF, -INF, "now", True, 10**400, 10**5000], ids=name_of)
def test_a_manual_clock_refuses_to_start_at_what_is_no_time(value: Any) -> None:
    with pytest.raises(InvalidPolicy, match="a clock starts at Unix time"):
        ManualClock(value)


async def test_an_option_in_seconds_takes_numbers_of_other_libraries() -> None:
    class Float(float):
        """As numpy's are."""

    async with ActorSystem(shutdown_timeout=Float(5)) as system:
        assert await system.spawn(Echo).ask("x", timeout=Float(5)) == "x"
