"""Whether figures that are set side by side are of like things, and a sentence where they are not."""

from collections.abc import Mapping, Sequence
from typing import Any

ALIKE = 0.01
"""By which share two counts may differ and still be called the same."""


def unlike(what: str, counts: Sequence[tuple[str, float | None]], share: float = ALIKE) -> str:
    """Who has how many, if any two of those that are known differ by more than this share; else nothing."""
    known = [(name, count) for name, count in counts if count is not None]
    values = [count for _, count in known]
    if not values or max(values) - min(values) <= share * max(values):
        return ""
    return f"{what} of " + ", ".join(f"{name} {count:,.0f}" for name, count in known)


def context_of(config: Mapping[str, Any]) -> int | None:
    """Tokens of context with which the stage of this config trained, or else measured, its model."""
    training = config.get("training")
    length = config.get("context_length", training.get("context_length") if isinstance(training, Mapping) else None)
    return length if type(length) is int else None
