"""Which learner's rule is best for each expert, and how much the longer ones add to a gate of two literals."""

# E experts, R learners, from the simplest on

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.symbolic.rules._difflogic import layer_class
from pipeline.symbolic.rules.statements import LEARNERS, Rules, Statements
from pipeline.symbolic.rules.trees import WORTH_A_GATE_F1


def winners(statements: Statements) -> Tensor:
    """(E) the learner, by its place in LEARNERS, that each expert's best rule is from; -1 where none has one."""
    gates_RE = torch.zeros(len(statements.rules), len(statements.rate_E))
    for number, rules in enumerate(statements.rules):
        for expert, circuit in rules.circuits.items():
            gates_RE[number, expert] = len(circuit.gates)
    return winners_of(torch.stack([rules.f1_E for rules in statements.rules]), gates_RE)


def winners_of(f1_RE: Tensor, gates_RE: Tensor) -> Tensor:
    """(E) the learner that wins by these F1 and lengths; -1 where no rule has a gate, which means that there is none.

    A learner wins over simpler ones by an F1 that is better by `WORTH_A_GATE_F1` a gate more, or by one no worse with
    fewer gates.
    """
    best_E, length_E = torch.zeros_like(f1_RE[0]), torch.zeros_like(f1_RE[0])
    won_E = torch.full((len(best_E),), -1)
    for number, (f1_E, gates_E) in enumerate(zip(f1_RE, gates_RE, strict=True)):
        longer_E = gates_E - length_E
        better_E = f1_E > best_E + WORTH_A_GATE_F1 * longer_E.clamp(min=1)
        shorter_E = (f1_E >= best_E) & (longer_E < 0)
        wins_E = (gates_E > 0) & (better_E | shorter_E | (won_E < 0))
        best_E, length_E = torch.where(wins_E, f1_E, best_E), torch.where(wins_E, gates_E, length_E)
        won_E[wins_E] = number
    return won_E


def _f1_of(rules: Rules, otherwise: Rules) -> Tensor:
    """(E) F1 of a learner's rule, or of the simpler one that stands in its place."""
    has_E = torch.isfinite(rules.constant_error_E)
    return torch.where(has_E, rules.f1_E, otherwise.f1_E)


def rule_metrics(chosen: Sequence[Statements], blocks: Sequence[Statements]) -> dict[str, float]:
    """Over the experts of all blocks for which rules were searched, and over those that all learners tried.

    `chosen` and `blocks` are the same rules, judged on two samples: who wins is of the first, what it is worth of the
    second, and means are over experts that fire there.
    """
    won_E = torch.cat([winners(statements) for statements in chosen])
    deep_E = torch.cat([statements.tried_deeply_E for statements in blocks])
    rate_E = torch.cat([statements.rate_E for statements in blocks])
    f1 = {
        name: torch.cat([_f1_of(statements.rules[number], statements.rules[0]) for statements in blocks])
        for number, name in enumerate(LEARNERS)
    }
    best_E = torch.stack([*f1.values()]).gather(0, won_E.clamp(min=0)[None])[0]
    searched_E = won_E >= 0

    def mean(value_E: Tensor, over_E: Tensor) -> float:
        fires_E = over_E & (rate_E > 0)
        return float(value_E[fires_E].float().mean()) if bool(fires_E.any()) else 0.0

    return {
        "rule_searched_share": float(searched_E.float().mean()),
        "rule_f1_mean": mean(best_E, searched_E),
        "rule_f1_single_gate_mean": mean(f1["gate"], searched_E),
        "rule_f1_same_rate_null_mean": mean(rate_E, searched_E),
        "deep_rule_share": float(deep_E.float().mean()),
        "deep_rule_f1_mean": mean(best_E, deep_E),
        **{f"deep_rule_f1_{name}_mean": mean(f1[name], deep_E) for name in ("gate", "tree", "net")},
        "deep_rule_f1_same_rate_null_mean": mean(rate_E, deep_E),
        **{f"deep_rule_won_{name}_share": mean(won_E == number, deep_E) for number, name in enumerate(LEARNERS)},
        "nets_by_difflogic": float(layer_class() is not None),
    }
