"""Which experts, scores and features a token goes with, counted on held-out text.

That the token is this one is taken as a statement of when an expert adds anything, or a score or a feature is high. Its
precision, recall and F1 stand beside what a token as frequent that has nothing to do with the expert would have, and
beside the best F1 that any of them reaches on permuted tokens.
"""

# W windows, T tokens of one, N tokens of the sample, P pairs (a thing and a token on which it happens), each once,
# L blocks, E things (the experts, scores or features of a block), K tokens that are asked for

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.corpus.visible import quoted, visible
from pipeline.corpus.windows import held_out_windows
from pipeline.models.contract import Pairs
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.models.symbols import SymbolRouter
from pipeline.opening import Opened
from pipeline.symbolic.asking.words import KnownWords, listed, written_by
from pipeline.symbolic.names.high import score_symbols, scores_high, upper_tail
from pipeline.symbolic.names.names import symbol

SAMPLE_TOKENS = 8192
CONTEXT_LENGTH = 64
WINDOWS_A_PASS = 32
PERMUTATIONS = 8
NEAR = 5
"""Tokens that are named where one is not in the vocabulary."""

Kind = Literal["expert", "score", "feature"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Happening:
    """On which tokens of the sample the experts of a block add something, or its scores or features are high."""

    kind: Kind
    layer: int
    symbols: Sequence[str]
    """How each one is called."""
    event_P: Tensor
    token_P: Tensor
    share_E: Tensor | None
    """Of what all experts of the block add, as lengths, the part of each; None of scores and features."""

    def count_E(self, here_N: Tensor) -> Tensor:
        """How often each one happens on these tokens (bool)."""
        return torch.bincount(self.event_P[here_N[self.token_P]], minlength=len(self.symbols)).double()


class Found(BaseModel):
    """An expert, a score or a feature, and how well a token says when it fires or is high."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    layer: int
    symbol: str = Field(description="Number of an expert in its layer; the symbol of a score or a feature.")
    happens: int = Field(description="Tokens of the sample on which the expert adds anything, or the score is high.")
    hits: int = Field(description="Those of them that are the token.")
    f1: float
    null_f1: float = Field(description="Of a token as frequent that has nothing to do with it.")
    precision: float = Field(description="Share of the tokens on which it happens that are the token.")
    null_precision: float = Field(description="The same of any tokens: how frequent the token is.")
    recall: float = Field(description="Share of the token's places on which it happens.")
    null_recall: float = Field(description="The same of any tokens: how often it happens.")
    output_share: float | None = Field(
        description="Of the lengths that all experts of its layer add on the sample, an expert's part."
    )
    said: str | None = Field(description="The best statement about tokens for it, from the artifact.")
    said_f1: float | None = Field(description="Its F1 in the model that was distilled, on other held-out text.")
    said_null_f1: float | None = Field(description="Of a random statement of the same rate.")
    raises: tuple[str, ...] = Field(description="Tokens whose logits an expert's v raises most.")
    lowers: tuple[str, ...] = Field(description="Those that it lowers most.")


class Answer(BaseModel):
    """What goes with one token, the best first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    names_of: str | None
    token: str = Field(description="In quotes, what is not seen as escapes.")
    token_id: int
    back: int = Field(description="How many places before the token of the expert it stands.")
    sample_tokens: int
    occurrences: int
    compared: Mapping[Kind, int] = Field(description="How many experts, scores and features there are.")
    permuted_best_f1: Mapping[Kind, float] = Field(
        description=f"The best F1 of all of them on permuted tokens, mean of {PERMUTATIONS} permutations."
    )
    found: tuple[Found, ...]


def token_of(corpus: Corpus, text: str) -> int:
    """The token that stands for this text, or that is shown so. ValueError names near ones where there is none."""
    token_bytes = corpus.tokenizer.token_bytes
    data = text.encode("utf-8", "surrogateescape")
    for wanted in (lambda known: known == data, lambda known: visible(known) == text):
        for token, known in enumerate(token_bytes):
            if known and wanted(known):
                return token
    shown = {visible(known): token for token, known in enumerate(token_bytes) if known}
    asked = visible(data)
    stripped = [one for one in (f" {asked.strip()}", asked.strip(), asked.strip().lower()) if one in shown]
    near = list(dict.fromkeys([*stripped, *difflib.get_close_matches(asked, shown, n=NEAR, cutoff=0.5)]))[:NEAR]
    pieces = listed(token_bytes, corpus.tokenizer.encode(data.decode(errors="replace")))
    close = f"near ones are {', '.join(quoted(token_bytes[shown[one]]) for one in near)}; " if near else ""
    raise Mistake(
        f"--token: {quoted(data)} is not one of the {len(token_bytes):,} tokens; {close}"
        f"as text it is the tokens {pieces or 'none'}: ask for one of them"
    )


@torch.no_grad()
def find(
    opened: Opened, words: KnownWords, tokens: Sequence[int], *, back: int, sample: int, most: int
) -> list[Answer]:
    """What goes with each token: the `most` best experts, and as many scores and features where they have names."""
    length = min(CONTEXT_LENGTH, opened.context, opened.corpus.held_out.num_tokens - 1)
    tokens_WT, _ = held_out_windows(opened.corpus.held_out, num_tokens=sample, length=length)
    happenings = list(happenings_on(opened.model, tokens_WT))
    token_N = moved_back(tokens_WT, back).flatten()
    return [_answer(opened, words, token, back, token_N, happenings, most) for token in tokens]


def moved_back(tokens_WT: Tensor, back: int) -> Tensor:
    """The token so many places before each, -1 before the beginning of its window."""
    if back >= tokens_WT.shape[1]:
        raise Mistake(f"--back: got {back}, and windows are of {tokens_WT.shape[1]} tokens")
    return torch.cat([torch.full_like(tokens_WT[:, :back], -1), tokens_WT[:, : tokens_WT.shape[1] - back]], dim=1)


def happenings_on(model: LanguageModel, tokens_WT: Tensor) -> Iterator[Happening]:
    """Block by block; of a block of symbols that has a router its scores and features too."""
    named = model.routers_of(SymbolRouter) if model.kind == "symbols" else {}
    seen = 0
    experts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.blocks()]
    length_LE = [torch.zeros(block.experts.num_experts, dtype=torch.float64) for block in model.blocks()]
    states: dict[int, list[Tensor]] = {layer: [] for layer in named}
    for batch in tokens_WT.split(WINDOWS_A_PASS):
        for layer, visit in enumerate(model.walk(batch.to(model.lm_head.weight.device))):
            pairs = visit.pairs()
            length_LE[layer].index_add_(0, pairs.expert_P.cpu(), pairs.norm_P.double().cpu())
            expert_F, token_F = fired(pairs, visit.experts.num_experts)
            experts[layer].append((expert_F, token_F + seen))
            if layer in named:
                states[layer].append(visit.x_ND)
        seen += batch.numel()
    for layer, block in enumerate(model.blocks()):
        event_P, token_P = (torch.cat(part) for part in zip(*experts[layer], strict=True))
        symbols = [str(number) for number in range(block.experts.num_experts)]
        share_E = length_LE[layer] / length_LE[layer].sum().clamp(min=1e-30)
        yield Happening(kind="expert", layer=layer, symbols=symbols, event_P=event_P, token_P=token_P, share_E=share_E)
        if layer in named:
            yield from _quantities(named[layer].scores, layer, torch.cat(states[layer]))


