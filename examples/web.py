r"""A bank on the web: FastAPI around entities, with a read model, health, metrics and traces.

Run web.py in this folder, with FastAPI, uvicorn and OpenTelemetry's SDK: python -m uvicorn web:app

    curl -X POST localhost:8000/accounts/ann/deposits -H 'Content-Type: application/json' \
        -H 'Idempotency-Key: 7f3a' -d '{"amount": 30}'
    curl localhost:8000/balances
    curl localhost:8000/ready
    curl localhost:8000/metrics

BANK_STORE names another store, as bank.py does. OPERATOR_TOKEN has the timeline shown to who knows
it, at localhost:8000/timeline?token=... BANK_TRACES=console writes spans to standard output, and
BANK_TIMEOUT is the seconds that a command may take.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from contextlib import closing
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote

import msgspec
from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from pydantic import BaseModel, PositiveInt
from starlette.routing import Route

from papyra import ActorSystem, EventSourced, Failure, Message
from papyra.conf import backend_from_url
from papyra.exceptions import ActorStopped, AskTimeout, PersistenceError, RecoveryFailed
from papyra.observability import asgi
from papyra.observability.opentelemetry import OpenTelemetry
from papyra.persistence import Received
from papyra.projections import Projection, SQLiteView

STORE = os.environ.get("BANK_STORE", "sqlite:bank.db")
VIEW = os.environ.get("BANK_VIEW", "bank-views.db")
TOKEN = os.environ.get("OPERATOR_TOKEN", "")
TRACES = os.environ.get("BANK_TRACES") == "console"
TIMEOUT = float(os.environ.get("BANK_TIMEOUT", "5"))

if TRACES:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)
tracer = trace.get_tracer("bank")


# The bank


class Deposited(msgspec.Struct, frozen=True):
    amount: int


class Withdrawn(msgspec.Struct, frozen=True):
    amount: int


class Deposit(msgspec.Struct, Message[int], frozen=True):
    """Reply with the new balance, as all of these do."""

    amount: int


class Withdraw(msgspec.Struct, Message[int], frozen=True):
    amount: int


class GetBalance(msgspec.Struct, Message[int], frozen=True):
    pass


class InsufficientFunds(Exception):
    """There is less than was to be withdrawn."""


class Account(EventSourced[int]):
    events = (Deposited, Withdrawn)
    idle_timeout = 300

    def initial_state(self) -> int:
        return 0

    def apply(self, state: int, event: Deposited | Withdrawn) -> int:
        return state + event.amount if isinstance(event, Deposited) else state - event.amount

    async def receive(self, message: Any) -> Any:
        match message:
            case Deposit(amount):
                await self.persist(Deposited(amount))
            case Withdraw(amount) if amount > self.state:
                return Failure(InsufficientFunds(f"{amount} is more than {self.state}"))
            case Withdraw(amount):
                await self.persist(Withdrawn(amount))
        return self.state


class Balances(Projection):
    """The balance of each account, to be queried."""

    name, version = "balances", 1
    entity = Account
    tables = ("balances",)

    def setup(self, tx: sqlite3.Connection) -> None:
        tx.execute(f"CREATE TABLE {self.table('balances')} (account TEXT PRIMARY KEY, amount INT)")

    def handle(self, received: Received, tx: sqlite3.Connection) -> None:
        event = received.event
        amount = event.amount if isinstance(event, Deposited) else -event.amount
        tx.execute(
            f"INSERT INTO {self.table('balances')} VALUES (?, ?)"
            " ON CONFLICT (account) DO UPDATE SET amount = amount + excluded.amount",
            (unquote(received.actor.rpartition("/")[2]), amount),
        )


# The wiring


def make_system() -> ActorSystem:
    return ActorSystem(
        "bank",
        persistence=backend_from_url(STORE),
        entities=[Account],
        telemetry=OpenTelemetry() if TRACES else None,
        measure=True,
    )


def project(system: ActorSystem) -> None:
    system.project(Balances(SQLiteView(VIEW)))


def is_operator(scope: asgi.Scope) -> bool:
    given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
    return bool(TOKEN) and hmac.compare_digest(given.encode(), TOKEN.encode())


service = asgi.lifespan(make_system, setup=project)
app = FastAPI(
    title="bank",
    lifespan=service,
    routes=[
        Route("/health", asgi.health(service)),
        Route("/ready", asgi.ready(service, max_lag=1_000)),
        Route("/metrics", asgi.metrics(service)),
        Route("/timeline", asgi.timeline(service, allow=is_operator)),
    ],
)


# What it serves


class Amount(BaseModel):
    amount: PositiveInt


Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=1_024)]


async def ask(account: str, command: Message[int], key: str | None = None) -> dict[str, Any]:
    ref = service.system.entity(Account, account)
    return {"account": account, "balance": await ref.ask(command, TIMEOUT, idempotency_key=key)}


@app.post("/accounts/{account}/deposits")
async def deposit(account: str, body: Amount, key: Key = None) -> dict[str, Any]:
    return await ask(account, Deposit(body.amount), key)


@app.post("/accounts/{account}/withdrawals")
async def withdraw(account: str, body: Amount, key: Key = None) -> dict[str, Any]:
    return await ask(account, Withdraw(body.amount), key)


@app.get("/accounts/{account}")
async def balance(account: str) -> dict[str, Any]:
    return await ask(account, GetBalance())


@app.get("/balances")
def balances() -> dict[str, int]:
    with closing(sqlite3.connect(VIEW)) as view:
        return dict(view.execute("SELECT account, amount FROM balances ORDER BY account"))


@app.middleware("http")
async def span(request: Request, call_next: Any) -> Response:
    """Record a span of the request, which those of actors belong to."""
    with tracer.start_as_current_span(f"{request.method} {request.url.path}"):
        response: Response = await call_next(request)
        return response


@app.exception_handler(InsufficientFunds)
async def refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 409)


@app.exception_handler(AskTimeout)
@app.exception_handler(ActorStopped)
@app.exception_handler(PersistenceError)
@app.exception_handler(RecoveryFailed)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """Say that it may work later; whether it has been done already, an idempotency key tells."""
    return JSONResponse({"error": type(error).__name__}, 503, {"Retry-After": "1"})
