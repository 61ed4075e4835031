"""The command line, read into plain data. Flags come from the configs' fields, and pydantic checks every value.

`--help` shows what is used every day, at once (stages/help.py); `--help-all` every field of every config.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from artifacts import Store, store_folder
from kernels.errors import Mistake
from pipeline.run import check_seed
from pipeline.stage import Device, StageConfig, chosen_device
from stages.chain import CHAIN, Step, step_of
from stages.everyday import everyday
from stages.like import Settings, settings_of
from stages.parser import Group, Parser, add_fields, add_some_fields, dashed, overridden
from stages.plan import Plan
from stages.presets import DEFAULT, PRESETS, preset_of
from stages.scaling import MOST, factor, scaled, scaling_said
from stages.settings import leaves

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCommand:
    plan: Plan
    store: Path
    seed: int
    device: Device
    again_from: str | None
    said: str
    """What is to be told before it starts; empty if nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCommand:
    step: Step
    plan: Plan
    """Settings of the stages whose artifacts are missing."""
    planned: bool
    """Whether a preset was named: then inputs that are not given are those made with its settings."""
    config: StageConfig
    given: Mapping[str, str]
    """The inputs that were named, by role."""
    store: Path
    seed: int
    device: Device
    force: bool
    said: str
    """What is to be told before it starts; empty if nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UiCommand:
    port: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeCommand:
    port: int | None
    allow: tuple[Path, ...]
    """Folders below which served runs may read text and keep their stores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepublishCommand:
    store: Path


Command = RunCommand | StageCommand | UiCommand | ServeCommand | RepublishCommand


