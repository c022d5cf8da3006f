"""The page of a timeline: what is in it, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.support.ui import Select

from papyra.observability.lifecycles import Lifecycle, Step, Timeline
from papyra.observability.timeline_page import page
from papyra.persistence.records import PersistedDeadLetter
from tests.cli.browser import Browser, chromium
from tests.extent import CI

NOON = 1_709_640_000.0  # 2024-03-05T12:00:00Z

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>&amp;'\"{{ lives }}"
UNSEEN = "\u202egnp.exe\u2028\u2029\x00\x1b[31m\u200b"


def started(seq: int, at: float, actor_type: str = "Cart") -> Step:
    return Step(seq, NOON + at, "started", {"actor_type": actor_type})


def crashed(
    seq: int,
    at: float,
    error: str = "bad amount",
    *,
    where: str = "receive",
    decision: str | None = "restart",
) -> Step:
    detail = {
        "error_type": "ValueError",
        "error": error,
        "where": where,
        "decision": decision,
        "message_type": "Charge",
    }
    return Step(seq, NOON + at, "crashed", detail)


def restarted(seq: int, at: float, restarts: int = 1) -> Step:
    return Step(seq, NOON + at, "restarted", {"restarts": restarts})


def stopped(seq: int, at: float, unhandled: int = 0) -> Step:
    return Step(seq, NOON + at, "stopped", {"reason": "stopped", "unhandled": unhandled})


def dead_letter(seq: int, at: float, target: str) -> PersistedDeadLetter:
    return PersistedDeadLetter("shop", target, "Add", {"sku": "a-1"}, True, NOON + at, seq)


def lives_of(*lives: Lifecycle, dead_letters: tuple[PersistedDeadLetter, ...] = ()) -> Timeline:
    times = [step.time for life in lives for step in life.steps] or [0.0]
    return Timeline("shop.jsonl", min(times), max(times), list(lives), list(dead_letters))


CART = Lifecycle("shop/cart", "Cart", [started(1, 0), crashed(3, 200), restarted(4, 300)])
LINE = Lifecycle("shop/line", "Line", [started(2, 100, "Line"), stopped(7, 500, 1)])
OLD = Lifecycle("shop/old", "Old", [crashed(5, 350), stopped(6, 400)])
SHOP = lives_of(
    CART,
    LINE,
    OLD,
    dead_letters=(dead_letter(8, 550, "shop/line"), dead_letter(9, 600, "shop/gone")),
)


def many(actors: int, steps_each: Callable[[int], list[Step]]) -> Timeline:
    return lives_of(
        *(Lifecycle(f"shop/worker-{n}", f"Type{n % 7}", steps_each(n)) for n in range(actors))
    )


class Outline(HTMLParser):
    """The elements of a page. Asserts that each ends where it should."""

    VOID = frozenset({"meta", "input", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        #: tag, attributes and text
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._stack: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        content: list[str] = []
        self.elements.append((tag, dict(attrs), content))
        if tag not in self.VOID:
            self.open.append(tag)
            self._stack.append(content)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._stack.pop()

    def handle_data(self, data: str) -> None:
        if self._stack:
            self._stack[-1].append(data)

    def text(self, tag: str, **attributes: str) -> str:
        """Return the text of the only element like this."""
        [content] = [
            content
            for name, found, content in self.elements
            if name == tag and attributes.items() <= found.items()
        ]
        return "".join(content)


def data_in(text: str) -> str:
    return Outline(text).text("script", id="lives")


def policy_of(text: str) -> str:
    [policy] = [
        attributes["content"]
        for tag, attributes, _ in Outline(text).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    return policy


# What is in it


def test_the_timeline_page_embeds_the_lives_of_the_actors_as_data() -> None:
    assert msgspec.json.decode(data_in(page(SHOP)), type=Timeline) == SHOP


@pytest.mark.parametrize("text", [HOSTILE, UNSEEN, "{{ script }}", "\\u003c", "]]>", "ш界🎭"])
def test_hostile_text_stays_data_in_the_timeline_page(text: str) -> None:
    lives = Timeline(
        text,
        NOON,
        NOON,
        [Lifecycle(text, text, [Step(1, NOON, "crashed", {text: text, "error": text})])],
        [PersistedDeadLetter(text, text, text, {text: [text]}, False, NOON)],
    )
    shown = page(lives)
    assert msgspec.json.decode(data_in(shown), type=Timeline) == lives
    assert not re.search("[<>&\u2028\u2029]", data_in(shown))
    outline, plain = Outline(shown), Outline(page(SHOP))
    assert [tag for tag, *_ in outline.elements] == [tag for tag, *_ in plain.elements]
    # The parser of HTML puts another character in the place of NUL.
    assert outline.text("title").replace("\ufffd", "\x00") == f"{text} - timeline"


def test_the_timeline_page_shows_a_store_path_that_is_not_unicode_with_escapes() -> None:
    shown = page(Timeline("caf\udce9.jsonl", 0, 0, [], []))
    assert "<title>caf\\udce9.jsonl - timeline</title>" in shown
    shown.encode("utf-8")


def test_no_placeholder_of_the_template_is_left_in_the_timeline_page() -> None:
    assert "{{" not in page(SHOP)


def test_the_timeline_page_names_no_url_but_the_namespace_of_svg() -> None:
    assert set(re.findall(r"""\w+://[^\s"']*""", page(SHOP))) == {"http://www.w3.org/2000/svg"}
    loading = {"link", "img", "iframe", "object", "embed", "base"}
    for tag, attributes, _ in Outline(page(SHOP)).elements:
        assert tag not in loading
        assert not {"src", "href", "srcset"} & attributes.keys()


