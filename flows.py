"""The chain, top to bottom, as Prefect flows; its deployments; the command line.

    text -> prepare-corpus -+-> train-dense ---------------------------------------------+
                            +-> train-peer   (the arm that is not distilled)             |
                            +-> study-int4-ablation, study-precision   (beside a run)    |
    import-monet, import-peer: models of others, beside a run                            |
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
                                              +-> grow-int4, record-activations, then    |
                                              |   measure- and compare-superposition     |
                                              |      (beside a run)                      |
                                              |                                          |
                                              v                                          |
                                         distill-symbols --------------------------------+

stages/chain.py holds the same as data, stages/presets.py its settings. The only file that imports Prefect; its result
cache is off, since the store is the one cache, and only ids cross from task to task.

    python flows.py run | stage NAME | ui | serve | republish | --help
"""

import atexit
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import StringIO
from json import JSONDecodeError
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from pipeline import end_at_once_while_importing

end_at_once_while_importing(command=__name__ == "__main__")

from pipeline.running.auth_string import auth_string
from pipeline.running.entrance import link
from pipeline.running.prefect_server import (
    ROOT,
    announced,
    announced_server,
    begun,
    begun_early,
    own_auth,
    port_for,
    ready,
)
from pipeline.running.proxies import bypass_loopback
from stages.help import show_page

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
HOME = Path(os.environ["PREFECT_HOME"])
bypass_loopback(os.environ)

if __name__ == "__main__":
    show_page(sys.argv[1:])

# The server takes as long to start as torch and Prefect to be imported; hence the order from here on.
_early = begun_early(sys.argv[1:], home=HOME) if __name__ == "__main__" else None

from artifacts import ArtifactError, ArtifactId, Manifest, Store
from artifacts.board import pin_all, pin_card, pin_run_card
from artifacts.cards import Stopped, brief, duration, failure_card, in_words
from pipeline.run import Progress
from pipeline.running.live_card import LiveCurve, tile
from pipeline.running.live_runs import alive, forget, gone, is_uuid
from pipeline.running.progress import Lines, print_results, say_before, shown
from pipeline.running.run_names import is_made_up
from pipeline.stage import Device, Made, StageConfig, chosen_device, run_stage
from stages import form
from stages.allowed import allow, check_allowed
from stages.chain import BESIDE, CHAIN, Step, made_from, step_of
from stages.command import Command, RepublishCommand, RunCommand, ServeCommand, StageCommand, UiCommand, read
from stages.errors import TOLD, Failure, Mistake, exit_code, sentence, unreadable_settings
from stages.execution import make_one, require_named
from stages.inputs import inputs_of
from stages.plan import Plan, plain
from stages.settings import plan_from, plan_written


def _settings_of_prefect() -> int:
    """Imports Prefect, which reads its settings then. ValueError in one sentence where it cannot."""
    said = StringIO()
    try:
        with redirect_stderr(said):  # of what is told below it has a paragraph of its own
            import_module("prefect.context")
    except (OSError, ValueError) as error:
        profiles = os.environ.get("PREFECT_PROFILES_PATH", HOME / "profiles.toml")
        raise Mistake(unreadable_settings(error, os.environ, str(profiles))) from None
    sys.stderr.write(said.getvalue())
    return 0


if __name__ == "__main__":  # before Prefect is imported, so that --help and mistakes answer at once
    _commands: list[Command] = []
    if _code := exit_code(lambda: _commands.append(read(sys.argv[1:])) or 0) or exit_code(_settings_of_prefect):
        sys.exit(_code)

from prefect import Flow, State, flow, get_run_logger, serve, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import deployment, flow_run, task_run
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.utilities.callables import ParameterSchema
from prefect.utilities.engine import link_state_to_flow_run_result

DEFAULT_STORE = str(ROOT / "store")
RUNNING = HOME / "running"
REUSED = "Reused"
SECONDS_BETWEEN_PROGRESS, SECONDS_BETWEEN_CURVES = 2.0, 10.0
SECONDS_TO_ANSWER = 20.0


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

    def made() -> ArtifactId | State:
        with _told(stage) as report:
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

    return _ended(made)


def _ended(body: Callable[[], Any]) -> Any:
    """What `body` returns, or how it ended otherwise: in a sentence that is the run's state, and not in a traceback.

    A bug is raised, and Prefect says that the run failed.
    """
    try:
        return body()
    except KeyboardInterrupt:
        return Cancelled(message="Interrupted. The same command goes on from the last checkpoint.")
    except TOLD as error:
        return Failed(message=sentence(error), data=error)


