"""What a person fills in to run a stage, or the chain, from the Prefect UI: signatures of flows, and schemas of forms.

Inputs come first, then a preset to start from, then everyday settings, which are the preset's where they are left
blank, then where to run; all other settings of a stage are folded. A field's title is its flag on the command line.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from artifacts.comparison import dotted
from pipeline.run import LEAST_SEED, MOST_SEED
from pipeline.stage import Device, StageConfig
from stages.chain import NAMES, Step, step_of
from stages.everyday import everyday
from stages.parser import flag_of, overridden
from stages.presets import DEFAULT, PRESETS, preset_of
from stages.settings import EXAMPLE, leaves, nearest, preset_names, require_known

REST = "rest"
MOST_INPUTS = 3
"""Of a stage with more, the form has the one that the others follow from."""

MOST_FIELDS = 7
"""Inputs and settings of a stage that its form asks for before it folds the others: a screen and a half."""


def everyday_of(step: Step) -> Sequence[str]:
    """Dotted names of the settings that the form of this stage asks for."""
    return everyday(preset_of(DEFAULT).config_of(step))[: MOST_FIELDS - len(shown_inputs(step))]


def shown_inputs(step: Step) -> list[str]:
    """Its inputs that have a field, the lowest of the chain first: all, or of many the one that decides the others."""
    is_few = len(step.inputs) <= MOST_INPUTS
    deciding = [role for role in step.inputs if is_few or role not in step.of]
    by_place = sorted(deciding, key=lambda role: NAMES.index(step.inputs[role]), reverse=True)
    return by_place if is_few else by_place[:1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of a form, and the parameter of the flow that it fills."""

    name: str
    title: str
    description: str
    schema: Mapping[str, Any] | None
    """Its type and bounds in JSON Schema; None for a parameter without a field."""
    annotation: Any
    default: Any = None
    """None where blank means what the preset says."""


def fields_of(step: Step, default_store: str) -> list[Field]:
    """The form of one stage, in the order in which it is read."""
    return [
        *_inputs(step),
        _preset(),
        *(_everyday(step, name) for name in everyday_of(step)),
        *_where(default_store),
        Field(
            name="force",
            title="--force",
            description="Make it again even if the store has it.",
            schema={"type": "boolean"},
            annotation=bool,
            default=False,
        ),
        Field(
            name=REST,
            title="--config...",
            description="All settings of the stage. One that is left blank is the preset's, or as above.",
            schema={"anyOf": [{"type": "null", "title": "as above"}, _partial(step.stage.config_type)]},
            annotation=dict[str, Any] | None,
        ),
    ]


def chain_fields(default_store: str) -> list[Field]:
    """The form of a whole run: text, preset, stages and what is to be otherwise."""
    return [
        Field(
            name="corpus",
            title="--corpus",
            description="PATH, domain=PATH or hf:NAME to read text from. Blank: the preset's.",
            schema={"type": "array", "items": {"type": "string"}},
            annotation=list[str] | None,
        ),
        _preset(),
        Field(
            name="stages",
            title="--chain",
            description="Stages of the run; each needs those that make its inputs. Blank: the preset's.",
            schema={"type": "array", "items": {"type": "string", "enum": list(NAMES)}},
            annotation=list[str] | None,
        ),
        Field(
            name="settings",
            title="settings",
            description=f"What is to be otherwise: a line each, such as {EXAMPLE}, as on the command line; or JSON.",
            schema={"type": "string"},
            annotation=str,
            default="",
        ),
        *_where(default_store),
        Field(
            name="again_from",
            title="--from",
            description="Make this stage and all that is made from it again, even what the store has.",
            schema={"type": "string", "enum": list(NAMES)},
            annotation=str | None,
        ),
    ]


def signature(fields: list[Field]) -> inspect.Signature:
    """That of the flow behind the form."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(f.name, keyword, annotation=f.annotation, default=f.default)
                              for f in fields])  # fmt: skip


def schema(fields: list[Field]) -> dict[str, Any]:
    """The form in JSON Schema, as Prefect's UI shows it. A field that may be left blank has no default in it."""
    properties = {
        field.name: {
            **field.schema,
            "title": field.title,
            "description": field.description,
            "position": position,
            **({} if field.default is None else {"default": field.default}),
        }
        for position, field in enumerate(fields)
        if field.schema is not None
    }
    return {"title": "Parameters", "type": "object", "properties": properties, "required": [], "definitions": {}}


def description(summary: str, fields: list[Field]) -> str:
    """A docstring: the summary and a line for each parameter."""
    lines = "\n".join(f"    {field.name}: {field.description}" for field in fields)
    return f"{summary}\n\nArgs:\n{lines}"


def config_from(step: Step, preset: str, values: Mapping[str, Any]) -> StageConfig:
    """The stage's settings as the form was filled in: the preset's but for what was given. ValueError in a sentence."""
    base = preset_of(preset).config_of(step)
    given = {
        leaf: value
        for name, inner in (values.get(REST) or {}).items()
        for leaf, value in dotted(inner, name)
        if value is not None and value != {}  # not left blank
    }
    for name in given:
        require_known(f"--config of {step.name}", name, leaves(base))
    above = {name: values.get(_parameter(name)) for name in everyday_of(step)}
    given |= {name: value for name, value in above.items() if value is not None}
    return overridden(base, {f"config.{name}": value for name, value in given.items()}, "config")