def read(arguments: Sequence[str]) -> Command:
    """The command of `python flows.py ...`. ValueError in one sentence for a mistake; --help exits."""
    parser = Parser(prog="python flows.py", description="From text to models whose experts can be read.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    chosen = parser.parse_args(arguments[:1]).command
    return COMMANDS[chosen][0](arguments[1:])


def read_run(arguments: Sequence[str]) -> RunCommand:
    plan = _preset(arguments)
    _show_help(arguments, lambda: run_help(plan), lambda: _run_parser(plan))
    values = vars(_run_parser(plan).read(arguments))
    said = ""
    if by := values["scale"]:
        start, plan = plan, scaled(plan, by)
        said = scaling_said(by, {step.name: (start.config_of(step), plan.config_of(step)) for step in plan.steps()})
    plan = overridden(plan, values)
    if values["corpus"]:
        plan = plan.with_sources(tuple(values["corpus"]))
    if values["preset"] == "shakespeare" and not plan.prepare_corpus.sources:
        raise Mistake("preset 'shakespeare' has no text of its own; give it one with --corpus PATH")
    again_from = values["again_from"] and step_of(values["again_from"]).name
    if again_from and again_from not in plan.chain:
        raise Mistake(f"--from: {again_from} is not in this run; it goes through {', '.join(plan.chain)}")
    return RunCommand(plan=plan, again_from=again_from, said=said, **_common(values))


def _run_parser(plan: Plan) -> Parser:
    """With a flag for every setting of the plan."""
    parser = Parser(
        prog="python flows.py run",
        usage="%(prog)s [options]",
        description=_ABOUT_RUN + _presets(),
        add_help=False,
    )
    _add_run_options(parser)
    add_fields(parser, plan)
    return parser


def run_help(plan: Plan) -> Parser:
    """The same with the settings of every day alone, for one screen."""
    parser = Parser(
        prog="python flows.py run",
        usage="%(prog)s [--preset NAME] [--corpus TEXT ...] [options]",
        description=_ABOUT_RUN + _presets(),
        epilog="The settings of one stage: python flows.py stage NAME --help",
        add_help=False,
    )
    _add_run_options(parser)
    group = parser.add_argument_group(f"any of {len(leaves(plan))} settings, such as")
    add_some_fields(group, plan, _SHOWN_OF_RUN)
    return parser


_ABOUT_RUN = "From text to models whose experts can be read. What the store has is reused.\n\n"
_SHOWN_OF_RUN = frozenset(
    ("train_monet.training.steps", "train_monet.training.learning_rate", "distill_peer.num_experts")
)


def _presets() -> str:
    """A line for each preset: what it takes."""
    return "\n".join(["presets:", *(f"  {name:<11} {preset.__doc__}" for name, preset in PRESETS.items())])


def _add_run_options(parser: Parser) -> None:
    parser.add_argument("--preset", metavar="NAME", help=f"where settings start from (default: {DEFAULT})")
    _add_scale(parser)
    parser.add_argument(
        "--corpus", nargs="+", metavar="TEXT", help="files, folders or hf:NAME to read, each optionally after domain="
    )  # fmt: skip
    _add_common(parser)
    parser.add_argument(
        "--from", dest="again_from", metavar="STAGE", help="make this stage and all that is made from it again"
    )
    _add_help(parser)


def read_stage(arguments: Sequence[str], prog: str = "python flows.py stage") -> StageCommand:
    step = _step(arguments, prog)
    plan = _preset(arguments)
    _show_help(arguments, lambda: stage_help(step, plan, prog), lambda: _stage_parser(step, plan, prog))
    values = vars(_stage_parser(step, plan, prog).read(arguments))
    given = {role: values[role] for role in step.inputs if values[role] is not None}
    start = config = plan.config_of(step)
    if like := _like(step, values):
        start = config = like.config
        given = {**like.inputs, **given}
        values["seed"] = like.seed if values["seed"] is None else values["seed"]
    said = ""
    if by := values["scale"]:
        config, plan = scaled(start, by), scaled(plan, by)
        said = scaling_said(by, {step.name: (start, config)})
    return StageCommand(
        step=step,
        plan=plan,
        planned=values["preset"] is not None,
        config=overridden(config, values, "config"),
        given=given,
        force=values["force"],
        said=said,
        **_common(values),
    )


def _like(step: Step, values: Mapping[str, Any]) -> Settings | None:
    if values["like"] is None:
        return None
    if values["preset"] is not None:
        raise Mistake("--like and --preset both say where settings start from; give one of them")
    names_sources = "config.sources" in values
    return settings_of(values["like"], step, Store(values["store"]), names_sources=names_sources)


def _stage_parser(step: Step, plan: Plan, prog: str) -> Parser:
    """With a flag for every setting of the stage."""
    parser = Parser(
        prog=f"{prog} {step.name}", usage="%(prog)s [options]", description=step.stage.summary, add_help=False
    )
    parser.add_argument("stage", metavar=step.name, help=argparse.SUPPRESS)
    _add_stage_options(parser, step)
    add_fields(parser, plan.config_of(step), "config")
    return parser


def stage_help(step: Step, plan: Plan, prog: str) -> Parser:
    """The same with the settings of every day alone."""
    config = plan.config_of(step)
    shown, count = everyday(config), len(leaves(config))
    title = "settings" if len(shown) == count else f"settings of every day, {len(shown)} of {count}"
    parser = Parser(
        prog=f"{prog} {step.name}", usage="%(prog)s [options]", description=step.stage.summary, add_help=False
    )
    _add_stage_options(parser, step)
    add_some_fields(parser.add_argument_group(title), config, {f"config.{path}" for path in shown}, "config")
    return parser


def _add_stage_options(parser: Parser, step: Step) -> None:
    if step.inputs:
        inputs = parser.add_argument_group(
            "inputs", "An id, its beginning, or 'latest'. One that is not given is the one that the others come from, "
            "the latest that there is (with --preset: by its settings), or is made first."
        )  # fmt: skip
        for role, producer in step.inputs.items():
            kinds = " or ".join(step.stage.inputs[role].kinds)
            inputs.add_argument(f"--{role}", metavar="ID", help=f"a {kinds}; the chain's is made by {producer}")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--preset", metavar="NAME", help=f"where settings start from: {', '.join(PRESETS)} (default: {DEFAULT})"
    )
    run.add_argument(
        "--like", metavar="ID", help=f"start from the settings, inputs and seed of this artifact of {step.name}"
    )
    _add_scale(run)
    _add_common(run)
    run.add_argument("--force", action="store_true", help="make it again even if the store has it")
    _add_help(run)


