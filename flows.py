"""The chain, top to bottom, as Prefect flows; its deployments; the command line.

    text -> prepare-corpus -+-> train-dense ---------------------------------------------+
                            +-> train-peer   (the arm that is not distilled)             |
                            +-> train-monet ---------------------------------------------+
                                     |                                                   |
                                     v                                                   |
                                distill-peer --------------------------------------------+
                                     |                                                   |
                                     +-> quantize-int8 ----------------------------------+--> report
                                     |                                                   |
                                     +-> quantize-int4 ----------------------------------+
                                     |        |                                          |
                                     |        v                                          |
                                     +-> finetune-int4 ----------------------------------+
                                              |                                          |
                                              v                                          |
                                         distill-symbols --------------------------------+

stages/plan.py holds the same as data: CHAIN and the presets. The only file that imports Prefect; its result cache is
off, since the store is the one cache, and only ids cross from task to task.

    python flows.py run | stage NAME | ui | serve | --help
"""

import atexit
import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from artifacts import ArtifactError, ArtifactId, Store, lineage_card, mermaid
from pipeline.prefect_server import free_port, is_healthy, server
from pipeline.progress import print_results, shown
from pipeline.stage import Made, Stage, StageConfig, chosen_device, run_stage
from stages import STAGES
from stages.command import (
    ROOT,
    Command,
    Device,
    RunCommand,
    ServeCommand,
    StageCommand,
    UiCommand,
    exit_code,
    make_one,
    read,
)
from stages.plan import Plan, Step, inputs_of, made_from, plain, step_of, tiny

SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": str(ROOT / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_LOGGING_LEVEL": "INFO",
    # The run's log goes to the UI; in the terminal stand our own bars, tables and sentences.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

if __name__ == "__main__":  # before Prefect is imported, so that --help and mistakes answer at once
    _commands: list[Command] = []
    if _code := exit_code(lambda: _commands.append(read(sys.argv[1:])) or 0):
        sys.exit(_code)

from prefect import Flow, State, flow, serve, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402
from prefect.settings import (  # noqa: E402
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Completed  # noqa: E402

DEFAULT_STORE = str(ROOT / "store")
HOME = Path(os.environ["PREFECT_HOME"])
UI_URL = HOME / "ui-url"
REUSED = "Reused"


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def make(
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, ArtifactId],
    store: str,
    seed: int,
    device: Device,
    force: bool,
) -> ArtifactId | State:
    """The id of the stage's artifact; the state is named Reused where the store had it."""
    wanted = step_of(stage).stage
    with shown(stage) as report:
        made = run_stage(
            wanted,
            wanted.config_type.model_validate(config),
            inputs=inputs,
            store=Store(Path(store)),
            seed=seed,
            device=chosen_device(device),
            force=force,
            report=report,
        )
    return Completed(name=REUSED, data=made.id) if made.reused else made.id


def flow_of(stage: Stage) -> Flow[..., Any]:
    """The stage as a flow: the chain calls it, and it can be deployed alone."""

    def run(config: StageConfig, store: str, seed: int, device: Device, force: bool, **named: str) -> Any:
        given = {role: id for role, id in named.items() if id != "latest"}
        inputs = inputs_of(step_of(stage.name), given, Store(Path(store)), _missing)
        state = make(stage.name, plain(config), inputs, store, seed, device, force, return_state=True)
        id = cast(ArtifactId, state.result())
        publish_card(id, Store(Path(store)))
        return Completed(name=REUSED, data=id) if state.name == REUSED else id

    run.__name__ = run.__qualname__ = stage.name.replace("-", "_")
    run.__doc__ = f"{stage.summary}\n\nArgs:\n{_described(stage)}"
    run.__signature__ = _signature(stage)  # type: ignore[attr-defined] - what Prefect's form is made from
    return flow(name=stage.name, flow_run_name=stage.name, persist_result=False)(run)


def _missing(step: Step, inputs: Mapping[str, ArtifactId]) -> ArtifactId:
    raise ArtifactError(f"the store holds nothing made by {step.name} yet; run it first")


def _signature(stage: Stage) -> inspect.Signature:
    fields: dict[str, tuple[Any, Any]] = {
        "config": (stage.config_type, plain(stage.config_type())),
        **{role: (str, "latest") for role in stage.inputs},
        "store": (str, DEFAULT_STORE),
        "seed": (int, 0),
        "device": (Device, "cpu"),
        "force": (bool, False),
    }
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in fields.items()
        ]
    )


def _described(stage: Stage) -> str:
    lines = {
        "config": "The stage's settings.",
        **{role: f"Id of the {' or '.join(r.kinds)} to use, or latest." for role, r in stage.inputs.items()},
        "store": "Folder of the artifacts.",
        "seed": "Seed of all randomness.",
        "device": "Where tensors are.",
        "force": "Make it again even if the store has it.",
    }
    return "\n".join(f"    {name}: {text}" for name, text in lines.items())


FLOWS: Mapping[str, Flow[..., Any]] = {stage.name: flow_of(stage) for stage in STAGES}
globals().update({flow.fn.__name__: flow for flow in FLOWS.values()})  # deployments find them by name


