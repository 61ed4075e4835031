"""What leaving an expert out does, against a model whose weights of it are zero; ranks against scipy."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.examining.battery import examine
from pipeline.examining.rankings import RANKINGS, correlation, effects_of_ablation, pooled, rankings_of
from pipeline.examining.superposition import record_of_block
from pipeline.measuring.loss import token_losses
from pipeline.records.recording import Recording, record_activations
from tests.tiny import DENSE, tiny_corpus, tiny_model

BLOCK, LENGTH = 1, 10
RECORDING = Recording(
    split="held_out", tokens=150, context_length=LENGTH, batch_size=4, most=18, contributions="float32"
)


@pytest.fixture(scope="module")
def model():
    return tiny_model(DENSE, vocab_size=256)


@pytest.fixture(scope="module")
def record(model):
    return record_activations(model, tiny_corpus(), RECORDING)


def test_effects_are_those_of_weights_that_are_zero(model, record):
    found = effects_of_ablation(model, record, BLOCK, experts=7, rows=10**6, rng=np.random.default_rng(0))
    token_RL, label_RL = (record.tensors[name].view(-1, LENGTH).long() for name in ("token", "label"))
    fires_TE = (record.of_block(BLOCK, "expert")[:, :, None] == torch.arange(18)).any(1)
    assert len(found.expert_X) == 7
    assert len(set(found.expert_X.tolist())) == 7
    with torch.no_grad():
        before_T = token_losses(model(token_RL), label_RL).flatten()
        for at, expert in enumerate(found.expert_X.tolist()):
            without = copy.deepcopy(model)
            without.blocks()[BLOCK].moe.down.weight[:, expert] = 0
            increase_T = token_losses(without(token_RL), label_RL).flatten() - before_T
            assert found.everywhere_X[at] == pytest.approx(increase_T.mean().item(), abs=1e-6)
            own = increase_T[fires_TE[:, expert]]
            assert found.where_it_fires_X[at] == pytest.approx(own.mean().item(), abs=1e-6)
            assert increase_T.abs().max() > 1e-4


def test_on_some_windows_the_effect_is_scaled_to_all(model, record):
    """Means over draws of windows come near that of all windows."""
    whole = effects_of_ablation(model, record, BLOCK, experts=18, rows=10**6, rng=np.random.default_rng(0))
    some = [
        effects_of_ablation(model, record, BLOCK, experts=18, rows=3, rng=np.random.default_rng(seed))
        for seed in range(12)
    ]
    mean_X = np.mean([of.everywhere_X for of in some], axis=0)
    error_X = np.std([of.everywhere_X for of in some], axis=0, ddof=1) / np.sqrt(12)
    assert (np.abs(mean_X - whole.everywhere_X) < 5 * error_X + 1e-6).mean() > 0.9


def test_rankings_are_sums_over_the_record(record):
    found = examine(record_of_block(record, BLOCK), random_pairs=20, most_pairs=20)
    ranked = rankings_of(record, BLOCK, found)
    assert ranked.keys() == RANKINGS.keys()
    expert_TK, strength_TK = (record.of_block(BLOCK, name).numpy() for name in ("expert", "contribution"))
    strength_TE = np.zeros((len(expert_TK), 18))
    for token, (experts, strengths) in enumerate(zip(expert_TK, strength_TK, strict=True)):
        for expert, strength in zip(experts, strengths, strict=True):
            if expert >= 0:
                strength_TE[token, expert] += strength
    np.testing.assert_allclose(ranked["mass"], strength_TE.sum(0), rtol=1e-5)
    np.testing.assert_allclose(ranked["energy"], (strength_TE**2).sum(0), rtol=1e-5)
    assert ranked["frequency"].tolist() == (strength_TE > 0).sum(0).tolist()
    names = found.firings.name_F
    partners = [set() for _ in range(18)]
    for one, other in zip(found.significant.pairs.first_C, found.significant.pairs.second_C, strict=True):
        partners[names[one]].add(other)
        partners[names[other]].add(one)
    assert ranked["partners"].tolist() == [len(of) for of in partners]


def test_a_rank_correlation_is_spearmans_with_its_null():
    rng = np.random.default_rng(4)
    one = np.round(rng.normal(size=150), 1)
    other = one + rng.normal(0, 2, 150)
    found = correlation(one, other, rng)
    assert found is not None
    assert found.rho == pytest.approx(stats.spearmanr(one, other).statistic)
    assert found.low < found.rho < found.high
    assert found.null == pytest.approx(1.96 / np.sqrt(149), rel=0.15)
    both = pooled([found, found, found])
    assert both.rho == pytest.approx(found.rho)
    assert both.high - both.low == pytest.approx((found.high - found.low) / np.sqrt(3), rel=0.05)
    assert both.null == pytest.approx(found.null / np.sqrt(3))
    assert both.experts == 450
    assert correlation(one[:9], other[:9], rng) is None
    assert correlation(one, np.zeros(150), rng) is None


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr("pipeline.examining.rankings.PERMUTATIONS", 10)  # the null is not looked at
    rng, covered = np.random.default_rng(5), 0
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # of a bivariate normal with r = 0.5
    for _ in range(200):
        one = rng.normal(size=60)
        found = correlation(one, 0.5 * one + np.sqrt(0.75) * rng.normal(size=60), rng)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 0.9 <= covered / 200 <= 0.99