def test_the_timeline_pages_security_policy_allows_only_its_own_script_and_style() -> None:
    shown = page(SHOP)
    outline = Outline(shown)

    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    directives = dict(part.strip().split(" ", 1) for part in policy_of(shown).split(";"))
    assert directives == {
        "default-src": "'none'",
        "script-src": source(outline.text("script", type="module")),
        "style-src": source(outline.text("style")),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_timeline_pages_script_makes_no_markup_of_text() -> None:
    script = Outline(page(SHOP)).text("script", type="module")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


# What it does in a browser

Show: TypeAlias = Callable[..., Browser]

MARKS = """
return [...document.querySelectorAll(`[data-actor="${arguments[0]}"] [data-what]`)]
    .map(mark => [mark.dataset.what, Number(mark.dataset.seq)])
"""
LANES = "return [...document.querySelectorAll('[data-actor]')].map(lane => lane.dataset.actor)"
ROWS = """
return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]
    .map(row => Number(row.dataset.seq))
"""
RANGE = """
return [...document.querySelectorAll('#range [datetime]')].map(time => Date.parse(time.dateTime))
"""
FOCUS = "const {what, seq} = document.activeElement.dataset; return [what, Number(seq)]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """Shows lives in the browser. In the end there must be no error, and nothing was fetched."""

    def show(lives: Timeline, fragment: str = "") -> Browser:
        path = tmp_path / "timeline.html"
        path.write_text(page(lives), "utf-8")
        browser.open(path, fragment)
        return browser

    browser.reset()
    yield show
    assert browser.errors() == []
    assert browser.fetched() == []


def type_filter(browser: Browser, text: str) -> None:
    box = browser.find("#filter")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text or Keys.DELETE)


def span(browser: Browser) -> float:
    begin, end = browser.js(RANGE)
    return float(end - begin)


def path_of(browser: Browser, actor: str, state: str) -> str | None:
    """Return what is drawn for the stretches of a life in a state."""
    d: str | None = browser.js(
        "return document.querySelector(`[data-actor='${arguments[0]}'] path.${arguments[1]}`)"
        "?.getAttribute('d')",
        actor,
        state,
    )
    return d


def ends_of(browser: Browser, actor: str, state: str) -> list[list[float]]:
    """Return from where to where the stretches of a life in a state go, in pixels."""
    pieces = re.findall(r"M([\d.-]+) [\d.]+H([\d.-]+)", path_of(browser, actor, state) or "")
    return [[float(begin), float(end)] for begin, end in pieces]


def x_of(browser: Browser, seq: int) -> float:
    """Return where a mark is."""
    transform = browser.find(f".mark[data-seq='{seq}']").get_attribute("transform") or ""
    [x] = re.findall(r"translate\(([\d.]+)", transform)
    return float(x)


def test_the_timeline_pages_header_shows_store_span_and_counts(show: Show) -> None:
    browser = show(SHOP)
    assert browser.text("#store") == "shop.jsonl"
    assert "2024-03-05T12:00:00.000Z \u2013 2024-03-05T12:08:20.000Z" in browser.text("#span")
    assert "(8 min 20 s)" in browser.text("#span")
    names = ("actors", "crashes", "restarts", "dead-letters")
    assert [browser.text(f"#count-{name}") for name in names] == ["3", "2", "1", "2"]
    assert browser.driver.title == "shop.jsonl - timeline"


def test_the_timeline_page_shows_every_actor_in_a_lane_with_its_marks(show: Show) -> None:
    browser = show(SHOP)
    assert browser.js(LANES) == ["shop/cart", "shop/line", "shop/old"]
    assert browser.js(MARKS, "shop/cart") == [["started", 1], ["crashed", 3], ["restarted", 4]]
    assert browser.js(MARKS, "shop/line") == [["started", 2], ["stopped", 7], ["dead_letter", 8]]
    assert browser.js(MARKS, "shop/old") == [["crashed", 5], ["stopped", 6]]


def test_the_timeline_page_breaks_a_life_from_a_crash_until_the_restart(show: Show) -> None:
    browser = show(SHOP)
    [[begin, end]] = ends_of(browser, "shop/cart", "broken")
    assert begin == pytest.approx(x_of(browser, 3), abs=0.2)
    assert end == pytest.approx(x_of(browser, 4), abs=0.2)


def test_the_timeline_page_does_not_break_a_life_at_a_crash_that_resumes(show: Show) -> None:
    life = Lifecycle("shop/cart", "Cart", [started(1, 0), crashed(2, 50, decision="resume")])
    browser = show(lives_of(life))
    assert path_of(browser, "shop/cart", "broken") is None
    assert len(ends_of(browser, "shop/cart", "alive")) == 1


def test_the_timeline_page_draws_a_life_without_beginning_or_end_to_its_edges(
    show: Show,
) -> None:
    browser = show(SHOP)
    [[left, _]] = ends_of(browser, "shop/old", "alive")
    assert left < min(x_of(browser, seq) for seq in range(1, 8))
    *_, [_, right] = ends_of(browser, "shop/cart", "alive")
    assert right > max(x_of(browser, seq) for seq in range(1, 9))


def test_the_timeline_page_begins_a_life_whose_first_start_failed_at_the_restart(
    show: Show,
) -> None:
    life = Lifecycle("a/late", "Late", [crashed(2, 50, where="on_start"), restarted(3, 60)])
    browser = show(lives_of(life, Lifecycle("a/early", "Early", [started(1, 0)])))
    [[begin, _]] = ends_of(browser, "a/late", "alive")
    assert begin == pytest.approx(x_of(browser, 3), abs=0.2)


def test_the_timeline_page_draws_two_lives_of_one_address_apart(show: Show) -> None:
    life = Lifecycle(
        "shop/cart", "Cart", [started(1, 0), stopped(2, 10), started(3, 20), stopped(4, 30)]
    )
    assert len(ends_of(show(lives_of(life)), "shop/cart", "alive")) == 2


def test_hovering_a_mark_of_the_timeline_page_shows_what_happened(show: Show) -> None:
    browser = show(SHOP)
    ActionChains(browser.driver).move_to_element(browser.find("[data-seq='3']")).perform()
    browser.until("return !document.getElementById('details').hidden")
    shown = browser.text("#details")
    for text in (
        "2024-03-05T12:03:20.000Z",
        "ValueError",
        "bad amount",
        "receive",
        "Charge",
        "restart",
        "shop/cart",
    ):
        assert text in shown
    ActionChains(browser.driver).move_to_element(browser.find("#store")).perform()
    browser.until("return document.getElementById('details').hidden")


@pytest.mark.parametrize(
    ("seq", "texts"),
    [
        (1, ["started", "Cart"]),
        (4, ["restarted", "Restarts", "1"]),
        (7, ["stopped", "Reason", "Unhandled", "1"]),
        (8, ["dead letter", "Add", '{"sku":"a-1"}', "expected"]),
    ],
)
def test_focusing_a_mark_of_the_timeline_page_shows_what_happened(
    show: Show, seq: int, texts: list[str]
) -> None:
    browser = show(SHOP)
    browser.js("document.querySelector(`.mark[data-seq='${arguments[0]}']`).focus()", seq)
    shown = browser.text("#details")
    for text in texts:
        assert text in shown


def test_the_keyboard_reaches_every_mark_of_the_timeline_page(show: Show) -> None:
    browser = show(SHOP)
    browser.js("document.getElementById('zoom-all').focus()")

    def press(key: str) -> Any:
        ActionChains(browser.driver).send_keys(key).perform()
        return browser.js(FOCUS)

    for _ in range(2):  # a browser may stop at what can be scrolled
        if press(Keys.TAB)[0]:
            break
    assert browser.js(FOCUS) == ["started", 1]
    assert press(Keys.ARROW_RIGHT) == ["crashed", 3]
    assert press(Keys.ARROW_DOWN) == ["started", 2]
    assert press(Keys.END) == ["dead_letter", 8]
    assert press(Keys.ARROW_DOWN) == ["stopped", 6]
    assert press(Keys.ARROW_LEFT) == ["crashed", 5]
    assert press(Keys.ARROW_LEFT) == ["crashed", 5]
    assert press(Keys.ESCAPE) == ["crashed", 5]
    assert not browser.find("#details").is_displayed()


def test_arrow_keys_pan_the_timeline_page_to_a_mark_that_is_out_of_view(show: Show) -> None:
    browser = show(SHOP)
    browser.js("document.querySelector(`.mark[data-seq='1']`).focus()")
    keys = ActionChains(browser.driver)
    keys.send_keys("+++++").perform()
    browser.until("return !document.querySelector(`.mark[data-seq='3']`)")
    keys.send_keys(Keys.ARROW_RIGHT).perform()
    assert browser.js(FOCUS) == ["crashed", 3]
    keys.send_keys("0").perform()
    browser.until("return document.querySelector(`.mark[data-seq='1']`)")
    assert browser.js(FOCUS) == ["crashed", 3]


def test_marks_and_drawing_of_the_timeline_page_have_labels_for_screen_readers(show: Show) -> None:
    browser = show(SHOP)
    assert "3 actors" in (browser.find("#timeline").get_attribute("aria-label") or "")
    label = browser.find(".mark[data-seq='3']").get_attribute("aria-label") or ""
    assert label.startswith("crashed: shop/cart. ")
    assert "bad amount" in label


def test_the_wheel_zooms_the_timeline_page_around_the_pointer(show: Show) -> None:
    browser = show(SHOP)
    before, x = span(browser), x_of(browser, 3)
    dx = round(x - browser.find("#timeline").size["width"] / 2)
    ActionChains(browser.driver).scroll_from_origin(
        ScrollOrigin.from_element(browser.find("#timeline"), dx, 0), 0, -300
    ).perform()
    browser.until("return document.getElementById('zoom-all').ariaDisabled === 'false'")
    assert span(browser) < before * 0.7
    assert x_of(browser, 3) == pytest.approx(x, abs=2)


def test_the_wheel_scrolls_the_timeline_page_when_it_is_zoomed_out(show: Show) -> None:
    browser = show(many(100, lambda n: [started(n, n)]))
    before = span(browser)
    origin = ScrollOrigin.from_element(browser.find("#axis"), 100, 100)
    ActionChains(browser.driver).scroll_from_origin(origin, 0, 200).perform()
    browser.until("return document.getElementById('scroller').scrollTop > 0")
    assert span(browser) == before


def test_buttons_zoom_the_timeline_page_and_a_double_click_shows_all_again(show: Show) -> None:
    browser = show(SHOP)
    whole = span(browser)

    def click(name: str, expected: float) -> None:
        browser.find(f"#zoom-{name}").click()
        browser.until(
            "const [from, to] = [...document.querySelectorAll('#range [datetime]')]"
            ".map(time => Date.parse(time.dateTime));"
            "return Math.abs(to - from - arguments[0]) < 5",
            expected,
        )

    click("in", whole / 2)
    click("in", whole / 4)
    click("out", whole / 2)
    click("all", whole)
    click("out", whole)
    click("in", whole / 2)
    ActionChains(browser.driver).double_click(browser.find("#timeline")).perform()
    browser.until("return document.getElementById('zoom-all').ariaDisabled === 'true'")
    assert span(browser) == whole


def test_dragging_pans_the_timeline_page(show: Show) -> None:
    browser = show(SHOP)
    browser.find("#zoom-in").click()
    browser.until("return document.getElementById('zoom-all').ariaDisabled === 'false'")
    begin, end = browser.js(RANGE)
    timeline = browser.find("#timeline")
    ActionChains(browser.driver).move_to_element(timeline).click_and_hold().move_by_offset(
        120, 0
    ).release().perform()
    browser.until(
        "return Date.parse(document.querySelector('#range [datetime]').dateTime) < arguments[0]",
        begin,
    )
    assert span(browser) == pytest.approx(end - begin, abs=2)


def test_the_text_filter_of_the_timeline_page_selects_by_actor_and_type(show: Show) -> None:
    browser = show(SHOP)
    type_filter(browser, "CAR")
    assert browser.js(LANES) == ["shop/cart"]
    assert browser.text("#shown") == "1 of 3 actors"
    assert browser.js(ROWS, "crashes") == [3]
    assert browser.text("#crashes-count") == "1 of 2"
    assert browser.js(ROWS, "dead-letters") == []
    assert "None" in browser.text("#dead-letters .empty")
    type_filter(browser, "gone")  # only a dead letter knows of it
    assert browser.js(LANES) == []
    assert browser.js(ROWS, "dead-letters") == [9]
    assert browser.find("#no-match").is_displayed()
    type_filter(browser, "")
    assert browser.text("#shown") == "3 of 3 actors"
    assert browser.text("#crashes-count") == "2"


def test_the_timeline_page_keeps_its_view_in_the_url(show: Show) -> None:
    browser = show(SHOP)
    type_filter(browser, "ol d&/ü")
    browser.find("#only-crashed").click()
    browser.find("#show-stopped").click()
    Select(browser.find("#sort")).select_by_value("name")
    browser.until("return location.hash.includes('sort=name')")
    browser.driver.refresh()
    browser.until("return performance.getEntriesByName('ready').length === 1")
    assert browser.find("#filter").get_attribute("value") == "ol d&/ü"
    assert browser.find("#only-crashed").is_selected()
    assert not browser.find("#show-stopped").is_selected()
    assert browser.find("#sort").get_attribute("value") == "name"
    assert browser.text("#shown") == "0 of 3 actors"
    browser.js("location.hash = '#actor=old'")
    browser.until("return document.getElementById('shown').textContent === '1 of 3 actors'")
    assert not browser.find("#only-crashed").is_selected()


def test_the_timeline_page_ignores_nonsense_in_its_url(show: Show) -> None:
    browser = show(SHOP, "#sort=__proto__&hide=x,constructor&only=1&%E0%A4%A")
    assert browser.text("#shown") == "3 of 3 actors"


@pytest.mark.parametrize("what", ["started", "crashed", "restarted", "stopped", "dead_letter"])
def test_a_checkbox_of_the_timeline_page_hides_marks_of_its_kind(show: Show, what: str) -> None:
    browser = show(SHOP)
    box = browser.find(f"#show-{what}")
    assert browser.find_all(f".mark[data-what='{what}']")
    box.click()
    assert not browser.find_all(f".mark[data-what='{what}']")
    assert browser.find_all(".mark")
    assert (browser.js(ROWS, "crashes") == []) == (what == "crashed")
    assert (browser.js(ROWS, "dead-letters") == []) == (what == "dead_letter")
    box.click()
    assert browser.find_all(f".mark[data-what='{what}']")


def test_the_timeline_page_can_show_only_actors_that_crashed(show: Show) -> None:
    browser = show(SHOP)
    browser.find("#only-crashed").click()
    assert browser.js(LANES) == ["shop/cart", "shop/old"]
    assert browser.js(ROWS, "dead-letters") == []


def test_lanes_of_the_timeline_page_are_sorted_as_selected(show: Show) -> None:
    lives = lives_of(
        Lifecycle("a/10", "A", [started(1, 0)]),
        Lifecycle("a/9", "A", [started(2, 1), crashed(4, 3, decision="resume")]),
        Lifecycle("a/1", "A", [started(3, 2)]),
    )
    browser = show(lives)
    sort = Select(browser.find("#sort"))
    assert browser.js(LANES) == ["a/10", "a/9", "a/1"]
    sort.select_by_value("name")
    assert browser.js(LANES) == ["a/1", "a/9", "a/10"]
    sort.select_by_value("crashes")
    assert browser.js(LANES) == ["a/9", "a/10", "a/1"]


def test_tables_of_the_timeline_page_are_sorted_by_their_headers(show: Show) -> None:
    lives = lives_of(
        Lifecycle("a/b", "A", [crashed(1, 0, "m"), crashed(2, 1, "z"), crashed(3, 2, "a")]),
    )
    browser = show(lives)
    headers = browser.find_all("#crashes th")
    button = browser.find_all("#crashes th button")[3]
    assert button.text == "Message"
    assert browser.js(ROWS, "crashes") == [1, 2, 3]
    assert headers[0].get_attribute("aria-sort") == "ascending"
    button.click()
    assert browser.js(ROWS, "crashes") == [3, 1, 2]
    button.click()
    assert browser.js(ROWS, "crashes") == [2, 1, 3]
    assert headers[3].get_attribute("aria-sort") == "descending"
    assert headers[0].get_attribute("aria-sort") == "none"


def test_a_click_on_a_row_of_the_timeline_page_shows_its_lane_and_mark(show: Show) -> None:
    browser = show(many(500, lambda n: [started(2 * n, n), crashed(2 * n + 1, n + 1)]))
    assert not browser.find_all("[data-actor='shop/worker-150']")
    row = browser.find("#crashes tr[data-seq='301'] td:first-child")
    browser.js("arguments[0].scrollIntoView()", row)
    row.click()
    assert browser.js("return document.querySelector('.highlighted').dataset.actor") == (
        "shop/worker-150"
    )
    assert browser.js(FOCUS) == ["crashed", 301]
    assert browser.js(
        "const lane = document.querySelector('.highlighted').getBoundingClientRect();"
        "return lane.top > 0 && lane.bottom < innerHeight"
    )
    assert browser.find("#details").is_displayed()


def test_the_timeline_page_links_no_dead_letter_of_an_unknown_actor(show: Show) -> None:
    browser = show(SHOP)
    assert browser.find_all("#dead-letters tr[data-seq='8'] button")
    assert not browser.find_all("#dead-letters tr[data-seq='9'] button")


def test_the_timeline_page_shows_long_texts_on_demand(show: Show) -> None:
    text = "x" * 5000
    browser = show(lives_of(Lifecycle("a/b", "A", [crashed(1, 0, text)])))
    cell = browser.find("#crashes td.long")
    assert "x" * 1000 not in cell.text
    browser.find("#crashes .expand").click()
    assert cell.text == text


def test_the_timeline_page_elides_long_actor_names_in_the_middle(show: Show) -> None:
    name = "shop/" + "x" * 300 + "/last"
    browser = show(lives_of(Lifecycle(name, "A", [started(1, 0)])))
    label = browser.js(
        "return [...document.querySelector('.label').childNodes].map(node => node.textContent)"
    )
    assert re.fullmatch(r"shop/x+…x+/last", label[0])
    assert label[1] == f"{name}\nA"


def test_hostile_data_in_the_timeline_page_are_shown_as_text_and_do_nothing(show: Show) -> None:
    detail = dict.fromkeys(("error_type", "error", "where", "decision"), HOSTILE)
    lives = Timeline(
        HOSTILE,
        NOON,
        NOON,
        [
            Lifecycle(HOSTILE, HOSTILE, [Step(1, NOON, "crashed", detail)]),
            Lifecycle(UNSEEN, "__proto__", [started(2, 1e300), stopped(3, -1e300)]),
            Lifecycle("__proto__", "constructor", [started(4, 5)]),
        ],
        [PersistedDeadLetter(HOSTILE, "__proto__", HOSTILE, {HOSTILE: UNSEEN}, True, NOON)],
    )
    browser = show(lives)
    assert browser.find_all("img") == []
    assert set(browser.js(LANES)) == {HOSTILE, UNSEEN, "__proto__"}
    assert browser.js("return document.getElementById('store').textContent") == HOSTILE
    assert browser.find("#crashes td.long").text == HOSTILE
    browser.js("document.querySelector('[data-what=crashed]').focus()")
    assert HOSTILE in browser.text("#details")
    labels = browser.js("return document.getElementById('timeline').textContent")
    assert "\\u202egnp.exe\\u2028\\u2029\\u0000\\u001b[31m\\u200b" in labels


def test_the_timeline_pages_security_policy_stops_handlers_in_attributes(show: Show) -> None:
    browser = show(SHOP)
    browser.js("document.body.setAttribute('onclick', 'window.harmed = true')")
    browser.find("body").click()
    assert browser.js("return window.harmed") is None
    assert any("Content Security Policy" in message for message in browser.errors())


def test_the_timeline_page_of_a_store_without_records_says_so(show: Show) -> None:
    browser = show(lives_of())
    assert "Nothing recorded" in browser.text("#nothing")
    assert not browser.find("#main").is_displayed()


def test_the_timeline_page_shows_dead_letters_alone_as_a_table(show: Show) -> None:
    browser = show(lives_of(dead_letters=(dead_letter(1, 0, "shop/gone"),)))
    assert browser.js(ROWS, "dead-letters") == [1]
    assert not browser.find("#chart").is_displayed()


@pytest.mark.parametrize(
    ("seconds", "first", "second"),
    [
        (0.05, "12:00:00.000", "12:00:00.005"),
        (10, "12:00:00", "12:00:01"),
        (600, "12:00", "12:01"),
        (86_400 / 2, "12:00", "14:00"),
        (86_400 * 10, "2024-03-06", "2024-03-07"),
        (86_400 * 300, "2024-03", "2024-04"),
        (86_400 * 365 * 9, "2025", "2026"),
        (86_400 * 365 * 900, "2100", "2200"),
    ],
)
def test_the_time_axis_of_the_timeline_page_has_ticks_for_any_span(
    show: Show, seconds: float, first: str, second: str
) -> None:
    browser = show(lives_of(Lifecycle("a/b", "A", [started(1, 0), stopped(2, seconds)])))
    ticks = browser.js("return [...document.querySelectorAll('#axis .tick')].map(t => t.innerHTML)")
    assert 3 <= len(ticks) <= 12
    assert ticks[:2] == [first, second]


def test_the_timeline_page_of_a_single_moment_has_a_time_axis(show: Show) -> None:
    browser = show(lives_of(Lifecycle("a/b", "A", [started(1, 0)])))
    assert browser.find_all("#axis .tick")
    for _ in range(12):
        browser.find("#zoom-in").click()
    browser.until("return document.getElementById('range').textContent.includes('(2 ms)')")
    assert browser.js(MARKS, "a/b") == [["started", 1]]


def test_the_timeline_page_fits_a_narrow_window(show: Show, browser: Browser) -> None:
    browser.resize(360, 700)
    show(SHOP)
    assert browser.js("return document.documentElement.scrollWidth <= 360")
    assert browser.js(LANES) == ["shop/cart", "shop/line", "shop/old"]
    browser.resize(1000, 700)
    browser.until("return document.getElementById('timeline').width.baseVal.value > 800")


def test_the_timeline_page_is_dark_or_light_as_the_user_prefers(
    show: Show, browser: Browser
) -> None:
    def brightness() -> int:
        colour = browser.js("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)))

    browser.emulate(prefers_color_scheme="light")
    show(SHOP)
    assert brightness() > 600
    browser.emulate(prefers_color_scheme="dark")
    assert brightness() < 150


def test_the_timeline_page_shows_all_lanes_when_printed(show: Show) -> None:
    browser = show(many(300, lambda n: [started(n, n)]))
    assert len(browser.js(LANES)) < 100
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert len(browser.find_all("#paper [data-actor]")) == 300
    browser.emulate(media="print")
    assert browser.find("#paper").is_displayed()
    assert not browser.find("#controls").is_displayed()
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert not browser.find_all("#paper [data-actor]")


def test_the_timeline_page_filters_thousands_of_lanes_at_once(show: Show) -> None:
    def steps(n: int) -> list[Step]:
        crash = [crashed(3 * n + 1, n + 5), restarted(3 * n + 2, n + 6)] if n % 4 == 0 else []
        return [started(3 * n, n), *crash, stopped(3 * n + 3, n + 900)]

    browser = show(many(4000, steps))
    assert len(browser.js(LANES)) < 100
    filtering = """
    const box = document.getElementById("filter");
    const observer = new MutationObserver(() => {});
    observer.observe(document.body, {childList: true, subtree: true});
    return ["w", "worker-1", "worker-39", ""].map((text) => {
      box.value = text;
      box.dispatchEvent(new Event("input", {bubbles: true}));
      document.body.getBoundingClientRect(); // with layout
      const records = observer.takeRecords();
      return records.reduce((sum, each) => sum + each.addedNodes.length, 0);
    });
    """
    # As many nodes as are seen are made, and not as many as there are lanes.
    made = browser.js(filtering)
    assert 0 < max(made) < 400
    assert len(browser.js(LANES)) < 100
    browser.js("document.getElementById('scroller').scrollTop = 1e9")
    browser.until("return document.querySelector(\"[data-actor='shop/worker-3999']\")")
    assert len(browser.js(LANES)) < 100


def test_the_timeline_page_shows_thousands_of_crashes_in_portions(show: Show) -> None:
    count = 60_000 if CI else 6_000
    steps = [crashed(2 * n, 2 * n) if n % 2 else restarted(2 * n, 2 * n) for n in range(count)]
    browser = show(lives_of(Lifecycle("a/flaky", "Flaky", steps)))
    assert browser.text("#crashes-count") == f"{count // 2:,}"
    assert len(browser.js(ROWS, "crashes")) == 200
    browser.find("#crashes .more").click()
    assert len(browser.js(ROWS, "crashes")) == 1200
    # What is at the same place in a lane is one mark, which says so.
    assert len(browser.find_all(".mark")) < 1000
    browser.js("document.querySelector('[data-what=crashed]').focus()")
    assert "more here" in browser.text("#details")
