"""Choosing a tier for every expert: within the budget, and never longer than need be."""

import itertools

import pytest
import torch

from pipeline.models.peer.spec import PeerSpec
from pipeline.symbolic.tiers import (
    COEFFICIENT_BITS,
    Options,
    Tier,
    choose,
    choose_sharing,
    comparison_bits,
    score_row_bits,
)

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


def dense_spec(num_keys, num_heads, **changes):
    shape = {"num_keys": num_keys, "d_key": num_keys, "sub_keys": "identity", "query_norm": False, "active_keys": 2}
    return PeerSpec.model_validate({**shape, "num_heads": num_heads, "pairs_per_head": 2, "num_experts": 8, **changes})


def test_experts_that_share_score_rows_pay_for_each_row_once_between_them():
    spec, d_model, cell_E = dense_spec(5, 3), 14, torch.tensor([0, 0, 7, 12, 12, 12, 24, 3])
    share_E = comparison_bits(spec, d_model, cell_E, torch.ones(8, dtype=torch.bool))
    rows, columns = len(set((cell_E // 5).tolist())), len(set((cell_E % 5).tolist()))
    thresholds = 3 * COEFFICIENT_BITS
    assert float(share_E.sum()) == pytest.approx((rows + columns) * 3 * d_model * COEFFICIENT_BITS + thresholds)
    assert float(share_E[0]) == float(share_E[1]) < float(share_E[2])


def test_score_rows_are_shared_by_their_users_and_one_more_joins_them():
    spec, cell_E = dense_spec(5, 1), torch.tensor([0, 0, 0, 6])
    users_E = torch.tensor([True, False, False, True])
    share_E = comparison_bits(spec, 10, cell_E, users_E)
    assert float(share_E[users_E].sum()) == pytest.approx((4 * 10 + 1) * COEFFICIENT_BITS)
    assert float(share_E[1]) == pytest.approx((2 * 10 / 2 + 1 / 3) * COEFFICIENT_BITS)


def test_scores_of_few_features_cost_their_terms_and_all_share_the_features():
    spec, d_model = dense_spec(5, 2, score_features=8, score_terms=3), 14
    assert score_row_bits(spec, d_model) == 3 * (COEFFICIENT_BITS + 3) + COEFFICIENT_BITS
    alone = comparison_bits(spec, d_model, torch.tensor([7]), torch.ones(1, dtype=torch.bool))
    rows = 2 * 2 * score_row_bits(spec, d_model)
    assert float(alone) == pytest.approx(rows + (8 * d_model + 2) * COEFFICIENT_BITS)


def test_where_few_compare_the_comparison_costs_them_all_and_they_leave_together():
    """Two options: 10 bits and a comparison shared by all, which is 30 bits for each of 6 users and 180 for one."""
    options = Options(torch.tensor([[10.0, 35.0]] * 6), torch.zeros(6, 2))
    compares_O = torch.tensor([True, False])

    def price(users_E):
        return 180.0 / (users_E.double().sum() + 1 - users_E.double())

    chosen_E, priced = choose_sharing(options, compares_O, price, 1.0)
    assert chosen_E.tolist() == [1] * 6
    assert float(priced.bits_EO[0, 0]) == pytest.approx(10 + 180)
    cheap = Options(torch.tensor([[1.0, 35.0]] * 6), torch.zeros(6, 2))
    assert choose_sharing(cheap, compares_O, price, 1.0)[0].tolist() == [0] * 6


def test_tiers_keep_their_numbers():
    assert [tier.name for tier in sorted(Tier)] == ["T0", "T1", "T2", "T3", "T4"]
    assert [int(tier) for tier in sorted(Tier)] == [0, 1, 2, 3, 4]
