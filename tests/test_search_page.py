"""The page in a real browser, against the real server with tiny models."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from transenc import SemanticSearch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

STATIC = Path(__file__).parents[1] / "transenc" / "search" / "serving" / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

SCRIPT = "</script><script>alert('text')</script>"
IMAGE = "<img src=x onerror=alert('title')>"
ADDRESS = "javascript:alert('metadata')"
LONG = "The cat is on the hill. \N{GRINNING FACE} " * 40 + "The farmer feeds the horse near the old house. " * 12
ANIMALS, TRAVEL, FOOD, HOSTILE = ({"topic": topic} for topic in ("animals", "travel", "food", "hostile"))
CORPUS: list[dict[str, Any]] = [
    {"_id": "cat", "title": "A small cat", "text": "the small cat sees the dog home", **ANIMALS, "year": 2018},
    {"_id": "dog", "title": "A happy dog", "text": "the happy dog finds the ball nearby", **ANIMALS, "year": 2020},
    {"_id": "fox", "title": "A clever fox", "text": "the clever fox watches the bird soon", **ANIMALS, "year": 2022},
    {"_id": "cow", "title": "A big cow", "text": "the big cow likes the river again", **ANIMALS, "year": 2016},
    {"_id": "boat", "title": "A fast boat", "text": "the fast boat follows the river early", **TRAVEL, "year": 2021},
    {"_id": "train", "title": "A slow train", "text": "the slow train leaves the school late", **TRAVEL, "year": 2019},
    {
        "_id": "bridge",
        "title": "Over the bridge",
        "text": "the old car moves over the bridge today",
        **TRAVEL,
        "year": 2015,
    },
    {"_id": "bread", "title": "Warm bread", "text": "the tired baker sells the warm bread early", **FOOD, "year": 2017},
    {"_id": "soup", "title": "Hot soup", "text": "the hungry child likes the soup together", **FOOD, "year": 2023},
    {"_id": "plain", "text": "the quiet teacher reads the letter alone"},
    {"_id": "long", "title": "The horse", "text": LONG, **ANIMALS, "year": 2014},
    {"_id": "wide", "title": "w" * 300, "text": "cat " + "v" * 2500, "note": "n" * 400},
    {"_id": "<b>bold</b>", "title": IMAGE, "text": f"the small cat {SCRIPT}", "link": ADDRESS, **HOSTILE},
    {
        "_id": "steered",
        "title": "cat \u202egnp.exe\u0007",
        "text": "a \u202etac\u202c cat",
        **HOSTILE,
        "year": 9007199254740993,
    },
]
QUERY = "the small cat sees a bird"

MINUS = "\N{MINUS SIGN}"

browser_test = pytest.mark.browser


# ---- the files


class _Markup(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside = ""
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            self.inline += data.strip()


def test_the_markup_has_nothing_inline_and_names_files_that_exist() -> None:
    markup = _Markup()
    markup.feed((STATIC / "index.html").read_text(encoding="utf-8"))
    attributes = [(tag, name) for tag, held in markup.elements for name in held]
    assert markup.inline == ""
    assert "style" not in {tag for tag, _ in markup.elements}
    assert [each for each in attributes if each[1] == "style" or each[1].startswith("on")] == []
    named = [held.get("src") or held.get("href") for _, held in markup.elements if "src" in held or "href" in held]
    files = [name for name in named if name and not name.startswith("#")]
    assert len(files) == 5
    assert [name for name in files if not (STATIC.parent / name).is_file()] == []


def test_the_scripts_read_nothing_as_markup_and_import_files_that_exist() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|https?://(?!www\.w3\.org/2000/svg)"
    )
    assert {name: found for name, text in scripts.items() if (found := forbidden.findall(text))} == {}
    imported = {name for text in scripts.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert imported == set(scripts) - {"page.js", "theme.js"}
    sheet = (STATIC / "page.css").read_text(encoding="utf-8")
    assert re.findall(r"@import|url\(|@font-face", sheet) == []


# ---- server and browser


class PageServer:
    """The application of `transenc serve` in a thread."""

    def __init__(self, index: Path, cross: Path | None, *, port: int = 0) -> None:
        import uvicorn

        from transenc.search.serving.server import create_app

        engine = SemanticSearch.open(index, cross_encoder=cross)
        app = create_app(engine, reranker_names=[] if cross is None else [str(cross)], watch_s=0.1)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="on", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


def wait_until(is_done: Callable[[], bool], *, patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while not is_done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def index(tiny_bi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bm25s", reason="needs bm25s (extra: hybrid)")
    return build_index(tmp_path_factory.mktemp("page"), tiny_bi, CORPUS, lexical=True)


def build_index(folder: Path, encoder: Path, corpus: list[dict[str, Any]], *, lexical: bool) -> Path:
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in corpus), encoding="utf-8")
    SemanticSearch.build(folder / "idx", corpus=source, bi_encoder=encoder, lexical=lexical).close()
    return folder / "idx"


@pytest.fixture(scope="module")
def engine(index: Path, tiny_cross: Path) -> Iterator[SemanticSearch]:
    """What the page is compared with."""
    with SemanticSearch.open(index, cross_encoder=tiny_cross) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(index: Path, tiny_cross: Path) -> Iterator[PageServer]:
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        pytest.importorskip(name, reason=f"needs {name} (extra: serve)")
    running = PageServer(index, tiny_cross)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright (extra: dev)")
    with api.sync_playwright() as playwright:
        path = CHROMIUM or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("needs Chromium: none is on the PATH, and Playwright has none")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield launched
        launched.close()


class Visit:
    """A tab of its own, and what must not happen in it."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self._context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self._context.set_default_timeout(15_000)
        self.page: Page = self._context.new_page()
        self.url = url
        self.faults: list[str] = []
        self.refused: list[int] = []  # statuses of answers, which the browser reports on its console too
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.faults.append(f"script error {error}"))
        self.page.on("console", self._on_console)
        self.page.on("request", self._on_request)
        self.page.on("response", lambda answer: self.refused.append(answer.status) if answer.status >= 400 else None)

    def open(self, state: str = "") -> Page:
        self.page.goto(f"{self.url}{'#' if state else ''}{state}")
        self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until nothing is loading; what is typed waits before it is asked for, so look for its effect first."""
        self.page.wait_for_selector("#results[aria-busy=false], #comparison[aria-busy=false]", state="attached")

    def close(self) -> None:
        self._context.close()

    def _on_console(self, message: Any) -> None:
        expected = "Failed to load resource" in message.text and (self.refused or "ERR_CONNECTION" in message.text)
        if message.type in ("error", "warning") and not expected:
            self.faults.append(f"console {message.type}: {message.text}")

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.faults.append(f"request to {request.url}")


@pytest.fixture
def visit(browser: Browser, server: PageServer) -> Iterator[Visit]:
    tab = Visit(browser, server.url)
    yield tab
    tab.close()
    assert tab.faults == []
    assert tab.refused == []


@pytest.fixture
def bad_visit(browser: Browser, server: PageServer) -> Iterator[Visit]:
    """The same for tests in which the server refuses something."""
    tab = Visit(browser, server.url)
    yield tab
    tab.close()
    assert tab.faults == []


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as playwright_expect

    return playwright_expect(locator)


def list_ids(page: Page, order: str) -> list[str]:
    return page.evaluate(
        "order => [...document.querySelectorAll(`.column.${order} .hit`)].map((card) => card.hit.id)", order
    )


def find_ids(engine: SemanticSearch, query: str = QUERY, **options: Any) -> list[str]:
    return [hit.id for hit in engine.search(query, **options)]


def find_retrieved(engine: SemanticSearch, query: str = QUERY, *, top_k: int = 10, **options: Any) -> list[str]:
    hits = engine.search(query, top_k=100, **options)
    return [hit.id for hit in sorted(hits, key=lambda hit: hit.retrieved_rank)][:top_k]


def find_card(page: Page, order: str, key: str) -> Locator:
    """The card of a document; it is found by its position, so that ids need not be valid in a selector."""
    return page.locator(f".column.{order} .hit").nth(list_ids(page, order).index(key))


# ---- searching


@browser_test
def test_typing_searches_and_shows_both_orders(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open()
    expect(page.get_by_role("searchbox", name="Query")).to_be_focused()
    expect(page.locator(".colophon")).to_contain_text("14")
    page.keyboard.type(QUERY)
    # where typing is slow, a part of the query is answered first
    page.wait_for_function(
        "ids => ids.join() === [...document.querySelectorAll('.column.reranked .hit')].map((c) => c.hit.id).join()",
        arg=find_ids(engine),
    )
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")
    assert list_ids(page, "retrieved") == find_retrieved(engine)
    assert page.title() == f"{QUERY} · transenc"
    assert page.url == f"{visit.url}#q=the+small+cat+sees+a+bird"
    best = engine.search(QUERY)[0]
    first = page.locator(".column.reranked .hit").first
    expect(first.locator(".score b")).to_have_text(f"{best.score:.2f}")
    expect(first.locator(".score small")).to_have_text(f"rerank {best.rerank_score:.3f}")
    steps = page.locator("#search-latency li")
    assert [text.split()[0] for text in steps.all_text_contents()[:-1]] == ["queue", "encode", "retrieve", "rerank"]


@browser_test
def test_the_words_of_the_query_are_marked_but_not_the_common_ones(visit: Visit) -> None:
    page = visit.open("q=what+does+the+CAT+like%3F&k=20")
    card = find_card(page, "reranked", "cat")
    assert card.locator("mark").all_text_contents() == ["cat", "cat"]  # title and passage
    assert set(find_card(page, "reranked", "cow").locator("mark").all_text_contents()) == {"likes"}


@browser_test
def test_an_answer_that_is_out_of_date_is_dropped(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open()
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if json.loads(route.request.post_data or "")["query"] == "cow":
            held.append(route)
        else:
            route.continue_()

    page.route("**/search", hold_the_first)
    box = page.get_by_role("searchbox")
    box.fill("cow")
    page.wait_for_timeout(400)
    assert len(held) == 1
    box.fill("boat")
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")
    assert list_ids(page, "reranked") == find_ids(engine, "boat")
    held[0].abort()  # the page has given up on it; if it had not, this would show an error
    page.wait_for_timeout(200)
    assert list_ids(page, "reranked") == find_ids(engine, "boat")
    expect(page.locator(".notice")).to_have_count(0)


@browser_test
def test_a_slow_reranking_shows_the_retrieved_order_meanwhile(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open()
    held: list[Callable[[], None]] = []

    def slow_down(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["timings"]["rerank_ms"] = 2000 if body["reranked"] else 0
        give = partial(route.fulfill, response=answer, json=body)
        if body["reranked"] and route.request.post_data_json["query"] == "bird":
            held.append(give)  # until the page without it has been looked at
        else:
            give()

    page.route("**/search", slow_down)
    box = page.get_by_role("searchbox")
    box.fill("cat")
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")
    box.fill("bird")
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranking")
    assert list_ids(page, "retrieved") == find_retrieved(engine, "bird")
    assert page.locator(".pending").count() == 10
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("() => getComputedStyle(document.querySelector('.ghost')).animationDuration") == "0.001s"
    for _ in range(500):
        if held:
            break
        page.wait_for_timeout(10)
    held[0]()
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")
    assert list_ids(page, "reranked") == find_ids(engine, "bird")


@browser_test
def test_reranking_can_be_switched_off_and_weighed(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open(f"q={QUERY}")
    switch = page.get_by_role("switch", name="Rerank")
    expect(switch).to_be_checked()
    switch.uncheck()
    expect(page.get_by_role("status").first).to_have_text("10 hits")
    assert page.locator(".column").count() == 1
    assert list_ids(page, "retrieved") == find_retrieved(engine)
    assert page.url.endswith("&rerank=0")
    expect(page.get_by_label("Candidates")).to_be_disabled()
    switch.check()
    page.get_by_label("Weight of the reranker").select_option("1")
    page.get_by_label("Hits").select_option("5")
    page.wait_for_url("**k=5**")
    expect(page.locator(".column.reranked .hit")).to_have_count(5)
    assert list_ids(page, "reranked") == find_ids(engine, top_k=5, rerank_weight=1.0)
    assert list_ids(page, "retrieved") == find_retrieved(engine, top_k=5)


@browser_test
def test_a_line_joins_the_two_places_of_a_document(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open(f"q={QUERY}&k=6&w=1")
    measure = """() => {
        const top = document.querySelector("svg.lines").getBoundingClientRect().top;
        const middle = (card) => {
            const box = card.querySelector(".rank").getBoundingClientRect();
            return (box.top + box.bottom) / 2 - top;
        };
        const cards = (order) => [...document.querySelectorAll(`.column.${order} .hit`)];
        const places = (order) => Object.fromEntries(cards(order).map((card) => [card.hit.id, middle(card)]));
        const ends = (line) => [...line.querySelectorAll("circle")].map((dot) => dot.cy.baseVal.value);
        const lines = [...document.querySelectorAll(".line")];
        return {
            left: places("retrieved"),
            right: places("reranked"),
            ends: lines.map((line) => [line.documentId, line.classList.contains("cut"), ...ends(line)]),
        };
    }"""

    def check() -> None:
        found = page.evaluate(measure)
        left, right = set(find_retrieved(engine, top_k=6)), set(find_ids(engine, top_k=6, rerank_weight=1.0))
        assert {key for key, *_ in found["ends"]} == left | right
        for key, is_cut, *ends in found["ends"]:
            assert is_cut == (key not in left & right)
            expected = [found[side][key] for side in ("left", "right") if key in found[side]]
            assert ends == pytest.approx(expected, abs=1)

    check()
    page.set_viewport_size({"width": 1100, "height": 700})
    page.wait_for_timeout(200)
    check()
    key = list_ids(page, "reranked")[0]
    find_card(page, "reranked", key).hover()
    assert page.evaluate("[...document.querySelectorAll('.lit')].map((each) => each.hit?.id ?? each.documentId)") in (
        [[key] * 3] if key in list_ids(page, "retrieved") else [[key] * 2]
    )


@browser_test
def test_filters_are_added_clicked_and_removed(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open(f"q={QUERY}")
    page.get_by_role("button", name="+ Filter").click()
    page.get_by_label("Field").select_option("year")
    expect(page.get_by_label("Condition")).to_have_value(">=")
    page.get_by_label("Value").fill("2018")
    page.get_by_label("Hits").select_option("20")
    expect(page.get_by_role("status").first).to_have_text("14 hits, reranked")
    page.get_by_label("Value").focus()  # what was typed is still there
    page.keyboard.press("Enter")
    expect(page.locator(".chip bdi")).to_have_text(["year ≥ 2018"])
    expect(page.get_by_role("status").first).to_have_text("7 hits, reranked")
    assert list_ids(page, "reranked") == find_ids(engine, where=["year>=2018"], top_k=20)
    find_card(page, "retrieved", "dog").get_by_role("button", name="topic animals").click()
    expect(page.get_by_role("status").first).to_have_text("3 hits, reranked")
    assert sorted(list_ids(page, "reranked")) == ["cat", "dog", "fox"]
    expect(page.get_by_role("button", name="topic animals")).to_have_count(0)  # it holds already
    page.get_by_role("button", name="Remove the filter year>=2018").click()
    expect(page.get_by_role("status").first).to_have_text("5 hits, reranked")
    assert page.url.endswith("&where=topic%3Danimals")


@browser_test
def test_hybrid_search_uses_the_words(visit: Visit, engine: SemanticSearch) -> None:
    page = visit.open("q=river&rerank=0&k=5")
    page.get_by_role("switch", name="Hybrid").check()
    page.wait_for_url("**hybrid=1**")
    expect(page.locator(".column h2")).to_contain_text("Bi-encoder and words")
    assert list_ids(page, "retrieved") == find_retrieved(engine, "river", top_k=5, hybrid=True)
    assert set(list_ids(page, "retrieved")[:2]) == {"boat", "cow"}


@browser_test
def test_no_hit_says_so_and_offers_the_way_back(visit: Visit) -> None:
    page = visit.open("q=cat&where=topic%3Dfood&where=year%3E2090")
    expect(page.get_by_role("status").first).to_have_text("No hits")
    expect(page.locator(".notice p")).to_have_text("No document fulfils all 2 filters.")
    page.get_by_role("button", name="Remove the filters").click()
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")


# ---- what the corpus and the query may hold


@browser_test
def test_hostile_text_is_shown_as_text(visit: Visit) -> None:
    page = visit.open(
        "q=" + "the+small+cat+%3Cimg+src%3Dx+onerror%3Dalert(1)%3E" + "&k=20&open=%3Cb%3Ebold%3C/b%3E&open=steered"
    )
    assert page.get_by_role("searchbox").input_value() == "the small cat <img src=x onerror=alert(1)>"
    card = find_card(page, "reranked", "<b>bold</b>")
    expect(card.locator(".title")).to_have_text(IMAGE)
    expect(card.locator(".text")).to_have_text(f"the small cat {SCRIPT}")
    assert card.locator(".tag").all_text_contents() == ["<b>bold</b>", f"link {ADDRESS}", "topic hostile"]
    steered = find_card(page, "reranked", "steered")
    expect(steered.locator(".title")).to_have_text("cat U+202Egnp.exeU+0007")
    expect(steered.locator(".text")).to_have_text("a U+202EtacU+202C cat")
    assert "year 9007199254740993" in steered.locator(".tag").all_text_contents()
    assert page.locator("#results :is(a, img, script, iframe, b:not(.score b))").count() == 0
    card.get_by_role("button", name="Compare with the query").click()
    expect(page.get_by_role("textbox", name="Sentence 2")).to_have_value(f"{IMAGE} the small cat {SCRIPT}")
    expect(page.locator(".tokens").first.locator("li").first).to_contain_text("the")
    assert page.locator("#comparison :is(a, img, script)").count() == 0


@browser_test
def test_a_hostile_filter_is_shown_as_text(bad_visit: Visit) -> None:
    page = bad_visit.open("q=cat&where=x%3Cimg+src%3Dx+onerror%3Dalert(1)%3E")
    expect(page.locator(".chip bdi")).to_have_text("x < img src=x onerror=alert(1)>")
    expect(page.get_by_role("alert")).to_contain_text("no document has a number or text as 'x'")
    assert page.locator("main img").count() == 0
    page.get_by_role("button", name="Remove the filter", exact=True).click()
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")
    assert bad_visit.refused == [400]


@browser_test
def test_the_passage_is_marked_where_the_server_says(visit: Visit, engine: SemanticSearch) -> None:
    """Its places count characters, of which those beyond the basic plane are two to JavaScript."""
    query = "the farmer feeds the horse near the old house"
    hit = next(hit for hit in engine.search(query) if hit.id == "long")
    assert hit.start > LONG.index("\N{GRINNING FACE}")
    page = visit.open(f"q={query}&open=long")
    card = find_card(page, "reranked", "long")
    assert card.locator(".found").text_content() == LONG[hit.start : hit.end]
    assert card.locator(".text").text_content() == LONG
    expect(find_card(page, "retrieved", "long").locator(".whole")).to_be_hidden()
    expect(find_card(page, "reranked", "plain").locator("h3")).to_have_text("the quiet teacher reads the letter alone")


# ---- errors


@browser_test
def test_a_refusal_is_shown_as_the_server_words_it(bad_visit: Visit) -> None:
    page = bad_visit.open("q=cat&where=colour%3Dred")
    expect(page.get_by_role("alert")).to_contain_text("no document has a number or text as 'colour'")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    page.get_by_role("searchbox").fill("c" * 2001)
    page.get_by_role("button", name="Remove the filter", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("2000")
    first, *others = bad_visit.refused  # filling in asks by itself where the click comes late
    assert (first, set(others)) == (400, {422})


@browser_test
def test_a_busy_server_is_asked_again(bad_visit: Visit, engine: SemanticSearch) -> None:
    page = bad_visit.open()
    left = iter([503, 503])

    def refuse_twice(route: Route) -> None:
        if status := next(left, None):
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"error": "the queue is full"})
        else:
            route.continue_()

    page.route("**/search", refuse_twice)
    page.get_by_role("searchbox").fill("cat")
    expect(page.get_by_role("status").first).to_have_text("The server is busy; trying again in 1 s (1 of 5)")
    expect(page.get_by_role("status").first).to_have_text("10 hits, reranked")
    assert list_ids(page, "reranked") == find_ids(engine, "cat")
    assert bad_visit.refused == [503, 503]


@browser_test
def test_the_server_changes_its_index_goes_and_comes_back(browser: Browser, tiny_bi: Path, tmp_path: Path) -> None:
    """It has neither a reranker nor words, and the page offers neither."""
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        pytest.importorskip(name, reason=f"needs {name} (extra: serve)")
    index = build_index(tmp_path, tiny_bi, CORPUS[:3], lexical=False)
    server = PageServer(index, None)
    tab = Visit(browser, server.url)
    try:
        page = tab.open("q=cat&hybrid=1&rerank=1")
        expect(page.locator("#facts span").first).to_have_text("3 documents")
        expect(page.get_by_role("status").first).to_have_text("3 hits")
        expect(page.get_by_role("switch")).to_have_count(0)
        expect(page.locator(".column h2")).to_have_text("Bi-encodercosine")
        with SemanticSearch.open(index) as engine:
            engine.add([{"_id": "late", "text": "the late cat"}])
        wait_until(
            lambda: (
                page.keyboard.press("/"),
                page.keyboard.press("Enter"),
                tab.settle(),
                "late" in list_ids(page, "retrieved"),
            )[-1]
        )
        expect(page.locator("#facts span").first).to_have_text("4 documents")
        server.stop()
        page.get_by_role("searchbox").fill("dog")
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
        expect(page.locator(".hit")).to_have_count(0)
        server = PageServer(index, None, port=server.port)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("status").first).to_have_text("4 hits")
    finally:
        tab.close()
        server.stop()
    assert tab.faults == []


# ---- state, keys, screens


@browser_test
def test_the_address_holds_the_state(visit: Visit) -> None:
    page = visit.open(f"q={QUERY}")
    page.get_by_label("Hits").select_option("5")
    page.get_by_label("Weight of the reranker").select_option("0.75")
    find_card(page, "retrieved", "cat").get_by_role("button", name="topic animals").click()
    page.get_by_role("switch", name="Hybrid").check()
    expect(page.get_by_role("status").first).to_have_text("5 hits, reranked")
    page.locator(".column.reranked .title").nth(1).click()
    page.locator(".column.retrieved .title").nth(2).click()
    look = (
        """() => [...document.querySelectorAll(".hit")].map((card) => [card.hit.id, card.classList.contains("open")])"""
    )
    controls = (
        "() => [...document.querySelectorAll('.controls :is(input, select)')].map((each) => each.checked ?? each.value)"
    )
    before = [page.evaluate(look), page.evaluate(controls), page.url]
    assert [is_open for _, is_open in before[0]].count(True) == 2
    page.reload()
    visit.settle()
    assert [page.evaluate(look), page.evaluate(controls), page.url] == before

    def count_hits(number: int) -> None:
        expect(page.locator(".column.reranked .hit")).to_have_count(number)

    page.get_by_role("searchbox").fill("boat")
    page.wait_for_url("**q=boat**")
    page.get_by_label("Hits").select_option("20")
    page.go_back()
    count_hits(5)
    expect(page.get_by_role("searchbox")).to_have_value("boat")
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value(QUERY)
    wait_until(lambda: page.evaluate(look) == before[0])
    page.go_forward()
    expect(page.get_by_role("searchbox")).to_have_value("boat")


@browser_test
def test_a_burst_of_keys_is_one_step_back(visit: Visit) -> None:
    page = visit.open("q=dog")
    page.get_by_role("searchbox").press("End")
    page.keyboard.type(" and cat", delay=20)
    page.wait_for_url("**q=dog+and+cat")
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value("dog")


@browser_test
def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.open(f"q={QUERY}")
    box = page.get_by_role("searchbox")
    focused = """() => {
        const card = document.activeElement.closest(".hit");
        return [card?.hit.id, card?.closest(".column").classList[1]];
    }"""
    right = list_ids(page, "reranked")
    page.locator("body").press("/")
    expect(box).to_be_focused()
    box.press("ArrowDown")
    assert page.evaluate(focused) == [right[0], "reranked"]
    page.keyboard.press("j")
    assert page.evaluate("() => getComputedStyle(document.activeElement).outline").endswith("solid 2px")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert page.evaluate(focused) == [right[1], "reranked"]
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == [right[1], "retrieved"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    whole = find_card(page, "reranked", right[1]).locator(".whole")
    expect(whole).to_be_visible()
    page.keyboard.press("Escape")
    expect(whole).to_be_hidden()
    page.keyboard.press("Escape")
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(box).to_have_value("")
    expect(page.locator(".colophon")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("switch", name="Shortcuts of a single character").uncheck()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.locator("body").press("/")
    expect(box).not_to_be_focused()
    box.fill("how is it?/")  # in the box they are what they are
    expect(box).to_have_value("how is it?/")


@browser_test
@pytest.mark.parametrize("width", [320, 430, 640])  # 640: a screen of 1280 at 200 %
def test_nothing_scrolls_sideways_on_a_narrow_screen(bad_visit: Visit, width: int) -> None:
    page = bad_visit.page
    page.set_viewport_size({"width": width, "height": 700})
    measure = "() => document.documentElement.scrollWidth"
    long = "w" * 150
    sentences = "the+small+cat+sees+the+dog+home+again+and+the+bird"
    for state in (
        "",
        "q=cat&k=20&open=wide&open=long&open=%3Cb%3Ebold%3C/b%3E&left=wide",
        "q=cat&k=20&rerank=0&hybrid=1&open=wide&where=year%3E%3D2000&where=topic%3Danimals",
        f"q={long}&where=topic%3D{long}",
        f"q=cat&where={long}%3D1",
        f"view=compare&a={sentences}&b={sentences}+{sentences}",
        f"view=compare&a={long}&b=cat+{long}",
    ):
        bad_visit.open("q=x")  # so that the next one is not what is there already
        bad_visit.open(state)
        assert page.evaluate(measure) == width, state
    bad_visit.open("q=cat")
    page.get_by_role("button", name="+ Filter").click()
    assert page.evaluate(measure) == width
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keys").click()
    assert page.evaluate(measure) == width


@browser_test
def test_a_phone_shows_one_order_and_switches(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size({"width": 375, "height": 700})
    visit.open(f"q={QUERY}")
    left, right = page.locator(".column.retrieved"), page.locator(".column.reranked")
    expect(right).to_be_visible()
    expect(left).to_be_hidden()
    page.get_by_role("button", name="Bi-encoder").click()
    expect(left).to_be_visible()
    expect(right).to_be_hidden()
    expect(page.get_by_role("button", name="Bi-encoder")).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(left).to_be_visible()
    page.set_viewport_size({"width": 1280, "height": 700})
    expect(right).to_be_visible()
    expect(page.get_by_role("button", name="Bi-encoder")).to_be_hidden()


CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = {};
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const isSeen = walker.currentNode.data.trim() && element.checkVisibility();
        if (!isSeen || element.closest(".unseen, option")) continue;
        const grounds = [];
        let opacity = 1;
        for (let each = element; each; each = each.parentElement) {
            grounds.unshift(getComputedStyle(each).backgroundColor);
            if (!each.closest(":disabled")) opacity *= Number(getComputedStyle(each).opacity);
        }
        const ground = paint(grounds);
        const full = paint([...grounds, getComputedStyle(element).color]);
        const ink = full.map((value, at) => opacity * value + (1 - opacity) * ground[at]);
        const [dark, bright] = [light(ground), light(ink)].sort((one, other) => one - other);
        const name = element.tagName.toLowerCase() + [...element.classList].map((each) => `.${each}`).join("");
        found[name] = Math.min(found[name] ?? 21, (bright + 0.05) / (dark + 0.05));
    }
    return found;
}"""


