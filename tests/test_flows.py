"""The whole chain through Prefect, at shapes that take seconds."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

import flows
from artifacts import Store
from pipeline.running.live_runs import gone
from pipeline.running.prefect_server import free_port
from pipeline.stage import Made
from stages.__main__ import main
from stages.allowed import ALLOWED, allow
from stages.chain import BESIDE, CHAIN, made_from
from stages.command import RunCommand, StageCommand, read
from stages.errors import exit_code
from stages.settings import plan_written
from tests.shapes import SHAPES, flags


@pytest.fixture(scope="module", autouse=True)
def server():
    """One temporary server for all tests; `flows.main` finds it."""
    with flows.connected() as url:
        yield url


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("flows") / "store")


def _command(store: Store, text_file: Path, *more: str) -> RunCommand:
    command = read(["run", "--corpus", f"mixed={text_file}", "--store", str(store.root), *SHAPES, *more])
    assert isinstance(command, RunCommand)
    return command


def _run(command: RunCommand) -> tuple[Made, ...]:
    return flows.chain(
        **plan_written(command.plan), store=str(command.store), seed=command.seed, again_from=command.again_from
    )


@pytest.fixture(scope="module")
def made(store, text_file) -> tuple[Made, ...]:
    return _run(_command(store, text_file))


def test_the_chain_makes_every_stage_once(made, store):
    assert [store.manifest(one.id).lineage.stage for one in made] == [
        step.name for step in CHAIN if step.name not in BESIDE
    ]
    assert not any(one.reused for one in made)
    assert store.verify() == []


def test_a_second_run_makes_nothing_and_says_so(made, store, text_file, capsys):
    assert flows.main(_command(store, text_file)) == 0
    said = capsys.readouterr().out
    assert "all 9 stages were reused" in said
    assert all(one.id in said for one in made)
    assert len(store.ids()) == len(made)


def test_every_stage_has_its_card_with_links_to_the_cards_of_its_ancestors(made, store):
    cards = json.loads((store.state_dir / "cards.json").read_text())["cards"]
    assert cards.keys() == {one.id for one in made}
    for one in made:
        manifest = store.manifest(one.id)
        card = Artifact.get(manifest.lineage.stage)
        assert card is not None
        assert card.description.splitlines()[0] == one.id
        for ancestor in store.ancestry(one.id)[1:]:
            assert f"/v2/artifacts/artifact/{cards[ancestor.id]}" in card.data or ancestor.id in card.data
    overview = Artifact.get("pipeline-lineage")
    assert overview is not None
    assert "flowchart" in overview.data


def test_the_run_graph_shows_the_true_dependencies_and_no_more(made, store):
    with get_client(sync_client=True) as client:
        (chain,) = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["chain"])), sort=FlowRunSort.START_TIME_ASC, limit=1
        )
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[chain.id])))
    # Each of these tasks stands for a stage's flow run, by whose id the others name it as their input.
    stage_of = {task.state.state_details.child_flow_run_id: task.name.removesuffix("-0") for task in tasks}
    found = {
        task.name.removesuffix("-0"): {
            role: [stage_of[result.id] for result in results] for role, results in task.task_inputs.items() if results
        }
        for task in tasks
    }
    loss = store.manifest(made[-2].id).metrics["held_out_loss_nats"]  # of the symbols
    assert re.match(r"9 artifacts; their lineage, and experts in words: http\S+/v2/artifacts/", chain.state.message)
    assert chain.name == f"chain-{made[-1].id.rpartition('-')[2][:8]} · loss {loss:.4f} · seed 0"
    assert found == {
        step.name: {role: [producer] for role, producer in step.inputs.items()}
        for step in CHAIN if step.name not in BESIDE
    }  # fmt: skip


def test_a_stages_run_has_the_name_and_tags_of_its_artifact_and_its_progress(made, store):
    manifest = store.manifest(made[1].id)
    with get_client(sync_client=True) as client:
        name = f"train-dense-{manifest.short[:8]} · loss {manifest.metrics['held_out_loss_nats']:.4f} · seed 0"
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
        run = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_ASC)[0]
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        shown = client.read_artifacts(artifact_filter=of_run)
    assert run.tags == [
        f"loss:{manifest.metrics['held_out_loss_nats']:.4f}", "seed:0", "steps:6",
        f"corpus:{made[0].id.rpartition('-')[2][:8]}", f"store:{store.root.name}",
        "kind:dense", f"sha256:{manifest.content_sha256[:8]}",
    ]  # fmt: skip
    (progress,) = [artifact for artifact in shown if artifact.type == "progress"]
    assert progress.data == 100.0
    assert re.match(r"\*\*[a-z ]+\*\*\n\n(\d+) of \1\b", progress.description)
    assert f"loss {manifest.metrics['held_out_loss_nats']:.4f} nats; its lineage: http://" in run.state.message
    (card,) = [artifact for artifact in shown if artifact.key]
    loss = f"loss {manifest.metrics['held_out_loss_nats']:.4f}"
    assert card.description.startswith(f"{made[1].id}\n\n{loss} · seed 0 · steps 6\n\ncorpus ")


def test_every_card_is_written_anew_where_the_server_has_lost_them(made, store, capsys):
    cards = store.state_dir / "cards.json"
    before = json.loads(cards.read_text())["cards"]
    assert flows.main(read(["republish", "--store", str(store.root)])) == 0
    assert "0 cards written" in capsys.readouterr().out
    with get_client(sync_client=True) as client:
        for card_id in list(before.values())[:4]:
            client.delete_artifact(UUID(card_id))
    assert flows.main(read(["republish", "--store", str(store.root)])) == 0
    assert "4 cards written" in capsys.readouterr().out
    after = json.loads(cards.read_text())["cards"]
    assert after.keys() == before.keys()
    assert sum(after[id] == before[id] for id in before) == len(before) - 4
    card = Artifact.get("report")
    assert card is not None
    assert all(f"/v2/artifacts/artifact/{after[ref.id]}" in card.data
               for ref in store.manifest(made[-1].id).lineage.inputs.values())  # fmt: skip


def test_a_run_whose_process_was_killed_is_marked_crashed(store, text_file, made, tmp_path):
    shape = {"d-model": 16, "num-layers": 2, "num-heads": 2, "num-kv-heads": 2}
    arguments = [
        "stage", "train-dense", "--store", str(store.root),
        *flags({f"config.transformer.{field}": value for field, value in shape.items()}),
        *flags({"config.training.steps": 20_000, "config.training.checkpoint-seconds": 0.1}),
    ]  # fmt: skip
    environment = {
        **os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or "", "OMP_NUM_THREADS": "1",
        "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9",  # nobody answers there
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "flows.py", *arguments], cwd=flows.ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            time.sleep(0.1)
            if list((store.state_dir / "checkpoints").glob("train-dense-*/*.pt")):
                break
    finally:
        process.kill()
        process.wait()
    (lost,) = gone(flows.RUNNING)
    (flows.RUNNING / "notes.txt").touch()  # no run
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(lost)).state_name == "Running"
        flows.mark_crashed()
        assert client.read_flow_run(UUID(lost)).state_name == "Crashed"
        (task,) = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(lost)])))
        assert task.state_name == "Crashed"
    assert gone(flows.RUNNING) == []
    assert [path.name for path in flows.RUNNING.iterdir()] == ["notes.txt"]


def test_from_a_stage_all_that_is_made_from_it_is_made_again(made, store, text_file):
    again = _run(_command(store, text_file, "--from", "quantize-int8"))
    stages = {store.manifest(one.id).lineage.stage for one in again if not one.reused}
    assert stages == made_from("quantize-int8") - BESIDE == {"quantize-int8", "report"}


def test_one_stage_alone_takes_the_latest_inputs(made, store, capsys):
    command = read(["stage", "quantize-int4", "--store", str(store.root), "--config.clips", "3",
                    "--config.measure.tokens", "512"])  # fmt: skip
    assert isinstance(command, StageCommand)
    assert flows.main(command) == 0
    assert "1 of 1 stages made" in capsys.readouterr().out
    latest = store.manifest("latest")
    assert latest.lineage.config["clips"] == 3
    by_stage = {store.manifest(one.id).lineage.stage: one.id for one in made}
    assert latest.lineage.inputs["peer"].id == by_stage["distill-peer"]
    assert latest.lineage.inputs["corpus"].id == by_stage["prepare-corpus"]


def test_that_stock_ops_run_is_said_once_a_command(made, store, text_file, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.running.progress.cpu_library", lambda: None)
    again = ["quantize-int4", "--store", str(store.root), "--config.measure.tokens", "512", "--force"]
    stage = read(["stage", *again])
    for command in (lambda: flows.main(_command(store, text_file)), lambda: flows.main(stage), lambda: main(again)):
        assert command() == 0
        assert capsys.readouterr().err.count("make native") == 1


def test_a_mistake_that_a_stage_finds_is_one_sentence(tmp_path, text_file, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.running.progress.cpu_library", lambda: "built")
    store = Store(tmp_path / "store")
    command = _command(store, text_file, "--train-dense.training.context-length", "60000")
    assert exit_code(lambda: flows.main(command)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "shorter window" in said[0]
    overview = Artifact.get("pipeline-lineage")
    assert overview is not None
    assert "prepare-corpus" in overview.data  # what was reached stands there all the same
    assert "**Stopped** at `train-dense`" in overview.data
    assert "Run the same command again" not in overview.data  # it would end in the same mistake
    for name in ("chain", "train-dense"):
        run, log, cards = latest_run(name)
        assert (run.state_name, run.state.message) == ("Failed", said[0])
        assert "Traceback" not in log
        first = "# From text to symbols" if name == "chain" else "# Why this run failed\n\n`the train split"
        assert cards.startswith(first)


def latest_run(flow: str) -> tuple[FlowRun, str, str]:
    """The latest run of this flow, its log, and its cards."""
    with get_client(sync_client=True) as client:
        named, latest = FlowFilter(name=FlowFilterName(any_=[flow])), FlowRunSort.START_TIME_DESC
        (run,) = client.read_flow_runs(flow_filter=named, sort=latest, limit=1)
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        cards = [str(one.data) for one in client.read_artifacts(artifact_filter=of_run) if one.type == "markdown"]
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
        return run, "\n".join(log.message for log in logs), "".join(cards)


def test_ctrl_c_cancels_every_run_that_was_going_on(tmp_path, text_file, capsys, monkeypatch):
    def interrupted(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flows, "run_stage", interrupted)
    assert exit_code(lambda: flows.main(_command(Store(tmp_path / "store"), text_file))) == 130
    for name in ("chain", "prepare-corpus"):
        run, *_ = latest_run(name)
        assert (run.state_name, run.state.message) == (
            "Cancelled", "Interrupted. The same command goes on from the last checkpoint.",
        )  # fmt: skip
        with get_client(sync_client=True) as client:
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        assert [task.state_name for task in tasks] == ["Cancelled"]
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_fails_a_run_and_its_page_says_where_with_the_traceback_folded(tmp_path, text_file, monkeypatch):
    monkeypatch.setattr(flows, "run_stage", lambda *args, **settings: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        _run(_command(Store(tmp_path / "store"), text_file))
    run, _, card = latest_run("prepare-corpus")
    assert run.state_name == "Failed"
    assert card.startswith("# Why this run failed\n\n`ZeroDivisionError: integer division or modulo by zero`\n\n<de")
    assert "1 // 0" in card.partition("<summary>Traceback</summary>")[2]
    assert "**Stopped** at `prepare-corpus`: `ZeroDivisionError: " in latest_run("chain")[2]


def test_what_a_person_called_a_run_is_kept(made, monkeypatch):
    monkeypatch.setattr(flows, "deployment", SimpleNamespace(id="of a form"))
    for name, kept in (("baseline of Monday", True), ("Rustic-Otter", False)):
        assert flows.is_typed(name) is kept
    monkeypatch.setattr(flows, "deployment", SimpleNamespace(id=None))
    assert not flows.is_typed("baseline of Monday")  # started here, where nobody is asked for a name


def test_the_log_of_a_run_leads_to_its_card(made, store, server):
    cards = json.loads((store.state_dir / "cards.json").read_text())["cards"]
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(), limit=200)
    assert any(log.message.endswith(f"{server}/v2/artifacts/artifact/{cards[made[0].id]}") for log in logs)


def test_deployments_are_in_the_order_of_the_chain_and_tagged():
    names = [name for name, _, _ in flows.served()]
    assert names == sorted(names)
    assert [name[3:] for name in names] == ["chain", *(step.name for step in CHAIN)]
    assert {name[3:] for name, tags, _ in flows.served() if tags == ["beside the chain"]} == BESIDE


def test_text_that_is_not_there_is_told_before_a_run_is_recorded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flows, "connected", lambda: pytest.fail("a run is recorded"))
    command = _command(Store(tmp_path / "store"), tmp_path / "missing.txt")
    assert exit_code(lambda: flows.main(command)) == 2
    assert "there is no file or folder" in capsys.readouterr().err


def test_an_api_url_where_nobody_answers_is_one_sentence(store, capsys):
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        assert exit_code(lambda: flows.main(read(["republish", "--store", str(store.root)]))) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"PREFECT_API_URL is {url}, which does not answer as a Prefect server (")
    assert said.count("\n") == 1
    assert "Connection refused" in said


class Page(BaseHTTPRequestHandler):
    """Answers everything with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!doctype html>")

    def log_message(self, *args: object) -> None: ...