def _show_help(arguments: Sequence[str], short: Callable[[], Parser], full: Callable[[], Parser]) -> None:
    """Prints help and ends Python, if that is asked for."""
    asked = {"-h", "--help", "--help-all"}.intersection(map(dashed, arguments))
    if asked:
        (full if "--help-all" in asked else short)().print_help()
        sys.exit(0)


def _add_help(parser: Parser | Group) -> None:
    """For help to name them; `_show_help` has seen to them before a parser reads."""
    parser.add_argument("-h", "--help", action="store_true", help="show this")
    parser.add_argument("--help-all", action="store_true", help="show every setting with its range and its default")


def _step(arguments: Sequence[str], prog: str) -> Step:
    """The step named by the first argument; --help instead lists them all."""
    parser = Parser(prog=prog, description="Run one stage. Missing inputs are made first.")
    stages = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    for step in CHAIN:
        stages.add_parser(step.name, help=step.stage.summary, add_help=False)
    if arguments and not arguments[0].startswith("-"):
        return step_of(arguments[0])
    parser.parse_args(arguments[:1])
    raise AssertionError("argparse has exited or raised")


def read_ui(arguments: Sequence[str]) -> UiCommand:
    parser = Parser(prog="python flows.py ui", description="Serve Prefect's UI over the history of all runs.")
    _add_port(parser)
    return UiCommand(port=parser.read(arguments).port)


def read_serve(arguments: Sequence[str]) -> ServeCommand:
    parser = Parser(
        prog="python flows.py serve",
        description="Run what is started from the UI: a deployment a stage, and the chain.",
    )
    _add_port(parser)
    parser.add_argument(
        "--allow", action="append", type=_folder, metavar="DIR", help="take what served runs read, and their stores, "
        "only below this folder; may be given more than once (default: the project's own folder)"
    )  # fmt: skip
    values = parser.read(arguments)
    return ServeCommand(port=values.port, allow=tuple(values.allow or [ROOT]))


def read_republish(arguments: Sequence[str]) -> RepublishCommand:
    parser = Parser(
        prog="python flows.py republish",
        description="Write the cards of everything in the store into Prefect's UI: into an emptied one, or after a "
        "store came from elsewhere. Cards that are there are brought up to date.",
    )
    _add_store(parser)
    return RepublishCommand(store=parser.read(arguments).store.absolute())


COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], Command], str]] = {
    "run": (read_run, "run the whole chain; unchanged stages are reused"),
    "stage": (read_stage, "run one stage"),
    "ui": (read_ui, "serve Prefect's UI"),
    "serve": (read_serve, "run what is started from the UI"),
    "republish": (read_republish, "write the cards of everything in the store into the UI"),
}


def _add_port(parser: Parser) -> None:
    parser.add_argument(
        "--port", type=_port, help="port on 127.0.0.1, 1 to 65535 (default: 4200, or a free one where that is taken)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted: a port, 1 to 65535")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}; make it, or name another one")
    return Path(text).resolve()


def _preset(arguments: Sequence[str]) -> Plan:
    """The plan that --preset names, read ahead of the rest: the other flags' defaults are the preset's."""
    ahead = Parser(add_help=False)
    ahead.add_argument("--preset")
    name = ahead.parse_known_args([dashed(argument) for argument in arguments])[0].preset or DEFAULT
    return preset_of(name.replace("-", "_"))


def _add_scale(parser: Parser | Group) -> None:
    parser.add_argument(
        "--scale", type=factor, metavar="FACTOR", help=f"multiply the preset's training steps by this, above 0, at "
        f"most {MOST:g}; below 1 also the tokens that are measured"
    )  # fmt: skip


def _add_store(parser: Parser | Group) -> None:
    parser.add_argument(
        "--store", type=store_folder, default="store", metavar="DIR", help="folder of the artifacts (default: store)"
    )


def _add_common(parser: Parser | Group) -> None:
    _add_store(parser)
    parser.add_argument("--seed", type=int, metavar="INT", help="seed of all randomness (default: 0)")
    parser.add_argument("--device", choices=get_args(Device), default="cpu", help="where tensors are (default: cpu)")


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    chosen_device(values["device"])
    seed = 0 if values["seed"] is None else values["seed"]
    check_seed(seed)
    return {"store": values["store"].absolute(), "seed": seed, "device": values["device"]}
