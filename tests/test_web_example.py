"""The bank on the web of the examples: its store goes away under load, and comes back."""

from __future__ import annotations

import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.extent import CI
from tests.observability.serving import Served
from tests.redis_server import RedisServer, any_binary

EXAMPLES = Path(__file__).parent.parent / "examples"
CLIENTS, DEPOSITS = (8, 40) if CI else (4, 10)


def serve(store: str, folder: Path, **env: str) -> Served:
    env = {"BANK_STORE": store, "PYTHONPATH": str(EXAMPLES), "OPERATOR_TOKEN": "t", **env}
    env |= {"BANK_TIMEOUT": "60"}
    return Served("uvicorn", "web:app", env, folder)


class Client:
    """Deposits 1 again and again, each until that is acknowledged."""

    def __init__(self, served: Served, number: int) -> None:
        self._served = served
        self._number = number
        self.deposited = 0
        self.may_end = threading.Event()

    def run(self) -> None:
        while self.deposited < DEPOSITS or not self.may_end.is_set():
            key = f"{self._number}-{self.deposited}"
            answer = self._served.post(
                f"/accounts/{self._number}/deposits", {"amount": 1}, **{"Idempotency-Key": key}
            )
            if answer.status_code == 200:
                self.deposited += 1
                assert answer.json()["balance"] == self.deposited
            else:
                assert answer.status_code == 503, answer.text


def test_the_bank_on_the_web_is_not_ready_while_its_store_is_away_and_loses_no_deposit(
    tmp_path: Path,
) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    with (
        RedisServer(any_binary(), *options) as redis,
        serve(f"{redis.url}?system_id=bank", tmp_path) as served,
    ):
        assert served.wait_until_ready(True).json()["projections"]["balances"]
        assert served.get("/health").json() == {"alive": True}
        assert served.post("/accounts/ann/deposits", {"amount": 0}).status_code == 422
        clients = [Client(served, number) for number in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(client.run) for client in clients]
            try:
                redis.stop()
                refused = served.wait_until_ready(False)
                [reason] = refused.json()["reasons"]
                assert "the store" in reason
                assert "redis" not in refused.text  # where it is, is nobody's business
                assert served.get("/health").status_code == 200
                redis.start()
                served.wait_until_ready(True)
            finally:
                for client in clients:
                    client.may_end.set()
            for each in running:
                each.result()
        expected = {str(number): client.deposited for number, client in enumerate(clients)}
        served.wait_until("/balances", lambda answer: answer.json() == expected)
        for number, deposited in expected.items():
            balance = {"account": number, "balance": deposited}
            served.wait_until(f"/accounts/{number}", lambda answer: answer.json() == balance)  # noqa: B023
        refused = served.post("/accounts/0/withdrawals", {"amount": 1_000_000})
        assert refused.status_code == 409
        families = text_string_to_metric_families(served.get("/metrics").text)
        starts = {
            sample.labels["actor_class"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "papyra_actor_starts_total"
        }
        assert starts["web.Account"] >= CLIENTS
        assert served.get("/timeline").status_code == 403
        assert "bank/Account/0" in served.get("/timeline?token=t").text
        served.signal(signal.SIGTERM)
        assert served.wait() == -signal.SIGTERM, served.output


def test_the_bank_on_the_web_writes_its_spans_to_the_console(tmp_path: Path) -> None:
    with serve("sqlite:bank.db", tmp_path, BANK_TRACES="console") as served:
        answer = served.post("/accounts/ann/deposits", {"amount": 1})
        assert answer.json() == {"account": "ann", "balance": 1}
        served.wait_for(re.compile('"name": "POST /accounts/ann/deposits"').search)
        span = '"name": "{}".*?"trace_id": "(\\w+)"'
        [trace] = {
            match[1]
            for name in ("ask Deposit", "receive Deposit", "persist", "POST /accounts/ann/deposits")
            if (match := re.search(span.format(name), served.output, re.DOTALL)) is not None
        }
        assert trace != "0x" + "0" * 32
