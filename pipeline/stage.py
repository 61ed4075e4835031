"""The contract of a stage, and `run_stage`: the one place where stages meet the store."""

import inspect
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from artifacts import Artifact, ArtifactError, ArtifactId, Circumstance, Recipe, Store, code_of_process
from kernels.backends import cpu_library
from kernels.errors import Mistake
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import require_windows
from pipeline.run import Progress, Run, check_seed, running

Device = Literal["cpu", "cuda"]


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


V = TypeVar("V", bound=codec.Persistent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Output(Generic[V]):
    """What a stage returns: its value, metrics named with their unit, and named files (plots, pages)."""

    value: V
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """An artifact's facts without its tensors, for stages that report on what others measured."""

    id: str
    kind: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, ArtifactId]
    """What it was made from, by role."""
    spec: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One declared input of a stage."""

    kinds: tuple[str, ...]
    measured: bool
    """True where the stage takes the artifact's `Measured` facts instead of its value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    name: str
    version: int
    fn: Callable[..., Output[Any]]
    config_type: type[StageConfig]
    inputs: Mapping[str, Role]
    sources: Callable[[Any], str] | None
    """Digest of what the stage reads outside the store; `prepare-corpus` and imports have one."""

    @property
    def summary(self) -> str:
        """First line of the stage's docstring."""
        return inspect.getdoc(self.fn).split("\n")[0]  # type: ignore[union-attr]


def stage(
    *, name: str, version: int, sources: Callable[[Any], str] | None = None
) -> Callable[[Callable[..., Output[Any]]], Stage]:
    """Makes a Stage of `fn(config, *, <role>: Annotated[<Type>, "<kind>", ...]) -> Output`.

    The signature is the declaration: the first parameter's type is the config, every keyword-only one is an input.
    `version` is raised by hand when the same config must no longer give the same artifact.
    """

    def wrap(fn: Callable[..., Output[Any]]) -> Stage:
        hints = typing.get_type_hints(fn, include_extras=True)
        parameters = list(inspect.signature(fn).parameters.values())
        roles = {p.name: _role(name, p.name, hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}
        return Stage(
            name=name,
            version=version,
            fn=fn,
            config_type=hints[parameters[0].name],
            inputs=roles,
            sources=sources,
        )

    return wrap


def _role(stage_name: str, role: str, hint: Any) -> Role:
    kinds = tuple(k for k in getattr(hint, "__metadata__", ()) if isinstance(k, str))
    if not kinds:
        raise TypeError(f"input {role!r} of stage {stage_name!r} names no artifact kind; write Annotated[Type, 'kind']")
    return Role(kinds=kinds, measured=typing.get_args(hint)[0] is Measured)


def recipe_of(stage: Stage, config: StageConfig, inputs: Mapping[str, ArtifactId], seed: int) -> Recipe:
    """What identifies the artifact: everything that was asked for, nothing of when or where it ran."""
    if inputs.keys() != stage.inputs.keys():
        raise Mistake(
            f"stage {stage.name!r} takes the inputs {', '.join(stage.inputs) or '(none)'}; "
            f"it got {', '.join(inputs) or '(none)'}"
        )
    check_seed(seed)
    return Recipe(
        stage=stage.name,
        stage_version=stage.version,
        config=config.model_dump(mode="json"),
        seed=seed,
        inputs=dict(inputs),
        sources_sha256=stage.sources(config) if stage.sources else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """The artifact of a recipe, and whether the store already had it."""

    id: ArtifactId
    reused: bool
    seconds: float


def run_stage(
    stage: Stage,
    config: StageConfig,
    *,
    inputs: Mapping[str, ArtifactId],
    store: Store,
    seed: int = 0,
    device: torch.device | None = None,
    force: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Made:
    """The artifact that this recipe names: found if the store has it, else made and published.

    `force` makes it again: equal bytes keep the artifact, different ones become a new attempt beside it.
    ValueError for inputs that do not fit the stage, ArtifactError for what is wrong in the store.
    """
    recipe = recipe_of(stage, config, inputs, seed)
    if not force and (found := store.find(recipe)) is not None:
        return Made(id=found, reused=True, seconds=0.0)
    device = device or torch.device("cpu")
    opened = {role: store.open(inputs[role], kind=wanted.kinds) for role, wanted in stage.inputs.items()}
    values = {role: _value(opened[role], wanted, device) for role, wanted in stage.inputs.items()}
    for value in values.values():
        if isinstance(value, Corpus) and (length := longest_window(config)):
            require_windows(value, length)
    waiting = Progress(what="wait for another process that makes it", step=0, total=1, seconds=0.0)
    with store.checkpoints(recipe, anew=force, waiting=lambda: report(waiting)) as checkpoints:
        if not force and (found := store.find(recipe)) is not None:
            return Made(id=found, reused=True, seconds=0.0)  # the other process has made it
        code_of_process()  # before hours in which the checkout may move on
        start = time.monotonic()
        with running(Run(seed=seed, device=device, checkpoints=checkpoints, report=report)):
            output = stage.fn(config, **values)
        seconds = time.monotonic() - start
        _check_unchanged(opened, store)
        id = _publish(store, recipe, output, Circumstance.now(device=device_name(device), seconds=seconds))
    return Made(id=id, reused=False, seconds=time.monotonic() - start)


def longest_window(config: BaseModel) -> int:
    """The greatest context_length that the config has, or the configs in it; 0 where none has any."""
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    within = [longest_window(value) for value in fields.values() if isinstance(value, BaseModel)]
    return max(fields.get("context_length", 0), 0, *within)


def _publish(store: Store, recipe: Recipe, output: Output[Any], circumstance: Circumstance) -> ArtifactId:
    value = output.value
    return store.publish(
        recipe=recipe,
        kind=value.kind,
        spec=value.spec.model_dump(mode="json"),
        tensors={name: tensor.cpu() for name, tensor in value.to_tensors().items()},
        metrics=output.metrics,
        files={**value.to_files(), **output.files},
        circumstance=circumstance,
    )


def _check_unchanged(opened: Mapping[str, Artifact], store: Store) -> None:
    """ArtifactError if an input was removed, or made again with other bytes, since it was read."""
    for role, artifact in opened.items():
        if store.manifest(artifact.id).content_sha256 != artifact.manifest.content_sha256:
            raise ArtifactError(f"{artifact.id}, read as {role!r}, has other contents by now; run the stage again")


def _value(artifact: Artifact, role: Role, device: torch.device) -> Any:
    if role.measured:
        return Measured(
            id=artifact.id,
            kind=artifact.kind,
            stage=artifact.lineage.stage,
            config=artifact.lineage.config,
            inputs={role: ref.id for role, ref in artifact.lineage.inputs.items()},
            spec=artifact.spec,
            metrics=artifact.metrics,
            seconds=artifact.lineage.seconds,
        )
    value = codec.load(artifact)
    return value.to(device).eval() if isinstance(value, nn.Module) else value


def device_name(device: torch.device) -> str:
    """As lineage records it: the C++ kernels round otherwise than the stock ops, so which ran belongs to it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    library = cpu_library()
    return "cpu" if library is None else f"cpu, C++ kernels ({library.instruction_set})"


def chosen_device(name: str) -> torch.device:
    """The torch device of that name; ValueError where the machine has none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Mistake("device 'cuda' was asked for and no CUDA device is there; use --device cpu")
    return torch.device(name)
