"""Firing as logic over tokens: for every expert the rules that each learner finds, where they may be worth a tier.

Rules are searched on one sample; their constants are fitted on it, and they are judged on another.
"""

# N tokens, E experts, L literals, C candidate literals an expert, Q experts of a piece, W words of bits, X experts that
# are searched

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.literals import Literals
from pipeline.models.tables.experts import TableExperts
from pipeline.run import steps
from pipeline.symbolic.formulas.fitting import Formulas
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.rules.bit_sets import LiteralWords, unpacked
from pipeline.symbolic.rules.circuits import Circuit, bits, simplified
from pipeline.symbolic.rules.fidelity import sums_of, worth
from pipeline.symbolic.rules.gate_nets import Task, fits, learned
from pipeline.symbolic.rules.search import sample_of, search
from pipeline.symbolic.rules.token_logic import TokenStatements, best_statements, candidates, with_own_sets
from pipeline.symbolic.rules.trees import grown_tree, patterns
from pipeline.symbolic.tiers import COEFFICIENT_BITS

LEARNERS = ("gate", "chain", "threshold", "tree", "net")
"""From the simplest on. The last two try only few experts."""
WORTH_SEARCHING_F1 = 0.6
"""Of the best single literal: below it no gate of two came near the R2 bound (tiny Shakespeare model, 2026-11)."""
TRIED_DEEPLY_SHARE = 0.02
"""Of the experts of a block, those with most output, for which trees and networks are tried."""
TRIED_AS_BEST_SAID = 16
"""Experts besides, whose firing tokens say best, as `showcase` shows some of them."""
LEAST_FIRINGS = 30
"""Of those, on the checking sample."""
EXPERTS_A_PIECE = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """One learner's rules by expert, and what each expert's is worth; of those without one the errors are infinite."""

    learner: str
    circuits: Mapping[int, Circuit]
    f1_E: Tensor
    """Against firing, on the checking sample; 0 without a rule."""
    constant_E: Tensor
    constant_error_E: Tensor
    """Squared error of the rule with a constant magnitude, on the checking sample."""
    function_scale_E: Tensor
    function_error_E: Tensor
    """Squared error of the rule with the expert's formula times a constant."""
    bits_E: Tensor


@dataclass(frozen=True, slots=True)
class Statements:
    """For every expert the rules of all learners, and what tokens say of it in words."""

    literals: Literals
    """The shared ones first, then two sets of tokens for every expert: of the current and of the previous token."""
    names: list[str]
    rules: tuple[Rules, ...]
    """In the order of LEARNERS."""
    tried_deeply_E: Tensor
    """Where trees and networks were tried."""
    token_logic: TokenStatements
    """The best statement of every expert, worth a tier or not."""
    rate_E: Tensor
    """Share of tokens on which the expert fires: the F1 of a random statement of the same rate."""


def fit_statements(
    experts: TableExperts,
    fit: LayerRecord,
    check: LayerRecord,
    shared: Literals,
    names: list[str],
    formulas: Formulas,
    energy_E: Tensor,
    *,
    generator: torch.Generator,
    what: str,
) -> Statements:
    """Searches on `fit`, judges on `check`. `formulas` gives the magnitude of rules with a function."""
    num_experts, num_shared = experts.spec.num_experts, len(shared.offset_L)
    literals = with_own_sets(fit.events, shared)
    candidate_EC, single_f1_E = candidates(fit.events, shared, literals)
    token_logic = best_statements(fit.events, check.events, literals, candidate_EC)
    deep_E = _tried_deeply(energy_E, token_logic.f1_E, check.events.count_E) & (fit.events.count_E > 0)
    searched_X = torch.nonzero((single_f1_E >= WORTH_SEARCHING_F1) | deep_E)[:, 0]
    words = [LiteralWords(literals, num_shared, record.events.context_ON) for record in (fit, check)]
    circuits = _search(fit, words[0], candidate_EC, searched_X, deep_E, generator, f"{what} search")
    judged = _judge(experts, (fit, check), words, candidate_EC, circuits, searched_X, formulas, f"{what} judge")
    literal_bits = _literal_bits(literals, num_shared).tolist()
    return Statements(
        literals=literals,
        names=names + [f"own set of expert {e}, token[{-b}]" for b in (0, 1) for e in range(num_experts)],
        rules=tuple(_rules(name, circuits[name], judged[name], literal_bits, num_experts) for name in LEARNERS),
        tried_deeply_E=deep_E,
        token_logic=token_logic,
        rate_E=check.events.rate_E,
    )