def fired(pairs: Pairs, num_experts: int) -> tuple[Tensor, Tensor]:
    """Experts and tokens on which they add anything, each pair once."""
    adds_P = pairs.norm_P > 0
    key_F = torch.unique(pairs.token_P[adds_P] * num_experts + pairs.expert_P[adds_P]).cpu()
    return key_F % num_experts, key_F // num_experts


def _quantities(router: PeerRouter, layer: int, x_ND: Tensor) -> Iterator[Happening]:
    event_P, token_P = torch.nonzero(scores_high(router, router.scores(x_ND)).T, as_tuple=True)
    symbols = score_symbols(router)
    yield Happening(kind="score", layer=layer, symbols=symbols, event_P=event_P, token_P=token_P, share_E=None)
    if router.spec.score_features:
        value_NE = router.features(x_ND)
        event_P, token_P = torch.nonzero((value_NE > upper_tail(value_NE)).T, as_tuple=True)
        symbols = [symbol("f", None, index) for index in range(value_NE.shape[1])]
        yield Happening(kind="feature", layer=layer, symbols=symbols, event_P=event_P, token_P=token_P, share_E=None)


def _answer(
    opened: Opened,
    words: KnownWords,
    token: int,
    back: int,
    token_N: Tensor,
    happenings: Sequence[Happening],
    most: int,
) -> Answer:
    here_N = token_N == token
    kinds: list[Kind] = list(dict.fromkeys(happening.kind for happening in happenings))
    found = [one for kind in kinds for one in _best(opened, words, here_N, _of(kind, happenings), most)]
    return Answer(
        model=opened.id,
        names_of=words.names_of,
        token=quoted(opened.corpus.tokenizer.token_bytes[token]),
        token_id=token,
        back=back,
        sample_tokens=len(token_N),
        occurrences=int(here_N.sum()),
        compared={kind: sum(len(one.symbols) for one in _of(kind, happenings)) for kind in kinds},
        permuted_best_f1={kind: _permuted_best(here_N, _of(kind, happenings)) for kind in kinds},
        found=tuple(found),
    )


