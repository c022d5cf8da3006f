"""What must hold in every order of messages, and after a crash at every point."""

from __future__ import annotations

from shop import Charge, Desk, OrderPaid, OrderPlaced, PayOrder, PlaceOrder, SoldOut

from papyra import Actor, ActorRef, ActorSystem
from papyra.testing import CrashRun, PersistenceProbe, check_history, crash_everywhere, explore


class Till(Actor):
    """Everybody can pay."""

    async def receive(self, message: Charge) -> bool:
        return True


def build(system: ActorSystem) -> ActorRef:
    return system.spawn(Desk, system.spawn(Till, name="till"), name="desk")


COMMANDS = [PlaceOrder(1, "tea"), PlaceOrder(2, "cups"), PayOrder(1)]


async def test_no_order_is_lost_or_taken_twice() -> None:
    def check(run: CrashRun) -> None:
        assert [order["order_id"] for order in run.events(OrderPlaced)] == [1, 2]
        assert run.events(OrderPaid) == [{"order_id": 1}]

    # A customer who got no answer asks again.
    crashes = await crash_everywhere(build, COMMANDS, check, retry=True)
    assert len(crashes.points) > 20


async def test_what_was_confirmed_is_stored_whatever_crashes() -> None:
    async def check(run: CrashRun) -> None:
        stored = [order["order_id"] for order in run.events(OrderPlaced)]
        if stored:  # then snapshots, if there are any, say the same
            await check_history(run.system.backend, Desk)
        for command in run.acknowledged:
            if isinstance(command, PlaceOrder):
                assert command.order_id in stored

    await crash_everywhere(build, COMMANDS, check)


class Customer(Actor):
    def __init__(self, desk: ActorRef, number: int) -> None:
        self.desk = desk
        self.number = number

    async def receive(self, message: str) -> None:
        try:
            await self.desk.ask(PlaceOrder(self.number, "the last one"))
        except SoldOut:
            await self.context.persist(("WentHome", {"number": self.number}))


async def test_two_customers_never_get_the_last_one() -> None:
    winners: set[int] = set()

    async def program(system: ActorSystem) -> None:
        desk = system.spawn(Desk, name="desk")
        customers = [system.spawn(Customer, desk, number) for number in (1, 2)]
        for customer in customers:
            await customer.tell("hurry")
        for customer in customers:
            await customer.stop()
        probe = PersistenceProbe(system)
        sold = await probe.expect_event(OrderPlaced)
        await probe.expect_event("WentHome")
        await probe.expect_none()
        winners.add(sold.payload["order_id"])

    await explore(program, seeds=50)
    assert winners == {1, 2}  # either may win; nobody wins twice