def _noted(body: Callable[[], Any]) -> Any:
    """What `body` returns; if it fails, its run's page gets a card that says why, with the traceback folded."""
    try:
        return body()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        get_run_logger().error(_why(error))
        trace = "".join(traceback.format_exception(error))
        create_markdown_artifact(failure_card(_why(error), trace), description="why this run failed")
        raise


def _why(error: BaseException) -> str:
    return sentence(error) if isinstance(error, TOLD) else f"{type(error).__name__}: {error}"


def _result(state: State) -> Any:
    """What the run came to. What ended it is raised here, as if it had not been a run of its own."""
    if state.is_cancelled():
        raise KeyboardInterrupt
    return state.result()


@contextmanager
def _told(stage: str) -> Iterator[Callable[[Progress], None]]:
    """Progress goes to the terminal, to the run's log, and onto the run's page."""
    with shown(stage) as terminal, get_client(sync_client=True) as client:
        log, page = Lines(stage, get_run_logger().info), _Page(client, stage)

        def tell(progress: Progress) -> None:
            for listener in (terminal, log, page):
                listener(progress)

        yield tell


class _Page:
    """On the page of the stage's run: how far its current loop has come, and the curve of its loss."""

    def __init__(self, client: SyncPrefectClient, stage: str) -> None:
        self.client = client
        self.curve = LiveCurve(stage)
        self.ids: dict[str, UUID] = {}
        self.told = self.drawn = 0.0

    def __call__(self, progress: Progress) -> None:
        if not progress.total:  # a sentence, which the run's log has
            return
        self.curve.add(progress)
        now, ends = time.monotonic(), progress.step >= progress.total
        if now - self.told >= SECONDS_BETWEEN_PROGRESS or ends:
            self.told = now
            first = self.curve.first or progress
            self._put("progress", 100 * progress.step / progress.total, tile(first, progress))
        if (now - self.drawn >= SECONDS_BETWEEN_CURVES or ends) and (card := self.curve.card()):
            self.drawn = now
            if self._put("markdown", card, f"{self.curve.stage}, live"):
                where = _address(f"/v2/artifacts/artifact/{self.ids['markdown']}")
                get_run_logger().info(f"the curve of its loss so far: {where}")

    def _put(self, type: str, data: float | str, description: str) -> bool:
        """Makes this artifact, or updates it; whether it is new."""
        if id := self.ids.get(type):
            self.client.update_artifact(id, ArtifactUpdate(data=data, description=description))
            return False
        flow_id, task_id = UUID(flow_run.id), UUID(task_run.id)
        new = ArtifactCreate(
            type=type, data=data, description=description, flow_run_id=flow_id, task_run_id=task_id
        )  # fmt: skip
        self.ids[type] = self.client.create_artifact(new).id
        return True


def flow_of(step: Step) -> Flow[..., Any]:
    """The stage as a flow: the chain calls it, and it can be deployed alone, with a form of its own."""
    fields = form.fields_of(step, DEFAULT_STORE)

    def run(*, preset: str, store: str, seed: int, device: Device, force: bool, **values: Any) -> Any:
        def made() -> Any:
            config = form.config_from(step, preset, values)
            check_allowed(store, config)
            inputs = inputs_of(step, form.given_inputs(step, values), Store(Path(store)), _missing)
            state = make(step.name, plain(config), inputs, store, seed, device, force, return_state=True)
            id = cast(ArtifactId, _result(state))
            said = publish_card(id, Store(Path(store)))
            return Completed(name=REUSED if state.name == REUSED else "Completed", data=id, message=said)

        with alive(flow_run.id, RUNNING):
            return _ended(lambda: _noted(made))

    run.__name__ = run.__qualname__ = step.field
    run.__doc__ = form.description(step.stage.summary, fields)
    run.__signature__ = form.signature(fields)  # type: ignore[attr-defined] - what Prefect asks for
    return _with_form(
        flow(name=step.name, flow_run_name=partial(_begun_name, step.name), persist_result=False)(run), fields
    )


def _with_form(made: Flow[..., Any], fields: list[form.Field]) -> Flow[..., Any]:
    made.parameters = ParameterSchema.model_validate(form.schema(fields))
    return made


def _begun_name(usual: str) -> str:
    """What a run is called when it begins: as a person has called it, if one has."""
    return flow_run.name if is_typed(flow_run.name) else usual


def is_typed(name: str) -> bool:
    """Whether a person has given this name to the run that is going on, in the form of a deployment."""
    return deployment.id is not None and not is_made_up(name)


