"""A plan made shorter or longer by one factor: steps of trainings, and the tokens that stand behind figures."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel

from pipeline.measuring.compressors import CompressorsConfig
from pipeline.measuring.held_out import MeasureConfig
from pipeline.training.config import TrainingConfig
from pipeline.training.distillation import ShortDistillation
from stages.distill_symbols import DistillSymbolsConfig
from stages.plan import plain

MOST = 1000.0
LENGTHS: Mapping[type[BaseModel], tuple[str, ...]] = {
    TrainingConfig: ("steps", "warmup_steps"),
    ShortDistillation: ("steps",),
    CompressorsConfig: ("train_tokens",),  # as much text as models train on
}
"""What grows and shrinks with the factor, in configs of these types."""
SAMPLES: Mapping[type[BaseModel], tuple[str, ...]] = {
    MeasureConfig: ("tokens",),
    CompressorsConfig: ("tokens",),
    DistillSymbolsConfig: ("report_tokens",),
}
"""What shrinks and never grows: a preset measures as much as its figures need."""

M = TypeVar("M", bound=BaseModel)
Change = tuple[int, int]


def factor(text: str) -> float:
    """The value of --scale, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted: a number above 0, at most {MOST:g}")
    return value


def scaled(config: M, by: float) -> M:
    """The config, and those in it, with every length times the factor, within the bounds of its field."""
    values = plain(config)
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            values[name] = scaled(value, by)
        elif name in _of(LENGTHS, config) or (by < 1 and name in _of(SAMPLES, config)):
            least = max((one.ge for one in info.metadata if hasattr(one, "ge")), default=0)
            most = min((one.le for one in info.metadata if hasattr(one, "le")), default=None)
            values[name] = max(least, round(value * by) if most is None else min(most, round(value * by)))
    return type(config).model_validate(values)


def _of(names: Mapping[type[BaseModel], tuple[str, ...]], config: BaseModel) -> tuple[str, ...]:
    return next((found for kind, found in names.items() if isinstance(config, kind)), ())


def scaling_said(by: float, configs: Mapping[str, tuple[BaseModel, BaseModel]]) -> str:
    """One line: what became of each length of these configs (as they were, as they are), by name of their stage."""
    found: dict[str, dict[Change, list[str]]] = {}
    for stage, (before, after) in configs.items():
        for name, change in _changes(before, after):
            stages = found.setdefault(name, {}).setdefault(change, [])
            if stage not in stages:
                stages.append(stage)
    said = [f"{name} {_phrase(changes)}" for name, changes in found.items()]
    return f"--scale {by:g}: {'; '.join(said) or 'nothing to scale here'}"


def _phrase(changes: Mapping[Change, Sequence[str]]) -> str:
    """Such as `1,500 -> 150 (train-dense, train-monet), 80 -> 8 (finetune-int4)`."""
    return ", ".join(f"{before:,} -> {after:,} ({', '.join(stages)})" for (before, after), stages in changes.items())


def _changes(before: BaseModel, after: BaseModel) -> Iterator[tuple[str, Change]]:
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, BaseModel):
            yield from _changes(old, new)
        elif old != new:
            yield name, (old, new)
