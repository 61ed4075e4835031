"""Names for all scores and features of a router and all coordinates of a block at once, from a recorded sample.

A score is high where an expert of its row or column may fire by its head; a feature or coordinate, in its upper tail.
The statement that says so best is searched on one sample and judged on another; a permutation of the tokens is the
control.
"""

# N tokens, E quantities (scores, features or coordinates), D model width, H heads, I sub-keys of rows, J of columns,
# P pairs (a quantity and a token where it is high), V vocabulary, L literals, K contexts shown, R features

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.pairs import starts
from pipeline.models.literals import Literals
from pipeline.models.peer.router import PeerRouter
from pipeline.symbolic.names.high import score_keys_of, scores_high, upper_tail
from pipeline.symbolic.names.names import Name, Said, TopToken, gate_words, place
from pipeline.symbolic.recording import Events, LayerRecord
from pipeline.symbolic.rules.statements import Statements
from pipeline.symbolic.rules.token_logic import (
    LARGEST_SET,
    OR,
    TokenStatements,
    best_statements,
    candidates,
    token_counts,
    with_own_sets,
)

TOP_TOKENS = 5
TOKENS_IN_BRIEF = 5
CONTEXTS = 3
CONTEXT_TOKENS = 8
"""Of a context, the last one being that on which the quantity is high."""
EXPERTS_SAID = 4096
"""Experts a block that get a statement in words, those with most output."""
TOKENS_A_PIECE = 4096
SEEN_ENOUGH = 2
"""Tokens by which precisions are shrunk towards 0, as in a set of an event's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """What statements are made of."""

    literals: Literals
    literal_names: Sequence[str]
    """As `build_literals` gives them."""
    vocabulary: Sequence[str]
    decode: Callable[[list[int]], str]

    def token(self, token: int) -> str:
        """A token's text in quotes, or its number where it is no text by itself."""
        text = self.vocabulary[token]
        return f"token {token}" if "\ufffd" in text else repr(text)

    def tokens(self, literals: Literals, literal: int) -> list[int] | None:
        """The tokens of a literal that is a set of them; nothing for a class."""
        if literal < len(self.literal_names) and not self.literal_names[literal].startswith("token["):
            return None
        return torch.nonzero(literals.member_LV[literal])[:, 0].tolist()

    def literal(self, literals: Literals, literal: int, weight_2V: Tensor, most: int) -> str:
        """A literal in words: a class as such, a set by its tokens."""
        back, tokens = int(literals.offset_L[literal]), self.tokens(literals, literal)
        if tokens is None:
            return f"{place(back)} {self.literal_names[literal].removesuffix(f'[{-back}]')}"
        return self.listed(back, tokens, weight_2V, most)

    def listed(self, back: int, tokens: list[int], weight_2V: Tensor, most: int) -> str:
        """That the token so many places back is one of these, those of most weight first and at most `most` of them."""
        if len(tokens) == 1:
            return f"{place(back)}={self.token(tokens[0])}"
        first = sorted(tokens, key=lambda token: -float(weight_2V[min(1, back), token]))
        more = f" and {len(tokens) - most} more" if len(tokens) > most else ""
        return f"{place(back)} in {{{', '.join(map(self.token, first[:most]))}{more}}}"

    def statement(
        self,
        literals: Literals,
        statements: TokenStatements,
        event: int,
        weight_2V: Tensor,
        most: int = 2 * LARGEST_SET,
    ) -> str:
        """An event's statement; `weight_2V` orders the tokens of sets, current and previous ones."""
        kind, a, b = int(statements.gate_E[event]), int(statements.a_E[event]), int(statements.b_E[event])
        of_a, of_b, back = self.tokens(literals, a), self.tokens(literals, b), int(literals.offset_L[a])
        if kind == OR and of_a and of_b and back == int(literals.offset_L[b]):
            return self.listed(back, sorted({*of_a, *of_b}), weight_2V, most)
        return gate_words(kind, *(self.literal(literals, literal, weight_2V, most) for literal in (a, b)))


