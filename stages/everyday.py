"""The settings that are changed every day, which `--help` shows; `--help-all` shows the others too."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

FEW = 12
"""Settings of a stage of which none is left out."""

EVERYDAY = frozenset(
    (
        *("sources", "tokenizer", "vocab_size", "max_bytes"),
        *("d_model", "num_layers", "num_sub_experts", "decomposition", "num_keys", "num_experts", "precision"),
        *("steps", "batch_size", "context_length", "learning_rate", "table_rate"),
        *("pairs_per_head", "clips", "objective", "trained", "doublings", "num_seeds"),
        *("sample_tokens", "least_r2", "least_recovered", "kan_experts"),
    )
)
"""By name, wherever in a config they are."""


def everyday(config: BaseModel) -> frozenset[str]:
    """The dotted fields of this config that are shown first: all where they are few, or where none has such a name."""
    paths = list(leaves(config))
    named = {".".join(path) for path in paths if path[-1] in EVERYDAY and "measure" not in path}
    return frozenset(named if named and len(paths) > FEW else map(".".join, paths))


def leaves(model: BaseModel, *above: str) -> Iterator[Sequence[str]]:
    """The path of every field of the model and of the models in it."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, *above, name)
        else:
            yield (*above, name)
