"""A system that writes a store: ``python -m tests.cli.teller URL``.

It deposits 1 with bank/ann, again and again, until its input ends. A line says what became of each:
the amount that there is then, or the name of the error.
"""

from __future__ import annotations

import os
import sys

import anyio

from papyra import ActorRef, ActorSystem
from papyra.conf import backend_from_url
from papyra.exceptions import PapyraError
from tests.eventsourcing.accounts import Account, Deposit

#: Seconds between two deposits.
PAUSE = 0.002


async def deposit(account: ActorRef) -> None:
    while True:
        try:
            said = str(await account.ask(Deposit(1)))
        except PapyraError as error:
            said = type(error).__name__
        os.write(1, f"{said}\n".encode())
        await anyio.sleep(PAUSE)


async def main(url: str) -> None:
    async with (
        ActorSystem("bank", persistence=backend_from_url(url)) as system,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(deposit, system.spawn(Account, name="ann"))
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