def test_a_site_that_is_no_server_of_prefects_is_one_sentence(store, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_address[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            assert exit_code(lambda: flows.main(read(["republish", "--store", str(store.root)]))) == 2
        site.shutdown()
    said = capsys.readouterr().err
    assert said.startswith(f"PREFECT_API_URL is {url}, which does not answer as a Prefect server (")
    assert said.count("\n") == 1


def test_a_server_that_wants_another_auth_string_is_one_sentence(store, capsys, monkeypatch):
    monkeypatch.setattr(flows, "own_auth", lambda url, home: None)  # as if it were of another home
    with temporary_settings({PREFECT_API_AUTH_STRING: "another"}):
        assert exit_code(lambda: flows.main(read(["republish", "--store", str(store.root)]))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "401 Unauthorized" in said
    assert "set PREFECT_API_AUTH_STRING" in said


@pytest.mark.parametrize("served", [flows.FLOWS["report"], flows.chain], ids=["stage", "chain"])
def test_what_is_served_is_refused_a_store_elsewhere_before_it_does_anything(served, tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOWED, "[]")
    allow([tmp_path / "here"])
    state = served(store=str(tmp_path / "store"), return_state=True)
    assert state.is_failed()
    assert f"store: got {tmp_path / 'store'}; served runs take what is below {tmp_path / 'here'} alone" in state.message
    assert not (tmp_path / "store").exists()


def test_the_chain_that_is_served_is_refused_text_from_elsewhere(tmp_path, text_file, monkeypatch):
    monkeypatch.setenv(ALLOWED, "[]")
    allow([tmp_path])
    state = flows.chain(corpus=[f"mixed={text_file}"], store=str(tmp_path / "store"), return_state=True)
    assert state.is_failed()
    assert f"sources: got {text_file}; served runs take what is below {tmp_path} alone" in state.message
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("flow", [flows.chain, *flows.FLOWS.values()], ids=lambda flow: flow.name)
def test_every_flow_can_be_deployed(flow, monkeypatch):
    monkeypatch.chdir(flows.ROOT)
    deployment = flows.deployed("local", ["a tag"], flow)
    file, _, name = deployment.entrypoint.partition(":")
    assert file == "flows.py"
    assert getattr(flows, name) is flow
    form = deployment._parameter_openapi_schema
    assert list(form.properties)[-1] in ("rest", "again_from")
    assert all(field["title"] and field["description"] for field in form.properties.values())
