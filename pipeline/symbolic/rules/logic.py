"""Logic over token literals: the sixteen two-input gates, and the search for the best gate.

Gates are numbered as difflogic numbers them (Petersen et al. 2022): bit 3 - (2 a + b) of the number is the output,
so 1 is AND, 7 is OR, 6 is XOR and 15 - g is NOT g.
"""

# E experts, C candidates an expert, G gate types

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor

GATE_OUTPUT_G4 = torch.tensor([[(g >> (3 - x)) & 1 for x in range(4)] for g in range(16)], dtype=torch.bool)
"""(16, 4): the gate's output for (a, b) = 00, 01, 10, 11."""


def gate_symbol(kind: int, a: Boolean, b: Boolean) -> Boolean:
    """Gate `kind` as a sympy boolean."""
    made = _gate_of_symbols(kind).xreplace({_A: a, _B: b})
    assert isinstance(made, Boolean)
    return made


_A, _B = sympy.Dummy("a"), sympy.Dummy("b")


@cache
def _gate_of_symbols(kind: int) -> Boolean:
    terms = []
    for x in range(4):
        if bool(GATE_OUTPUT_G4[kind, x]):
            terms.append(sympy.And(_A if x & 2 else sympy.Not(_A), _B if x & 1 else sympy.Not(_B)))
    return sympy.simplify_logic(sympy.Or(*terms)) if terms else sympy.false


@dataclass(frozen=True, slots=True)
class BestGates:
    """For every expert the gate of two literals that does best."""

    kind_E: Tensor
    a_E: Tensor
    b_E: Tensor
    score_E: Tensor
    """F1 of the gate against firing."""


def best_gates(
    fired_ECC: Tensor,
    total_E: Tensor,
    count_ECC: Tensor,
    literal_EC: Tensor,
    num_tokens: int,
    *,
    kinds: Sequence[int] = range(1, 15),
) -> BestGates:
    """Searches gates of these kinds of all pairs among each expert's candidates for the best F1 against its firing.

    `fired_ECC` (E, C, C): firings on tokens where both literals are true, singles on the diagonal; `total_E` all
    firings; `count_ECC` the tokens where both are true.
    """
    experts, candidates = literal_EC.shape
    single_EC, count_EC = fired_ECC.diagonal(dim1=1, dim2=2), count_ECC.diagonal(dim1=1, dim2=2)
    shape = (experts, candidates, candidates)
    fired = four_cells(fired_ECC, single_EC[:, :, None], single_EC[:, None, :], total_E[:, None, None])
    count = four_cells(count_ECC, count_EC[:, :, None], count_EC[:, None, :], torch.full(shape, float(num_tokens)))
    best: BestGates | None = None
    for kind in kinds:
        # NOT of a gate is a gate; those true of most tokens lose by themselves.
        chosen = [x for x in range(4) if bool(GATE_OUTPUT_G4[kind, x])]
        hit_ECC = torch.stack([fired[x] for x in chosen]).sum(0)
        true_ECC = torch.stack([count[x] for x in chosen]).sum(0)
        score_ECC = 2 * hit_ECC / (true_ECC + total_E[:, None, None]).clamp(min=1)
        score_E, at_E = score_ECC.flatten(1).max(1)
        a_E, b_E = at_E // candidates, at_E % candidates
        new = BestGates(
            torch.full_like(at_E, kind),
            literal_EC.gather(1, a_E[:, None])[:, 0],
            literal_EC.gather(1, b_E[:, None])[:, 0],
            score_E,
        )
        best = new if best is None else _best_of(new, best)
    assert best is not None
    return best


def four_cells(both: Tensor, a: Tensor, b: Tensor, total: Tensor) -> list[Tensor]:
    """How many of (a, b) = 00, 01, 10, 11 by inclusion and exclusion."""
    return [total - a - b + both, b - both, a - both, both]


def _best_of(new: BestGates, old: BestGates) -> BestGates:
    wins_E = new.score_E > old.score_E
    fields = ("kind_E", "a_E", "b_E", "score_E")
    return BestGates(*(torch.where(wins_E, getattr(new, f), getattr(old, f)) for f in fields))
