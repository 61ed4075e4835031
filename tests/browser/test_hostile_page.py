"""Attacks on `run`, `ui` and `serve` as their users start them, and clicks on a hostile page in Chromium.

The processes have a proxy in their environment that nobody answers at: nothing here may ask it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pipeline.running.prefect_server import ROOT, free_port
from stages.chain import NAMES
from tests.attacks import asked, attacks, shell_step, told
from tests.shapes import SHAPES

pytestmark = pytest.mark.browser

DEAD_PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://h:9"}
T = TypeVar("T")


def until(what: str, found: Callable[[], T | None], seconds: float = 240) -> T:
    end = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < end, f"there was no {what} within {seconds:.0f} s"
        time.sleep(0.2)
    return value


@dataclass(frozen=True)
class House:
    """The three commands at work over one home."""

    auth: str
    servers: dict[str, str]
    """HOST:PORT by command; `serve` takes the runs of that of `ui`."""
    links: list[str]
    deployments: dict[str, str]
    allowed: Path

    def told(self, method: str, path: str, body: Any = None) -> Any:
        return told(self.servers["ui"], self.auth, method, path, body)

    def finished(self, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The state that a run comes to which a client of our own starts."""
        start = f"/api/deployments/{self.deployments[deployment]}/create_flow_run"
        run = self.told("POST", start, {"parameters": parameters, "state": {"type": "SCHEDULED"}})

        def final() -> dict[str, Any] | None:
            state = self.told("GET", f"/api/flow_runs/{run['id']}")["state"]
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return until("end of the run", final)


@pytest.fixture(scope="module")
def house(tmp_path_factory, text_file) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    home, allowed = folder / "home", folder / "allowed"
    allowed.mkdir()
    environment = {**os.environ, **DEAD_PROXY, "PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("PREFECT_API_URL", None)
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        with (folder / name).open("wb") as out:
            command = [sys.executable, "flows.py", name, *words]
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out))
        return started[-1]

    def links_of(name: str) -> list[str] | None:
        return re.findall(r"http://127\.0\.0\.1:\d+/enter\S+", (folder / name).read_text()) or None

    try:
        run = start("run", "--corpus", f"mixed={text_file}", "--store", str(allowed / "store"), *SHAPES,
                    "--train-dense.training.steps", "1000000")  # fmt: skip
        port = until("server of the run's own", lambda: server_port(run.pid))
        until("stage that the run has come to", lambda: list((home / "running").glob("*"))[1:] or None)
        run.send_signal(signal.SIGSTOP)  # it is there, and leaves the others their time
        start("ui", "--port", str(free_port()))
        links = until("link to the UI", lambda: links_of("ui"))
        start("serve", "--allow", str(allowed))
        links += until("link to the deployments", lambda: links_of("serve"))
        auth = (home / "auth-string").read_text()
        servers = {"run": f"127.0.0.1:{port}", "ui": links[0].split("/")[2]}
        for server in servers.values():
            until("answer", lambda server=server: asked(server, "GET", "/api/health")[0] == 200 or None)
        deployments = until("deployment of every stage", lambda: served(servers["ui"], auth))
        yield House(auth, servers, links, deployments, allowed)
    finally:
        for process in reversed(started):  # `serve` before the server that it speaks to
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


def server_port(parent: int) -> int | None:
    """The port of the server that this process has started."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "pipeline.running.prefect_server" in words:
            return int(words[words.index("pipeline.running.prefect_server") + 1])
    return None


def served(server: str, auth: str) -> dict[str, str] | None:
    """Its id by name, without the number that sorts it."""
    found = {one["name"][3:]: one["id"] for one in told(server, auth, "POST", "/api/deployments/filter", {})}
    return found if found.keys() == {"chain", *NAMES} else None


@pytest.mark.parametrize("command", ["run", "ui"])
def test_every_attack_on_every_command_is_refused_and_changes_nothing(house, command, tmp_path):
    server, deployment = house.servers[command], house.deployments["report"]
    before, runs = house.told("GET", f"/api/deployments/{deployment}"), house.told("POST", "/api/flow_runs/count", {})
    for attack in attacks(server, deployment, tmp_path / "canary"):
        status, answer = asked(server, attack.method, attack.path, attack.body, attack.headers)
        assert status == attack.refused, (attack.name, answer)
    after = house.told("GET", f"/api/deployments/{deployment}")
    assert {**after, "updated": 0, "last_polled": 0} == {**before, "updated": 0, "last_polled": 0}
    assert house.told("POST", "/api/flow_runs/count", {"flow_runs": {"deployment_id": {"any_": [deployment]}}}) == 0
    assert runs > 0  # that of `run`
    assert not (tmp_path / "canary").exists()


PAGE = """<!doctype html><title>hostile</title>
<iframe name=sink></iframe><iframe name=frame src="http://SERVER/v2/deployments"></iframe>
<form method=post target=sink action="http://SERVER/api/deployments/DEPLOYMENT/create_flow_run" enctype="text/plain">
<input name='{"a":"' value='"}'><button id=form>prize</button></form>
<button id=scripts>prize</button>
<script>
const here = "http://SERVER/api/deployments/DEPLOYMENT", done = window.done = {};
const attack = (name, what) => what.then(answer => done[name] = answer, error => done[name] = "refused");
const send = (name, url, more) => attack(name, fetch(url, {credentials: "include", ...more})
  .then(async answer => answer.type + " " + answer.status + " " + await answer.text()));
