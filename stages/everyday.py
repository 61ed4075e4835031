"""The settings that are changed every day: `--help` shows them, and a form asks for the first of them."""

from collections.abc import Sequence

from pydantic import BaseModel

from stages.settings import leaves

FEW = 12
"""Settings of a stage of which none is left out."""

# fmt: off
EVERYDAY = (
    "source", "sources", "steps", "learning_rate", "d_model", "num_layers", "num_sub_experts", "num_keys",
    "num_experts", "precision", "pairs_per_head", "clips", "objective", "table_rate", "doublings", "num_seeds",
    "sample_tokens", "least_r2", "least_recovered", "kan_experts", "split", "vocab_size", "max_bytes", "tokenizer",
    "tokens", "trained", "decomposition", "batch_size", "context_length",
)
# fmt: on
"""By name, wherever in a config they are; what is changed most comes first."""


def everyday(config: BaseModel) -> Sequence[str]:
    """The dotted fields of this config that are shown first, what is changed most before the others: all where they are
    few, or where none has such a name."""
    paths = [name.split(".") for name in leaves(config)]
    named = [path for path in paths if path[-1] in EVERYDAY and "measure" not in path]
    named.sort(key=lambda path: EVERYDAY.index(path[-1]))
    others = [] if named and len(paths) > FEW else [path for path in paths if path not in named]
    return [".".join(path) for path in (*named, *others)]
