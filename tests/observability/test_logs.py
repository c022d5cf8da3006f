"""What log records say, and to whom: fields, single lines, and no payloads."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import msgspec
import pytest
import structlog

from papyra import Actor, ActorSystem, EventSourced
from papyra.exceptions import ProjectionStopped, RecoveryFailed
from papyra.observability.logs import FIELDS, LogFields
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.projections import Pause, Projection
from papyra.testing import FaultyPersistence
from tests.actors import Echo
from tests.conftest import event_loops

anyio_backend = event_loops("asyncio")

SECRET = "4111-1111-1111-1111"
#: What ends a line, somewhere.
EVIL = "x\nERROR papyra forged\r\x0b\x1b[2J\x85\u2028"

logger = logging.getLogger("shop.orders")
correlation_id: ContextVar[str] = ContextVar("correlation_id")


class Paid(msgspec.Struct, frozen=True):
    card: str


class Order(EventSourced[int]):
    events = (Paid,)

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Paid) -> int:
        if event.card == "unreadable":
            raise ValueError("this one can't be applied")
        return state + 1

    async def receive(self, message: Paid) -> None:
        logger.info("an order is paid")
        await self.persist(message)


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Return what Papyra logs."""
    own, kept = logging.getLogger("papyra"), Kept()
    own.addHandler(kept)
    level = own.level
    own.setLevel(logging.DEBUG)
    yield kept.records
    own.setLevel(level)
    own.removeHandler(kept)


