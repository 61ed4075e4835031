"""The command line, read into plain data. Flags come from the configs' fields, and pydantic checks every value."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from artifacts import store_folder
from kernels.errors import Mistake
from pipeline.run import check_seed
from pipeline.stage import Device, StageConfig, chosen_device
from stages.chain import CHAIN, Step, step_of
from stages.parser import Parser, add_fields, dashed, overridden
from stages.plan import Plan
from stages.presets import PRESETS, preset_of

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCommand:
    plan: Plan
    store: Path
    seed: int
    device: Device
    again_from: str | None


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
    for name, (_, summary) in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    chosen = parser.parse_args(arguments[:1]).command
    return _COMMANDS[chosen][0](arguments[1:])


def read_run(arguments: Sequence[str]) -> RunCommand:
    parser = Parser(prog="python flows.py run", description="Run the whole chain; what the store has is reused.")
    plan = _add_preset(parser, arguments)
    _add_common(parser)
    parser.add_argument(
        "--corpus", nargs="+", metavar="TEXT", help="PATH, domain=PATH or hf:NAME to read text from, instead of the "
        "preset's; the same as --prepare-corpus.sources"
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="again_from", metavar="STAGE", help="make this stage and all that is made from it again, "
        "even what the store has"
    )  # fmt: skip
    add_fields(parser, plan)
    values = vars(parser.read(arguments))
    plan = overridden(plan, values)
    if values["corpus"]:
        plan = plan.with_sources(tuple(values["corpus"]))
    if values["preset"] == "shakespeare" and not plan.prepare_corpus.sources:
        raise Mistake("preset 'shakespeare' has no text of its own; give it one with --corpus PATH")
    again_from = values["again_from"] and step_of(values["again_from"]).name
    if again_from and again_from not in plan.chain:
        raise Mistake(f"--from: {again_from} is not in this run; it goes through {', '.join(plan.chain)}")
    return RunCommand(plan=plan, again_from=again_from, **_common(values))


def read_stage(arguments: Sequence[str], prog: str = "python flows.py stage") -> StageCommand:
    step = _step(arguments, prog)
    parser = Parser(prog=f"{prog} {step.name}", description=step.stage.summary)
    parser.add_argument("stage", metavar=step.name, help="the stage to run")
    plan = _add_preset(parser, arguments)
    _add_common(parser)
    parser.add_argument("--force", action="store_true", help="make it again even if the store has it")
    for role, producer in step.inputs.items():
        kinds = " or ".join(step.stage.inputs[role].kinds)
        parser.add_argument(
            f"--{role}", metavar="ID", help=f"the {kinds} to use: an id, its beginning, or 'latest'; if not given, "
            f"the one that the other inputs come from, or the latest that {producer} made (with --preset: by its "
            "settings), or one made first"
        )  # fmt: skip
    add_fields(parser, plan.config_of(step), "config")
    values = vars(parser.read(arguments))
    return StageCommand(
        step=step,
        plan=plan,
        planned=values["preset"] is not None,
        config=overridden(plan.config_of(step), values, "config"),
        given={role: values[role] for role in step.inputs if values[role] is not None},
        force=values["force"],
        **_common(values),
    )


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
        "--allow", action="append", type=_folder, metavar="DIR", help="take `store` and `sources` of served runs only "
        "below this folder; may be given more than once (default: the project's own folder)"
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


_COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], Command], str]] = {
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


def _add_preset(parser: Parser, arguments: Sequence[str]) -> Plan:
    """Adds --preset, and reads it ahead of the rest: the other flags' defaults are the preset's."""
    presets = "; ".join(f"{name}: {preset.__doc__}" for name, preset in PRESETS.items())
    help = f"where settings start from (default: tiny). {presets}".replace("%", "%%")
    for target in (parser, ahead := Parser(add_help=False)):
        target.add_argument("--preset", metavar="NAME", help=help)
    name = ahead.parse_known_args([dashed(argument) for argument in arguments])[0].preset or "tiny"
    return preset_of(name.replace("-", "_"))


def _add_store(parser: Parser) -> None:
    parser.add_argument(
        "--store", type=store_folder, default="store", metavar="DIR", help="folder of the artifacts (default: store)"
    )


def _add_common(parser: Parser) -> None:
    _add_store(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: 0)")
    parser.add_argument("--device", choices=get_args(Device), default="cpu", help="where tensors are (default: cpu)")


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    chosen_device(values["device"])
    check_seed(values["seed"])
    return {"store": values["store"].absolute(), "seed": values["seed"], "device": values["device"]}
