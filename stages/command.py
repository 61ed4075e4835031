"""The command line, read into plain data. Flags come from the configs' fields, and pydantic checks every value."""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from artifacts import ArtifactError, ArtifactId, StdoutError, Store, show_every_text, store_folder, told
from pipeline.corpus.sources import require_sources
from pipeline.run import check_seed
from pipeline.stage import Device, Made, StageConfig, chosen_device
from stages.plan import CHAIN, PRESETS, Plan, Step, did_you_mean, inputs_of, plain, preset_of, step_of
from stages.prepare_corpus import PrepareCorpusConfig

ROOT = Path(__file__).resolve().parents[1]
# Not all below ROOT: installed, our packages lie among those of others.
_OUR_CODE = tuple(ROOT / name for name in ("artifacts", "kernels", "pipeline", "stages", "flows.py"))


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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and takes no beginnings of flags."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **settings)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` says more")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        values, rest = self.parse_known_args([_dashed(argument) for argument in arguments])
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            flag = next((word for word in rest if word.startswith("-")), rest[0])
            flag = flag.partition("=")[0]
            raise ValueError(f"unknown argument {flag!r}{did_you_mean(flag, flags)}; `{self.prog} --help` lists all")
        return values


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=12, width=110)


def _dashed(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def read(arguments: Sequence[str]) -> Command:
    """The command of `python flows.py ...`. ValueError in one sentence for a mistake; --help exits."""
    parser = _Parser(prog="python flows.py", description="From text to models whose experts can be read.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (_, summary) in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    chosen = parser.parse_args(arguments[:1]).command
    return _COMMANDS[chosen][0](arguments[1:])


def read_run(arguments: Sequence[str]) -> RunCommand:
    parser = _Parser(prog="python flows.py run", description="Run the whole chain; what the store has is reused.")
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
    _add_fields(parser, plan)
    values = vars(parser.read(arguments))
    plan = _overridden(plan, values)
    if values["corpus"]:
        plan = plan.with_sources(tuple(values["corpus"]))
    if values["preset"] == "shakespeare" and not plan.prepare_corpus.sources:
        raise ValueError("preset 'shakespeare' has no text of its own; give it one with --corpus PATH")
    again_from = values["again_from"] and step_of(values["again_from"]).name
    if again_from and again_from not in plan.chain:
        raise ValueError(f"--from: {again_from} is not in this run; it goes through {', '.join(plan.chain)}")
    return RunCommand(plan=plan, again_from=again_from, **_common(values))


def read_stage(arguments: Sequence[str], prog: str = "python flows.py stage") -> StageCommand:
    step = _step(arguments, prog)
    parser = _Parser(prog=f"{prog} {step.name}", description=step.stage.summary)
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
    _add_fields(parser, plan.config_of(step), "config")
    values = vars(parser.read(arguments))
    return StageCommand(
        step=step,
        plan=plan,
        planned=values["preset"] is not None,
        config=_overridden(plan.config_of(step), values, "config"),
        given={role: values[role] for role in step.inputs if values[role] is not None},
        force=values["force"],
        **_common(values),
    )


def _step(arguments: Sequence[str], prog: str) -> Step:
    """The step named by the first argument; --help instead lists them all."""
    parser = _Parser(prog=prog, description="Run one stage. Missing inputs are made first.")
    stages = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    for step in CHAIN:
        stages.add_parser(step.name, help=step.stage.summary, add_help=False)
    if arguments and not arguments[0].startswith("-"):
        return step_of(arguments[0])
    parser.parse_args(arguments[:1])
    raise AssertionError("argparse has exited or raised")


def read_ui(arguments: Sequence[str]) -> UiCommand:
    parser = _Parser(prog="python flows.py ui", description="Serve Prefect's UI over the history of all runs.")
    _add_port(parser)
    return UiCommand(port=parser.read(arguments).port)


def read_serve(arguments: Sequence[str]) -> ServeCommand:
    parser = _Parser(
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
    parser = _Parser(
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


def _add_port(parser: _Parser) -> None:
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


def _add_preset(parser: _Parser, arguments: Sequence[str]) -> Plan:
    """Adds --preset, and reads it ahead of the rest: the other flags' defaults are the preset's."""
    presets = "; ".join(f"{name}: {preset.__doc__}" for name, preset in PRESETS.items())
    help = f"where settings start from (default: tiny). {presets}".replace("%", "%%")
    for target in (parser, ahead := _Parser(add_help=False)):
        target.add_argument("--preset", metavar="NAME", help=help)
    name = ahead.parse_known_args([_dashed(argument) for argument in arguments])[0].preset or "tiny"
    return preset_of(name.replace("-", "_"))


def _add_store(parser: _Parser) -> None:
    parser.add_argument(
        "--store", type=store_folder, default="store", metavar="DIR", help="folder of the artifacts (default: store)"
    )


def _add_common(parser: _Parser) -> None:
    _add_store(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: 0)")
    parser.add_argument("--device", choices=get_args(Device), default="cpu", help="where tensors are (default: cpu)")


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    chosen_device(values["device"])
    check_seed(values["seed"])
    return {"store": values["store"].absolute(), "seed": values["seed"], "device": values["device"]}


M = TypeVar("M", bound=BaseModel)


def _add_fields(parser: _Parser, model: BaseModel, *path: str) -> None:
    """A flag for every field of the model and of the models in it, in groups."""
    group = parser.add_argument_group(_flag(path).lstrip("-") or "plan", (type(model).__doc__ or "").split("\n")[0])
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            _add_fields(parser, value, *path, name)
            continue
        text = f"{info.description or 'fixed'} (default: {_shown(value)})".replace("%", "%%")
        many = isinstance(value, tuple)
        group.add_argument(
            _flag((*path, name)), dest=".".join((*path, name)), default=argparse.SUPPRESS,
            metavar=_metavar(info.annotation), nargs="*" if many else None, help=text,
        )  # fmt: skip


def _flag(path: Sequence[str]) -> str:
    return "--" + ".".join(path).replace("_", "-")


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0].__name__.upper()
    return annotation.__name__.upper()


def _overridden(model: M, values: Mapping[str, Any], *path: str) -> M:
    """The model with the values that were given for its fields, checked as a whole."""
    given = {
        tuple(name.split("."))[len(path) :]: value for name, value in values.items() if _is_field(name, model, path)
    }
    try:
        return type(model).model_validate(_merged(plain(model), given))
    except ValidationError as error:
        raise ValueError(invalid(error, lambda loc: _flag((*path, *loc)))) from None


def _is_field(name: str, model: BaseModel, path: Sequence[str]) -> bool:
    parts = name.split(".")
    return (
        parts[: len(path)] == list(path)
        and parts[len(path) :][:1] != []
        and parts[len(path)] in type(model).model_fields
    )


def _merged(plain: dict[str, Any], given: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The nested dicts with other values at the given paths."""
    for (*above, name), value in given.items():
        place = plain
        for part in above:
            place = place[part]
        place[name] = value
    return plain


def invalid(error: ValidationError, name: Callable[[tuple[str, ...]], str] = ".".join) -> str:
    """One sentence for pydantic's error: the fields, what they got, what was wanted."""
    return "; ".join(_one_invalid(problem, name) for problem in error.errors(include_url=False))


def _one_invalid(problem: Mapping[str, Any], name: Callable[[tuple[str, ...]], str]) -> str:
    where = name(tuple(str(part) for part in problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if problem["loc"] else message
    return f"{where}: got {problem['input']!r}, wanted: {message}"


def require_named(command: RunCommand | StageCommand) -> None:
    """ValueError or ArtifactError where text or artifacts that were named are not there, before a run is recorded."""
    config = command.plan.prepare_corpus if isinstance(command, RunCommand) else command.config
    if isinstance(config, PrepareCorpusConfig):
        require_sources(config.sources)
    if isinstance(command, StageCommand):
        store = Store(command.store)
        for role, id in command.given.items():
            _require_kind(store, id, command.step.stage.inputs[role].kinds)


def _require_kind(store: Store, id: str, kinds: tuple[str, ...]) -> None:
    manifest = store.manifest(store.resolve(id, kind=kinds))
    if manifest.kind not in kinds:
        raise ArtifactError(
            f"{manifest.id} is a {manifest.kind!r}, made by {manifest.lineage.stage!r}; "
            f"a {' or '.join(map(repr, kinds))} was needed here"
        )


Make = Callable[[Step, StageConfig, Mapping[str, ArtifactId], bool], Made]
"""Makes (step, config, inputs, force)."""


def make_one(command: StageCommand, make: Make) -> Iterator[Made]:
    """The artifacts of inputs that had to be made first, then the stage's own."""
    made: list[Made] = []

    def make_input(step: Step, inputs: Mapping[str, ArtifactId]) -> ArtifactId:
        made.append(make(step, command.plan.config_of(step), inputs, False))
        return made[-1].id

    plan = command.plan if command.planned else None
    inputs = inputs_of(command.step, command.given, Store(command.store), make_input, plan=plan)
    yield from made
    yield make(command.step, command.config, inputs, command.force)


def exit_code(action: Callable[[], int]) -> int:
    """What `action` returns; 2 after one sentence for a user's mistake, 130 after Ctrl-C. Bugs keep their traceback."""
    show_every_text()
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    except StdoutError as error:
        if error.reader_left:
            return 0
        print(told(error), file=sys.stderr)  # noqa: T201
        return 2
    except (ValueError, RuntimeError, ArtifactError) as error:
        if not is_told(error):
            raise
        said = ValueError(invalid(error)) if isinstance(error, ValidationError) else error
        print(told(said), file=sys.stderr)  # noqa: T201
        return 2


def is_told(error: Exception) -> bool:
    """Whether the error was raised on purpose, with a sentence for the user: by a `raise` in our own code."""
    if isinstance(error, ArtifactError | ValidationError):
        return True
    if type(error) not in (ValueError, RuntimeError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename).resolve()
    ours = any(file.is_relative_to(place) for place in _OUR_CODE)
    return ours and (last.line or "").startswith("raise ")
