"""Accounts whose histories are trimmed, and what they have before and after."""

from __future__ import annotations

from papyra import ActorSystem
from papyra.eventsourcing import SnapshotPolicy
from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.retention import RetentionPolicy
from tests.eventsourcing.accounts import Account, Deposit, Look

__all__ = ("ACCOUNTS", "TRIM", "Saved", "fill", "history", "looked", "replayed")

TRIM = RetentionPolicy(max_records=1, trim_histories=True)
#: What each account has, as (amount, revision).
ACCOUNTS = {"ann": (66, 11), "ben": (105, 14), "cat": (3, 2)}


class Saved(Account):
    snapshots = SnapshotPolicy(every=3)


async def fill(store: PersistenceBackend) -> None:
    """Have accounts deposit 1, 2, 3, ..., by turns."""
    async with ActorSystem("bank", persistence=store) as system:
        accounts = {name: system.spawn(Saved, name=name) for name in ACCOUNTS}
        for amount in range(1, 15):
            for name, (_, revision) in ACCOUNTS.items():
                if amount <= revision:
                    await accounts[name].ask(Deposit(amount))


async def looked(store: PersistenceBackend) -> dict[str, tuple[int, int]]:
    """Return what the accounts have, as new lives of them say."""
    async with ActorSystem("bank", persistence=store) as system:
        return {name: await system.spawn(Saved, name=name).ask(Look()) for name in ACCOUNTS}


async def replayed(store: PersistenceBackend) -> dict[str, tuple[int, int]]:
    """Return what the histories add up to, without any snapshot."""

    class Unsaved(Account):
        pass

    async with ActorSystem("bank", persistence=store) as system:
        return {name: await system.spawn(Unsaved, name=name).ask(Look()) for name in ACCOUNTS}


async def history(store: PersistenceBackend, name: str) -> list[tuple[int, str]]:
    """Return the revisions and types of the events of an account."""
    page = await store.read_history(f"bank/{name}")
    return [(event.revision or 0, event.event_type) for event in page.events]