const json = {"Content-Type": "application/json"};
document.getElementById("scripts").onclick = () => {
  send("change", here, {method: "PATCH", headers: json, body: JSON.stringify(CHANGE)});
  send("start", here + "/create_flow_run", {method: "POST", headers: json, body: "{}"});
  send("simple", here + "/create_flow_run", {method: "POST", body: "{}"});
  send("blind", here + "/create_flow_run", {method: "POST", body: "{}", mode: "no-cors"});
  send("typeless", here + "/create_flow_run", {method: "POST", body: new Blob(["{}"]), mode: "no-cors"});
  send("read", here);
  send("proof", "http://SERVER/proof/" + "0".repeat(32));
  navigator.sendBeacon(here + "/create_flow_run", "{}");
  attack("socket", new Promise((open, refuse) => {
    const socket = new WebSocket("ws://SERVER/api/events/out", "prefect");
    socket.onopen = () => open("open"); socket.onerror = refuse; }));
  const opened = window.open("http://SERVER/v2/deployments");
  attack("window", new Promise(wait => setTimeout(wait, 2000)).then(() => opened.localStorage["prefect-password"]));
};
</script>"""


@pytest.fixture(scope="module")
def hostile(house, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The port of the page, which is not the server's, and the file that its attack would make."""
    canary = tmp_path_factory.mktemp("canary") / "canary"
    change = str(shell_step(canary)).replace("'", '"')
    page = PAGE.replace("SERVER", house.servers["ui"]).replace("DEPLOYMENT", house.deployments["report"])

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.replace("CHANGE", change).encode())

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield str(server.server_address[1]), canary
    server.shutdown()
    server.server_close()


@pytest.fixture
def context(browser):
    context = browser.new_context()
    context.set_default_timeout(30_000)
    yield context
    context.close()


def test_the_printed_links_open_the_ui_and_without_one_it_asks(house, context):
    page = context.new_page()
    page.goto(f"http://{house.servers['ui']}/v2/artifacts")
    page.get_by_text("Login").first.wait_for()
    assert len(house.links) == 3
    for link, place in zip(house.links, ("/v2", "/v2/artifacts", "/v2/deployments"), strict=True):
        page.goto(link)
        page.wait_for_url(f"http://{house.servers['ui']}{place}**")
        assert house.auth not in page.url
    page.get_by_role("link", name="quantize-int4").first.wait_for()


def test_a_link_with_another_string_opens_nothing_and_signs_nobody_out(house, context):
    page = context.new_page()
    page.goto(house.links[2])
    page.get_by_role("link", name="quantize-int4").first.wait_for()
    other = context.new_page()
    other.goto(house.links[2].partition("#")[0] + "#" + "A" * 43)
    other.get_by_text("This link does not open this server").wait_for()
    page.reload()
    page.get_by_role("link", name="quantize-int4").first.wait_for()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "evil.example"])
def test_clicks_on_a_hostile_page_do_nothing_to_who_has_the_ui_open(house, context, hostile, name):
    port, canary = hostile
    ui = context.new_page()
    ui.goto(house.links[2])
    ui.get_by_role("link", name="quantize-int4").first.wait_for()
    page = context.new_page()
    page.goto(f"http://{name}:{port}/")
    page.locator("#form").click()
    page.locator("#scripts").click()
    page.wait_for_function("Object.keys(done).length == 9")
    refused = dict.fromkeys(("change", "start", "simple", "read", "proof", "socket", "window"), "refused")
    blind = dict.fromkeys(("blind", "typeless"), "opaque 0 ")  # sent, but the page is not told how it was answered
    assert page.evaluate("done") == {**refused, **blind}
    framed = page.frame(name="frame")
    assert framed is not None
    assert framed.locator("a").count() == 0  # nothing of the UI in it to be clicked
    report = house.deployments["report"]
    assert house.told("POST", "/api/flow_runs/count", {"flow_runs": {"deployment_id": {"any_": [report]}}}) == 0
    assert not house.told("GET", f"/api/deployments/{report}")["pull_steps"]
    assert not canary.exists()


def test_a_name_that_was_bound_to_this_machine_shows_nothing(house, context):
    page = context.new_page()
    answer = page.goto(f"http://evil.example:{house.servers['ui'].rpartition(':')[2]}/v2/")
    assert answer.status == 403
    assert "answers under 127.0.0.1" in page.content()


def test_served_runs_read_and_write_below_the_allowed_folder_alone(house, tmp_path, text_file):
    """Whoever has the auth string hands them in here, as the form does: by the same request."""
    rule = f"served runs take what is below {house.allowed} alone"
    outside = house.finished("report", {"store": str(tmp_path / "store")})
    assert outside["type"] == "FAILED"
    assert f"store: got {tmp_path / 'store'}; {rule}" in outside["message"]
    sources = [str(text_file)]
    for given in ({"sources": sources}, {"rest": {"sources": sources}}):
        read = house.finished("prepare-corpus", {"store": str(house.allowed / "new"), **given})
        assert read["type"] == "FAILED"
        assert f"sources: got {text_file}; {rule}" in read["message"]
    for given in ({"corpus": sources}, {"settings": f"prepare-corpus.sources={text_file}"}):
        read = house.finished("chain", {"store": str(house.allowed / "new"), **given})
        assert f"sources: got {text_file}; {rule}" in read["message"]
    assert not (tmp_path / "store").exists()
    assert not (house.allowed / "new").exists()
    inside = house.finished("report", {"store": str(house.allowed / "empty")})
    assert "the store holds nothing made by" in inside["message"]


def test_the_attack_does_what_it_says_where_the_auth_string_is_known(house, tmp_path):
    """Or the tests above would find nothing: the string is worth a shell."""
    canary = tmp_path / "canary"
    house.told("PATCH", f"/api/deployments/{house.deployments['train-peer']}", shell_step(canary))
    house.finished("train-peer", {})
    assert canary.exists()
