"""Counts and chance, against counting by hand, exact distributions and shuffles."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.examining import counting
from pipeline.examining.chance import Chance, benjamini_hochberg, clustering, crowding, moments, screen, upper_tail
from pipeline.examining.counting import count_pairs
from pipeline.examining.firings import firings_of
from pipeline.examining.record import record_of
from tests.planted_siblings import plant_siblings


def record(expert, *, stratum=None, document=None, cell=None, label=None):
    expert = torch.as_tensor(np.asarray(expert), dtype=torch.int32)
    zero = torch.zeros(len(expert), dtype=torch.int64)
    some = {"label": label, "document": document, "stratum": stratum}
    columns = {name: zero if value is None else torch.as_tensor(np.asarray(value)) for name, value in some.items()}
    tensors = {"expert": expert, "contribution": torch.ones(expert.shape), "token": zero, **columns}
    return record_of(tensors | ({} if cell is None else {"cell": torch.as_tensor(cell)}))


def named(firings, pairs):
    names = firings.name_F
    return list(zip(names[pairs.first_C].tolist(), names[pairs.second_C].tolist(), strict=True))


@pytest.mark.parametrize("block", [7, 40, counting.BLOCK])
def test_pairs_are_counted_as_by_hand(block, monkeypatch):
    monkeypatch.setattr(counting, "BLOCK", block)
    expert_TK = np.random.default_rng(3).integers(-1, 23, (311, 5)) * 1000
    expert_TK[expert_TK < 0] = -1
    by_hand = Counter(pair for row in expert_TK for pair in itertools.combinations(sorted({*row} - {-1}), 2))
    firings = firings_of(record(expert_TK))
    pairs = count_pairs(firings, 9)
    found = dict(zip(named(firings, pairs), pairs.count_C.tolist(), strict=True))
    assert found == {pair: count for pair, count in by_hand.items() if count >= 9}
    assert 20 < len(found) < len(by_hand)


def test_keys_that_do_not_fit_into_32_bits_are_cut_into_blocks(monkeypatch):
    expert_TK = np.random.default_rng(4).integers(0, 40, (200, 4))
    firings = firings_of(record(expert_TK))
    whole = count_pairs(firings, 1)
    monkeypatch.setattr(counting, "KEYS", 100)
    assert named(firings, count_pairs(firings, 1)) == named(firings, whole)


def test_mean_and_variance_are_those_of_shuffles_within_strata():
    rng = np.random.default_rng(5)
    stratum_T = np.repeat([0, 1, 2], [50, 90, 130])
    fires_TE = rng.random((270, 3)) < np.array([[0.6, 0.5, 0.1], [0.2, 0.1, 0.3], [0.05, 0.3, 0.2]])[stratum_T]
    firings = firings_of(record(np.where(fires_TE, [0, 1, 2], -1), stratum=stratum_T))
    mean_C, variance_C = moments(firings, count_pairs(firings, 1))
    assert (crowding(firings) == 1).all()
    counts = []
    for _ in range(4000):
        shuffled = fires_TE.copy()
        for stratum in range(3):
            tokens = np.flatnonzero(stratum_T == stratum)
            for expert in range(3):
                shuffled[tokens, expert] = fires_TE[rng.permutation(tokens), expert]
        counts.append([(shuffled[:, i] & shuffled[:, j]).sum() for i, j in ((0, 1), (0, 2), (1, 2))])
    np.testing.assert_allclose(mean_C, np.mean(counts, axis=0), rtol=0.02)
    np.testing.assert_allclose(variance_C, np.var(counts, axis=0), rtol=0.08)


@pytest.mark.parametrize(("tokens", "one", "other"), [(1000, 200, 300), (1000, 30, 20), (50_000, 900, 2500)])
def test_the_tail_is_the_hypergeometric_far_out(tokens, one, other):
    exact = stats.hypergeom(tokens, one, other)
    count = np.arange(int(exact.mean()) + 1, int(exact.mean() + 6 * exact.std()))
    found = upper_tail(count, np.full(len(count), exact.mean()), np.full(len(count), exact.var()))
    np.testing.assert_allclose(np.log(found), np.log(exact.sf(count - 1)), rtol=0.06, atol=0.03)


def test_the_tail_is_poisson_or_negative_binomial_by_its_variance():
    count = np.arange(0, 40)
    for variance, exact in ((5.0, stats.poisson(5)), (15.0, stats.nbinom(2.5, 1 / 3))):
        found = upper_tail(count, np.full(40, 5.0), np.full(40, variance))
        np.testing.assert_allclose(found, exact.sf(count - 1), rtol=1e-9)


def test_discoveries_count_pairs_that_were_never_seen():
    p = np.array([1e-6, 0.2, 3e-5, 1e-3])
    assert benjamini_hochberg(p, 0.01, tests=100).tolist() == [True, False, True, False]
    assert benjamini_hochberg(p, 0.01, tests=4).tolist() == [True, False, True, True]
    assert benjamini_hochberg(p, 0.01, tests=100_000).tolist() == [False] * 4


def test_topics_are_no_discovery_and_a_planted_pair_is():
    rng = np.random.default_rng(6)
    topic_T = np.repeat(rng.integers(0, 4, 400), 50)
    expert_TK = topic_T[:, None] * 10 + rng.integers(0, 10, (20_000, 4))
    expert_TK[rng.random(20_000) < 0.004, :2] = [3, 14]
    assert len(_found(expert_TK, np.zeros(20_000, np.int64))) > 100
    assert _found(expert_TK, topic_T) == [(3, 14)]


def _found(expert_TK, stratum_T):
    firings = firings_of(record(expert_TK, stratum=stratum_T, document=np.arange(len(stratum_T)) // 50))
    screened = screen(firings, count_pairs(firings, 6))
    return named(firings, screened.pairs.chosen(screened.significant_C))


def test_tokens_on_which_many_experts_fire_are_no_discovery():
    rng = np.random.default_rng(7)
    busy_T = rng.random(20_000) < 0.1
    fires_TE = rng.random((20_000, 30)) < np.where(busy_T, 0.5, 0.05)[:, None]
    expert_TK = np.where(fires_TE, np.arange(30), -1)
    assert crowding(firings_of(record(expert_TK)))[0] > 1.5
    assert _found(expert_TK, np.zeros(20_000, np.int64)) == []


def test_experts_that_burst_independently_are_no_discovery():
    rng = np.random.default_rng(8)
    fires_TE = np.repeat(rng.random((2_000, 40)) < 0.1, 16, axis=0)
    firings = firings_of(record(np.where(fires_TE, np.arange(40), -1)))
    pairs = count_pairs(firings, 6)
    inflation = clustering(firings).inflation(pairs.first_C, pairs.second_C)
    assert inflation.mean() == pytest.approx(16, rel=0.1)
    assert not screen(firings, pairs).significant_C.any()


def test_sets_of_experts_that_stay_on_for_some_tokens_are_no_discovery():
    rng = np.random.default_rng(10)
    stays = rng.geometric(0.25, 5_000)
    expert_TK = np.repeat(rng.integers(0, 300, (5_000, 4)), stays, axis=0)
    assert len(expert_TK) > 15_000
    assert _found(expert_TK, np.zeros(len(expert_TK), np.int64)) == []
    expert_TK[::40, :2] = [3, 14]
    assert _found(expert_TK, np.zeros(len(expert_TK), np.int64)) == [(3, 14)]


def test_siblings_are_judged_where_their_row_is_selected():
    rng = np.random.default_rng(9)
    row_T = rng.integers(0, 20, 20_000)
    fires = rng.random((20_000, 3)) < 0.5
    expert_TK = np.where(fires, row_T[:, None] * 3 + np.arange(3), -1)
    cell = np.stack(np.divmod(np.arange(60), 3), axis=1) * [1, 0] + [[0, column] for column in range(60)]
    blind, knowing = (firings_of(record(expert_TK, cell=given)) for given in (None, cell))
    assert screen(blind, count_pairs(blind, 6)).significant_C.sum() == 60
    assert screen(knowing, count_pairs(knowing, 6)).significant_C.sum() == 0


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize(("heads", "extra"), [(1, 1), (2, 15)])
def test_siblings_that_co_fire_beyond_their_sub_key_are_found_and_no_others(seed, heads, extra):
    tensors, planted = plant_siblings(seed, heads=heads)
    firings = firings_of(record_of(tensors))
    screened = screen(firings, count_pairs(firings, 6))
    found = set(named(firings, screened.pairs.chosen(screened.significant_C)))
    assert planted <= found
    assert len(found - planted) <= extra
    blind = firings_of(record_of({name: tensor for name, tensor in tensors.items() if name != "cell"}))
    assert screen(blind, count_pairs(blind, 6)).significant_C.sum() > 1_000


def test_siblings_meet_by_chance_as_they_do_when_columns_are_drawn_apart():
    """Of a row that is selected with a strength of the token's, against the mean over 20 drawings."""
    rng = np.random.default_rng(11)
    tokens, rates = 20_000, np.array([0.8, 0.5, 0.5, 0.3, 0.2])
    strength_T = rng.beta(2, 2, tokens) * (rng.random(tokens) < 0.3)
    fires_DTE = rng.random((20, tokens, 5)) < rates * strength_T[:, None]
    met_EE = np.einsum("dte,dtf->ef", fires_DTE.astype(np.float32), fires_DTE.astype(np.float32)) / 20
    cell = np.stack([np.zeros(5, int), np.arange(5)], axis=1)
    means = []
    for fires_TE in fires_DTE:
        firings = firings_of(record(np.where(fires_TE, np.arange(5), -1), cell=cell))
        chance = Chance(firings)
        pairs = count_pairs(firings, 1)
        chance.fit(pairs.chosen(np.zeros(0, np.int64)))
        means.append(chance.moments(pairs)[0])
    wanted = [met_EE[i, j] for i, j in itertools.combinations(range(5), 2)]
    np.testing.assert_allclose(np.mean(means, axis=0), wanted, rtol=0.04)
