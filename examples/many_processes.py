"""Several processes, each with a system of its own, on one Redis; and one group that follows them.

Each shop is a process with its own actors and its own store, whose one writer it is. Billing is
another program: two clerks in one consumer group, who share the orders of all shops. One of them
leaves without a word, with orders in hand; the other one takes those over.

Run it, with a Redis or a Valkey at hand: python examples/many_processes.py redis://localhost/0
"""

import functools
import sys
import uuid

import anyio
import msgspec

from papyra import Actor, ActorSystem
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence

SHOPS = ("berlin", "lisbon", "vienna")
ORDERS = 40
#: Seconds after which an order that a clerk has not handled is somebody else's.
PATIENCE = 1.0


class OrderPlaced(msgspec.Struct, frozen=True):
    number: int
    amount: int


class Desk(Actor):
    async def receive(self, message: OrderPlaced) -> int:
        return await self.context.persist(message)


def store_of(shop: str, url: str, run: str) -> RedisStreamsPersistence:
    return RedisStreamsPersistence(RedisStreamsConfig(url=url, prefix=run, system_id=shop))


async def keep_shop(shop: str, url: str, run: str) -> None:
    """Take orders, and keep them: in a process of its own."""
    async with ActorSystem(shop, persistence=store_of(shop, url, run)) as system:
        desk = system.spawn(Desk, name="desk")
        for number in range(1, ORDERS + 1):
            await desk.ask(OrderPlaced(number, amount=number * 10))


class Billing:
    """The other program."""

    def __init__(self, url: str, run: str) -> None:
        self.stores = [store_of(shop, url, run) for shop in SHOPS]
        self.billed: dict[tuple[str, int], int] = {}
        self.is_done = anyio.Event()

    async def work(self, clerk: str, store: RedisStreamsPersistence, leaves_after: int) -> None:
        """Bill what one clerk gets of one shop's orders."""
        async for delivery in store.consume("billing", clerk, claim_after=PATIENCE):
            event = delivery.record
            if event.payload is not None and "amount" in event.payload:
                if leaves_after == 0:
                    return  # nothing is acknowledged any more
                leaves_after -= 1
                order = (event.system_id, event.payload["number"])
                # A record may come twice; what is done about it is done once.
                self.billed.setdefault(order, event.payload["amount"])
            await store.ack("billing", delivery)
            if len(self.billed) == len(SHOPS) * ORDERS:
                self.is_done.set()

    async def run(self) -> None:
        async with anyio.create_task_group() as clerks:
            for store in self.stores:
                clerks.start_soon(self.work, "ada", store, 5)
                clerks.start_soon(self.work, "bob", store, 10**9)
            await self.is_done.wait()
            clerks.cancel_scope.cancel()
        for store in self.stores:
            await store.aclose()


async def main(url: str) -> None:
    run = f"example-{uuid.uuid4().hex[:8]}"
    billing = Billing(url, run)
    async with anyio.create_task_group() as tasks:
        for shop in SHOPS:
            command = [sys.executable, __file__, url, run, shop]
            tasks.start_soon(functools.partial(anyio.run_process, command, stderr=None))
        await billing.run()

    for shop in SHOPS:
        amounts = [amount for (of, _), amount in billing.billed.items() if of == shop]
        print(f"{shop}: {len(amounts)} orders, {sum(amounts):,} in all")
    placed = sum(number * 10 for number in range(1, ORDERS + 1)) * len(SHOPS)
    print(f"billed {sum(billing.billed.values()):,} of {placed:,}")
    for shop in SHOPS:
        async with store_of(shop, url, run) as store:
            report = await store.scan()
            print(f"{shop}'s store: {report.records_scanned} records, clean: {report.is_clean}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [url]:
            anyio.run(main, url)
        case [url, run, shop]:
            anyio.run(keep_shop, shop, url, run)
        case _:
            sys.exit(__doc__)
