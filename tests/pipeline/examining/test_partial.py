"""The second screen: links of their own are told from links through another, and the LASSO is scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from pipeline.examining.battery import examine
from pipeline.examining.partial import RIDGE, STABLE, lasso
from pipeline.examining.record import record_of


def chained(seed, *, tokens=30_000, experts=90, chains=8, strength=0.5, burst=1):
    """Firings in which of each chain A sets off B and B sets off C; and the pairs A-B and B-C, and A-C."""
    rng = np.random.default_rng(seed)
    fires = np.repeat(rng.random((tokens // burst, experts)) < rng.beta(1, 20, experts), burst, axis=0)
    direct, through = set(), set()
    for first in range(0, 3 * chains, 3):
        for one in (first, first + 1):
            fires[:, one + 1] |= fires[:, one] & (rng.random(len(fires)) < strength)
            direct.add((one, one + 1))
        through.add((first, first + 2))
    token, expert = np.nonzero(fires)
    expert_TK = np.full((len(fires), fires.sum(1).max()), -1)
    expert_TK[token, np.arange(len(token)) - np.searchsorted(token, token)] = expert
    tensors = {
        "expert": torch.from_numpy(expert_TK.astype(np.int32)),
        "contribution": torch.ones(expert_TK.shape),
        "token": torch.zeros(len(fires), dtype=torch.int64),
        "label": torch.full((len(fires),), -1),
        "document": torch.arange(len(fires)) // 120,
        "stratum": (torch.arange(len(fires)) // 120) % 3,
    }
    return record_of(tensors), direct, through


@pytest.mark.parametrize(("seed", "strength", "burst"), [(0, 0.4, 1), (1, 0.6, 1), (2, 0.9, 1), (3, 0.6, 2)])
def test_what_is_linked_through_another_is_beyond_chance_and_no_link(seed, strength, burst):
    record, direct, through = chained(seed, strength=strength, burst=burst)
    found = examine(record, random_pairs=0)
    partial = {(pair.i, pair.j): pair.partial for pair in found.pairs if pair.significant}
    assert len(partial.keys() & direct) >= 15
    assert len(partial.keys() & through) >= 6
    stable = {pair for pair, stability in partial.items() if stability is not None and stability >= STABLE}
    assert len(stable & direct) >= 14
    assert not stable & through
    assert found.second_screen.stable == len(stable)
    assert found.second_screen.agreement == pytest.approx(len(stable) / len(partial))
    assert found.second_screen.null_links > 50
    assert found.second_screen.null_stable <= 0.01 * found.second_screen.null_links


def test_the_lasso_is_that_of_scikit_learn():
    rng = np.random.default_rng(4)
    x_QNK = rng.normal(size=(5, 200, 7)) + rng.normal(size=(5, 200, 1))
    x_QNK /= np.sqrt((x_QNK**2).mean(1, keepdims=True))
    y_QN = np.einsum("qnk,k->qn", x_QNK, [1.0, -0.5, 0, 0, 0.3, 0, 0]) + rng.normal(size=(5, 200))
    gram, own = (np.einsum("qnk,qn...->qk...", x_QNK, of) / 200 for of in (x_QNK, y_QN))
    for penalty in (0.05, 0.3):
        found = lasso(gram.astype(np.float32), own.astype(np.float32), np.full((5, 7), penalty, np.float32))
        for x_NK, y_N, weight_K in zip(x_QNK, y_QN, found, strict=True):
            # The ridge on the diagonal is that of rows with the root of it in a column each.
            x_XK = np.concatenate([x_NK, np.sqrt(200 * RIDGE) * np.eye(7)])
            theirs = Lasso(alpha=penalty * 200 / 207, fit_intercept=False, tol=1e-8, max_iter=100_000)
            theirs.fit(x_XK, np.concatenate([y_N, np.zeros(7)]))
            np.testing.assert_allclose(weight_K, theirs.coef_, atol=5e-3)
            np.testing.assert_array_equal(weight_K != 0, np.abs(theirs.coef_) > 0)