@flow(name="chain", flow_run_name="chain", persist_result=False)
def chain(
    plan: Plan = cast(Plan, plain(tiny())),  # noqa: B008 - Prefect's form shows it
    store: str = DEFAULT_STORE,
    seed: int = 0,
    device: Device = "cpu",
    again_from: str | None = None,
) -> tuple[Made, ...]:
    """The plan's stages, top to bottom.

    Args:
        plan: Settings of every stage, and the stages to go through.
        store: Folder of the artifacts.
        seed: Seed of all randomness.
        device: Where tensors are.
        again_from: Make this stage and all that is made from it again.
    """
    forced = made_from(again_from) if again_from else frozenset()
    made: dict[str, Made] = {}
    try:
        for step in plan.steps():
            inputs = {role: made[producer].id for role, producer in step.inputs.items()}
            made[step.name] = run_one(
                step, plan.config_of(step), inputs, store=store, seed=seed, device=device, force=step.name in forced
            )
    finally:
        publish_overview([one.id for one in made.values()], Store(Path(store)))
    return tuple(made.values())


def run_one(step: Step, config: StageConfig, inputs: Mapping[str, ArtifactId], **settings: Any) -> Made:
    """One stage's flow, as a subflow if a flow is running."""
    start = time.monotonic()
    state = FLOWS[step.name](config=plain(config), **inputs, **settings, return_state=True)
    id = state.result()
    return Made(id=id, reused=state.name == REUSED, seconds=time.monotonic() - start)


def publish_card(id: ArtifactId, store: Store) -> None:
    """The artifact's lineage in the UI, under the key of its stage; the run gets the artifact's name and tags."""
    manifest = store.manifest(id)
    card = lineage_card(manifest, store.ancestry(id), links=_card_links(store))
    stage = manifest.lineage.stage
    uuid = create_markdown_artifact(card, key=stage, description=id)
    _remember_card(store, id, str(uuid))
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            flow_run.id,
            name=f"{stage}-{manifest.short[:8]}",
            tags={f"kind:{manifest.kind}", f"sha256:{manifest.content_sha256[:8]}"},
        )


def publish_overview(ids: Iterable[ArtifactId], store: Store) -> None:
    """The graph of all that a run of the chain has come to, on the chain's own page."""
    manifests = {manifest.id: manifest for id in ids for manifest in store.ancestry(id)}
    graph = mermaid(list(manifests.values()), links=_card_links(store))
    create_markdown_artifact(
        f"```mermaid\n{graph}\n```\n", key="pipeline-lineage", description=f"{len(manifests)} artifacts"
    )


def _cards(store: Store) -> Path:
    return store.state_dir / "cards.json"


def _card_ids(store: Store) -> dict[str, str]:
    return json.loads(_cards(store).read_text()) if _cards(store).is_file() else {}


def _card_links(store: Store) -> dict[ArtifactId, str]:
    return {ArtifactId(id): f"/v2/artifacts/artifact/{uuid}" for id, uuid in _card_ids(store).items()}


def _remember_card(store: Store, id: ArtifactId, uuid: str) -> None:
    scratch = _cards(store).with_suffix(f".{os.getpid()}.partial")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps({**_card_ids(store), id: uuid}, indent=1))
    os.replace(scratch, _cards(store))


@contextmanager
def connected(*, ui: bool = False, port: int | None = None) -> Iterator[str]:
    """Within it, flows are recorded: by the server of PREFECT_API_URL, else that of `ui`, else a temporary one."""
    live = UI_URL.read_text().strip() if UI_URL.is_file() else ""
    if PREFECT_API_URL.value():
        yield PREFECT_API_URL.value().removesuffix("/api")
    elif live and is_healthy(live):
        with _settings_for(live):
            yield live
    else:
        stack = ExitStack()
        atexit.register(stack.close)  # not sooner: Prefect's threads send the last of the log when Python ends
        url = stack.enter_context(server(port or free_port(), home=HOME, ui=ui))
        with _settings_for(url):
            yield url


def _settings_for(url: str) -> Any:
    # Without /v2 the links that Prefect logs lead to its old UI, which draws no Mermaid. Heartbeats serve Prefect
    # Cloud alone, and ending each flow's costs a second.
    return temporary_settings(
        {PREFECT_API_URL: f"{url}/api", PREFECT_UI_URL: f"{url}/v2", PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    )


def main_run(command: RunCommand) -> int:
    start = time.monotonic()
    with connected():
        made = chain(
            plan=cast(Plan, plain(command.plan)), store=str(command.store), seed=command.seed,
            device=command.device, again_from=command.again_from,
        )  # fmt: skip
        print_results(made, Store(command.store), time.monotonic() - start)
    return 0


def main_stage(command: StageCommand) -> int:
    start = time.monotonic()
    settings = {"store": str(command.store), "seed": command.seed, "device": command.device}
    with connected():
        made = list(
            make_one(
                command,
                lambda step, config, inputs, force: run_one(step, config, inputs, force=force, **settings),
            )
        )
        print_results(made, Store(command.store), time.monotonic() - start)
    return 0


def main_ui(command: UiCommand) -> int:
    with server(command.port, home=HOME, ui=True) as url:
        UI_URL.write_text(url)
        try:
            print(f"Prefect's UI is at {url}/v2 (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("ended")
        finally:
            UI_URL.unlink(missing_ok=True)
    return 0


def main_serve(command: ServeCommand) -> int:
    os.chdir(ROOT)  # deployments name this file relative to the working directory
    with connected(ui=True, port=command.port) as url:
        print(f"runs started at {url}/v2/deployments happen here (Ctrl-C ends it)", flush=True)
        deployments: Any = [one.to_deployment(name="local") for one in (chain, *FLOWS.values())]
        serve(*deployments)
    return 0


def main(command: Command) -> int:
    match command:
        case RunCommand():
            return main_run(command)
        case StageCommand():
            return main_stage(command)
        case UiCommand():
            return main_ui(command)
        case ServeCommand():
            return main_serve(command)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(_commands[0])))
