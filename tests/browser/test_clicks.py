"""What a person sees and clicks in Prefect's UI, in headless Chromium: `make clicks`. Needs playwright and chromium.

SCREENSHOTS=DIR keeps pictures of the pages; STORE=DIR shows that store instead of one made for the test.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterName,
)

import flows
from artifacts import ArtifactId, Store
from pipeline.running.auth_string import auth_string
from pipeline.running.entrance import link
from pipeline.running.prefect_server import announced_server, free_port
from stages.chain import CHAIN
from stages.command import read
from stages.settings import plan_written
from tests.attacks import known
from tests.shapes import SHAPES

pytestmark = pytest.mark.browser

MOST_CLICKS = 4
MOST_PIXELS = 1600
"""Of a form, before its folded part."""
COLOURS = 128
"""Of a picture that is kept, which is a page of text."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The UI, as `python flows.py ui` serves it."""
    with announced_server(free_port(), home=flows.HOME) as url, flows.connected():
        yield url


@pytest.fixture(scope="module")
def store(url, tmp_path_factory, text_file) -> Store:
    """A store whose chain has just run against this server: in no time, if it is given and full."""
    given = os.environ.get("STORE")
    root = Path(given).absolute() if given else tmp_path_factory.mktemp("clicks") / "store"
    longer = ["--train-monet.training.steps", "60"]  # long enough for a curve
    shapes = [] if given else ["--corpus", f"mixed={text_file}", *SHAPES, *longer]
    command = read(["run", "--store", str(root), *shapes])
    flows.chain(**plan_written(command.plan), store=str(root), seed=0)
    return Store(root)


@pytest.fixture(scope="module")
def serving(url, store) -> Iterator[None]:
    """`python flows.py serve`, which runs what is started from forms."""
    serve = [sys.executable, "flows.py", "serve", "--allow", str(store.root)]
    server = subprocess.Popen(serve, cwd=flows.ROOT, stdout=subprocess.DEVNULL)
    yield
    server.send_signal(signal.SIGINT)
    server.wait(timeout=60)


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(60_000)
    page.goto(link(url, auth_string(flows.HOME), "/v2/runs"))  # as printed: without the auth string, a prompt
    page.wait_for_url(f"{url}/v2/runs**")
    page.get_by_role("link", name="Deployments").wait_for()
    yield page
    page.close()


ELSEWHERE = r"""() => {
  const elsewhere = text => text.replace(/(\/[^\s'"\/]+)+\/store\b/g, "/home/you/store");
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = elsewhere(texts.currentNode.data);
  for (const field of document.querySelectorAll("textarea")) field.value = elsewhere(field.value);
}"""
"""On a picture that is kept no folder of the machine that took it."""


def picture(page, name: str) -> None:
    """Keeps the page as it looks once it has come to rest, if SCREENSHOTS names a folder."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.wait_for_timeout(2000)
        page.evaluate(ELSEWHERE)
        file = Path(folder) / f"{name}.png"
        page.screenshot(path=file, full_page=True)
        with Image.open(file) as whole:
            whole.convert("RGB").quantize(COLOURS).save(file, optimize=True)


def made_by(store: Store, stage: str) -> ArtifactId:
    id = store.latest(stage=stage)
    assert id is not None
    return id


def click_node(page, id: ArtifactId) -> None:
    """Clicks an artifact's node in the graph of the page, and waits until its own card is there."""
    page.locator(f'svg a:has(g[title="{id}"])').first.click()
    arrive(page, id)


def arrive(page, id: ArtifactId) -> None:
    stage, _, short = id.rpartition("-")
    page.get_by_role("heading", name=f"{stage} · {short}").wait_for()


class Hand:
    """Clicks, and counts them."""

    def __init__(self, page) -> None:
        self.page = page
        self.clicks = 0

    def click(self, what) -> None:
        self.clicks += 1
        what.first.click()

    def click_out(self, what):
        """A click that opens a page of its own, which is returned."""
        with self.page.context.expect_page() as opened:
            self.click(what)
        return opened.value


