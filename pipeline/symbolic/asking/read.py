"""A text read token by token: which experts of each block add most to it, and what is known of them."""

# N tokens of the text, M experts kept a token

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F

from kernels.errors import Mistake
from pipeline.corpus.visible import quoted, visible
from pipeline.models.transformer import Visit
from pipeline.opening import Opened
from pipeline.records.strongest import strongest
from pipeline.symbolic.asking.words import KnownWords, check_layer


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FiredExpert(_Part):
    expert: int
    contribution: float = Field(description="L2 norm of what it adds to the residual stream, its heads together.")
    share: float = Field(description="Of the sum of the contributions of all experts of the layer.")
    said: str | None = Field(description="The best statement about tokens for when it fires.")
    said_f1: float | None = Field(description="Its F1 in the model that was distilled, on held-out text.")
    said_null_f1: float | None = Field(description="Of a random statement of the same rate.")


class LayerOnToken(_Part):
    layer: int
    fired: int = Field(description="Experts that add anything.")
    contribution: float = Field(description="The sum of what they add, as lengths.")
    experts: tuple[FiredExpert, ...] = Field(description="Those that add most, the largest first.")


class TokenRead(_Part):
    token: int
    text: str = Field(description="In quotes; what is not seen, and bytes that are no text alone, as escapes.")
    shown: str = Field(description="The same without quotes, and each line break also as one.")
    probability: float | None = Field(description="That the model gave it before it; none for the first.")
    layers: tuple[LayerOnToken, ...]


class TextRead(_Part):
    model: str
    names_of: str | None = Field(description="The artifact that has the statements.")
    tokens_given: int
    tokens: tuple[TokenRead, ...]


@torch.no_grad()
def read(opened: Opened, words: KnownWords, text: str, *, most: int, layers: Sequence[int] | None = None) -> TextRead:
    """The beginning of the text, as much as the model was trained to read at once. ValueError for none."""
    given = opened.corpus.tokenizer.encode(text)
    if not given:
        raise Mistake("there is no text to read; give at least one character")
    for layer in layers or ():
        check_layer(opened.model, layer)
    tokens = given[: opened.context]
    tokens_BT = torch.tensor([tokens], device=opened.model.lm_head.weight.device)
    by_layer: list[list[LayerOnToken]] = []
    visit = None
    for layer, visit in enumerate(opened.model.walk(tokens_BT)):
        if layers is None or layer in layers:
            by_layer.append(_of_layer(visit, layer, words, most))
    assert visit is not None
    chance_NV = F.softmax(opened.model.logits(visit.stream_BTD)[0].float(), dim=-1)
    token_bytes = opened.corpus.tokenizer.token_bytes
    return TextRead(
        model=opened.id,
        names_of=words.names_of,
        tokens_given=len(given),
        tokens=tuple(
            TokenRead(
                token=token,
                text=quoted(token_bytes[token]),
                shown="\\n\n".join(map(visible, token_bytes[token].split(b"\n"))),
                probability=None if place == 0 else float(chance_NV[place - 1, token]),
                layers=tuple(of_tokens[place] for of_tokens in by_layer),
            )
            for place, token in enumerate(tokens)
        ),
    )


def _of_layer(visit: Visit, layer: int, words: KnownWords, most: int) -> list[LayerOnToken]:
    """One entry a token."""
    tokens, experts = len(visit.x_ND), visit.experts.num_experts
    pairs = visit.pairs()
    sum_N = torch.zeros(tokens).index_add(0, pairs.token_P.cpu(), pairs.norm_P.float().cpu()).tolist()
    kept = strongest(pairs, tokens=tokens, experts=experts, most=min(most, experts))
    order_NM = torch.argsort(kept.contribution_TK, dim=1, descending=True, stable=True)
    rows = zip(
        kept.expert_TK.gather(1, order_NM).tolist(),
        kept.contribution_TK.gather(1, order_NM).tolist(),
        kept.fired_T.tolist(),
        sum_N,
        strict=True,
    )
    return [
        LayerOnToken(
            layer=layer,
            fired=fired,
            contribution=total,
            experts=tuple(
                _fired(words, layer, expert, contribution, total)
                for expert, contribution in zip(of_token, contributions, strict=True)
                if expert >= 0
            ),
        )
        for of_token, contributions, fired, total in rows
    ]


def _fired(words: KnownWords, layer: int, expert: int, contribution: float, total: float) -> FiredExpert:
    said = words.experts.get((layer, expert))
    return FiredExpert(
        expert=expert,
        contribution=contribution,
        share=contribution / total,
        said=None if said is None else said.statement,
        said_f1=None if said is None else said.f1,
        said_null_f1=None if said is None else said.null_f1,
    )
