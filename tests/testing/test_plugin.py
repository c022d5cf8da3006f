"""The pytest plugin, as pytest finds it, in projects of their own."""

from __future__ import annotations

import textwrap

import pytest

from tests.extent import some

pytest_plugins = ["pytester"]

HEAD = """
import anyio
import pytest
from papyra import Actor, ActorSystem, Decision, OneForOne, PapyraError
from papyra.exceptions import AskTimeout, EscalatedFailure
from papyra.persistence.backends.memory import InMemoryPersistence
from papyra.testing import *

pytestmark = pytest.mark.anyio


class Echo(Actor):
    async def receive(self, message):
        if isinstance(message, Exception):
            raise message
        if message == "for ever":
            await anyio.sleep_forever()
        if isinstance(message, anyio.Event):
            await message.wait()
        return message
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    return Run(pytester)


class Run:
    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def __call__(self, code: str, *arguments: str, head: str = HEAD) -> pytest.RunResult:
        self.pytester.makepyfile(head + textwrap.dedent(code))
        return self.pytester.runpytest("-p", "no:cacheprovider", *WITHOUT, *arguments)

    def beside(self, code: str, *arguments: str) -> pytest.RunResult:
        """Run with the plugins that others run async tests with."""
        self.pytester.makepyfile(HEAD.replace("pytestmark", "_") + textwrap.dedent(code))
        options = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestDeprecationWarning")
        return self.pytester.runpytest(*options, *arguments)


#: Plugins that are there, and not for most users.
WITHOUT = ("-p", "no:asyncio", "-p", "no:trio")


def test_the_pytest_plugins_fixtures_work_on_every_event_loop(run: Run) -> None:
    result = run("""
        async def test_it(actor_system, persistence, anyio_backend):
            assert actor_system.backend is persistence
            assert type(persistence) is InMemoryPersistence
            assert await actor_system.spawn(Echo).ask("x") == "x"

        class TestInAClass:
            async def test_it(self, actor_system):
                assert await actor_system.spawn(Echo).ask("x") == "x"

        def test_without_a_loop(persistence):
            assert persistence.events == ()
    """)
    result.assert_outcomes(passed=5)


def test_the_pytest_plugin_gives_each_test_its_own_store_and_system(run: Run) -> None:
    result = run("""
        @pytest.mark.parametrize("again", range(3))
        async def test_it(actor_system, persistence, again):
            await actor_system.spawn(Echo, name="echo").ask("x")
            await actor_system.backend.flush()
            assert [event.seq for event in persistence.events] == [1]
    """)
    result.assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("leftover", "body", "said"),
    [
        (
            "leaked_actors",
            'await actor_system.spawn(Echo, name="echo").tell("for ever")',
            "actors that did not stop: papyra/echo",
        ),
        (
            "unclaimed_replies",
            """
            hold = anyio.Event()
            ref = actor_system.spawn(Echo, name="echo")
            with pytest.raises(AskTimeout):
                await ref.ask(hold, timeout=0.001)
            hold.set()
            """,
            "replies that nobody waited for, 1 of them: papyra/echo to Event",
        ),
        (
            "write_errors",
            """
            with pytest.raises(PapyraError):
                await actor_system.backend.append("no record")
            """,
            "appends that failed, 1 of them; the log says why",
        ),
    ],
)
def test_the_pytest_plugin_fails_a_test_that_leaves_something_behind_unless_allowed(
    run: Run, leftover: str, body: str, said: str
) -> None:
    body = textwrap.indent(textwrap.dedent(body), " " * 4)
    result = run(f"""
async def test_left(actor_system):
{body}

@pytest.mark.papyra(allow=["{leftover}"])
async def test_allowed_by_a_mark(actor_system):
{body}

async def test_allowed_by_a_call(actor_system):
    actor_system.allow("{leftover}")
{body}

async def test_another(actor_system):
    pass