def _missing(step: Step, inputs: Mapping[str, ArtifactId]) -> ArtifactId:
    raise ArtifactError(f"the store holds nothing made by {step.name} yet; run it first")


FLOWS: Mapping[str, Flow[..., Any]] = {step.name: flow_of(step) for step in CHAIN}
globals().update({flow.fn.__name__: flow for flow in FLOWS.values()})  # deployments find them by name


def chain_flow() -> Flow[..., Any]:
    """The plan's stages, top to bottom, as a flow."""
    fields = form.chain_fields(DEFAULT_STORE)

    def chain(
        *, preset: str, stages: list[str] | None, corpus: list[str] | None, settings: str, store: str, seed: int,
        device: Device, again_from: str | None,
    ) -> Any:  # fmt: skip
        def made() -> State:
            plan = plan_from(preset, stages or [], corpus or [], settings)
            check_allowed(store, plan.prepare_corpus)
            return run_plan(plan, again_from, store=store, seed=seed, device=device)

        with alive(flow_run.id, RUNNING):
            return _ended(made)

    chain.__doc__ = form.description("The plan's stages, top to bottom.", fields)
    chain.__qualname__ = chain.__name__
    chain.__signature__ = form.signature(fields)  # type: ignore[attr-defined]
    return _with_form(
        flow(name="chain", flow_run_name=partial(_begun_name, "chain"), persist_result=False)(chain), fields
    )


chain = chain_flow()


def run_plan(plan: Plan, again_from: str | None, *, store: str, **settings: Any) -> State:
    """What the stages made, or reused, as the run's end; its card says so, and where it stopped, if it did."""
    forced = made_from(again_from) if again_from else frozenset()
    made: dict[str, Made] = {}
    at = ""
    try:
        for step in plan.steps():
            at = step.name
            inputs = {role: made[producer].id for role, producer in step.inputs.items()}
            config = plan.config_of(step)
            made[at] = run_one(step, config, inputs, store=store, force=at in forced, **settings)
            said = in_words(Store(Path(store)).manifest(made[at].id))
            get_run_logger().info(f"{made[at].id}: {', '.join(filter(None, (_how(made[at]), said)))}")
    except BaseException as error:
        publish_run_card(made.values(), Store(Path(store)), stopped=_stopped(error, at))
        raise
    said = publish_run_card(made.values(), Store(Path(store)))
    return Completed(data=tuple(made.values()), message=said)


def _stopped(error: BaseException, at: str) -> Stopped:
    """Where and why a run did not go on, and whether the same command may get further."""
    if isinstance(error, KeyboardInterrupt):
        return Stopped(at=at, why="It was interrupted.", helps_again=True)
    return Stopped(at=at, why=_why(error), helps_again=isinstance(error, Failure))


def run_one(step: Step, config: StageConfig, inputs: Mapping[str, ArtifactId], **settings: Any) -> Made:
    """One stage's flow, as a subflow if a flow is running."""
    start = time.monotonic()
    state = FLOWS[step.name](**form.config_written(step, config), **inputs, **settings, return_state=True)
    id = _result(state)
    link_state_to_flow_run_result(state, id)  # Prefect draws its arrows by this; a state that was asked for has none
    return Made(id=id, reused=state.name == REUSED, seconds=time.monotonic() - start)


@dataclass(frozen=True, slots=True)
class PrefectBoard:
    """Prefect's artifacts as a board of cards (artifacts/board.py): each card a markdown artifact."""

    client: SyncPrefectClient

    def pin(self, card: str, *, key: str, description: str, of_this_run: bool) -> str:
        run = UUID(flow_run.id) if of_this_run and flow_run.id else None
        new = ArtifactCreate(key=key, type="markdown", description=description, data=card, flow_run_id=run)
        return str(self.client.create_artifact(new).id)

    def rewrite(self, id: str, card: str) -> None:
        self.client.update_artifact(UUID(id), ArtifactUpdate(data=card))

    def count(self, ids: Collection[str]) -> int:
        asked = {"artifacts": {"id": {"any_": [id for id in ids if is_uuid(id)]}}}
        return self.client.request("POST", "/artifacts/count", json=asked).json()

    def link(self, id: str) -> str:
        return f"/v2/artifacts/artifact/{id}"


