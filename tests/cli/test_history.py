"""`papyra history`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from papyra import ActorSystem
from papyra.persistence import PersistedEvent
from tests.cli.conftest import T0, Command, Store, event, iso
from tests.cli.test_app import is_one_error
from tests.cli.test_hostile import EVIL, is_harmless
from tests.eventsourcing.accounts import Account, Deposit, Withdraw

#: Modules that `--app` may name, and what is in them.
MODULES = {
    "bank": """
import msgspec
from papyra import EventSourced

class Deposited(msgspec.Struct):
    amount: int

class Withdrawn(msgspec.Struct):
    amount: int

class Account(EventSourced[int]):
    events = (Deposited, Withdrawn)
    def initial_state(self): return 0
    def apply(self, state, event): return state
    async def receive(self, message): return None
""",
    "two_banks": """
from bank import Account
class Savings(Account):
    events = ()
class Inner:
    class Deep(Account):
        pass
NOTHING = 5
""",
    "other_banks": """
import bank
class Savings(bank.Account):
    pass
class Loans(bank.Account):
    pass
""",
    "new_bank": """
import msgspec
from papyra import EventSourced
from papyra.eventsourcing import event, upcaster
import bank

@event("Deposited", version=2)
class Deposited(msgspec.Struct):
    cents: int

class NewAccount(bank.Account):
    events = (Deposited,)
    @staticmethod
    @upcaster("Deposited", from_version=1)
    def in_cents(payload):
        return {"cents": 100 * payload["amount"]}