""")
    result.assert_outcomes(failed=2, passed=6)
    result.stdout.fnmatch_lines([f"*{said}*system.allow('{leftover}')*"])


def test_the_pytest_plugin_reports_only_the_own_error_of_a_failing_test(run: Run) -> None:
    result = run("""
        async def test_it(actor_system):
            await actor_system.spawn(Echo).tell("for ever")
            assert 1 == 2, "my own"

        async def test_next(actor_system):
            pass
    """)
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(["*AssertionError: my own*"])
    result.stdout.no_fnmatch_line("*left behind*")


def test_a_failed_probe_expectation_points_at_the_line_of_the_test(run: Run) -> None:
    result = run("""
        async def test_it(actor_system):
            probe = PersistenceProbe(actor_system)
            await probe.expect_event("OrderPlaced", timeout=0)
    """)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [">*expect_event(*", "E*no fact came within 0 s that is OrderPlaced*"]
    )
    result.stdout.no_fnmatch_line("*_inbox.py*")
    result.stdout.no_fnmatch_line("*raise AssertionError(*")


def test_a_test_may_stop_the_fixture_actor_system(run: Run) -> None:
    result = run("""
        async def test_it(actor_system, persistence):
            await actor_system.spawn(Echo).ask("x")
            await actor_system.stop()
            await actor_system.stop()
            assert [e.event_type for e in persistence.events] == ["ActorStarted", "ActorStopped"]
    """)
    result.assert_outcomes(passed=2)


def test_an_escalated_failure_in_the_pytest_plugin_fails_its_test_and_no_other(run: Run) -> None:
    result = run("""
        escalating = pytest.mark.papyra(supervision=OneForOne(default=Decision.ESCALATE))

        @escalating
        async def test_it(actor_system):
            with pytest.raises(ValueError):
                await actor_system.spawn(Echo).ask(ValueError("boom"))

        @escalating
        async def test_expected(actor_system):
            with pytest.raises(ValueError):
                await actor_system.spawn(Echo).ask(ValueError("boom"))
            with pytest.raises(EscalatedFailure):
                await actor_system.stop()

        async def test_next(actor_system):
            assert await actor_system.spawn(Echo).ask("x") == "x"
    """)
    result.assert_outcomes(failed=2, passed=4)
    result.stdout.fnmatch_lines(["*EscalatedFailure: a failure was escalated*boom*"])


def test_the_pytest_plugin_reports_a_store_that_can_not_be_opened_as_an_error(run: Run) -> None:
    result = run("""
        @pytest.fixture
        def persistence(persistence):
            faulty = FaultyPersistence(persistence)
            faulty.fail_next("open")
            return faulty

        async def test_it(actor_system):
            pass

        async def test_without(): pass
    """)
    result.assert_outcomes(errors=2, passed=2)
    result.stdout.fnmatch_lines(["*InjectedFault*open failed on purpose*"])


def test_users_may_override_the_pytest_plugins_persistence_fixture(run: Run) -> None:
    result = run("""
        @pytest.fixture
        def persistence(persistence):
            return FaultyPersistence(persistence)

        async def test_it(actor_system, persistence):
            assert actor_system.backend is persistence
            persistence.fail_next()
            actor_system.allow("write_errors")
            await actor_system.spawn(Echo).ask("x")
    """)
    result.assert_outcomes(passed=2)


def test_marks_and_clocks_configure_the_fixture_actor_system(run: Run) -> None:
    result = run(
        """
        @pytest.mark.papyra(system_id="shop", mailbox_capacity=7)
        async def test_it(actor_system, manual_clock):
            assert actor_system.system_id == "shop"
            assert actor_system.clock is manual_clock

        @pytest.mark.papyra(mailbox_capacity="many")
        async def test_wrong(actor_system):
            pass

        @pytest.mark.papyra(allow=["everything"])
        async def test_wrong_too(actor_system):
            pass
    """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=2, errors=4)
    result.stdout.fnmatch_lines(["*what can be allowed is leaked_actors,*not 'everything'*"])


def test_the_pytest_plugin_checks_the_system_of_a_sync_test(run: Run) -> None:
    result = run("""
        def test_it(actor_system):
            assert actor_system.is_running

        def test_that_leaves_something(actor_system):
            actor_system.backend.metrics.write_errors += 1
    """)
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*appends that failed, 1 of them*"])


def test_the_variable_papyra_test_store_chooses_the_store_of_a_test_suite(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def test_it(persistence):\n    assert type(persistence) is InMemoryPersistence\n"
    monkeypatch.setenv("PAPYRA_TEST_STORE", "memory")
    run(code).assert_outcomes(passed=1)
    monkeypatch.setenv("PAPYRA_TEST_STORE", "paper")
    result = run(code)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*PAPYRA_TEST_STORE is one of memory*, not 'paper'*"])


def test_the_pytest_plugin_closes_a_redis_store_in_the_event_loop_of_its_test(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its connections would outlive their event loop, which uvloop waits for."""
    monkeypatch.setenv("PAPYRA_TEST_STORE", "redis")
    result = run(
        """
        from papyra.exceptions import BackendClosed
        from papyra.persistence import PersistedEvent

        used = []

        async def append(persistence):
            used.append(persistence)
            await persistence.append(PersistedEvent("s", "s/a", "Opened", {}, 1.0))

        @pytest.mark.parametrize(
            "anyio_backend", [("asyncio", {"use_uvloop": True}), "asyncio", "trio"]
        )
        async def test_it(persistence):
            await append(persistence)

        async def test_one_that_fails(persistence):
            await append(persistence)
            raise ValueError

        async def test_they_are_closed():
            assert len(used) >= 4
            for store in used:
                with pytest.raises(BackendClosed):
                    await store.list_events()
        """,
        *("-W", "error"),
    )
    result.assert_outcomes(passed=5, failed=2)


