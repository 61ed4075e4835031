"""What firing rules must beat: the same search where experts fire on the tokens of one random permutation."""

# E experts (or other events), X those of a block that were searched, Q experts of a piece, C candidates an expert,
# R learners

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.literals import Literals
from pipeline.symbolic.recording import Events
from pipeline.symbolic.rules.bit_sets import LiteralWords
from pipeline.symbolic.rules.choice import winners_of
from pipeline.symbolic.rules.circuits import Circuit
from pipeline.symbolic.rules.fidelity import true_words
from pipeline.symbolic.rules.search import Sample, sample_of, search
from pipeline.symbolic.rules.statements import pieces
from pipeline.symbolic.rules.token_logic import candidates, with_own_sets

EXPERTS = 256
"""Of a block, drawn from those for which rules were searched."""


class Samples(NamedTuple):
    """What rules are searched on, what the best learner is chosen on, and what the rule is judged on."""

    fit: Events
    check: Events
    held: Events


def permuted_rule_f1(
    searched: Sequence[Tensor],
    samples: Sequence[Samples],
    shared: Literals,
    generator: torch.Generator,
) -> float:
    """Mean F1 of the best rules for noise with the rates and coincidences of these experts, (X) of each block.

    A sample of a block stands for all that were searched there. 0 where none was.
    """
    total, number = 0.0, sum(map(len, searched))
    for layer, (expert_X, sample) in enumerate(zip(searched, samples, strict=True)):
        if not len(expert_X):
            continue
        drawn_X = expert_X[torch.randperm(len(expert_X), generator=generator)[:EXPERTS]]
        noise = Samples(*(events.of(drawn_X).permuted(generator) for events in sample))
        f1_E = best_rule_f1(noise, shared, what=f"block {layer} permuted rules")
        total += float(f1_E.mean()) * len(expert_X)
    return total / max(1, number)


def best_rule_f1(samples: Samples, shared: Literals, *, what: str) -> Tensor:
    """(E) F1 of the best gate, chain or threshold, which are searched, chosen and judged as those of experts are.

    Trees and networks are not tried.
    """
    literals = with_own_sets(samples.fit, shared)
    candidate_EC, _ = candidates(samples.fit, shared, literals)
    words = [LiteralWords(literals, len(shared.offset_L), events.context_ON) for events in samples]
    found = []
    for expert_Q in pieces(torch.arange(len(candidate_EC)), what):
        on = zip(samples, words, strict=True)
        found.append(_best_f1(*(sample_of(events, of, candidate_EC[expert_Q], expert_Q) for events, of in on)))
    return torch.cat(found)


def _best_f1(fit: Sample, check: Sample, held: Sample) -> Tensor:
    """(Q) of the learner that wins on `check`."""
    found = search(fit)
    by_learner = (found.gate, found.chain, found.threshold)
    # Where a learner has nothing better, the gate stands in its place, and has a length by which it cannot win.
    rules = [[rule or gate for rule, gate in zip(of, found.gate, strict=True)] for of in by_learner]
    gates_RQ = torch.tensor([[len(rule.gates) if rule else 0 for rule in of] for of in by_learner])
    won_Q = winners_of(_f1(rules, check), gates_RQ)
    return _f1(rules, held).gather(0, won_Q[None])[0]


def _f1(rules: Sequence[Sequence[Circuit]], on: Sample) -> Tensor:
    """(R, Q)"""
    true = [true_words([*enumerate(of)], on.literal_QC, on.value_QCW, on.num_tokens) for of in rules]
    return torch.stack([on.f1(true_QW) for true_QW in true])
