"""``papyra top`` of a running process, by the URL of its metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from papyra.cli import _endpoint
from papyra.cli._endpoint import Endpoint
from papyra.cli._exit_codes import CommandFailed
from papyra.figures import Figures
from papyra.observability.prometheus import scrape
from tests.cli.conftest import Command
from tests.cli.test_hostile import is_harmless
from tests.cli.test_top import Screen, has
from tests.observability.test_prometheus import EVIL, Still, numbered

PASSWORD = "tr0ub4dor"


class Process:
    """Something that answers on a port: what, the test says."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.show(numbered())
        self.seen: list[dict[str, str]] = []
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        process = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                process.seen.append(dict(self.headers))
                process.answer(self)

            def log_message(self, *arguments: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        # It looks every half a second otherwise whether it is to end.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    def show(self, *states: Figures) -> Callable[[BaseHTTPRequestHandler], None]:
        """Return what answers with these figures, one after the other, and again with the last."""
        left = list(states)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            figures = left.pop(0) if len(left) > 1 else left[0]
            respond(handler, 200, scrape([Still(figures)]).body)

        return answer


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.stop()


def later(figures: Figures) -> Figures:
    """Return figures of a moment at which more has happened."""
    (each,) = figures.classes
    assert each.handled is not None
    assert each.mailbox_seconds is not None
    counts = (*each.mailbox_seconds.counts[:-1], each.mailbox_seconds.counts[-1] + 4)
    waited = msgspec.structs.replace(
        each.mailbox_seconds, counts=counts, total=each.mailbox_seconds.total + 10
    )
    more = msgspec.structs.replace(each, handled=each.handled + 500, mailbox_seconds=waited)
    return msgspec.structs.replace(figures, classes=(more,))


def test_papyra_top_shows_the_figures_of_a_running_process(
    papyra: Command, process: Process
) -> None:
    process.answer = process.show(numbered(), later(numbered()))
    done = papyra("top", process.url, "--json", "--count", 2, "--interval", "100ms")
    assert (done.code, done.err) == (0, "")
    first, second = map(json.loads, done.out.splitlines())
    (of_class,) = first["classes"]
    expected = numbered().classes[0]
    assert of_class["actors"] == expected.actors
    assert of_class["messages_waiting"] == expected.messages_waiting
    assert of_class["restarts"] == expected.restarted
    assert (of_class["handled"], of_class["mailbox_seconds"]) == (0, None), "none since"
    (of_class,) = second["classes"]
    assert of_class["mailbox_seconds"] == 2.5
    assert 0 < of_class["handled"] <= 5_000
    (system,) = second["systems"]
    assert (system["system_id"], system["is_running"], system["last_seq"]) == ("shop", True, 5_002)
    (projection,) = second["projections"]
    assert (projection["state"], projection["lag"]) == ("paused", 49)


def test_papyra_top_of_a_process_prints_a_line_for_each_look(
    papyra: Command, process: Process
) -> None:
    done = papyra("top", process.url, "--count", 2, "--interval", "10ms")
    assert (done.code, done.err) == (0, "")
    expected = numbered().classes[0]
    for row in done.rows:
        assert row[1:] == [
            *(str(expected.actors), str(expected.messages_waiting)),
            *("0.0", "0.0", "0.0"),
        ]


def test_papyra_top_says_that_a_process_goes_away_and_when_it_is_back(
    papyra: Command, process: Process
) -> None:
    url = f"{process.url}#at-home"
    child = papyra.terminal("top", url, "--interval", "50ms", columns=150, rows=30)
    screen = Screen(child, 150, 30)
    screen.until(has("shop: running"))
    assert has("1,001")(screen.lines), "the actors"
    assert has("paused")(screen.lines)
    process.stop()
    screen.until(has("can't be reached: Connection refused"))
    assert has("1,001")(screen.lines), "what was seen last"
    process.answer = lambda handler: respond(handler, 503, b"not yet")
    process.start()
    screen.until(has("answers 503 Service Unavailable"))
    process.answer = process.show(later(numbered()))
    screen.until(lambda lines: not has("waiting: ")(lines))
    screen.child.send("q")
    assert screen.end() == 0


def test_papyra_top_of_a_process_in_a_pipe_tells_once_that_it_is_away(
    papyra: Command, process: Process
) -> None:
    answers = [200, 500, 500, 200]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        respond(handler, answers.pop(0), scrape([Still(numbered())]).body)

    process.answer = answer
    done = papyra("top", process.url, "--count", 4, "--interval", "10ms")
    assert done.code == 0
    assert len(done.rows) == 2
    assert done.err == f"{process.url} answers 500 Internal Server Error\n"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"", "answers 404 Not Found"),
        (200, b"<!doctype html><p>Hello {", "no figures of a system of Papyra"),
        (200, b"\xff\xfe\x00\x01 1\n", "no figures of a system of Papyra"),
        (200, b"", "no figures of a system of Papyra"),
        (200, b"process_cpu_seconds_total 1.0\n", "no figures of a system of Papyra"),
        (200, b"papyra_system_running{ 1\n", "something that are no metrics"),
        (200, b"papyra_system_running one\n", "something that are no metrics"),
        (200, b"#" * (16 * 1024 * 1024 + 1), "more than 16,777,216 bytes"),
    ],
)
def test_papyra_top_says_in_a_line_what_is_wrong_with_an_endpoint(
    papyra: Command, process: Process, status: int, body: bytes, said: str
) -> None:
    process.answer = lambda handler: respond(handler, status, body)
    done = papyra("top", process.url, "--count", 1)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert said in line
    assert process.url in line


