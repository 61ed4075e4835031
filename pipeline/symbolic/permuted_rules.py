"""What firing rules must beat: the same search where experts fire on the tokens of one random permutation."""

# E experts (or other events), X those of a block that were searched, Q experts of a piece, C candidates an expert,
# R learners

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.symbolic.bits import LiteralWords
from pipeline.symbolic.contest import winners_of
from pipeline.symbolic.judging import true_words
from pipeline.symbolic.logic import Literals
from pipeline.symbolic.recording import Events
from pipeline.symbolic.rules import Sample, sample_of, search
from pipeline.symbolic.statements import pieces
from pipeline.symbolic.token_logic import candidates, with_own_sets

EXPERTS = 256
"""Of a block, drawn from those for which rules were searched."""


def permuted_rule_f1(
    searched: Sequence[Tensor],
    fit: Sequence[Events],
    check: Sequence[Events],
    shared: Literals,
    generator: torch.Generator,
) -> float:
    """Mean F1 of the best rules for noise with the rates and coincidences of these experts, (X) of each block.

    A sample of a block stands for all that were searched there. 0 where none was.
    """
    total, number = 0.0, sum(map(len, searched))
    for layer, expert_X in enumerate(searched):
        if not len(expert_X):
            continue
        drawn_X = expert_X[torch.randperm(len(expert_X), generator=generator)[:EXPERTS]]
        noise, other = (events.of(drawn_X).permuted(generator) for events in (fit[layer], check[layer]))
        f1_E = best_rule_f1(noise, other, shared, what=f"block {layer} permuted rules")
        total += float(f1_E.mean()) * len(expert_X)
    return total / max(1, number)


def best_rule_f1(fit: Events, check: Events, shared: Literals, *, what: str) -> Tensor:
    """(E) F1 on `check` of the best gate, chain or threshold, searched on `fit`; trees and networks are not tried."""
    literals = with_own_sets(fit, shared)
    candidate_EC, _ = candidates(fit, shared, literals)
    words = [LiteralWords(literals, len(shared.offset_L), events.context_ON) for events in (fit, check)]
    found = []
    for expert_Q in pieces(torch.arange(len(candidate_EC)), what):
        on = zip((fit, check), words, strict=True)
        found.append(_best_f1(*(sample_of(events, of, candidate_EC[expert_Q], expert_Q) for events, of in on)))
    return torch.cat(found)


def _best_f1(fit: Sample, check: Sample) -> Tensor:
    """(Q) of the learner that wins."""
    found = search(fit)
    by_learner = (found.gate, found.chain, found.threshold)
    # Where a learner has nothing better, the gate stands in its place, and has a length by which it cannot win.
    rules = [[rule or gate for rule, gate in zip(of, found.gate, strict=True)] for of in by_learner]
    true = [true_words([*enumerate(of)], check.literal_QC, check.value_QCW, check.num_tokens) for of in rules]
    f1_RQ = torch.stack([check.f1(true_QW) for true_QW in true])
    gates_RQ = torch.tensor([[len(rule.gates) if rule else 0 for rule in of] for of in by_learner])
    return f1_RQ.gather(0, winners_of(f1_RQ, gates_RQ)[None])[0]
