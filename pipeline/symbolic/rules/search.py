"""The search for rules, many experts at once: the best gate of two literals, chains of up to four, thresholds m of n.

Candidates are sets of tokens as words of bits, and so is the firing: a rule's F1 is counted from the sets themselves.
"""

# Q experts, C candidates an expert, W words of 64 tokens, S ways to take some of the candidates, K gate types

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from pipeline.symbolic.recording import Events
from pipeline.symbolic.rules.bit_sets import LiteralWords, count, everything, packed
from pipeline.symbolic.rules.circuits import Circuit, Gate, minimised
from pipeline.symbolic.rules.logic import GATE_OUTPUT_G4, BestGates, best_gates, four_cells
from pipeline.symbolic.rules.token_logic import IS_A, OR, XOR

WORTH_A_LITERAL_F1 = 0.01
"""What one more literal must add on the fitting sample."""
CHAIN_LITERALS = 4
STARTS = ((1, 2, 4, 8), (7, 11, 13, 14), (6, 9))
"""Types of the first gate: a chain grows from the best AND, from the best OR and from the best XOR."""
THRESHOLD_CANDIDATES = 6
"""Those with the best F1 alone, of which thresholds are tried."""
THRESHOLDS: Sequence[tuple[int, int, tuple[Gate, ...]]] = (
    (2, 3, ((1, 0, 1), (7, 0, 1), (1, 2, 4), (7, 3, 5))),
    (2, 4, ((1, 0, 1), (1, 2, 3), (7, 0, 1), (7, 2, 3), (1, 6, 7), (7, 4, 5), (7, 8, 9))),
    (3, 4, ((7, 0, 1), (7, 2, 3), (1, 0, 1), (1, 2, 3), (7, 6, 7), (1, 4, 5), (1, 8, 9))),
)
"""At least m of n, as gates over n wires; of 1 and of all they are chains."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Of some experts: the sets of tokens of which their candidates are true, and those on which they fire."""

    literal_QC: Tensor
    value_QCW: Tensor
    fire_QW: Tensor
    num_tokens: int

    def f1(self, true_QW: Tensor) -> Tensor:
        """(Q) of firing where these sets say; sets may have more dimensions behind the first."""
        fire_QW = self.fire_QW.view(len(self.fire_QW), *[1] * (true_QW.ndim - 2), -1)
        return 2 * count(true_QW & fire_QW) / (count(true_QW) + count(fire_QW)).clamp(min=1)


def sample_of(events: Events, words: LiteralWords, literal_QC: Tensor, expert_Q: Tensor) -> Sample:
    """The sample of these experts, which have these candidates."""
    value_QCW = words.of(literal_QC.flatten()).view(*literal_QC.shape, -1)
    return Sample(literal_QC, value_QCW, packed(events.of(expert_Q).on_tokens()), events.num_tokens)


Longer = list[Circuit | None]
"""Rules of some experts; none where nothing is better than the gate by what its literals must be worth."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for some experts, on the fitting sample."""

    gate: list[Circuit]
    chain: Longer
    threshold: Longer


def search(sample: Sample) -> Found:
    """The best gate of two candidates for each expert; chains and thresholds where more literals are worth it."""
    fired_QCC, count_QCC = _pairs(sample)
    place_QC = torch.arange(sample.literal_QC.shape[1]).expand(sample.literal_QC.shape)
    given = fired_QCC, count(sample.fire_QW), count_QCC, place_QC, sample.num_tokens
    starts = [best_gates(*given, kinds=kinds) for kinds in STARTS]
    f1_QC = _f1_alone(fired_QCC, count_QCC, count(sample.fire_QW))
    single, alone_Q = _one_or_two(sample, best_gates(*given), f1_QC, count_QCC)
    chain, chain_Q = _chains(sample, starts)
    threshold, threshold_Q = _thresholds(sample, f1_QC)
    return Found(
        gate=single,
        chain=_where(chain_Q >= alone_Q + WORTH_A_LITERAL_F1, chain),
        threshold=_where(threshold_Q >= alone_Q + WORTH_A_LITERAL_F1, threshold),
    )