@dataclass(frozen=True, slots=True)
class High:
    """Where quantities are high, and the tokens on which each is highest."""

    events: Events
    highest_EK: Tensor


@torch.no_grad()
def high_scores(router: PeerRouter, record: LayerRecord) -> High:
    """Of all 2 H n scores, heads of the rows first. `record` is of the block that has the router.

    What is high the gate says: without it no pair with the score can fire.
    """
    pairs, best_values, best_tokens = [], [], []
    for first in range(0, len(record.x_ND), TOKENS_A_PIECE):
        x_ND = record.x_ND[first : first + TOKENS_A_PIECE]
        raw_NHI, raw_NHJ = router.scores(x_ND)
        event_P, token_P = torch.nonzero(scores_high(router, (raw_NHI, raw_NHJ)).T, as_tuple=True)
        pairs.append((event_P, token_P + first))
        raw_NE = torch.cat([raw_NHI.flatten(1), raw_NHJ.flatten(1)], dim=1)
        best = raw_NE.topk(min(CONTEXTS, len(raw_NE)), dim=0)
        best_values.append(best.values)
        best_tokens.append(best.indices + first)
    event_P, token_P = (torch.cat(column) for column in zip(*pairs, strict=True))
    value_KE, token_KE = torch.cat(best_values), torch.cat(best_tokens)
    highest_KE = token_KE.gather(0, value_KE.topk(min(CONTEXTS, len(value_KE)), dim=0).indices)
    return High(_events(event_P, token_P, value_KE.shape[1], record), highest_KE.T)


def high_values(value_NE: Tensor, limit_E: Tensor, record: LayerRecord) -> High:
    """Of quantities with these values on the record's tokens: where they are above their limits."""
    event_P, token_P = torch.nonzero((value_NE > limit_E).T, as_tuple=True)
    highest_KE = value_NE.topk(min(CONTEXTS, len(value_NE)), dim=0).indices
    return High(_events(event_P, token_P, len(limit_E), record), highest_KE.T)


def _events(event_P: Tensor, token_P: Tensor, count: int, record: LayerRecord) -> Events:
    order = torch.argsort(event_P, stable=True)
    return Events(
        token_P=token_P[order],
        start_E1=starts(torch.bincount(event_P, minlength=count)),
        context_ON=record.events.context_ON,
    )


def name_scores(
    router: PeerRouter, block: int, fit: LayerRecord, check: LayerRecord, words: Words, generator: torch.Generator
) -> list[Name]:
    """A name for each score of the router that `block` has, the block's own records given."""
    keys = score_keys_of(router)
    return _named("score", block, keys, high_scores(router, fit), high_scores(router, check).events, words, generator)


def name_coordinates(
    block: int, fit: LayerRecord, check: LayerRecord, words: Words, generator: torch.Generator
) -> list[Name]:
    """A name for each coordinate of the state that the block's experts read."""
    limit_D = upper_tail(fit.x_ND)
    keys = [("x", None, index) for index in range(len(limit_D))]
    high, other = (high_values(record.x_ND, limit_D, record) for record in (fit, check))
    return _named("coordinate", block, keys, high, other.events, words, generator)


@torch.no_grad()
def name_features(
    router: PeerRouter, block: int, fit: LayerRecord, check: LayerRecord, words: Words, generator: torch.Generator
) -> list[Name]:
    """A name for each feature of the router that `block` has, if its scores are made of any."""
    if not router.spec.score_features:
        return []
    limit_R = upper_tail(router.features(fit.x_ND))
    keys = [("f", None, index) for index in range(len(limit_R))]
    high, other = (high_values(router.features(record.x_ND), limit_R, record) for record in (fit, check))
    return _named("feature", block, keys, high, other.events, words, generator)


def say_experts(block: int, statements: Statements, energy_E: Tensor, fit: LayerRecord, words: Words) -> Iterator[Said]:
    """The token statements of the experts with most output, of those that fire on the sample that judges them."""
    firing = energy_E.masked_fill(statements.rate_E == 0, -1.0).topk(min(EXPERTS_SAID, len(energy_E)))
    for expert in firing.indices[firing.values >= 0].tolist():
        yield Said(
            block=block,
            expert=expert,
            statement=expert_statement(statements, fit, expert, words),
            f1=float(statements.token_logic.f1_E[expert]),
            null_f1=float(statements.rate_E[expert]),
        )