def open_chains_run(hand: Hand) -> None:
    hand.click(hand.page.get_by_role("link", name=re.compile(r"^chain-[0-9a-f]{8}")))
    hand.page.get_by_role("tab", name="Artifacts").wait_for()


def sees_a_context(page) -> bool:
    """Whether a token that an expert fires on stands there, behind what comes before it."""
    page.get_by_role("heading", name="Experts in words").wait_for()
    return page.locator("li code").first.is_visible()


def test_from_the_chains_run_to_an_experts_context_by_the_link_in_its_log(page, store):
    hand = Hand(page)
    open_chains_run(hand)
    card = page.locator('a[href*="/v2/artifacts/artifact/"]').first
    assert card.get_attribute("target") == "_blank"
    assert sees_a_context(hand.click_out(card))
    assert hand.clicks == 2 <= MOST_CLICKS


def test_from_the_chains_run_to_an_experts_context_and_its_card_by_tiles(page, store):
    hand = Hand(page)
    open_chains_run(hand)
    picture(page, "chain-run")
    hand.click(page.get_by_role("tab", name="Artifacts"))
    hand.click(page.get_by_text("pipeline-lineage"))
    hand.click(page.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")))  # the latest version, on top
    assert sees_a_context(page)
    assert hand.clicks == MOST_CLICKS
    page.locator("svg g.node").first.wait_for()
    picture(page, "pipeline-lineage")
    click_node(page, made_by(store, "distill-symbols"))
    assert sees_a_context(page)
    picture(page, "lineage-card")


def test_from_symbols_to_their_monet_and_back_by_clicks_alone(page, url, store):
    symbols = made_by(store, "distill-symbols")
    monet = next(m.id for m in store.ancestry(symbols) if m.lineage.stage == "train-monet")
    page.goto(f"{url}/v2/artifacts/key/distill-symbols")
    page.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")).first.click()
    arrive(page, symbols)
    click_node(page, monet)
    # Back down: each card's "Used by" leads to what was made from it.
    descent = [
        m.id for m in reversed(store.ancestry(symbols)) if m.lineage.sequence > store.manifest(monet).lineage.sequence
    ]
    at = monet
    for child in descent:
        if any(ref.id == at for ref in store.manifest(child).lineage.inputs.values()):
            page.locator("table a", has_text=child).first.click()
            arrive(page, child)
            at = child
    assert at == symbols


CUT = """tiles => tiles.filter(line => line.scrollWidth > line.clientWidth + 1).map(line => line.textContent)"""


def test_a_stages_tiles_are_not_cut_and_its_curve_is_a_picture(page, store):
    page.get_by_role("link", name=re.compile(r"^train-monet-[0-9a-f]{8} · loss [\d.]+ · seed 0$")).first.click()
    page.get_by_role("tab", name="Artifacts").click()
    for said in ("train-monet, live", made_by(store, "train-monet"), "seed 0 · steps 60"):
        page.get_by_text(said).first.wait_for()
    lines = page.locator(".truncate p")
    assert lines.count() >= 5
    assert lines.evaluate_all(CUT) == []
    picture(page, "stage-run")
    page.get_by_text("train-monet, live").click()
    curve = page.get_by_role("img", name="train_loss_nats over steps")
    curve.wait_for()
    assert curve.evaluate("image => image.complete && image.naturalWidth") == 600


def test_a_run_that_cannot_be_says_its_sentence(page, url):
    state = flows.chain(settings="train-monet.training.stepz=200", return_state=True)
    page.goto(f"{url}/v2/runs/flow-run/{state.state_details.flow_run_id}?tab=Details")
    said = "unknown setting 'train-monet.training.stepz' (did you mean train-monet.training.steps"
    page.get_by_text(said).first.wait_for()
    picture(page, "failed-run")


def test_every_link_on_every_card_leads_to_a_card(page, url, store):
    with get_client(sync_client=True) as client:
        cards = client.read_artifacts(
            artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["markdown"])), limit=200
        )
        targets = {
            link for card in cards for link in re.findall(r"/v2/artifacts/artifact/([0-9a-f-]{36})", str(card.data))
        }
    assert len(targets) >= len(store.ids())
    for target in targets:
        assert page.request.get(f"{url}/api/artifacts/{target}", headers=known(auth_string(flows.HOME))).ok, target