def _where(wins_Q: Tensor, circuits: Sequence[Circuit]) -> Longer:
    return [circuit if wins else None for wins, circuit in zip(wins_Q.tolist(), circuits, strict=True)]


def _pairs(sample: Sample) -> tuple[Tensor, Tensor]:
    """(Q, C, C): firings where both candidates are true, and tokens where both are."""
    experts, candidates = sample.literal_QC.shape
    fired_QCC, count_QCC = (torch.zeros(experts, candidates, candidates) for _ in range(2))
    for c in range(candidates):
        both_QCW = sample.value_QCW[:, : c + 1] & sample.value_QCW[:, c : c + 1]
        fired_QCC[:, c, : c + 1] = fired_QCC[:, : c + 1, c] = count(both_QCW & sample.fire_QW[:, None])
        count_QCC[:, c, : c + 1] = count_QCC[:, : c + 1, c] = count(both_QCW)
    return fired_QCC, count_QCC


def _f1_alone(fired_QCC: Tensor, count_QCC: Tensor, total_Q: Tensor) -> Tensor:
    """(Q, C)"""
    fired_QC, count_QC = fired_QCC.diagonal(dim1=1, dim2=2), count_QCC.diagonal(dim1=1, dim2=2)
    return 2 * fired_QC / (count_QC + total_Q[:, None]).clamp(min=1)


def _one_or_two(sample: Sample, best: BestGates, f1_QC: Tensor, count_QCC: Tensor) -> tuple[list[Circuit], Tensor]:
    """The gate, or one literal where the second is not worth it; (Q) its F1."""
    one_Q, at_Q = f1_QC.max(1)
    alone_Q = best.score_E < one_Q + WORTH_A_LITERAL_F1
    # Of literals that exclude each other, such as two tokens of one place, "or" says the same as "either".
    apart_Q = count_QCC[torch.arange(len(at_Q)), best.a_E, best.b_E] == 0
    kind_Q = torch.where(alone_Q, IS_A, torch.where(apart_Q & (best.kind_E == XOR), OR, best.kind_E))
    a_Q, b_Q = torch.where(alone_Q, at_Q, best.a_E), torch.where(alone_Q, at_Q, best.b_E)
    columns = (kind_Q.tolist(), a_Q.tolist(), b_Q.tolist(), sample.literal_QC.tolist())
    circuits = [minimised([own[a], own[b]], [(kind, 0, 1)]) for kind, a, b, own in zip(*columns, strict=True)]
    return circuits, torch.where(alone_Q, one_Q, best.score_E)


def gate_words(kind_Q: Tensor, a_QW: Tensor, b_QW: Tensor, num_tokens: int) -> Tensor:
    """(Q, W) the sets of which a gate of two sets is true, each expert's of its own type."""
    every_W = everything(num_tokens)
    cells = (~a_QW & ~b_QW, ~a_QW & b_QW, a_QW & ~b_QW, a_QW & b_QW)
    wanted_Q4 = -GATE_OUTPUT_G4[kind_Q].long()  # all bits, or none
    return sum((wanted_Q4[:, x, None] & cell_QW for x, cell_QW in enumerate(cells)), torch.zeros_like(a_QW)) & every_W


