"""A symbols model opened to be read: with its corpus, its names, and where its experts fire on held-out tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from artifacts import Artifact, ArtifactError, Store
from pipeline.corpus.windows import held_out_windows
from pipeline.opening import Opened, open_model
from pipeline.symbolic.names.names import FILE as NAMES_FILE
from pipeline.symbolic.names.names import Names
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.fired import Firings, firings

SAMPLE_TOKENS = 2048
CONTEXT_LENGTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSymbols(Opened):
    names: list[list[str]]
    """Of the literals, block by block."""
    vocabulary: list[str]
    quantities: Names
    """Of scores and coordinates; none in artifacts of before they had names."""


def open_symbols(store: Store, id: str) -> OpenedSymbols:
    """The symbols artifact and the corpus it comes from."""
    opened = open_model(store, id, "symbols")
    artifact, corpus = store.open(opened.id), opened.corpus
    if "literals.json" not in artifact.files():
        raise ArtifactError(f"{opened.id} has no literals.json; distil it again")
    return OpenedSymbols(
        id=opened.id,
        model=opened.model,
        corpus=corpus,
        context=opened.context,
        names=json.loads(artifact.files()["literals.json"].read_text(encoding="utf-8")),
        vocabulary=[corpus.tokenizer.decode([token]) for token in range(corpus.spec.vocab_size)],
        quantities=_quantities(artifact),
    )


def _quantities(artifact: Artifact) -> Names:
    path = artifact.files().get(NAMES_FILE)
    return Names(names=()) if path is None else Names.model_validate_json(path.read_bytes())


@torch.no_grad()
def sample(opened: OpenedSymbols, layers: Sequence[int]) -> tuple[Tensor, list[Firings]]:
    """(W, T) held-out tokens, and for each layer where its experts fire on them."""
    length = min(CONTEXT_LENGTH, opened.context, opened.corpus.held_out.num_tokens - 1)
    tokens_WT, _ = held_out_windows(opened.corpus.held_out, num_tokens=SAMPLE_TOKENS, length=length)
    trace = opened.model.trace(tokens_WT)
    return tokens_WT, [
        firings(symbol_experts(opened.model, layer), trace.expert_inputs[layer], trace.routings[layer])
        for layer in layers
    ]
