"""What is known of a model's experts in words: what tokens say of them, and which tokens they write."""

# D model width, V vocabulary, X experts that are asked for

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from artifacts import Artifact, ArtifactError, Store
from kernels.errors import Mistake
from pipeline.corpus.visible import quoted
from pipeline.models.language_model import LanguageModel
from pipeline.symbolic.names.names import FILE, Name, Names, Said

TOKENS_NAMED = 5
"""Tokens that a direction is described by, each way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownWords:
    """What tokens say of the experts, scores and features of a model, where that is known."""

    names_of: str | None
    """The artifact that says so."""
    experts: Mapping[tuple[int, int], Said]
    """By block and number."""
    quantities: Mapping[tuple[int, str], Name]
    """By block and symbol."""


def names_in(artifact: Artifact) -> Names:
    """Its names; none in what is not of symbols, or was made before they had names."""
    path = artifact.files().get(FILE)
    try:
        return Names(names=()) if path is None else Names.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise unusable(artifact, FILE, error) from None


def unusable(artifact: Artifact, file: str, error: ValidationError) -> ArtifactError:
    """What is wrong with a file of this artifact, and where in it."""
    wrong = error.errors(include_url=False)[0]
    where = ".".join([file, *map(str, wrong["loc"])])
    return ArtifactError(f"{artifact.id}: {where} is unusable ({wrong['msg']}); distil it again")


def known_words(store: Store, id: str) -> KnownWords:
    """A model's own names, or those of the latest symbols that were made of it: they are of its experts."""
    artifact = store.open(id)
    if FILE not in artifact.files():
        made = [child.id for child in store.children(id) if child.kind == "symbols"]
        artifact = store.open(made[-1]) if made else artifact
    names = names_in(artifact)
    return KnownWords(
        names_of=artifact.id if names.names or names.experts else None,
        experts={(said.block, said.expert): said for said in names.experts},
        quantities={(name.block, name.symbol): name for name in names.names},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The tokens whose logits a vector in the residual stream raises and lowers most, read by the unembedding alone."""

    raises: tuple[int, ...]
    lowers: tuple[int, ...]


@torch.no_grad()
def written(model: LanguageModel, v_XD: Tensor, count: int = TOKENS_NAMED) -> list[Written]:
    """Of each of these vectors."""
    logit_XV = (model.model.norm.weight * v_XD) @ model.lm_head.weight.T
    count = min(count, logit_XV.shape[1])
    raises, lowers = (logit_XV.topk(count, dim=1, largest=largest).indices.tolist() for largest in (True, False))
    return [Written(raises=tuple(up), lowers=tuple(down)) for up, down in zip(raises, lowers, strict=True)]


def written_by(model: LanguageModel, layer: int, experts: Sequence[int]) -> list[Written | None]:
    """Of these experts of a block; None where they have no row of v to themselves."""
    table = model.blocks()[layer].experts.tables().get("v")
    if table is None or not experts:
        return [None] * len(experts)
    v_XD = table.rows(torch.tensor(experts, device=model.lm_head.weight.device))
    return [*written(model, v_XD)]


def check_layer(model: LanguageModel, layer: int) -> None:
    """ValueError that gives the range for a block that is not there."""
    if not 0 <= layer < (blocks := len(model.blocks())):
        raise Mistake(f"layer {layer} is not in this model, which has the layers 0 to {blocks - 1}")


def listed(token_bytes: Sequence[bytes], tokens: Sequence[int]) -> str:
    """The tokens in quotes, one after the other."""
    return ", ".join(quoted(token_bytes[token]) for token in tokens)