def _chains(sample: Sample, starts: Sequence[BestGates]) -> tuple[list[Circuit], Tensor]:
    """Of the chains from each start the one with the best F1, and (Q) that F1."""
    experts = torch.arange(len(sample.literal_QC))
    grown = []
    for start in starts:
        a_QW, b_QW = sample.value_QCW[experts, start.a_E], sample.value_QCW[experts, start.b_E]
        state_QW = gate_words(start.kind_E, a_QW, b_QW, sample.num_tokens)
        links, f1_Q = [(start.kind_E, start.b_E)], start.score_E
        going_Q = torch.ones_like(f1_Q, dtype=torch.bool)
        for _ in range(CHAIN_LITERALS - 2):
            kind_Q, at_Q, new_Q = _best_link(sample, state_QW)
            going_Q = going_Q & (new_Q >= f1_Q + WORTH_A_LITERAL_F1)
            links.append((torch.where(going_Q, kind_Q, IS_A), at_Q))  # "what was so far", where it is not worth it
            state_QW = gate_words(links[-1][0], state_QW, sample.value_QCW[experts, at_Q], sample.num_tokens)
            f1_Q = torch.where(going_Q, new_Q, f1_Q)
        grown.append((start.a_E, links, f1_Q))
    best_Q = torch.stack([f1_Q for *_, f1_Q in grown]).argmax(0).tolist()
    circuits = []
    for q, which in enumerate(best_Q):
        first_Q, links, _ = grown[which]
        places = [int(first_Q[q]), *(int(at_Q[q]) for _, at_Q in links)]
        literals = sample.literal_QC[q, places].tolist()
        kinds = [int(kind_Q[q]) for kind_Q, _ in links]
        wires = [0, *range(len(literals), len(literals) + len(kinds))]
        gates = [(kind, wires[step], step + 1) for step, kind in enumerate(kinds)]
        circuits.append(minimised(literals, gates))
    return circuits, torch.stack([f1_Q for *_, f1_Q in grown]).amax(0)


def _best_link(sample: Sample, state_QW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q) gate type and candidate that make the best rule of the rule so far, and its F1."""
    fire_QW, value_QCW = sample.fire_QW, sample.value_QCW
    both_QCW = value_QCW & state_QW[:, None]
    total_Q = count(fire_QW)[:, None]
    fired = four_cells(
        count(both_QCW & fire_QW[:, None]), count(state_QW & fire_QW)[:, None],
        count(value_QCW & fire_QW[:, None]), total_Q,
    )  # fmt: skip
    true = four_cells(
        count(both_QCW), count(state_QW)[:, None], count(value_QCW), torch.tensor(float(sample.num_tokens))
    )
    kinds = torch.arange(1, 15)
    output_K4 = GATE_OUTPUT_G4[kinds].float()
    hits_KQC, true_KQC = (torch.tensordot(output_K4, torch.stack(cells), dims=1) for cells in (fired, true))
    f1_KQC = 2 * hits_KQC / (true_KQC + total_Q).clamp(min=1)
    f1_Q, at_Q = f1_KQC.transpose(0, 1).flatten(1).max(1)
    candidates = value_QCW.shape[1]
    return kinds[at_Q // candidates], at_Q % candidates, f1_Q


def _thresholds(sample: Sample, f1_QC: Tensor) -> tuple[list[Circuit], Tensor]:
    """The best "at least m of n" over each expert's best candidates, and (Q) its F1."""
    place_QC = f1_QC.topk(min(THRESHOLD_CANDIDATES, f1_QC.shape[1]), dim=1).indices
    rows = torch.arange(len(place_QC))[:, None]
    value_QCW = sample.value_QCW[rows, place_QC]
    literal_QC = sample.literal_QC.gather(1, place_QC)
    circuits, best_Q = [Circuit((0,), ((0, 0, 0),))] * len(place_QC), torch.full((len(place_QC),), -1.0)
    for at_least, of, gates in THRESHOLDS:
        ways = list(combinations(range(place_QC.shape[1]), of))
        if not ways:
            continue
        columns = [value_QCW[:, list(column)] for column in zip(*ways, strict=True)]
        f1_QS = sample.f1(_at_least(at_least, columns))
        f1_Q, way_Q = f1_QS.max(1)
        for q in torch.nonzero(f1_Q > best_Q)[:, 0].tolist():
            circuits[q] = minimised(literal_QC[q, list(ways[int(way_Q[q])])].tolist(), gates)
        best_Q = torch.maximum(best_Q, f1_Q)
    return circuits, best_Q


def _at_least(least: int, sets: Sequence[Tensor]) -> Tensor:
    """Of what at least so many of these sets are true."""
    reached = [torch.full_like(sets[0], -1), *(torch.zeros_like(sets[0]) for _ in range(least))]
    for value in sets:
        for level in range(least, 0, -1):
            reached[level] = reached[level] | (reached[level - 1] & value)
    return reached[least]