@browser_test
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(bad_visit: Visit, theme: str) -> None:
    page = bad_visit.page
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    found: dict[str, float] = {}
    for state in (
        "q=cat&open=long&where=year%3E2010&w=1",
        "view=compare&a=the+cat&b=the+dog",
        "q=cat&where=colour%3D1",
        "",
    ):
        bad_visit.open(state)
        for name, ratio in page.evaluate(CONTRASTS).items():
            found[name] = min(ratio, found.get(name, 21))
    assert {"h2", "mark", "span.key", "small", "b", "span.move.up", "kbd.ask-key", "bdi"} <= set(found)
    assert {name: round(ratio, 2) for name, ratio in found.items() if ratio < 4.5} == {}
    background = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(250, 249, 246)", "dark": "rgb(20, 21, 23)"}[theme]


@browser_test
def test_the_chosen_theme_is_remembered(visit: Visit) -> None:
    page = visit.page
    page.emulate_media(color_scheme="light")
    visit.open()
    ground = "() => getComputedStyle(document.documentElement).backgroundColor"
    button = page.get_by_role("button", name="Dark theme")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    page.reload()
    visit.settle()
    assert page.evaluate(ground) == "rgb(20, 21, 23)"
    button.click()
    assert page.evaluate(ground) == "rgb(250, 249, 246)"
    page.emulate_media(color_scheme="dark")  # the choice was that of the system: it is followed again
    assert page.evaluate(ground) == "rgb(20, 21, 23)"