def _of(kind: Kind, happenings: Sequence[Happening]) -> list[Happening]:
    return [happening for happening in happenings if happening.kind == kind]


def f1_of(hits_E: Tensor, happens_E: Tensor, occurrences: float) -> Tensor:
    return 2 * hits_E / (happens_E + occurrences).clamp(min=1)


def _permuted_best(here_N: Tensor, happenings: Sequence[Happening]) -> float:
    generator = torch.Generator().manual_seed(0)
    occurrences, everywhere_N = float(here_N.sum()), torch.ones_like(here_N)
    happens = [one.count_E(everywhere_N) for one in happenings]
    best = []
    for _ in range(PERMUTATIONS):
        permuted_N = here_N[torch.randperm(len(here_N), generator=generator)]
        f1 = [
            f1_of(one.count_E(permuted_N), all_E, occurrences) for one, all_E in zip(happenings, happens, strict=True)
        ]
        best.append(max(float(f1_E.max()) for f1_E in f1))
    return sum(best) / len(best)


def _best(
    opened: Opened, words: KnownWords, here_N: Tensor, happenings: Sequence[Happening], most: int
) -> Iterator[Found]:
    """Those of all blocks whose F1 is largest, of those that the token fires at all."""
    occurrences, everywhere_N = float(here_N.sum()), torch.ones_like(here_N)
    ranked: list[tuple[float, int, int]] = []
    counts: list[tuple[Tensor, Tensor]] = []
    for at, happening in enumerate(happenings):
        hits_E, happens_E = happening.count_E(here_N), happening.count_E(everywhere_N)
        counts.append((hits_E, happens_E))
        best = f1_of(hits_E, happens_E, occurrences).topk(min(most, len(hits_E)))
        ranked += [
            (f1, at, event) for f1, event in zip(best.values.tolist(), best.indices.tolist(), strict=True) if f1 > 0
        ]
    for f1, at, event in sorted(ranked, key=lambda one: -one[0])[:most]:
        hits, happens = (float(count_E[event]) for count_E in counts[at])
        yield _found(opened, words, happenings[at], event, f1, (hits, happens, occurrences, float(len(here_N))))


def _found(
    opened: Opened,
    words: KnownWords,
    happening: Happening,
    event: int,
    f1: float,
    counts: tuple[float, float, float, float],
) -> Found:
    hits, happens, occurrences, tokens = counts
    layer, name = happening.layer, happening.symbols[event]
    of_expert = happening.kind == "expert"
    said = words.experts.get((layer, event)) if of_expert else words.quantities.get((layer, name))
    wrote = written_by(opened.model, layer, [event])[0] if of_expert else None

    def shown(tokens: Sequence[int]) -> tuple[str, ...]:
        return tuple(quoted(opened.corpus.tokenizer.token_bytes[token]) for token in tokens)

    return Found(
        kind=happening.kind,
        layer=layer,
        symbol=name,
        happens=int(happens),
        hits=int(hits),
        f1=f1,
        null_f1=2 * happens * occurrences / tokens / (happens + occurrences),
        precision=hits / happens,
        null_precision=occurrences / tokens,
        recall=hits / occurrences,
        null_recall=happens / tokens,
        output_share=None if happening.share_E is None else float(happening.share_E[event]),
        said=None if said is None else said.statement,
        said_f1=None if said is None else said.f1,
        said_null_f1=None if said is None else said.null_f1,
        raises=() if wrote is None else shown(wrote.raises),
        lowers=() if wrote is None else shown(wrote.lowers),
    )
