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

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType

import flows
from artifacts import ArtifactId, Store
from pipeline.running.auth_string import auth_string
from pipeline.running.entrance import link
from pipeline.running.prefect_server import announced_server, free_port
from stages.command import read
from tests.attacks import known
from tests.shapes import SHAPES

pytestmark = pytest.mark.browser


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
    shapes = [] if given else ["--corpus", f"mixed={text_file}", *SHAPES]
    command = read(["run", "--store", str(root), *shapes])
    flows.chain(plan=flows.plain(command.plan), store=str(root), seed=0)
    return Store(root)


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(20_000)
    page.goto(link(url, auth_string(flows.HOME), "/v2/runs"))  # as printed: without the auth string, a prompt
    page.wait_for_url(f"{url}/v2/runs**")
    yield page
    page.close()


def picture(page, name: str) -> None:
    """Keeps the page as it looks once it has come to rest, if SCREENSHOTS names a folder."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.wait_for_timeout(2000)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


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


def test_from_the_chains_run_to_the_monet_of_its_symbols_and_back_by_clicks_alone(page, store):
    symbols = made_by(store, "distill-symbols")
    monet = next(m.id for m in store.ancestry(symbols) if m.lineage.stage == "train-monet")
    page.get_by_role("link", name=re.compile(r"^chain-[0-9a-f]{8}$")).first.click()
    page.get_by_role("tab", name="Artifacts").wait_for()
    picture(page, "chain-run")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("pipeline-lineage").first.click()
    page.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")).first.click()  # the latest version, on top
    page.locator("svg g.node").first.wait_for()
    picture(page, "pipeline-lineage")
    click_node(page, symbols)
    picture(page, "lineage-card")
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


def test_one_stage_runs_again_from_its_form_and_its_card_stands_beside_the_old_one(page, url, store):
    old = made_by(store, "quantize-int4")
    serve = [sys.executable, "flows.py", "serve", "--allow", str(store.root)]
    server = subprocess.Popen(serve, cwd=flows.ROOT, stdout=subprocess.DEVNULL)
    try:
        page.goto(f"{url}/v2/deployments")
        page.get_by_role("link", name="quantize-int4").first.click(timeout=240_000)
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        page.get_by_text("Scales tried a row").wait_for()
        picture(page, "custom-run")
        fill(page, "Clips (Optional)", "0")  # beyond its bound: the form does not leave the page
        page.get_by_role("button", name="Submit").click()
        assert page.url.split("?")[0].endswith("/run")
        fill(page, "Clips (Optional)", "3")
        fill(page, "Tokens (Optional)", "512")
        fill(page, "store (Optional)", str(store.root))
        page.get_by_role("button", name="Submit").click()
        new = wait_for_another(store, old)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert store.manifest(new).lineage.config["clips"] == 3
    assert store.manifest(new).lineage.inputs == store.manifest(old).lineage.inputs
    page.goto(f"{url}/v2/artifacts/key/quantize-int4")
    for id in (old, new):
        page.get_by_text(f"quantize-int4-{store.manifest(id).short[:8]}").first.wait_for()
    picture(page, "versions")


def fill(page, label: str, value: str) -> None:
    labelled = page.get_by_text(label, exact=True).first
    labelled.locator("xpath=ancestor::*[.//input or .//textarea][1]").locator("input,textarea").first.fill(value)


def wait_for_another(store: Store, old: ArtifactId, seconds: float = 300) -> ArtifactId:
    end = time.monotonic() + seconds
    while (new := made_by(store, "quantize-int4")) == old:
        assert time.monotonic() < end, "the run that was submitted made nothing"
        time.sleep(0.5)
    return new