def _tried_deeply(energy_E: Tensor, token_f1_E: Tensor, count_E: Tensor) -> Tensor:
    """(E) bool: the few with most output, and those that will be shown because tokens say them well."""
    deep_E = torch.zeros(len(energy_E), dtype=torch.bool)
    deep_E[energy_E.topk(math.ceil(TRIED_DEEPLY_SHARE * len(energy_E))).indices] = True
    said_E = token_f1_E * (count_E >= LEAST_FIRINGS)
    deep_E[said_E.topk(min(TRIED_AS_BEST_SAID, len(said_E))).indices] = True
    return deep_E & (energy_E > 0)


def pieces(expert_X: Tensor, what: str) -> Iterator[Tensor]:
    """(Q) experts at a time, progress being told of `what`."""
    cut = expert_X.split(EXPERTS_A_PIECE) if len(expert_X) else ()
    for piece in steps(what, len(cut)):
        yield cut[piece]


def _search(
    fit: LayerRecord,
    words: LiteralWords,
    candidate_EC: Tensor,
    searched_X: Tensor,
    deep_E: Tensor,
    generator: torch.Generator,
    what: str,
) -> dict[str, dict[int, Circuit]]:
    """By learner and expert."""
    circuits: dict[str, dict[int, Circuit]] = {name: {} for name in LEARNERS}
    tasks: dict[int, Task] = {}
    num_tokens = len(fit.x_ND)
    for expert_Q in pieces(searched_X, what):
        sample = sample_of(fit.events, words, candidate_EC[expert_Q], expert_Q)
        found = search(sample)
        for q, expert in enumerate(expert_Q.tolist()):
            for name, circuit in (
                ("gate", found.gate[q]),
                ("chain", found.chain[q]),
                ("threshold", found.threshold[q]),
            ):
                if circuit is not None:
                    circuits[name][expert] = circuit
            if bool(deep_E[expert]):
                given = patterns(*(unpacked(of[q], num_tokens) for of in (sample.value_QCW, sample.fire_QW)))
                literals = sample.literal_QC[q].tolist()
                tree = simplified(grown_tree(given, literals))
                circuits["tree"][expert] = tree
                starts = [c for c in (found.gate[q], found.chain[q], found.threshold[q], tree) if c and fits(c)]
                worths = [given.worth(circuit, literals) for circuit in starts]
                tasks[expert] = Task(given, literals, starts[worths.index(max(worths))])
    for expert, circuit in zip(tasks, learned([*tasks.values()], generator=generator), strict=True):
        circuits["net"][expert] = circuit
    return circuits


def _judge(
    experts: TableExperts,
    records: tuple[LayerRecord, LayerRecord],
    words: Sequence[LiteralWords],
    candidate_EC: Tensor,
    circuits: Mapping[str, Mapping[int, Circuit]],
    searched_X: Tensor,
    formulas: Formulas,
    what: str,
) -> dict[str, dict[int, list[float]]]:
    """By learner and expert: F1, constant, its error, scale of the function, its error."""
    judged: dict[str, dict[int, list[float]]] = {name: {} for name in LEARNERS}
    for expert_Q in pieces(searched_X, what):
        rules = [
            (name, q, circuits[name][expert])
            for q, expert in enumerate(expert_Q.tolist())
            for name in LEARNERS
            if expert in circuits[name]
        ]
        literal_QC, of_rules = candidate_EC[expert_Q], [(q, circuit) for _, q, circuit in rules]
        sums = [
            sums_of(experts, record, of, literal_QC, expert_Q, of_rules, formulas)
            for record, of in zip(records, words, strict=True)
        ]
        for (name, q, _), *figures in zip(rules, *worth(*sums), strict=True):
            judged[name][int(expert_Q[q])] = figures
    return judged


def _rules(
    learner: str,
    circuits: Mapping[int, Circuit],
    judged: Mapping[int, Sequence[float]],
    literal_bits: Sequence[float],
    num_experts: int,
) -> Rules:
    expert_X = torch.tensor([*judged], dtype=torch.int64)
    figure_5E = torch.tensor([0.0, 0.0, torch.inf, 0.0, torch.inf])[:, None].repeat(1, num_experts)
    figure_5E[:, expert_X] = torch.tensor([*judged.values()]).reshape(len(judged), 5).T
    bits_E = torch.zeros(num_experts)
    bits_E[expert_X] = torch.tensor([bits(circuits[expert], literal_bits) for expert in judged])
    f1_E, constant_E, constant_error_E, scale_E, function_error_E = figure_5E.unbind(0)
    return Rules(learner, circuits, f1_E, constant_E, constant_error_E, scale_E, function_error_E, bits_E)


def _literal_bits(literals: Literals, num_shared: int) -> Tensor:
    """(L) bits to name a literal: an entry of the shared list, or the tokens of a set of one's own."""
    vocabulary = literals.member_LV.shape[1]
    bits_L = literals.member_LV.sum(1) * math.log2(vocabulary) + COEFFICIENT_BITS / 2
    bits_L[:num_shared] = math.log2(max(2, num_shared))
    return bits_L