def publish_card(id: ArtifactId, store: Store) -> str:
    """The artifact's lineage in the UI, under the key of its stage; the run gets the artifact's name and tags.

    What the run has come to, in a sentence with the card's address: the nearest to a description that a run has.
    """
    manifest = store.manifest(id)
    with get_client(sync_client=True) as client:
        pinned = pin_card(id, store, PrefectBoard(client))
        if not pinned.is_new:
            create_markdown_artifact(f"This run came to [`{id}`]({pinned.link}), which was there already.")
        said = ", ".join(filter(None, (id, in_words(manifest)))) + f"; its lineage: {_address(pinned.link)}"
        get_run_logger().info(said)
        facts = brief(manifest, store.root.name)
        _rename(client, f"{manifest.lineage.stage}-{_digits(manifest)}", facts)
        kept = {f"kind:{manifest.kind}", f"sha256:{manifest.content_sha256[:8]}"}
        _tag(client, [*(f"{name}:{value}" for name, value in facts.items()), *sorted(kept)])
        return said


def publish_run_card(made: Collection[Made], store: Store, stopped: Stopped | None = None) -> str:
    """The graph of all that a run of the chain has come to, on the chain's own page; the run is named after its end.

    What it has come to, in a sentence with the card's address.
    """
    how = {one.id: _how(one) for one in made}
    with get_client(sync_client=True) as client:
        board = PrefectBoard(client)
        card = board.link(pin_run_card(how, store, board, stopped=stopped))
        said = f"{len(made)} artifacts; their lineage, and experts in words: {_address(card)}"
        get_run_logger().info(said)
        if how:
            manifests = [store.manifest(id) for id in how]
            measured = [m for m in manifests if "held_out_loss_nats" in m.metrics]  # the last of them are the symbols
            facts = brief((measured or manifests)[-1], store.root.name)
            _rename(client, f"chain-{_digits(manifests[-1])}", facts)
            _tag(client, [f"{name}:{value}" for name, value in facts.items()])
        return said


def _rename(client: SyncPrefectClient, name: str, said: Mapping[str, str]) -> None:
    if not is_typed(flow_run.name):
        shown = [f"{word} {said[word]}" for word in ("loss", "seed") if word in said]
        client.update_flow_run(UUID(flow_run.id), name=" · ".join([name, *shown]))


def _tag(client: SyncPrefectClient, tags: list[str]) -> None:
    """Adds these to the tags that the run's deployment, or a person, has given it."""
    own = [tag for tag in flow_run.tags if tag not in tags]
    client.update_flow_run(UUID(flow_run.id), tags=[*tags, *own])


def _address(link: str) -> str:
    """A link of the UI as an address, which it makes a link of again where it stands in a log."""
    return f"{(PREFECT_API_URL.value() or '').removesuffix('/api')}{link}"


def _digits(manifest: Manifest) -> str:
    """Eight digits of the fingerprint, and the attempt from the second on."""
    fingerprint, tilde, attempt = manifest.short.partition("~")
    return fingerprint[:8] + tilde + attempt


def _how(made: Made) -> str:
    return "reused" if made.reused else f"made in {duration(made.seconds)}"


def mark_crashed() -> None:
    """Runs whose process was killed say so: without this they would go on in the UI for ever."""
    lost = gone(RUNNING)
    if not lost:
        return
    crashed = Crashed(message="Its process is gone. The same command goes on from the last checkpoint.")
    with get_client(sync_client=True) as client:
        for run_id in lost:
            these = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run_id)]))
            within = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(run_id)]))
            for run in [*client.read_flow_runs(flow_run_filter=these), *client.read_flow_runs(flow_run_filter=within)]:
                if run.state is None or not run.state.is_final():
                    client.set_flow_run_state(run.id, crashed, force=True)
            for one in client.read_task_runs(flow_run_filter=these):
                if one.state is None or not one.state.is_final():
                    client.set_task_run_state(one.id, crashed, force=True)
            forget(run_id, RUNNING)


@contextmanager
def connected(*, ui: bool = False, port: int | None = None) -> Iterator[str]:
    """Within it, flows are recorded: by the server of PREFECT_API_URL, else that of `ui`, else a temporary one."""
    ready(HOME)
    if given := PREFECT_API_URL.value():
        url = given.removesuffix("/api")
        auth = own_auth(url, HOME)
        with temporary_settings({PREFECT_API_AUTH_STRING: auth} if auth else {}):
            _check_answer(given)
            mark_crashed()
            yield url
        return
    url = announced(HOME)
    if url is None and ui:
        stack = ExitStack()
        atexit.register(stack.close)
        url = stack.enter_context(announced_server(port_for(port), home=HOME))
    elif url:
        print(f"recorded by the UI's server at {url}: leave it running until this ends", file=sys.stderr)
    else:
        own = _early or begun(HOME)
        url = own.wait()
    with _settings_for(url):
        mark_crashed()
        yield url