@browser_test
def test_everything_has_a_name(visit: Visit) -> None:
    page = visit.open("q=cat&k=2")
    snapshot = page.locator("body").aria_snapshot()
    for line in (
        'searchbox "Query"',
        'switch "Rerank" [checked]',
        'switch "Hybrid"',
        'combobox "Candidates"',
        'combobox "Weight of the reranker"',
        'combobox "Hits"',
        'group "Filters"',
        'button "Keys"',
        'button "Dark theme"',
        'region "Bi-encoder"',
        'region "Reranked"',
        "status: 2 hits, reranked",
    ):
        assert line in snapshot, line
    assert re.findall(r"- (?:button|link|textbox|combobox|switch|searchbox)(?: \[[^\]]*\])*:?$", snapshot, re.M) == []


# ---- two sentences


@browser_test
def test_two_sentences_are_compared(visit: Visit, engine: SemanticSearch) -> None:
    from transenc.alignment import align_tokens
    from transenc.scoring import score_pairs

    page = visit.open()
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("#compare-status")).to_contain_text("Write two sentences")
    one, two = "the small cat sees the dog", "a dog sees the bird"
    page.get_by_role("textbox", name="Sentence 1").fill(one)
    page.get_by_role("textbox", name="Sentence 2").fill(two)
    page.wait_for_selector(".readouts")
    assert engine.rerankers
    bi, cross = (float(score_pairs(model, [(one, two)])[0]) for model in (engine.encoder.model, *engine.rerankers))
    found = align_tokens(engine.encoder.model, one, two)
    expected = [f"{value:.3f}".replace("-", MINUS) for value in (bi, cross, found.score)]
    assert page.locator(".readouts b").all_text_contents() == expected
    assert page.locator(".tokens").nth(1).locator("bdi").all_text_contents() == two.split()
    cells = page.locator(".map tbody td").all_text_contents()
    assert cells == [f"{value:.2f}".replace("-", MINUS) for row in found.cosines for value in row]
    best = [int(row.argmax()) for row in found.cosines]
    first = page.locator(".tokens").first.locator("li")
    expect(first.nth(5)).to_have_text(f"dog, best match {two.split()[best[5]]} {found.cosines[5].max():.2f}")
    first.nth(5).hover()
    assert page.evaluate("() => [...document.querySelectorAll('path.lit')].every((path) => path.one === 5)") is True
    page.get_by_role("button", name="Swap the sentences").click()
    expect(page.get_by_role("textbox", name="Sentence 1")).to_have_value(two)
    page.reload()
    page.wait_for_selector(".readouts")
    expect(page.get_by_role("textbox", name="Sentence 2")).to_have_value(one)
    page.go_back()
    expect(page.get_by_role("textbox", name="Sentence 1")).to_have_value(one)
