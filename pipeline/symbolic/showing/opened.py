"""A symbols model opened to be read: with its corpus, its names, and where its experts fire on held-out tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from artifacts import Artifact, ArtifactError, Store
from pipeline.corpus.visible import token_texts
from pipeline.corpus.windows import target_positions
from pipeline.models import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.opening import Opened, open_model
from pipeline.symbolic.asking.words import names_in, unusable
from pipeline.symbolic.names.names import Names
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.fired import Firings, firings

LITERALS_FILE = "literals.json"
SAMPLE_TOKENS = 2048
CONTEXT_LENGTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSymbols(Opened):
    names: list[list[str]]
    """Of the literals, block by block."""
    vocabulary: list[str]
    """As `pipeline.corpus.visible.token_texts` gives it."""
    quantities: Names
    """Of scores and coordinates; none in artifacts of before they had names."""


def open_symbols(store: Store, id: str) -> OpenedSymbols:
    """The symbols artifact and the corpus it comes from."""
    opened = open_model(store, id, "symbols")
    artifact, corpus = store.open(opened.id), opened.corpus
    if LITERALS_FILE not in artifact.files():
        raise ArtifactError(f"{opened.id} has no {LITERALS_FILE}; distil it again")
    return OpenedSymbols(
        id=opened.id,
        model=opened.model,
        corpus=corpus,
        context=opened.context,
        names=_literal_names(artifact, opened.model),
        vocabulary=token_texts(corpus.tokenizer.token_bytes),
        quantities=names_in(artifact),
    )


_LITERALS: TypeAdapter[list[list[str]]] = TypeAdapter(list[list[str]])


def _literal_names(artifact: Artifact, model: LanguageModel) -> list[list[str]]:
    """A name for every literal, block by block. ArtifactError where the file holds anything else."""
    try:
        names = _LITERALS.validate_json(artifact.files()[LITERALS_FILE].read_bytes(), strict=True)
    except ValidationError as error:
        raise unusable(artifact, LITERALS_FILE, error) from None
    got, wanted = list(map(len, names)), [len(experts.member_LV) for experts in model.expert_layers_of(SymbolExperts)]
    if got != wanted:
        raise ArtifactError(
            f"{artifact.id}: {LITERALS_FILE} names {got} literals by block, and the model has {wanted}; distil it again"
        )
    return names


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Held-out tokens, and where the experts of some layers fire on them."""

    tokens_WT: Tensor
    document_N: Tensor
    """That each token is of."""
    fired: list[Firings]

    def before(self, token: int, most: int) -> list[int]:
        """At most so many tokens before this one, of its window and its document."""
        first = max(token // self.tokens_WT.shape[1] * self.tokens_WT.shape[1], token - most)
        while int(self.document_N[first]) != int(self.document_N[token]):
            first += 1
        return self.tokens_WT.flatten()[first:token].tolist()


@torch.no_grad()
def sample(opened: OpenedSymbols, layers: Sequence[int]) -> Sample:
    split = opened.corpus.held_out
    length = min(CONTEXT_LENGTH, opened.context, split.num_tokens - 1)
    position_WT = target_positions(split, num_tokens=SAMPLE_TOKENS, length=length) - 1
    tokens_WT = split.tokens_at(position_WT)
    trace = opened.model.trace(tokens_WT)
    fired = [
        firings(symbol_experts(opened.model, layer), trace.expert_inputs[layer], trace.routings[layer])
        for layer in layers
    ]
    return Sample(tokens_WT=tokens_WT, document_N=split.document_of(position_WT).flatten(), fired=fired)
