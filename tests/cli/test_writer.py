"""What a command wants written is written once, whatever becomes of the system that it asks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import anyio
import pytest

from papyra.cli import _writer
from papyra.cli._exit_codes import CommandFailed
from papyra.cli._writer import Outcome, carry_out
from papyra.persistence import Attend, EventSkipped, PersistedEvent, SkipEvent
from papyra.persistence.backends.json import JsonFilePersistence
from papyra.persistence.inbox import decode_posted, encode_answer

pytestmark = pytest.mark.anyio

REQUEST = SkipEvent("s/a", 1, "why")

Writer: TypeAlias = Callable[[JsonFilePersistence], Awaitable[None]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLICE", "PATIENCE"):
        monkeypatch.setattr(_writer, name, 0.1)


async def history(path: Path) -> list[str]:
    async with JsonFilePersistence(path, read_only=True) as reader:
        return [each.event_type for each in (await reader.read_history("s/a")).events]


async def asked(path: Path, behave: Writer, timeout: float = 5.0) -> Outcome | CommandFailed:
    """Return what a command gets of a writer that behaves like this once it is asked."""
    got: list[Outcome | CommandFailed] = []

    async def command() -> None:
        try:
            got.append(await carry_out(str(path), REQUEST, timeout))
        except CommandFailed as failed:
            got.append(failed)

    async with anyio.create_task_group() as tasks, JsonFilePersistence(path) as store:
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0, revision=1))
        tasks.start_soon(command)
        while not await store.store.posted():
            await anyio.lowlevel.checkpoint()
        await behave(store)
    return got[0]


async def test_a_request_is_carried_out_by_who_has_the_store(tmp_path: Path) -> None:
    async def behave(store: JsonFilePersistence) -> None:
        while not (await store.execute(Attend())).count:
            await anyio.lowlevel.checkpoint()
        while list(tmp_path.rglob("*.answer")):
            await anyio.lowlevel.checkpoint()

    path = tmp_path / "store"
    assert await asked(path, behave) == Outcome(EventSkipped(2, "why", True), "system")
    assert await history(path) == ["A", "papyra.event_skipped"]


async def test_a_writer_that_ends_before_it_answers_has_done_it_once(tmp_path: Path) -> None:
    async def behave(store: JsonFilePersistence) -> None:
        posted = decode_posted(await taken(store) or b"")
        await store.execute(cast("SkipEvent", posted.request))

    path = tmp_path / "store"
    assert await asked(path, behave) == Outcome(EventSkipped(2, "why", False), "command")
    assert await history(path) == ["A", "papyra.event_skipped"]


async def taken(store: JsonFilePersistence) -> bytes | None:
    """Take what is posted, be it posted anew meanwhile."""
    while True:
        for request_id in await store.store.posted():
            if (data := await store.store.take(request_id)) is not None:
                return data


async def test_a_writer_that_ends_before_it_has_done_it_leaves_it_to_the_command(
    tmp_path: Path,
) -> None:
    async def behave(store: JsonFilePersistence) -> None:
        await taken(store)

    path = tmp_path / "store"
    assert await asked(path, behave) == Outcome(EventSkipped(2, "why", True), "command")
    assert await history(path) == ["A", "papyra.event_skipped"]


async def test_a_writer_that_takes_a_request_and_is_silent_is_not_pushed_aside(
    tmp_path: Path,
) -> None:
    ended = anyio.Event()

    async def behave(store: JsonFilePersistence) -> None:
        await taken(store)
        await ended.wait()

    path = tmp_path / "store"
    original = _writer._unanswered

    def unanswered(writer: str) -> CommandFailed:
        ended.set()
        return original(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_writer, "_unanswered", unanswered)
        failed = await asked(path, behave, timeout=0.3)
    assert "has taken the request, and has not answered yet" in str(failed)
    assert await history(path) == ["A"]


async def test_an_answer_that_comes_while_the_command_gives_up_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer takes the request just before it is withdrawn, and answers just after."""
    path = tmp_path / "store"
    async with JsonFilePersistence(path) as store:
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0, revision=1))
        reader = store.reader()
        withdraw = type(reader.store).withdraw

        async def late(inbox: Any, request_id: str) -> bool:
            data = await store.store.take(request_id)
            withdrawn = await withdraw(inbox, request_id)
            if data is not None:
                reply = await store.execute(cast("SkipEvent", decode_posted(data).request))
                await store.store.answer(request_id, encode_answer(reply))
            return withdrawn

        monkeypatch.setattr(type(reader.store), "withdraw", late)
        outcome = await carry_out(str(path), REQUEST, 0.3)
        assert outcome == Outcome(EventSkipped(2, "why", True), "system")
    assert await history(path) == ["A", "papyra.event_skipped"]


async def test_a_command_that_is_interrupted_leaves_no_request_behind(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with JsonFilePersistence(path) as store:
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0, revision=1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carry_out, str(path), REQUEST, 60)
            while not await store.store.posted():
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert await store.store.posted() == []
        assert [file for file in tmp_path.rglob("*.requests/*") if file.is_file()] == []


async def test_a_request_that_lies_there_since_long_ago_is_not_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    async with JsonFilePersistence(path) as store:
        await store.append(PersistedEvent("s", "s/a", "A", 1, 1.0, revision=1))

        async def never(inbox: Any, request_id: str) -> bool:
            return True

        monkeypatch.setattr(type(store.store), "withdraw", never)
        with pytest.raises(CommandFailed, match="has not answered"):
            await carry_out(str(path), REQUEST, 0.15)
        ids = await store.store.posted()
        assert ids
        monkeypatch.setattr(store._inbox, "_clock", lambda: time.time() + 3600)
        assert (await store.execute(Attend())).count == len(ids)
    assert await history(path) == ["A"]
