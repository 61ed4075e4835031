"""Decision trees over candidate literals, grown on counts of their patterns, and what they say as circuits."""

# K patterns (which candidates are true together), C candidates, F leaves

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.symbolic.rules.circuits import Circuit, Wiring, outputs

LEAVES = (4, 8, 16)
"""Sizes of trees that are looked at; they are nested, as the best split comes first."""
LEAST_TOKENS = 8
"""Of a leaf."""
WORTH_A_GATE_F1 = 0.003
"""By which a longer rule must be better on the fitting sample."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Of one expert: which combinations of its candidates occur, on how many tokens, and on how many it fires."""

    true_KC: Tensor
    count_K: Tensor
    fired_K: Tensor

    def f1(self, said_K: Tensor) -> float:
        hits, said = self.fired_K @ said_K.float(), self.count_K @ said_K.float()
        return float(2 * hits / (said + self.fired_K.sum()).clamp(min=1))

    def worth(self, rule: Circuit, literals: Sequence[int]) -> float:
        """The rule's F1 less what its gates must be worth; the candidates are these literals."""
        said_K = outputs(rule, dict(zip(literals, self.true_KC.unbind(1), strict=True)))
        return self.f1(said_K) - WORTH_A_GATE_F1 * len(rule.gates)


def patterns(value_CN: Tensor, fire_N: Tensor) -> Patterns:
    """From what is true of each token, (C, N) bool, and where the expert fires."""
    candidates = len(value_CN)
    code_N = (value_CN.long() << torch.arange(candidates)[:, None]).sum(0)
    count_X = torch.bincount(code_N, minlength=2**candidates)
    code_K = torch.nonzero(count_X)[:, 0]
    fired_X = torch.bincount(code_N[fire_N], minlength=2**candidates)
    true_KC = (code_K[:, None] >> torch.arange(candidates) & 1).bool()
    return Patterns(true_KC, count_X[code_K].float(), fired_X[code_K].float())


@dataclass(slots=True)
class _Leaf:
    """Patterns that reach it, and the best way to split it on."""

    here_K: Tensor
    gain: float
    by: int
    path: tuple[int, ...]
    """2 * candidate + 1 where the candidate is true, from the root."""


def grown_tree(given: Patterns, literals: Sequence[int]) -> Circuit:
    """The tree of at most 16 leaves whose circuit is best by F1 and length; leaves say yes as far as F1 rises.

    Leaves exclude each other, so taking them by precision and cutting at the best prefix is exact.
    """
    leaves = [_leaf(given, torch.ones(len(given.count_K)), ())]
    best, best_worth = None, -torch.inf
    for size in LEAVES:
        while len(leaves) < size:
            at = max(range(len(leaves)), key=lambda i: leaves[i].gain)
            if leaves[at].gain <= 0:
                break
            leaf = leaves.pop(at)
            true_K = given.true_KC[:, leaf.by].float()
            for side, here_K in enumerate((leaf.here_K * (1 - true_K), leaf.here_K * true_K)):
                leaves.append(_leaf(given, here_K, (*leaf.path, 2 * leaf.by + side)))
        said = _saying_yes(given, leaves)
        wiring = Wiring(len(literals))
        output = _signal(wiring, {leaf.path: yes for leaf, yes in zip(leaves, said, strict=True)})
        circuit = wiring.circuit(output, literals)
        worth = given.worth(circuit, literals)
        if worth > best_worth:
            best, best_worth = circuit, worth
    assert best is not None
    return best


def _leaf(given: Patterns, here_K: Tensor, path: tuple[int, ...]) -> _Leaf:
    count_K, fired_K, true_KC = given.count_K * here_K, given.fired_K * here_K, given.true_KC.float()
    count_2C, fired_2C = (torch.stack([every.sum() - every @ true_KC, every @ true_KC]) for every in (count_K, fired_K))
    gain_C = _impurity(count_K.sum(), fired_K.sum()) - _impurity(count_2C, fired_2C).sum(0)
    gain_C = gain_C.masked_fill((count_2C < LEAST_TOKENS).any(0), 0.0)
    gain, by = gain_C.max(0)
    return _Leaf(here_K, float(gain), int(by), path)


def _impurity(tokens: Tensor, fired: Tensor) -> Tensor:
    """Gini's, times the number of tokens."""
    return 2 * fired * (tokens - fired) / tokens.clamp(min=1)


def _saying_yes(given: Patterns, leaves: Sequence[_Leaf]) -> list[bool]:
    here_FK = torch.stack([leaf.here_K for leaf in leaves])
    count_F, fired_F = here_FK @ given.count_K, here_FK @ given.fired_K
    order_F = (fired_F / count_F.clamp(min=1)).argsort(descending=True, stable=True)
    f1_F = 2 * fired_F[order_F].cumsum(0) / (count_F[order_F].cumsum(0) + given.fired_K.sum()).clamp(min=1)
    chosen = set(order_F[: int(f1_F.argmax()) + 1].tolist())
    return [at in chosen for at in range(len(leaves))]


def _signal(wiring: Wiring, said: dict[tuple[int, ...], bool]) -> int:
    """The signal of the subtree whose leaves have these paths."""
    if () in said:
        return wiring.true if said[()] else wiring.false
    by = 2 * (next(iter(said))[0] // 2)
    at_0, at_1 = (
        _signal(wiring, {path[1:]: yes for path, yes in said.items() if path[0] == by + side}) for side in (0, 1)
    )
    if at_0 == at_1:
        return at_0
    if at_1 == wiring.true:
        return wiring.gate(7, by, at_0)
    if at_0 == wiring.true:
        return wiring.gate(13, by, at_1)
    return wiring.gate(7, wiring.gate(1, by, at_1), wiring.gate(2, at_0, by))