""",
    "broken": "raise RuntimeError('\x1b[31mno')",
    "leaving": "raise SystemExit(7)",
    "empty": "",
}


@pytest.fixture
def bank(papyra: Command) -> Command:
    for name, code in MODULES.items():
        (papyra.home / f"{name}.py").write_text(code)
    return papyra


def fact(revision: int | None, name: str = "Deposited", **changes: Any) -> PersistedEvent:
    number = revision or 0
    made = event(number, actor_address="bank/ann", event_type=name, payload={"amount": number})
    return msgspec.structs.replace(made, revision=revision, **changes)


def broken_history(store: Store, *revisions: int) -> None:
    async def write() -> None:
        async with store.backend() as backend:
            for seq, revision in enumerate(revisions, 1):
                await backend.restore(msgspec.structs.replace(fact(revision), seq=seq))

    anyio.run(write)


def test_a_history_is_shown_by_revisions(papyra: Command, file_store: Store) -> None:
    file_store.append(fact(None, "Noted"), fact(1), fact(2, "Withdrawn", event_version=3))
    file_store.append(event(1), fact(3))
    done = papyra("history", "bank/ann", file_store.name)
    assert (done.code, done.err) == (0, "")
    assert done.rows == [
        ["1", iso(T0 + 1), "Deposited", "1", '{"amount":1}'],
        ["2", iso(T0 + 2), "Withdrawn", "3", '{"amount":2}'],
        ["3", iso(T0 + 3), "Deposited", "1", '{"amount":3}'],
    ]


def test_json_has_a_line_for_each_event(bank: Command, file_store: Store) -> None:
    file_store.append(fact(1), fact(2, "Stolen", payload={"n": 2**70}, event_version=2))
    plain = [
        json.loads(line) for line in bank("history", "bank/ann", file_store.name, "--json").lines
    ]
    assert [(each["revision"], each["event_version"]) for each in plain] == [(1, 1), (2, 2)]
    assert plain[1]["payload"] == {"n": 2**70}
    assert "decodes" not in plain[0]
    done = bank("history", "bank/ann", file_store.name, "--json", "--app", "bank")
    assert done.code == 3
    first, second = map(json.loads, done.lines)
    assert (first["decodes"], first["problem"]) == (True, None)
    assert second["decodes"] is False
    assert second["problem"].startswith("Account has no event 'Stolen'")


def test_on_a_terminal_what_does_not_decode_is_said_below_it(
    bank: Command, file_store: Store
) -> None:
    file_store.append(fact(1), fact(2, payload={"amount": "much"}))
    done = bank.on_terminal("history", "bank/ann", file_store.name, "--app", "bank", columns=120)
    assert done.code == 3
    first, second, reason, total = done.text.splitlines()
    assert first == f'      1 {iso(T0 + 1)} Deposited v1 {{"amount":1}}'
    assert second.endswith('Deposited v1 {"amount":"much"}')
    assert "Expected `int`, got `str`" in reason
    assert total == "1 of 2 can't be read by bank:Account"


def test_a_history_that_decodes_ends_with_0(bank: Command, file_store: Store) -> None:
    file_store.append(fact(1), fact(2, "Withdrawn"))
    done = bank("history", "bank/ann", file_store.name, "--app", "bank")
    assert (done.code, done.err) == (0, "2 of 2 decode with bank:Account\n")
    assert [row[-1] for row in done.rows] == ["decodes", "decodes"]


def test_old_events_decode_through_their_upcasters(bank: Command, file_store: Store) -> None:
    file_store.append(fact(1), fact(2, payload={"cents": 5}, event_version=2), fact(3, payload={}))
    done = bank("history", "bank/ann", file_store.name, "--app", "new_bank:NewAccount")
    assert done.code == 3
    assert [row[-1] for row in done.rows[:2]] == ["decodes", "decodes"]
    assert "the upcaster of 'Deposited' from version 1 raised KeyError" in done.rows[2][-1]


@pytest.mark.parametrize(
    ("app", "class_name"),
    [
        ("bank:Account", "bank:Account"),
        ("two_banks", "bank:Account"),
        ("two_banks:Savings", "two_banks:Savings"),
        ("two_banks:Inner.Deep", "two_banks:Inner.Deep"),
    ],
)
def test_the_class_is_the_one_that_is_named_or_that_the_actor_was_started_with(
    bank: Command, file_store: Store, app: str, class_name: str
) -> None:
    started = fact(None, "ActorStarted", payload={"actor_type": "Account"})
    file_store.append(started, fact(1))
    done = bank("history", "bank/ann", file_store.name, "--app", app)
    assert done.err.endswith(f" {class_name}\n")


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("other_banks", "other_banks has Loans, Savings: say which is that of bank/ann"),
        ("two_banks:NOTHING", "no class of event-sourced actors"),
        ("two_banks:Missing", "the module has no 'Missing'"),
        ("two_banks:", "the module has no ''"),
        ("empty", "no event-sourced actor in it"),
        ("broken", "can't be imported: RuntimeError: \\x1b[31mno"),
        ("leaving", "can't be imported: SystemExit: 7"),
        ("missing", "can't be imported: ModuleNotFoundError"),
        ("", "can't be imported"),
        (EVIL, "can't be imported"),
        ("papyra:EventSourced", "no class of event-sourced actors"),
    ],
)
def test_an_app_without_such_a_class_is_wrong_use(
    bank: Command, file_store: Store, app: str, said: str
) -> None:
    file_store.append(fact(1))
    done = bank("history", "bank/ann", file_store.name, "--app", app)
    assert is_one_error(done, 2)
    assert said in done.err


@pytest.mark.parametrize(
    ("revisions", "said"),
    [
        ((1, 3), "revision 2 is missing"),
        ((3, 4), "revisions 1 to 2 are missing"),
        ((1, 2, 2), "revision 2 is there twice"),
    ],
)
def test_a_history_with_a_hole_ends_with_3(
    bank: Command, file_store: Store, revisions: tuple[int, ...], said: str
) -> None:
    broken_history(file_store, *revisions)
    for options in ([], ["--app", "bank"], ["--json"]):
        done = bank("history", "bank/ann", file_store.name, *options)
        assert (done.code, len(done.lines)) == (3, len(revisions))
        assert f"{said} in the history of bank/ann" in done.err


def test_an_actor_without_a_history_is_told_so_with_what_may_be_meant(
    papyra: Command, file_store: Store
) -> None:
    file_store.append(fact(1), event(2))
    assert is_one_error(done := papyra("history", "bank/an", file_store.name), 1)
    assert "bank/an has no history: " in done.err
    assert "did you mean bank/ann?" in done.err
    assert is_one_error(done := papyra("history", "shop/a", file_store.name), 1)
    assert "papyra events --actor shop/a lists them" in done.err
    assert is_one_error(papyra("history", "bank/ann", papyra.home / "missing.ndjson"), 1)
    for wrong in ([], [""], ["a", "b", "c"]):
        assert is_one_error(papyra("history", *wrong), 2)


def test_a_long_history_is_shown_whole(papyra: Command, file_store: Store) -> None:
    file_store.append(*map(fact, range(1, 12_001)))
    done = papyra("history", "bank/ann", file_store.name)
    assert [int(row[0]) for row in done.rows] == list(range(1, 12_001))


async def test_a_history_is_shown_while_a_system_writes_it(
    papyra: Command, file_store: Store
) -> None:
    async with ActorSystem("bank", persistence=file_store.backend()) as system:
        account = system.spawn(Account, name="ann")
        await account.ask(Deposit(30))
        files = await anyio.to_thread.run_sync(contents, file_store)
        done = await anyio.to_thread.run_sync(papyra, "history", "bank/ann", file_store.name)
        assert (done.code, [row[2] for row in done.rows]) == (0, ["Deposited"])
        assert await anyio.to_thread.run_sync(contents, file_store) == files
        await account.ask(Withdraw(5))
        done = await anyio.to_thread.run_sync(papyra, "history", "bank/ann", file_store.name)
        assert [row[2] for row in done.rows] == ["Deposited", "Withdrawn"]


def contents(store: Store) -> dict[Path, bytes]:
    assert store.path is not None
    return {path: path.read_bytes() for path in store.path.parent.rglob("*.ndjson")}


def test_nothing_in_a_history_is_obeyed_by_a_terminal(bank: Command, file_store: Store) -> None:
    evil = event(1, system_id=EVIL, actor_address=EVIL, event_type=EVIL, payload={EVIL: EVIL})
    file_store.append(msgspec.structs.replace(evil, revision=1))
    calls: list[list[object]] = [
        ["history", EVIL, file_store.name, *options]
        for options in ([], ["--json"], ["--app", "bank"], ["--app", "bank", "--json"])
    ]
    calls.append(["history", f"{EVIL}x", file_store.name])
    for done in bank.many(calls):
        assert is_harmless(done.out), done
        assert is_harmless(done.err), done
        assert "Traceback" not in done.err
