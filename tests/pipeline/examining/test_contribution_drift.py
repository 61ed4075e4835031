"""Drift against numpy's own correlations, and what is no drift."""

import numpy as np
import pytest
import torch

from pipeline.examining.contribution_drift import check_same_tokens, contribution_drift, same_pool
from pipeline.records.record import ActivationRecord, RecordSpec

TOKENS, EXPERTS, MOST = 600, 7, 4


def record(contribution_TE, cells=True, document_T=None, **spec):
    """What the strongest do, K of a token."""
    order_TK = np.argsort(-contribution_TE, axis=1, kind="stable")[:, :MOST]
    strength_TK = np.take_along_axis(contribution_TE, order_TK, axis=1).astype(np.float32)
    tokens = torch.arange(TOKENS, dtype=torch.int32)
    document = tokens // 20 if document_T is None else torch.as_tensor(document_T, dtype=torch.int32)
    cell = {"layers.0.cell": torch.arange(2 * EXPERTS, dtype=torch.int32).view(EXPERTS, 2)} if cells else {}
    tensors = {
        "token": tokens % 9,
        "document": document,
        "position": tokens % 20,
        "layers.0.expert": torch.from_numpy(np.where(strength_TK > 0, order_TK, -1).astype(np.int32)),
        "layers.0.contribution": torch.from_numpy(strength_TK),
        **cell,
    }
    fields = {
        "split": "held_out", "tokens": TOKENS, "context_length": 20, "most": MOST, "contributions": "float32",
        "experts": (EXPERTS,), "domains": ("a",), "vocab_size": 9, "tokenizer_sha256": "", "model_kind": "peer",
        "model_sha256": "",
    }  # fmt: skip
    return ActivationRecord(RecordSpec.model_validate({**fields, **spec}), tensors)


@pytest.fixture
def contribution_TE():
    rng = np.random.default_rng(0)
    values_TE = rng.gamma(2.0, 1.0, (TOKENS, EXPERTS)) * (rng.random((TOKENS, EXPERTS)) < 0.25)
    values_TE[:, 6] = 0
    values_TE[np.arange(9) * 50, 6] = 1  # too few
    # No token with more than are kept, so that numpy's correlations are of the same numbers.
    values_TE[(values_TE > 0).sum(1) > MOST] = 0
    return values_TE


def test_correlations_are_those_of_numpy(contribution_TE):
    rng = np.random.default_rng(1)
    changed_TE = contribution_TE * rng.uniform(0.2, 1.8, contribution_TE.shape)
    changed_TE[:, 2] = contribution_TE[:, 2] * 3
    changed_TE[:, 3] = 0
    found = contribution_drift(record(changed_TE), record(contribution_TE), 0, rng)
    expected = [
        0.0 if e == 3 else float(np.corrcoef(changed_TE[:, e], contribution_TE[:, e])[0, 1]) for e in range(EXPERTS - 1)
    ]
    assert found is not None
    assert found.experts == EXPERTS - 1
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.survive == pytest.approx(np.mean([r >= 0.9 for r in expected]))
    assert found.mean_low < found.mean < found.mean_high
    assert abs(found.null_mean) < 0.1
    assert found.mean_high - found.mean_low < 0.2


def test_the_same_model_has_not_drifted(contribution_TE):
    found = contribution_drift(record(contribution_TE), record(contribution_TE), 0, np.random.default_rng(0))
    assert found is not None
    assert (found.mean, found.survive) == (pytest.approx(1), 1)


def test_where_nothing_fires_there_is_no_drift(contribution_TE):
    none = record(contribution_TE * 0)
    assert contribution_drift(record(contribution_TE), none, 0, np.random.default_rng(0)) is None


def test_only_pools_of_the_same_cells_are_compared(contribution_TE):
    one = record(contribution_TE)
    assert same_pool(one, record(contribution_TE))
    assert not same_pool(one, record(contribution_TE, cells=False))
    assert not same_pool(one, record(contribution_TE, experts=(EXPERTS + 1,)))
    other = record(contribution_TE)
    other.tensors["layers.0.cell"] = other.tensors["layers.0.cell"] + 1
    assert not same_pool(one, other)


def test_records_of_other_text_are_refused_in_one_sentence(contribution_TE):
    one, other = record(contribution_TE), record(contribution_TE, document_T=np.arange(TOKENS) // 30)
    check_same_tokens(one, one)
    with pytest.raises(ValueError, match=r"600 tokens of held-out text in windows of 20.*record both models alike"):
        check_same_tokens(one, other)
