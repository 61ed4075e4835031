"""The pages of symbols and of a text in Chromium, from a file: what a person sees after a click or two."""

import pytest

from pipeline.opening import open_model
from pipeline.symbolic.asking.read import read
from pipeline.symbolic.asking.read_page import read_page
from pipeline.symbolic.asking.words import known_words
from stages.distill_symbols import distill_symbols
from tests.tiny_int4 import config, trained_int4, words_corpus
from tests.tiny_symbols import symbols_model, symbols_store

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    faults = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: None if request.url.startswith("file:") else faults.append(request.url))
    yield tab
    context.close()
    assert faults == []


@pytest.fixture(scope="module")
def symbols_page(tmp_path_factory):
    corpus = words_corpus()
    made = distill_symbols.fn(config(least_r2=0.6, least_recovered=0.05), corpus=corpus, int4=trained_int4(corpus))
    path = tmp_path_factory.mktemp("page") / "symbols.html"
    path.write_bytes(made.files["symbols.html"])
    return path.as_uri()


def height(tab):
    return tab.evaluate("document.documentElement.scrollHeight")


def test_from_the_index_an_expert_is_one_click_and_one_screen_away(tab, symbols_page):
    tab.goto(symbols_page)
    assert height(tab) < 3_000
    rows = tab.locator("#index tbody tr:visible")
    assert rows.count() == 12
    shares = [float(rows.nth(at).get_attribute("data-energy")) for at in range(12)]
    assert shares == sorted(shares, reverse=True)
    link = rows.locator("a").first
    name = link.get_attribute("href")
    link.click()
    assert tab.locator("article:visible").get_attribute("id") == name[1:]
    assert not tab.locator("#home").is_visible()
    assert tab.locator("article:visible mark").first.is_visible()
    assert height(tab) <= 1_000
    tab.go_back()
    assert tab.locator("#home").is_visible()


def test_the_index_is_searched_by_token_and_layer_and_sorted(tab, symbols_page):
    tab.goto(symbols_page)
    everything = tab.locator("#count").inner_text()
    tab.locator("#search").fill("'a'")
    rows = tab.locator("#index tbody tr:visible")
    assert rows.count() > 0
    assert all("'a'" in rows.nth(at).inner_text() for at in range(rows.count()))
    tab.locator("#search").fill("")
    tab.locator("#layer").select_option("1")
    assert {rows.nth(at).get_attribute("data-layer") for at in range(rows.count())} == {"1"}
    tab.locator("#layer").select_option("")
    tab.locator("#order").select_option("f1")
    f1 = [float(rows.nth(at).get_attribute("data-f1")) for at in range(rows.count())]
    assert f1 == sorted(f1, reverse=True)
    assert tab.locator("#count").inner_text() == everything
    tab.locator("#more").click()
    assert rows.count() > 12


def test_a_text_shows_the_experts_of_the_token_that_is_pointed_at(tab, tmp_path):
    store = symbols_store(tmp_path / "store", symbols_model())
    opened = open_model(store, "latest", "symbols")
    found = read(opened, known_words(store, opened.id), "<b>the</b> cat\n", most=2)
    (tmp_path / "read.html").write_text(read_page(found), encoding="utf-8")
    tab.goto((tmp_path / "read.html").as_uri())
    assert tab.locator("#text").inner_text() == "<b>the</b> cat\\n\n"
    assert tab.locator(".panel:visible").count() == 1
    place = next(at for at, token in enumerate(found.tokens) if token.layers[1].experts)
    tab.locator(f'.token[data-place="{place}"]').hover()
    panel = tab.locator(".panel:visible")
    assert panel.get_attribute("data-place") == str(place)
    expert = found.tokens[place].layers[1].experts[0].expert
    panel.locator(f'[data-expert="1:{expert}"]').click()
    fires = tab.locator(".fires")
    marked = {int(fires.nth(at).get_attribute("data-place")) for at in range(fires.count())}
    assert marked == {
        at for at, token in enumerate(found.tokens) if expert in [one.expert for one in token.layers[1].experts]
    }
    tab.locator("#layers button").nth(1).click()
    assert tab.locator("#layers button").nth(1).get_attribute("aria-pressed") == "true"
