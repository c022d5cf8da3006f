from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from papyra.exceptions import InvalidPolicy, MailboxClosed, MailboxFull
from papyra.mailbox import Mailbox, MailboxStatistics
from papyra.testing import wait_until_idle


def drain(mailbox: Mailbox[int]) -> list[int]:
    items = []
    while (item := mailbox.pop(None)) is not None:
        items.append(item)
    return items


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, None, "10"])
def test_a_mailboxs_capacity_is_a_whole_number_greater_than_zero(capacity: object) -> None:
    with pytest.raises(InvalidPolicy, match="capacity"):
        Mailbox(capacity)  # type: ignore[arg-type]


def test_a_mailbox_keeps_the_order_of_its_messages() -> None:
    mailbox: Mailbox[int] = Mailbox(10)
    for number in range(5):
        mailbox.put_nowait(number)
    assert drain(mailbox) == [0, 1, 2, 3, 4]


def test_a_full_mailbox_refuses_a_sender_that_will_not_wait() -> None:
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.put_nowait(1)
    with pytest.raises(MailboxFull):
        mailbox.put_nowait(2)
    mailbox.push(2)
    assert drain(mailbox) == [1, 2]


async def test_senders_waiting_for_room_in_a_mailbox_keep_their_order() -> None:
    mailbox: Mailbox[int] = Mailbox(2)
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(mailbox.put, number)
            await wait_until_idle()
        assert mailbox.statistics() == MailboxStatistics(2, 2, 4, False)
        with pytest.raises(MailboxFull):
            mailbox.put_nowait(99)
        assert drain(mailbox) == [0, 1, 2, 3, 4, 5]


async def test_no_sender_overtakes_one_that_waits_for_room_in_a_mailbox() -> None:
    mailbox: Mailbox[int] = Mailbox(4)
    for number in range(4):
        mailbox.put_nowait(number)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.put, 4)
        await wait_until_idle()
        assert mailbox.pop(None) == 0
        with pytest.raises(MailboxFull):
            mailbox.put_nowait(5)
        assert drain(mailbox) == [1, 2, 3, 4]


async def test_senders_are_let_into_an_empty_mailbox_as_many_as_there_is_room_for() -> None:
    mailbox: Mailbox[int] = Mailbox(4)
    for number in range(4):
        mailbox.put_nowait(number)
    async with anyio.create_task_group() as tasks:
        for number in range(4, 10):
            tasks.start_soon(mailbox.put, number)
            await wait_until_idle()
        assert [mailbox.pop(None) for _ in range(3)] == [0, 1, 2]
        assert mailbox.statistics() == MailboxStatistics(1, 4, 6, False)
        assert mailbox.pop(None) == 3
        assert mailbox.statistics() == MailboxStatistics(4, 4, 2, False)
        assert mailbox.pop_run(4) == [4, 5, 6, 7]
        assert mailbox.statistics() == MailboxStatistics(2, 4, 0, False)
        mailbox.discard(lambda item: isinstance(item, int))
        assert mailbox.has_room


async def test_senders_are_let_into_a_mailbox_all_of_which_was_discarded() -> None:
    mailbox: Mailbox[object] = Mailbox(2)
    mailbox.put_nowait(1)
    mailbox.put_nowait(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.put, "three")
        await wait_until_idle()
        mailbox.discard(lambda item: isinstance(item, int))
        assert mailbox.pop(None) == "three"


async def test_a_sender_cancelled_while_it_waits_for_room_leaves_no_message_in_the_mailbox() -> (
    None
):
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.put_nowait(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.put, 2)
        await wait_until_idle()
        tasks.cancel_scope.cancel()
    assert mailbox.statistics().tasks_waiting_put == 0
    assert drain(mailbox) == [1]


async def test_waiting_on_a_mailbox_ends_when_a_message_comes() -> None:
    mailbox: Mailbox[int] = Mailbox(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.wait)
        await wait_until_idle()
        mailbox.put_nowait(1)
    assert drain(mailbox) == [1]


async def test_a_consumer_that_was_cancelled_while_it_waited_loses_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox(10)
    with anyio.move_on_after(0):
        await mailbox.wait()
    mailbox.put_back([1, 2])
    mailbox.put_nowait(3)
    assert mailbox.pop(None) == 1
    assert mailbox.pop_run(1) == [2]
    assert drain(mailbox) == [3]


async def test_what_wakes_a_consumer_comes_out_in_order_with_what_follows() -> None:
    mailbox: Mailbox[int] = Mailbox(10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.wait)
        await wait_until_idle()
        for number in range(4):
            mailbox.put_nowait(number)
    assert mailbox.pop(None) == 0
    mailbox.put_nowait(4)
    assert mailbox.pop_run(2) == [1, 2]
    assert drain(mailbox) == [3, 4]


async def test_waiting_on_a_mailbox_that_has_a_message_ends_at_once() -> None:
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.put_nowait(1)
    await mailbox.wait()
    mailbox.close()
    assert drain(mailbox) == [1]
    await mailbox.wait()


async def test_a_closing_mailbox_lets_waiting_senders_in_and_none_after_them() -> None:
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.put_nowait(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mailbox.put, 2)
        await wait_until_idle()
        mailbox.close()
        await checkpoint()
        for put in (mailbox.put_nowait, mailbox.push):
            with pytest.raises(MailboxClosed):
                put(3)
        with pytest.raises(MailboxClosed):
            await mailbox.put(3)
    assert drain(mailbox) == [1, 2]


def test_a_mailboxs_run_of_messages_ends_before_one_of_another_type() -> None:
    mailbox: Mailbox[object] = Mailbox(10)
    for message in (1, 2, "three", 4):
        mailbox.put_nowait(message)
    assert mailbox.run(frozenset({int}), 10) == (2, {int})
    assert mailbox.run(frozenset({int}), 1) == (1, {int})
    assert mailbox.pop_run(2) == [1, 2]
    assert mailbox.pop(None) == "three"
