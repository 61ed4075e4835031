"""A symbols model opened to be read: with its corpus, its names, and where its experts fire on held-out tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from artifacts import Artifact, ArtifactError, Store
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.models import LanguageModel
from pipeline.models.trained_length import trained_length
from pipeline.symbolic.names.names import FILE as NAMES_FILE
from pipeline.symbolic.names.names import Names
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.fired import Firings, firings

SAMPLE_TOKENS = 2048
CONTEXT_LENGTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    id: str
    model: LanguageModel
    corpus: Corpus
    names: list[list[str]]
    """Of the literals, block by block."""
    vocabulary: list[str]
    quantities: Names
    """Of scores and coordinates; none in artifacts of before they had names."""
    context: int
    """Tokens that the model was trained to read at once."""


def open_symbols(store: Store, id: str) -> Opened:
    """The symbols artifact and the corpus it comes from."""
    artifact = store.open(id, kind="symbols")
    model = codec.load_as(LanguageModel, artifact)
    corpus_id = next((m.id for m in store.ancestry(artifact.id) if m.kind == "corpus"), None)
    if corpus_id is None or "literals.json" not in artifact.files():
        raise ArtifactError(f"{artifact.id} was made from no corpus, or has no literals.json; distil it again")
    corpus = codec.load_as(Corpus, store.open(corpus_id, kind="corpus"))
    return Opened(
        id=artifact.id,
        model=model.eval(),
        corpus=corpus,
        names=json.loads(artifact.files()["literals.json"].read_text(encoding="utf-8")),
        vocabulary=[corpus.tokenizer.decode([token]) for token in range(corpus.spec.vocab_size)],
        quantities=_quantities(artifact),
        context=trained_length(store, artifact.id),
    )


def _quantities(artifact: Artifact) -> Names:
    path = artifact.files().get(NAMES_FILE)
    return Names(names=()) if path is None else Names.model_validate_json(path.read_bytes())


@torch.no_grad()
def sample(opened: Opened, layers: Sequence[int]) -> tuple[Tensor, list[Firings]]:
    """(W, T) held-out tokens, and for each layer where its experts fire on them."""
    length = min(CONTEXT_LENGTH, opened.context, opened.corpus.held_out.num_tokens - 1)
    tokens_WT, _ = held_out_windows(opened.corpus.held_out, num_tokens=SAMPLE_TOKENS, length=length)
    trace = opened.model.trace(tokens_WT)
    return tokens_WT, [
        firings(symbol_experts(opened.model, layer), trace.expert_inputs[layer], trace.routings[layer])
        for layer in layers
    ]