def config_written(step: Step, config: StageConfig) -> dict[str, Any]:
    """What `config_from` makes this config of: the nearest preset, everyday settings, and what else is otherwise."""
    preset, others = nearest(config, lambda name: preset_of(name).config_of(step))
    own = leaves(config)
    above_fold = {_parameter(name): _listed(own[name]) for name in everyday_of(step)}
    rest: dict[str, Any] = {}
    for name, value in others.items():
        if name not in everyday_of(step):
            *above, last = name.split(".")
            place = rest
            for part in above:
                place = place.setdefault(part, {})
            place[last] = _listed(value)
    return {"preset": preset, **above_fold, REST: rest or None}


def given_inputs(step: Step, values: Mapping[str, Any]) -> dict[str, str]:
    """The inputs that were named, by role."""
    return {role: id for role in step.inputs if (id := values.get(role)) and id != "latest"}


def _parameter(name: str) -> str:
    """A setting's name in Python: the last part of its dotted one."""
    return name.rpartition(".")[2]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _inputs(step: Step) -> list[Field]:
    """A parameter a role; those that are shown have a field."""
    shown = shown_inputs(step)
    follows = "" if len(shown) == len(step.inputs) else " All other inputs follow from it."
    return [
        Field(
            name=role,
            title=f"--{role}",
            description=f"Id of the {' or '.join(step.stage.inputs[role].kinds)} to use, or latest.{follows}",
            schema={"type": "string"} if role in shown else None,
            annotation=str,
            default="latest",
        )
        for role in (*shown, *(role for role in step.inputs if role not in shown))
    ]


def _preset() -> Field:
    said = " ".join(f"{name}: {_first_words(preset)}." for name, preset in PRESETS.items())
    return Field(
        name="preset",
        title="--preset",
        description=f"Where settings start from. {said}",
        schema={"type": "string", "enum": list(PRESETS)},
        annotation=str,
        default=DEFAULT,
    )


def _first_words(preset: Callable[[], Any]) -> str:
    """What it takes: the end of its docstring."""
    said = (preset.__doc__ or "").rstrip(".")
    return said.rpartition(": ")[2]


def _everyday(step: Step, name: str) -> Field:
    *above, last = name.split(".")
    owner: type[BaseModel] = step.stage.config_type
    for part in above:
        owner = owner.model_fields[part].annotation  # type: ignore[assignment] - a config within a config
    found = owner.model_json_schema()["properties"][last]
    bounds = {key: value for key, value in found.items() if key not in ("default", "description", "title")}
    by_value: dict[str, list[str]] = {}
    for preset in preset_names():
        value = _of_preset(preset, step.name)[name]
        by_value.setdefault(_said(value), []).append(preset)
    (usual, _), *others = by_value.items()
    said = "; ".join([usual, *(f"{value} of {', '.join(presets)}" for value, presets in others)])
    return Field(
        name=_parameter(name),
        title=flag_of(("config", *above, last)),
        description=f"{(found.get('description') or '').rstrip('.')}. Blank: the preset's ({said}).",
        schema=bounds,
        annotation=owner.model_fields[last].annotation | None,  # type: ignore[operator]
    )


@cache
def _of_preset(preset: str, stage: str) -> Mapping[str, Any]:
    """The preset's settings of a stage by dotted name."""
    return leaves(preset_of(preset).config_of(step_of(stage)))


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _where(default_store: str) -> list[Field]:
    return [
        Field(
            name="seed",
            title="--seed",
            description="Seed of all randomness.",
            schema={"type": "integer", "minimum": LEAST_SEED, "maximum": MOST_SEED},
            annotation=int,
            default=0,
        ),
        Field(
            name="store",
            title="--store",
            description="Folder of the artifacts.",
            schema={"type": "string"},
            annotation=str,
            default=default_store,
        ),
        Field(
            name="device",
            title="--device",
            description="Where tensors are.",
            schema={"type": "string", "enum": list(get_args(Device))},
            annotation=Device,
            default="cpu",
        ),
    ]


def _partial(model: type[BaseModel], path: tuple[str, ...] = ("config",)) -> dict[str, Any]:
    """The model's schema where nothing is asked for and nothing is filled in; titles are flags."""
    properties: dict[str, Any] = {}
    own = model.model_json_schema()["properties"]
    for position, (name, info) in enumerate(model.model_fields.items()):
        inner = (*path, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            properties[name] = _partial(info.annotation, inner)
        elif "const" not in own[name]:
            kept = {key: value for key, value in own[name].items() if key != "default"}
            properties[name] = {**kept, "title": flag_of(inner)}
        if name in properties:
            properties[name]["position"] = position
    title = flag_of(path) if len(path) > 1 else "all settings"
    return {"type": "object", "title": title, "properties": properties, "additionalProperties": False}
