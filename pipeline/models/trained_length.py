"""How many tokens of context a model has been trained on; past them its positions are ones that it has never seen."""

from collections.abc import Iterator, Mapping
from typing import Any

from artifacts import ArtifactError, Store

LONGEST = 2**16
"""The most that a training takes, and that runtime.c reads."""


IMPORTED = "context_tokens"
"""Of an imported checkpoint, the metric that says what its config allows."""


def trained_length(store: Store, id: str) -> int:
    """Most tokens a sequence that this model, or one that it was made from, was trained on or an import takes.

    The recipes in its lineage say so, those of artifacts from before this was read too. ArtifactError where none does.
    """
    ancestry = store.ancestry(id)
    lengths = [length for made in ancestry for length in _lengths(made.lineage.config)]
    lengths += [int(made.metrics[IMPORTED]) for made in ancestry if IMPORTED in made.metrics]
    if not lengths:
        raise ArtifactError(
            f"nothing that {id} was made from says on how many tokens of context it was trained "
            "(training.context_length of a recipe), so that nothing says how many it can read; make it by this "
            "program's stages, or name another model"
        )
    return max(lengths)


def _lengths(config: Mapping[str, Any]) -> Iterator[int]:
    """What one stage trained on: by a `training` of its own, or by a short distillation after rounding."""
    training, distillation = config.get("training"), config.get("distillation")
    if isinstance(training, Mapping):
        yield from _length(training.get("context_length"))
    if isinstance(distillation, Mapping) and distillation.get("steps"):
        yield from _length(config.get("context_length"))


def _length(value: object) -> Iterator[int]:
    if type(value) is int and 1 <= value <= LONGEST:
        yield value
