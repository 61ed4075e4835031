"""A plan as what a person writes: a preset, and lines of key=value, or JSON, for what is otherwise."""

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pydantic import BaseModel

from artifacts.comparison import dotted
from kernels.errors import Mistake
from stages.errors import did_you_mean
from stages.parser import overridden
from stages.plan import Plan, plain
from stages.presets import DEFAULT, PRESETS, preset_of

EXAMPLE = "train-monet.training.steps=200"
_STAGES, _SOURCES = "chain", "prepare_corpus.sources"


def plan_from(preset: str, stages: list[str], corpus: list[str], settings: str) -> Plan:
    """The preset's plan with these stages, text and settings, where any are given. ValueError in one sentence."""
    plan = preset_of(preset)
    given = dict(_read(settings, plan))
    if stages:
        given[_STAGES] = stages
    if corpus:
        given[_SOURCES] = corpus
    return overridden(plan, given)


def plan_written(plan: Plan) -> dict[str, Any]:
    """What `plan_from` makes this plan of: the nearest preset, and what is otherwise."""
    preset, others = nearest(plan, preset_of)
    stages, corpus = others.pop(_STAGES, ()), others.pop(_SOURCES, ())
    lines = [f"{name.replace('_', '-')}={_text(value)}" for name, value in others.items()]
    return {"preset": preset, "stages": list(stages), "corpus": list(corpus), "settings": "\n".join(lines)}


def preset_names() -> list[str]:
    """All presets, the usual one first."""
    return [DEFAULT, *(name for name in PRESETS if name != DEFAULT)]


def nearest(model: BaseModel, of_preset: Callable[[str], BaseModel]) -> tuple[str, dict[str, Any]]:
    """The preset with the fewest other values, and those that this has instead, by dotted name."""
    own = leaves(model)
    differences: dict[str, dict[str, Any]] = {}
    for name in preset_names():
        of_this = leaves(of_preset(name))
        differences[name] = {leaf: value for leaf, value in own.items() if of_this.get(leaf) != value}
    preset = min(differences, key=lambda name: len(differences[name]))  # of several, the first
    return preset, differences[preset]


def leaves(model: BaseModel) -> dict[str, Any]:
    """Every single value in the model by its dotted name."""
    return {leaf: value for name, inner in plain(model).items() for leaf, value in dotted(inner, name)}


def require_known(where: str, leaf: str, known: Collection[str]) -> None:
    """ValueError if none of the known settings, by dotted name, is this one."""
    if leaf not in known:
        name = leaf.replace("_", "-")
        close = did_you_mean(name, [one.replace("_", "-") for one in known])
        raise Mistake(f"{where}: unknown setting {name[:80]!r}{close}; wanted one such as {EXAMPLE}")


def _read(settings: str, plan: Plan) -> Iterator[tuple[str, Any]]:
    """Dotted names and values, as they are written: pydantic takes numbers out of text."""
    known = leaves(plan)
    for where, name, value in _json(settings) if settings.lstrip().startswith("{") else _lines(settings):
        leaf = name.strip().removeprefix("--").replace("-", "_")
        require_known(where, leaf, known)
        yield leaf, _value(value, is_many=isinstance(known[leaf], tuple)) if isinstance(value, str) else value


def _json(settings: str) -> Iterator[tuple[str, str, Any]]:
    try:
        read = json.loads(settings)
    except json.JSONDecodeError as error:
        raise Mistake(
            f"settings: the JSON breaks off at line {error.lineno}, column {error.colno} ({error.msg}); wanted an "
            f'object such as {{"train-monet": {{"training": {{"steps": 200}}}}}}, or lines such as {EXAMPLE}'
        ) from None
    for key, inner in read.items():
        yield from (("settings", name, value) for name, value in dotted(inner, key))


def _lines(settings: str) -> Iterator[tuple[str, str, Any]]:
    for number, line in enumerate(settings.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise Mistake(f"settings, line {number}: got {line.strip()[:80]!r}, wanted key=value, such as {EXAMPLE}")
        yield f"settings, line {number}", name, value.strip()


def _value(text: str, *, is_many: bool) -> Any:
    """Text of a line as a value: a list in brackets or by spaces, and in quotes what a line could not hold."""
    if text[:1] in ('"', "[") and (text[0] == '"' or is_many):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise Mistake(f"settings: got {text[:80]!r}, wanted JSON after a quote or bracket") from None
    return text.split() if is_many else text


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return json.dumps(value)
    if isinstance(value, str):
        plain_text = value == value.strip() and value.isprintable() and not value.startswith('"')
        return value if plain_text else json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
