"""The page of the timeline in a browser, as it follows a system that a server runs.

Only in CI, or if it is named; `tests.cli.test_html_page` has what runs everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Self

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from papyra import Actor, ActorRef, ActorSystem
from papyra.observability import asgi
from tests.cli.browser import Browser, chromium

HOSTILE = "<img src=x onerror=alert(1)>"
LANES = "return [...document.querySelectorAll('[data-actor]')].map(lane => lane.dataset.actor)"
#: Has the page pause for a moment, and counts how often it does.
IN_A_HURRY = """
window.pauses = 0;
const wait = window.setTimeout;
window.setTimeout = (call, milliseconds) => {
    if (milliseconds === 1000) window.pauses++;
    return wait(call, Math.min(milliseconds, 10));
};
"""
AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => done(violations.map(
    ({id, help, nodes}) => `${id}: ${help}: ${nodes.map(({html}) => html).join(" ")}`
)), (error) => done([String(error)]));
"""


class Clerk(Actor):
    """Fails when it is told an error."""

    async def receive(self, message: Any) -> None:
        if isinstance(message, Exception):
            raise message


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Office:
    """A system whose timeline a server shows."""

    def __init__(self) -> None:
        self.service = asgi.lifespan(lambda: ActorSystem("office"))
        self.allowed = True
        timeline = asgi.timeline(self.service, allow=lambda _: self.allowed)
        app = Starlette(lifespan=self.service, routes=[Route("/timeline", timeline)])
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started:
            threading.Event().wait(0.01)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    @property
    def url(self) -> str:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/timeline?token=kept"

    def spawn(self, name: str) -> ActorRef:
        system = self.service.system
        return system.portal.call(lambda: system.spawn(Clerk, name=name))

    def tell(self, ref: ActorRef, message: object) -> None:
        self.service.system.portal.call(ref.tell, message)

    def stop(self, ref: ActorRef) -> None:
        self.service.system.portal.call(ref.stop)


@pytest.fixture
def office() -> Iterator[Office]:
    with Office() as office:
        yield office


def show(browser: Browser, url: str) -> None:
    browser.reset()
    browser.driver.get("about:blank")
    browser.driver.get(url)
    browser.until("return performance.getEntriesByName('ready').length === 1")
    browser.js(IN_A_HURRY)


def faults(browser: Browser) -> list[str]:
    """Return what axe-core finds on the page that is shown."""
    browser.js(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
    browser.driver.set_script_timeout(100)
    found: list[str] = browser.driver.execute_async_script(AXE)
    return found


def test_the_timeline_page_follows_a_running_system(browser: Browser, office: Office) -> None:
    show(browser, office.url)
    assert faults(browser) == []
    ann = office.spawn("ann")
    browser.until(f"{LANES}.join() === 'office/ann'")
    office.tell(ann, ValueError(HOSTILE))
    browser.until("return document.getElementById('crashes-count').textContent === '1'")
    office.spawn(HOSTILE)
    browser.until(f"{LANES}.includes(arguments[0])", f"office/{HOSTILE}")
    # What is looked at stays as it is.
    browser.find("#filter").send_keys("ann")
    browser.until(f"{LANES}.join() === 'office/ann'")
    browser.js("document.querySelector('[data-what=crashed]').focus()")
    seen = "const {what, seq} = document.activeElement.dataset; return `${what} ${seq}`"
    focused = browser.js(seen)
    assert focused.startswith("crashed ")
    bob = office.spawn("bob")
    office.stop(bob)
    office.tell(bob, "anybody there?")
    browser.until("return document.getElementById('count-dead-letters').textContent === '1'")
    assert browser.js(seen) == focused
    assert browser.js(LANES) == ["office/ann"]
    assert browser.js("return location.search") == "?token=kept"
    assert faults(browser) == []
    browser.emulate(prefers_color_scheme="dark")
    assert faults(browser) == []
    assert browser.errors() == []


def test_the_timeline_page_stops_to_follow_where_its_box_is_not_checked(
    browser: Browser, office: Office
) -> None:
    office.spawn("ann")
    show(browser, office.url)
    browser.until(f"{LANES}.join() === 'office/ann'")
    browser.find("#follow").click()
    browser.until("return pauses > 10")  # whatever was under way
    asked = "return performance.getEntriesByType('resource').length"
    before = browser.js(asked)
    office.spawn("bob")
    browser.js("pauses = 0")
    browser.until("return pauses > 10")
    assert browser.js(asked) == before
    browser.find("#follow").click()
    browser.until(f"{LANES}.join() === 'office/ann,office/bob'")


def test_the_timeline_page_says_why_it_follows_no_more_and_goes_on_later(
    browser: Browser, office: Office
) -> None:
    show(browser, office.url)
    state = "return document.getElementById('live-state').textContent"
    office.allowed = False
    browser.until(f"{state}.includes('403')")
    office.allowed = True
    office.spawn("ann")
    browser.until(f"{LANES}.join() === 'office/ann'")
    browser.until(f"{state} === ''")
    browser.errors()