def known(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of which something is known."""
    found = {name: getattr(record, name) for name in FIELDS}
    return {name.removeprefix("papyra_"): each for name, each in found.items() if each is not None}


def test_the_fields_are_none_that_records_have_already() -> None:
    assert not set(FIELDS) & set(vars(logging.makeLogRecord({})))
    assert all(name.startswith("papyra_") for name in FIELDS)


async def test_a_crash_is_logged_with_the_system_the_actor_and_what_it_was_handling(
    records: list[logging.LogRecord],
) -> None:
    async with ActorSystem("shop", propagate=[correlation_id]) as system:
        ref = system.spawn(Echo, name="till")
        correlation_id.set("request-7")
        await ref.tell(ZeroDivisionError())
        await ref.ask("there again")
    (record,) = (each for each in records if "raised in receive" in each.getMessage())
    assert known(record) == {
        "system": "shop",
        "actor": "shop/till",
        "message_type": "ZeroDivisionError",
        "correlation_id": "request-7",
    }


async def test_a_crash_in_on_start_is_of_no_message(records: list[logging.LogRecord]) -> None:
    class Broken(Echo):
        started = 0

        async def on_start(self) -> None:
            Broken.started += 1
            if Broken.started == 2:
                raise LookupError

    async with ActorSystem("shop") as system:
        ref = system.spawn(Broken, name="till")
        await ref.tell(ZeroDivisionError())
        await ref.ask("there again")
    found = [
        known(each).get("message_type") for each in records if "raised in" in each.msg % each.args
    ]
    assert found == ["ZeroDivisionError", None]


async def test_a_recovery_that_fails_is_logged_with_the_revision(
    records: list[logging.LogRecord],
) -> None:
    async with ActorSystem("shop", persistence=(backend := InMemoryPersistence())) as system:
        await system.entity(Order, "7").ask(Paid(SECRET))
    apply, Order.apply = Order.apply, lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    try:
        async with ActorSystem("shop", persistence=backend) as system:
            with pytest.raises(RecoveryFailed):
                await system.entity(Order, "7").ask(Paid(SECRET))
    finally:
        Order.apply = apply  # type: ignore[method-assign]
    (record,) = (each for each in records if "can't be recovered" in each.getMessage())
    assert known(record) == {
        "system": "shop",
        "actor": "shop/Order/7",
        "revision": 1,
    }


async def test_a_store_that_fails_is_logged_with_the_persistence_actor_of_the_system(
    records: list[logging.LogRecord],
) -> None:
    backend = FaultyPersistence(InMemoryPersistence())
    async with ActorSystem("shop", persistence=backend) as system:
        ref = system.spawn(Echo)
        await ref.ask("started?")
        await system.backend.flush()
        backend.fail_next("append")
        await ref.stop()
        await system.backend.flush()
    (record,) = (each for each in records if "requests failed" in each.getMessage())
    assert known(record)["actor"] == "shop/$persistence"
    assert known(record)["system"] == "shop"


async def test_a_projection_is_logged_by_its_name(records: list[logging.LogRecord]) -> None:
    class Totals(Projection):
        name, version = "totals", 1
        events = (Paid,)
        on_error = Pause()

        async def handle(self, received: Any) -> None:
            raise LookupError("not this one")

    async with ActorSystem("shop") as system:
        runner = system.project(Totals())
        await system.entity(Order, "7").ask(Paid(SECRET))
        with anyio.fail_after(60), pytest.raises(ProjectionStopped, match="paused"):
            await runner.wait_for(system.backend.last_seq)
        seq = runner.status.error_seq
    (record,) = (each for each in records if "is paused" in each.getMessage())
    assert known(record) == {"system": "shop", "projection": "totals", "seq": seq}


async def test_what_users_log_in_an_actor_has_the_fields_where_they_add_the_filter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger.name)
    caplog.handler.addFilter(LogFields())
    logger.info("outside")
    async with ActorSystem("shop", propagate=[correlation_id]) as system:
        correlation_id.set("request-8")
        await system.entity(Order, "7").ask(Paid(SECRET))
    outside, inside = (each for each in caplog.records if each.name == logger.name)
    assert known(outside) == {}
    assert known(inside) == {
        "system": "shop",
        "actor": "shop/Order/7",
        "message_type": "Paid",
        "correlation_id": "request-8",
    }


async def test_whatever_names_and_errors_hold_a_record_is_one_line(
    records: list[logging.LogRecord],
) -> None:
    hostile = type(EVIL, (Exception,), {})
    async with ActorSystem("shop", propagate=[correlation_id]) as system:
        correlation_id.set(EVIL)
        ref = system.spawn(Echo)
        with pytest.raises(hostile):
            await ref.ask(hostile(EVIL))
        logging.getLogger("papyra").warning("%s, %s, %d", EVIL, hostile(EVIL), 7)
    for record in records:
        assert record.getMessage().isprintable()
        assert all(str(each).isprintable() for each in known(record).values())
    assert records[-1].getMessage().endswith(", 7")
    (crash,) = (each for each in records if "raised in receive" in each.getMessage())
    assert known(crash)["message_type"] == EVIL.encode("unicode_escape").decode()
    assert known(crash)["correlation_id"] == EVIL.encode("unicode_escape").decode()


async def test_no_payload_is_logged_even_where_what_happened_can_not_be_stored(
    records: list[logging.LogRecord],
) -> None:
    class Late(Actor):
        async def receive(self, message: object) -> None:
            raise AssertionError

    system = ActorSystem("shop")
    async with system:
        ref = system.spawn(Late)
        await ref.stop()
        await ref.tell(Paid(SECRET))
    await ref.tell(Paid(SECRET))
    (record,) = (each for each in records if "not recorded" in each.getMessage())
    assert known(record) == {"system": "shop", "actor": str(ref.address)}
    assert "a dead letter, Paid, to shop/Late-1" in record.getMessage()
    for each in records:
        assert SECRET not in each.getMessage()
        assert SECRET not in str(vars(each))


async def test_structlog_makes_json_of_them_that_has_the_fields() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(FIELDS)],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.dict_tracebacks,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    own = logging.getLogger("papyra")
    own.addHandler(handler)
    try:
        async with ActorSystem("shop") as system:
            with pytest.raises(ZeroDivisionError):
                await system.spawn(Echo, name="till").ask(ZeroDivisionError(EVIL))
    finally:
        own.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["event"] == "shop/till raised in receive"
    assert (said["papyra_system"], said["papyra_actor"]) == ("shop", "shop/till")
    assert said["exception"][0]["exc_value"] == EVIL