def test_the_variable_papyra_test_store_may_name_a_users_own_backend(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.pytester.makepyfile(
        stores="""
        from papyra.persistence.backends.memory import InMemoryPersistence
        class Mine(InMemoryPersistence): pass
        def nothing(**options): pass
        """
    )
    run.pytester.syspathinsert()
    code = "def test_it(persistence):\n    assert type(persistence).__name__ == 'Mine'\n"
    monkeypatch.setenv("PAPYRA_TEST_STORE", "stores:Mine")
    run(code).assert_outcomes(passed=1)
    for wrong, said in [
        ("stores:nothing", "which made None: no backend"),
        ("stores:missing", "which is not there"),
        ("nowhere:Mine", "which is not there"),
    ]:
        monkeypatch.setenv("PAPYRA_TEST_STORE", wrong)
        result = run(code)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines([f"*{said}*"])


def test_the_pytest_plugin_leaves_a_project_without_actors_alone(run: Run) -> None:
    result = run("def test_it():\n    pass\n\nasync def test_async():\n    pass\n", head="")
    assert result.parseoutcomes()["passed"] == 1


# Beside other plugins

MARKS = {
    "asyncio": "asyncio",
    "asyncio on a loop of the module": "asyncio(loop_scope='module')",
    "trio": "trio",
}
BODY = """
            await actor_system.spawn(Teller, name="teller").ask("x")
            assert [event.event_type for event in persistence.events] == ["ActorStarted", "Said"]
"""


def teller(mark: str) -> str:
    return f"""
        class Teller(Actor):
            async def receive(self, message):
                await self.context.persist(("Said", {{"what": message}}))

        {mark and f"@pytest.mark.{mark}"}
        async def test_one(actor_system, persistence):
            {BODY}

        {mark and f"@pytest.mark.{mark}"}
        async def test_another(actor_system, persistence, manual_clock):
            {BODY}
            assert actor_system.clock is manual_clock

        {mark and f"@pytest.mark.{mark}"}
        @pytest.mark.papyra(shutdown_timeout=0.01)
        async def test_leaving_something(actor_system):
            await actor_system.spawn(Echo, name="echo").tell("for ever")

        {mark and f"@pytest.mark.{mark}"}
        @pytest.mark.papyra(given=[("Given", {{}})])
        async def test_failing(actor_system, persistence):
            assert [event.event_type for event in persistence.events][0] == "Given"
            assert 1 == 2, "my own"

        {mark and f"@pytest.mark.{mark}"}
        async def test_skipping(actor_system):
            pytest.skip("not today")
    """


@pytest.mark.parametrize(
    ("mark", "options"),
    some(
        [
            *((mark, ()) for mark in MARKS.values()),
            *((mark, ("-p", "no:anyio")) for mark in MARKS.values()),
            ("", ("-o", "asyncio_mode=auto")),
            ("", ("-o", "asyncio_mode=auto", "-p", "no:anyio")),
            ("", ("-o", "trio_mode=true", "-p", "no:asyncio")),
        ],
        every=2,
    ),
)
def test_the_fixture_actor_system_runs_on_the_event_loop_of_its_tests_async_plugin(
    run: Run, mark: str, options: tuple[str, ...]
) -> None:
    result = run.beside(teller(mark), *options)
    result.assert_outcomes(passed=2, failed=2, skipped=1)
    result.stdout.fnmatch_lines(["*actors that did not stop: papyra/echo*"])
    result.stdout.fnmatch_lines(["*AssertionError: my own*"])
    result.stdout.no_fnmatch_line("*unhandled errors in a TaskGroup*")


def test_a_test_that_two_async_plugins_want_to_run_fails_at_once(run: Run) -> None:
    result = run.beside(teller("anyio"), "-o", "asyncio_mode=auto")
    assert result.parseoutcomes()["failed"] == 10
    result.stdout.fnmatch_lines(["*actor_system runs on the event loop of anyio's plugin, and*"])


def test_the_pytest_plugin_refuses_a_system_to_a_test_without_an_event_loop(run: Run) -> None:
    code = "def test_it(actor_system): pass"
    result = run.beside(code, "-p", "no:anyio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*its test, which has none: make it 'async def'*"])


def test_the_pytest_plugin_tells_a_fixture_that_the_system_starts_with_the_test(run: Run) -> None:
    result = run.beside("""
        import pytest_asyncio

        @pytest_asyncio.fixture
        async def echo(actor_system):
            return actor_system.spawn(Echo)

        @pytest.mark.asyncio
        async def test_it(echo): pass

        @pytest.fixture
        async def own(actor_system):
            return actor_system.spawn(Echo)

        @pytest.mark.anyio
        async def test_of_anyio(own):
            assert await own.ask("x") == "x"
    """)
    result.assert_outcomes(errors=1, passed=2)
    result.stdout.fnmatch_lines(["*actor_system starts with the test itself: spawn actors in the*"])
