"""Which statement each expert gets: the shortest set of statements whose error stays within a budget.

Every expert has options (a description length in bits, an error in energy). Minimising bits + error / price for one
price over all experts is the shortest total description for the error it leaves; the price is found by bisection.
"""

# E experts, O options an expert

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.symbol_table.tables import Tier

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


def _at(options: Options, price: float) -> Tensor:
    """Least bits + price * error; `price` in bits a unit of energy."""
    return (options.bits_EO.double() + price * options.error_EO.double()).argmin(1)


def row_share_bits(cell_E: Tensor, grid: tuple[int, int], num_heads: int, d_model: int, users_E: Tensor) -> Tensor:
    """(E) bits of the dense score rows that an exact comparison names, shared by the experts that use them.

    `grid` has so many rows and columns. Expert (r, c) needs row r and column c of every head: 2 H rows of D
    coefficients, each shared by the experts in `users_E` (bool) that name it too, and one threshold a head, shared by
    all of them.
    """
    row_bits = num_heads * d_model * COEFFICIENT_BITS
    num_rows, num_columns = grid
    row_E, column_E = cell_E // num_columns, cell_E % num_columns
    users = users_E.double()
    per_row = torch.zeros(num_rows, dtype=torch.float64).index_add(0, row_E, users).clamp(min=1)
    per_column = torch.zeros(num_columns, dtype=torch.float64).index_add(0, column_E, users).clamp(min=1)
    return row_bits / per_row[row_E] + row_bits / per_column[column_E]
