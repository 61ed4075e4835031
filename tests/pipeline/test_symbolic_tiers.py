"""Choosing a tier for every expert: within the budget, and never longer than need be."""

import itertools

import pytest
import torch

from pipeline.symbolic.tiers import COEFFICIENT_BITS, Options, Tier, choose, row_share_bits

# E experts, O options an expert


def random_options(seed, experts=6, options=4):
    """Longer options err less; the first is exact, as T0 is."""
    generator = torch.Generator().manual_seed(seed)
    bits_EO = (torch.rand(experts, options, generator=generator) * 100 + 3).sort(1, descending=True).values
    error_EO = torch.rand(experts, options, generator=generator).square().sort(1).values
    error_EO[:, 0] = 0
    return Options(bits_EO, error_EO)


def totals(options, chosen_E):
    return tuple(float(table.gather(1, chosen_E[:, None]).sum()) for table in (options.bits_EO, options.error_EO))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.0, 0.05, 0.4, 1.5, 100.0])
def test_the_error_stays_within_the_budget_and_no_uniform_choice_that_does_is_shorter(seed, budget):
    options = random_options(seed)
    bits, error = totals(options, choose(options, budget))
    assert error <= budget
    for option in range(options.bits_EO.shape[1]):
        uniform_bits, uniform_error = totals(options, torch.full((6,), option))
        # One that meets the budget with room to spare: where a price is shared, the choice may jump past the budget.
        if uniform_error <= error:
            assert bits <= uniform_bits + 1e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [0.1, 0.7])
def test_the_choice_is_the_shortest_of_all_that_err_no_more_than_it_does(seed, budget):
    """Of all 3 ** 6 choices: what a price reaches is optimal for the error it leaves."""
    options = random_options(seed, options=3)
    bits, error = totals(options, choose(options, budget))
    everything = (totals(options, torch.tensor(c)) for c in itertools.product(range(3), repeat=6))
    assert bits == pytest.approx(min(b for b, e in everything if e <= error * (1 + 1e-6)), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_that_any_price_reaches(seed):
    options, budget = random_options(seed), 0.3
    reached = [
        (options.bits_EO.double() + price * options.error_EO.double()).argmin(1)
        for price in torch.logspace(-3, 9, 4000, dtype=torch.float64)
    ]
    shortest = min(bits for bits, error in (totals(options, chosen_E) for chosen_E in reached) if error <= budget)
    assert totals(options, choose(options, budget))[0] <= shortest + 1e-3


def test_no_budget_leaves_every_expert_exact_and_an_endless_one_takes_the_shortest():
    options = random_options(9)
    assert choose(options, 0.0).tolist() == [0] * 6
    assert torch.equal(choose(options, 1e9), options.bits_EO.argmin(1))


def test_an_expert_that_never_fires_is_dropped_even_without_a_budget():
    options = Options(torch.tensor([[900.0, 3.0]]), torch.zeros(1, 2))
    assert choose(options, 0.0).tolist() == [1]


def test_experts_that_share_score_rows_pay_for_each_row_once_between_them():
    num_keys, num_heads, d_model = 5, 3, 14
    cell_E = torch.tensor([0, 0, 7, 12, 12, 12, 24, 3])
    share_E = row_share_bits(cell_E, (num_keys, num_keys), num_heads, d_model, torch.ones(8, dtype=torch.bool))
    rows, columns = len(set((cell_E // 5).tolist())), len(set((cell_E % 5).tolist()))
    assert float(share_E.sum()) == pytest.approx((rows + columns) * num_heads * d_model * COEFFICIENT_BITS)
    assert float(share_E[0]) == float(share_E[1]) < float(share_E[2])


def test_score_rows_are_shared_by_their_users_alone():
    cell_E = torch.tensor([0, 0, 0, 6])
    users_E = torch.tensor([True, False, False, True])
    share_E = row_share_bits(cell_E, (5, 5), 1, 10, users_E)
    assert float(share_E[users_E].sum()) == pytest.approx(4 * 10 * COEFFICIENT_BITS)


def test_tiers_keep_their_numbers():
    assert [tier.name for tier in sorted(Tier)] == ["T0", "T1", "T2", "T3", "T4"]
    assert [int(tier) for tier in sorted(Tier)] == [0, 1, 2, 3, 4]