def _settings_for(url: str) -> Any:
    # Without /v2 the links that Prefect logs lead to its old UI, which draws no Mermaid. Heartbeats serve Prefect
    # Cloud alone, and ending each flow's costs a second.
    return temporary_settings(
        {
            PREFECT_API_URL: f"{url}/api",
            PREFECT_API_AUTH_STRING: auth_string(HOME),
            PREFECT_UI_URL: f"{url}/v2",
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        }
    )


def _check_answer(api: str) -> None:
    """ValueError if no server of Prefect's answers there, or if it does not take our word."""
    with get_client(sync_client=True, httpx_settings={"timeout": SECONDS_TO_ANSWER}) as client:
        refused = client.api_healthcheck()
        if refused is None:
            try:
                client.api_version()
            except (PrefectHTTPStatusError, JSONDecodeError) as error:
                refused = error
    if refused is not None:
        said = " ".join(str(refused).split())[:200] or type(refused).__name__
        raise Mistake(
            f"PREFECT_API_URL is {api}, which does not answer as a Prefect server ({said}); start it, unset "
            "PREFECT_API_URL to have one started here, or set PREFECT_API_AUTH_STRING if it asks for one"
        )


def main_run(command: RunCommand) -> int:
    require_named(command)
    start = time.monotonic()
    say_before(command.said, command.device)
    with connected():
        state = chain(
            **plan_written(command.plan), store=str(command.store), seed=command.seed, device=command.device,
            again_from=command.again_from, return_state=True,
        )  # fmt: skip
        print_results(_result(state), Store(command.store), time.monotonic() - start)
    return 0


def main_stage(command: StageCommand) -> int:
    require_named(command)
    start = time.monotonic()
    say_before(command.said, command.device)
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
    if url := announced(HOME):
        print(f"Prefect's UI is at {link(url, own_auth(url, HOME), '/v2')} already")
        return 0
    with announced_server(port_for(command.port), home=HOME) as url:
        with _settings_for(url):
            mark_crashed()
        try:
            print(f"Prefect's UI is at {link(url, auth_string(HOME), '/v2')} (Ctrl-C ends it)")
            print(f"the lineage of all runs is at {link(url, auth_string(HOME), '/v2/artifacts')}")
            print("these links open the UI to whoever has them: they hold this home's auth string", flush=True)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("ended")
    return 0


def main_serve(command: ServeCommand) -> int:
    os.chdir(ROOT)  # deployments name this file relative to the working directory
    allow(command.allow)
    with connected(ui=True, port=command.port) as url:
        print(f"runs started at {link(url, own_auth(url, HOME), '/v2/deployments')} happen here (Ctrl-C ends it)")
        print(f"they read and write below {' and '.join(map(str, command.allow))} alone", flush=True)
        serve(*(deployed(name, tags, flow) for name, tags, flow in served()))
    return 0


def served() -> Iterator[tuple[str, list[str], Flow[..., Any]]]:
    """Name, tags and flow of each deployment. Prefect's UI sorts by name: numbers put them in the chain's order."""
    yield "00-chain", ["whole chain"], chain
    for number, step in enumerate(CHAIN, start=1):
        where = "beside the chain" if step.name in BESIDE else "in the chain"
        yield f"{number:02}-{step.name}", [where], FLOWS[step.name]


def deployed(name: str, tags: list[str], flow: Flow[..., Any]) -> RunnerDeployment:
    """The flow as a deployment whose form is ours."""
    made = cast(RunnerDeployment, flow.to_deployment(name=name, tags=tags))
    # There is no other way: Prefect takes the schema from the signature, and it would fill every field in, so that a
    # preset could say nothing, and head them by the names of parameters.
    made._parameter_openapi_schema = flow.parameters
    return made


def main_republish(command: RepublishCommand) -> int:
    store = Store(command.store)
    with connected(), get_client(sync_client=True) as client:
        board = PrefectBoard(client)
        pinned, rewritten = pin_all(store, board)
        if latest := store.latest():
            pin_run_card({m.id: "in the store" for m in reversed(store.ancestry(latest))}, store, board)
    print(
        f"{pinned} cards written, {rewritten} brought up to date; `python flows.py ui` shows them under /v2/artifacts"
    )
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
        case RepublishCommand():
            return main_republish(command)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(_commands[0])))
