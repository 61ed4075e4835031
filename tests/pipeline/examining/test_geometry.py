"""How pairs part and how their vectors lie, against sums by hand; the null is of experts that fire as often."""

import numpy as np
import pytest
import torch

from pipeline.examining.battery import examine
from pipeline.examining.geometry import rows_of_layer
from pipeline.examining.record import record_of
from tests.tiny import EVERY_KIND, tiny_model

EXPERTS, WIDTH, TOKENS = 60, 24, 12_000


def lying(seed=0):
    """Experts 0 and 1 fire together and write alike, 2 and 3 write against each other; all others lie anyhow."""
    rng = np.random.default_rng(seed)
    fires = rng.random((TOKENS, EXPERTS)) < 0.05
    for one in (0, 2):
        fires[:, one + 1] |= fires[:, one] & (rng.random(TOKENS) < 0.5)
    token, expert = np.nonzero(fires)
    expert_TK = np.full((TOKENS, fires.sum(1).max()), -1)
    expert_TK[token, np.arange(len(token)) - np.searchsorted(token, token)] = expert
    output = rng.normal(size=(EXPERTS, WIDTH))
    output[1], output[3] = output[0] + 0.2 * output[1], -output[2] + 0.5 * output[3]
    column = torch.from_numpy(rng.integers(0, 5, TOKENS))
    return {
        "expert": torch.from_numpy(expert_TK.astype(np.int32)),
        "contribution": torch.from_numpy(rng.gamma(2.0, 1.0, expert_TK.shape)),
        "token": column,
        "label": column,
        "document": torch.arange(TOKENS) // 100,
        "stratum": torch.zeros(TOKENS, dtype=torch.int64),
        "output_vector": torch.from_numpy(output),
    }


def test_geometry_is_that_of_sums_by_hand():
    tensors = lying()
    found = {(pair.i, pair.j): pair.geometry for pair in examine(record_of(tensors), random_pairs=300).pairs}
    assert {(0, 1), (2, 3)} <= found.keys()
    output = tensors["output_vector"].numpy()
    for (i, j), of in list(found.items())[:40]:
        given = {}
        for name, expert in (("i", i), ("j", j)):
            given[name] = np.where(tensors["expert"] == expert, tensors["contribution"], 0).sum(1)
        both = (given["i"] > 0) & (given["j"] > 0)
        assert of.p_j_given_i == pytest.approx(both.sum() / (given["i"] > 0).sum())
        assert of.p_i_given_j == pytest.approx(both.sum() / (given["j"] > 0).sum())
        g, h = given["i"][both], given["j"][both]
        assert of.ratio_variance == pytest.approx(np.var(g / (g + h)), rel=1e-4)
        v, w = output[i] / np.linalg.norm(output[i]), output[j] / np.linalg.norm(output[j])
        assert of.output.cosine == pytest.approx(v @ w, abs=1e-6)
        sums = g[:, None] * v + h[:, None] * w
        assert of.interference == pytest.approx((g * h).mean() * (v @ w) / (sums**2).sum(1).mean(), rel=1e-4, abs=1e-7)
        assert of.input is None


def test_pairs_that_lie_otherwise_than_those_that_fire_as_often_are_above_or_below_them():
    of = {(pair.i, pair.j): pair.geometry for pair in examine(record_of(lying()), random_pairs=300).pairs}
    assert of[0, 1].output.cosine > 0.9
    assert of[0, 1].output.above == 1
    assert of[2, 3].opposed
    others = [geometry.output.above for pair, geometry in of.items() if not {*pair} & {0, 1, 2, 3}]
    assert np.mean(others) == pytest.approx(0.5, abs=0.06)


def test_firing_that_never_parts_has_no_variance_of_its_ratio():
    tensors = lying() | {"contribution": torch.ones((TOKENS, lying()["expert"].shape[1]), dtype=torch.float16)}
    assert {pair.geometry.ratio_variance for pair in examine(record_of(tensors), random_pairs=0).pairs} == {0.0}


@pytest.mark.parametrize("kind", ["dense", "monet-vertical", "peer-jumprelu", "int4"])
def test_a_layers_own_vectors_serve_a_record(kind):
    model = tiny_model(EVERY_KIND[kind])
    experts = model.blocks()[0].experts
    tensors = {name: of for name, of in lying().items() if name != "output_vector"}
    few = tensors["expert"] % experts.num_experts
    record = record_of(tensors | {"expert": torch.where(tensors["expert"] < 0, -1, few)})
    rows = rows_of_layer(model.spec.experts, experts)
    read, written = rows(np.array([1, 2]))
    assert read.shape == written.shape
    for pair in examine(record, random_pairs=30, rows=rows).pairs:
        assert -1.0001 <= pair.geometry.output.cosine <= 1.0001
        assert (pair.geometry.interference is None) == (written.shape[1] > 1)
        assert pair.geometry.input is not None
