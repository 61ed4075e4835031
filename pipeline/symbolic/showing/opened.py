"""A symbols model opened to be read: with its corpus, its names, and where its experts fire on held-out tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from artifacts import Artifact, ArtifactError, Store
from pipeline.corpus.windows import held_out_windows
from pipeline.models import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.opening import Opened, open_model
from pipeline.symbolic.names.names import FILE as NAMES_FILE
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
        vocabulary=[corpus.tokenizer.decode([token]) for token in range(corpus.spec.vocab_size)],
        quantities=_quantities(artifact),
    )


_LITERALS: TypeAdapter[list[list[str]]] = TypeAdapter(list[list[str]])


def _literal_names(artifact: Artifact, model: LanguageModel) -> list[list[str]]:
    """A name for every literal, block by block. ArtifactError where the file holds anything else."""
    try:
        names = _LITERALS.validate_json(artifact.files()[LITERALS_FILE].read_bytes(), strict=True)
    except ValidationError as error:
        raise _unusable(artifact, LITERALS_FILE, error) from None
    got, wanted = list(map(len, names)), [len(experts.member_LV) for experts in model.expert_layers_of(SymbolExperts)]
    if got != wanted:
        raise ArtifactError(
            f"{artifact.id}: {LITERALS_FILE} names {got} literals by block, and the model has {wanted}; distil it again"
        )
    return names


def _quantities(artifact: Artifact) -> Names:
    path = artifact.files().get(NAMES_FILE)
    try:
        return Names(names=()) if path is None else Names.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _unusable(artifact, NAMES_FILE, error) from None


def _unusable(artifact: Artifact, file: str, error: ValidationError) -> ArtifactError:
    wrong = error.errors(include_url=False)[0]
    where = ".".join([file, *map(str, wrong["loc"])])
    return ArtifactError(f"{artifact.id}: {where} is unusable ({wrong['msg']}); distil it again")


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