def expert_statement(statements: Statements, fit: LayerRecord, expert: int, words: Words) -> str:
    """The best token statement for an expert's firing, in words."""
    return words.statement(statements.literals, statements.token_logic, expert, token_weights(fit, expert, words))


def token_weights(fit: LayerRecord, expert: int, words: Words) -> Tensor:
    """(2, V) how often the expert fires on each current and each previous token."""
    fired = fit.events
    token_P = fired.token_P[fired.start_E1[expert] : fired.start_E1[expert + 1]]
    weights = [
        torch.bincount(context_N[token_P].clamp(min=0), minlength=len(words.vocabulary))
        for context_N in fired.context_ON[:2]
    ]
    return torch.stack(weights)


def search(fit: Events, check: Events, shared: Literals) -> tuple[Literals, TokenStatements]:
    """The best statement for every event, and the literals that it names."""
    literals = with_own_sets(fit, shared)
    return literals, best_statements(fit, check, literals, candidates(fit, shared, literals)[0])


def _named(
    kind: str,
    block: int,
    keys: Sequence[tuple[str, int | None, int]],
    fit: High,
    check: Events,
    words: Words,
    generator: torch.Generator,
) -> list[Name]:
    literals, found = search(fit.events, check, words.literals)
    _, control = search(fit.events.permuted(generator), check.permuted(generator), words.literals)
    vocabulary = len(words.vocabulary)
    counts_2EV = torch.stack([token_counts(fit.events, back, vocabulary) for back in (0, 1)])
    top_tokens = _top_tokens(fit.events, counts_2EV[0], words)
    rates = check.rate_E.tolist()
    return [
        Name.model_validate(
            {
                "kind": kind,
                "block": block,
                "axis": axis,
                "head": head,
                "index": index,
                "statement": words.statement(literals, found, event, counts_2EV[:, event]),
                "brief": words.statement(literals, found, event, counts_2EV[:, event], TOKENS_IN_BRIEF),
                "f1": float(found.f1_E[event]),
                "null_f1": rates[event],
                "permuted_f1": float(control.f1_E[event]),
                "rate": rates[event],
                "top_tokens": top_tokens[event],
                "contexts": tuple(
                    words.decode(context_before(fit.events.context_ON, token, CONTEXT_TOKENS))
                    for token in fit.highest_EK[event].tolist()
                ),
            }
        )
        for event, (axis, head, index) in enumerate(keys)
    ]


def _top_tokens(events: Events, count_EV: Tensor, words: Words) -> list[tuple[TopToken, ...]]:
    """The current tokens with the largest lift; rare ones are shrunk, as chance lifts them most."""
    all_V = torch.bincount(events.context_ON[0], minlength=count_EV.shape[1]).float()
    precision_EV = count_EV / all_V.clamp(min=1)
    top = (count_EV / (all_V + SEEN_ENOUGH)).topk(min(TOP_TOKENS, count_EV.shape[1]), dim=1).indices
    counts, lifts = count_EV.gather(1, top), precision_EV.gather(1, top) / events.rate_E[:, None].clamp(min=1e-12)
    return [
        tuple(
            TopToken(text=words.vocabulary[int(token)], count=int(count), lift=round(lift, 3))
            for token, count, lift in zip(tokens, of_tokens, of_lifts, strict=True)
            if count > 0
        )
        for tokens, of_tokens, of_lifts in zip(top.tolist(), counts.tolist(), lifts.tolist(), strict=True)
    ]


def context_before(context_ON: Tensor, token: int, length: int) -> list[int]:
    """The tokens up to and with this one of the sample, at most `length` and none of another sequence."""
    first = token
    while token - first + 1 < length and int(context_ON[1, first]) >= 0:
        first -= 1
    return context_ON[0, first : token + 1].tolist()