def test_papyra_top_says_that_nobody_listens(papyra: Command, process: Process) -> None:
    process.stop()
    done = papyra("top", process.url, "--count", 1)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {process.url} can't be reached: Connection refused\n"


@pytest.mark.parametrize("url", ["http://", "http://[::1/metrics", "http://h:port/metrics"])
def test_papyra_top_of_a_wrong_url_is_wrong_use(papyra: Command, url: str) -> None:
    done = papyra("top", url)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1


def test_papyra_top_takes_no_views_for_an_endpoint(papyra: Command, process: Process) -> None:
    done = papyra("top", process.url, "--view", "sqlite:x.db")
    assert (done.code, done.out) == (2, "")
    assert "--app and --view are for stores" in done.err


async def test_an_endpoint_that_does_not_answer_is_left_to_itself(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        release.wait(60)

    process.answer = drip
    monkeypatch.setattr(_endpoint, "PATIENCE", 0.2)
    with pytest.raises(CommandFailed, match=r"has not answered in 0\.2 seconds|timed out"):
        await Endpoint(process.url).look()
    release.set()


def test_papyra_top_logs_in_with_what_the_url_says_and_shows_no_password(
    papyra: Command, process: Process
) -> None:
    url = process.url.replace("://", f"://me:{PASSWORD}@")
    done = papyra("top", url, "--json", "--count", 1)
    assert done.code == 0
    assert process.seen[-1]["Authorization"] == "Basic bWU6dHIwdWI0ZG9y"
    process.stop()
    done = papyra("top", url, "--count", 1)
    assert done.code == 1
    assert PASSWORD not in done.err
    assert "127.0.0.1" in done.err


def test_papyra_top_obeys_nothing_that_an_endpoint_says(papyra: Command, process: Process) -> None:
    raw = EVIL.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    line = f'papyra_actors{{system_id="shop",actor_class="{raw}"}} 3\n'
    body = f'papyra_system_running{{system_id="shop"}} 1\n{line}'.encode("utf-8", "replace")
    process.answer = lambda handler: respond(handler, 200, body)
    for options in ([], ["--json"]):
        done = papyra("top", process.url, "--count", 1, *options)
        assert done.code == 0
        assert is_harmless(done.out + done.err)
    shown = papyra.on_terminal("top", process.url, "--count", 1, columns=200)
    assert shown.code == 0
    assert "\x1b[31m" not in shown.text