def deployments(names: list[str], seconds: float = 240) -> dict[str, UUID]:
    """Their ids, as soon as all are served."""
    end = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while not set(names) <= (ids := {one.name: one.id for one in client.read_deployments()}).keys():
            assert time.monotonic() < end, f"not served: {set(names) - ids.keys()}"
            time.sleep(0.5)
    return ids


def test_every_form_is_short_before_its_folded_part(page, url, serving):
    names = ["00-chain", *(f"{number:02}-{step.name}" for number, step in enumerate(CHAIN, start=1))]
    page.goto(f"{url}/v2/deployments")
    page.get_by_role("link", name=names[9]).first.wait_for(timeout=240_000)  # the last of the first page
    listed = page.get_by_role("link", name=re.compile(r"^\d\d-")).all_inner_texts()
    assert listed == names[:10]
    ids = deployments(names)
    heights = {}
    for name in names:
        page.goto(f"{url}/v2/deployments/deployment/{ids[name]}/run")
        end = page.get_by_text("Enforce Parameter Schema" if name == "00-chain" else "--config...")
        end.first.wait_for()
        page.wait_for_timeout(500)
        heights[name] = round(end.first.bounding_box()["y"])
    assert all(height <= MOST_PIXELS for height in heights.values()), heights


def test_one_stage_runs_again_from_its_form_under_the_name_that_was_typed(page, url, store, serving):
    old = made_by(store, "quantize-int4")
    page.goto(f"{url}/v2/deployments")
    page.get_by_role("link", name="quantize-int4").first.click(timeout=240_000)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_text("Scales tried a row").first.wait_for()
    picture(page, "custom-run")
    fill(page, "Run Name", "three clips by hand")
    fill(page, "--config.clips (Optional)", "0")  # beyond its bound: the form does not leave the page
    page.get_by_role("button", name="Submit").click()
    assert page.url.split("?")[0].endswith("/run")
    fill(page, "--config.clips (Optional)", "3")
    page.get_by_role("tab", name="all settings").click()
    fill(page, "--config.measure.tokens (Optional)", "512")
    fill(page, "--store (Optional)", str(store.root))
    page.get_by_role("button", name="Submit").click()
    new = wait_for_another(store, old)
    assert store.manifest(new).lineage.config["clips"] == 3
    assert store.manifest(new).lineage.inputs == store.manifest(old).lineage.inputs
    page.goto(f"{url}/v2/artifacts/key/quantize-int4")
    page.get_by_text(f"quantize-int4-{store.manifest(old).short[:8]}").first.wait_for()
    page.get_by_text("three clips by hand").first.wait_for()
    picture(page, "versions")
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=["three clips by hand"]))
        (run,) = client.read_flow_runs(flow_run_filter=named)
    assert f"kind:{store.manifest(new).kind}" in run.tags
    assert "in the chain" in run.tags


def fill(page, label: str, value: str) -> None:
    labelled = page.get_by_text(label, exact=True).first
    labelled.locator("xpath=ancestor::*[.//input or .//textarea][1]").locator("input,textarea").first.fill(value)


def wait_for_another(store: Store, old: ArtifactId, seconds: float = 300) -> ArtifactId:
    end = time.monotonic() + seconds
    while (new := made_by(store, "quantize-int4")) == old:
        assert time.monotonic() < end, "the run that was submitted made nothing"
        time.sleep(0.5)
    return new
