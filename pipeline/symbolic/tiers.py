"""Which statement each expert gets: the shortest set of statements whose error stays within a budget.

Every expert has options (a description length in bits, an error in energy). Minimising bits + error / price for one
price over all experts is the shortest total description for the error it leaves; the price is found by bisection.
"""

# E experts, O options an expert

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.symbol_table.tables import Tier
from pipeline.models.peer.spec import PeerSpec

READABLE = (Tier.T1, Tier.T2, Tier.T3)
TIER_WORDS = {
    Tier.T0: "exact, dense u",
    Tier.T1: "formula, exact firing",
    Tier.T2: "logic and formula",
    Tier.T3: "logic, constant magnitude",
    Tier.T4: "dropped",
}

COEFFICIENT_BITS = 8.0
"""Of a coefficient in a formula: enough for two significant digits and an exponent."""
GATE_BITS = 4.0
TIER_BITS = 3.0
SHARING_ROUNDS = 4
"""Choices in which the users of score rows settle; two to three were enough (tiny, 2026-11)."""


@dataclass(frozen=True, slots=True)
class Options:
    """(E, O) description lengths in bits and the energy that each option gets wrong."""

    bits_EO: Tensor
    error_EO: Tensor


def choose(options: Options, budget: float) -> Tensor:
    """(E) the option of each expert: least total bits with total error at most `budget` (in energy)."""
    low, high = 1e-12, 1e12
    chosen_E = _at(options, high)
    for _ in range(60):
        price = (low * high) ** 0.5
        candidate_E = _at(options, price)
        if float(options.error_EO.gather(1, candidate_E[:, None]).sum()) <= budget:
            chosen_E, high = candidate_E, price
        else:
            low = price
    return chosen_E


def choose_sharing(
    options: Options, compares_O: Tensor, comparison: Callable[[Tensor], Tensor], budget: float
) -> tuple[Tensor, Options]:
    """As `choose`, where options that `compares_O` marks name what others name too, so that fewer users pay more.

    `comparison(users_E)` is its price for each expert. Prices are those of the choice before, at first of all experts,
    until the users stay the same. Returns the choice and the options at the prices that it was made by.
    """
    users_E, rounds = torch.ones(len(options.bits_EO), dtype=torch.bool), 0
    while True:
        priced_EO = options.bits_EO + compares_O * comparison(users_E)[:, None].to(options.bits_EO)
        priced = Options(priced_EO, options.error_EO)
        chosen_E = choose(priced, budget)
        before_E, users_E, rounds = users_E, compares_O[chosen_E], rounds + 1
        if rounds == SHARING_ROUNDS or torch.equal(users_E, before_E):
            return chosen_E, priced


def _at(options: Options, price: float) -> Tensor:
    """Least bits + price * error; `price` in bits a unit of energy."""
    return (options.bits_EO.double() + price * options.error_EO.double()).argmin(1)


def score_row_bits(spec: PeerSpec, d_model: int) -> float:
    """Bits of what one score is made of: coefficients of the state, or of its features with their numbers."""
    if spec.score_features:
        return spec.score_terms * (COEFFICIENT_BITS + math.log2(spec.score_features)) + COEFFICIENT_BITS
    return d_model * COEFFICIENT_BITS


def comparison_bits(spec: PeerSpec, d_model: int, cell_E: Tensor, users_E: Tensor) -> Tensor:
    """(E) bits that an exact comparison of an expert's row and column costs, if `users_E` (bool) have one beside it.

    Expert (r, c) needs row r and column c of every head, each shared with the others that name it; the features, where
    scores have them, and one threshold a head are shared by all.
    """
    row_bits = spec.num_heads * score_row_bits(spec, d_model)
    row_E, column_E = cell_E // spec.num_columns, cell_E % spec.num_columns
    users_E = users_E.double()
    shared = spec.score_features * d_model * COEFFICIENT_BITS + spec.num_heads * COEFFICIENT_BITS
    share_E = shared / (users_E.sum() + 1 - users_E)
    for key_E, count in ((row_E, spec.num_keys), (column_E, spec.num_columns)):
        users = torch.zeros(count, dtype=torch.float64).index_add(0, key_E, users_E)
        share_E = share_E + row_bits / (users[key_E] + 1 - users_E)
    return share_E
