"""Product-key selection's Triton kernels find what a search over every cell finds, to the bit."""

import math

import pytest
import torch

from kernels.product_key_topk import reference, triton
from tests.kernels.triton.device import DEVICE, fill_new_tensors_with_nan

# T tokens, H heads, N rows, M columns, K pairs kept
T, H = 3, 2
INF = math.inf


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_new_tensors_with_nan(monkeypatch)


def scores(num_rows, num_columns, seed=0, dtype=torch.float32, tokens=T):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, H, n, generator=generator).to(dtype) for n in (num_rows, num_columns))


def topk(row_THN, column_THM, k):
    score_THK, cell_THK = triton.topk(row_THN.to(DEVICE), column_THM.to(DEVICE), k)
    assert score_THK.dtype == row_THN.dtype
    assert cell_THK.dtype == torch.int64
    return score_THK.cpu(), cell_THK.cpu()


def threshold(row_THN, column_THM, threshold_H):
    parts = triton.threshold(row_THN.to(DEVICE), column_THM.to(DEVICE), threshold_H.to(DEVICE))
    assert all(part.dtype == torch.int64 for part in parts)
    return torch.stack([part.cpu() for part in parts], dim=1)


def sums_of(row_THN, column_THM, cell_THK):
    num_columns = column_THM.shape[-1]
    row_THK = row_THN.float().gather(-1, cell_THK // num_columns)
    return row_THK + column_THM.float().gather(-1, cell_THK % num_columns)


@pytest.mark.parametrize(("num_rows", "num_columns", "k"), [(9, 9, 1), (9, 9, 9), (5, 11, 3), (17, 33, 6), (3, 3, 2)])
def test_the_k_best_cells_are_those_of_the_whole_grid(num_rows, num_columns, k):
    row, column = scores(num_rows, num_columns)
    score_THK, cell_THK = topk(row, column, k)
    wanted_score, wanted_cell = reference.product_key_topk(row, column, k)
    assert torch.equal(score_THK, wanted_score)
    assert torch.equal(cell_THK, wanted_cell)
    assert torch.equal(score_THK, sums_of(row, column, cell_THK))


def test_bfloat16_scores_are_summed_and_ordered_in_float32():
    row, column = scores(20, 24, seed=1, dtype=torch.bfloat16)
    score_THK, cell_THK = topk(row, column, 5)
    wanted, _ = reference.product_key_topk(row.float(), column.float(), 5)
    sum_THK = sums_of(row, column, cell_THK)
    assert torch.equal(sum_THK, wanted)  # cells may differ where sums are equal, as those of bfloat16 often are
    # Within the last bit: the interpreter drops the bits that a GPU rounds.
    assert (score_THK.float() - sum_THK).abs().le(2**-7 * sum_THK.abs()).all()
    assert cell_THK.sort(-1).values.diff(dim=-1).gt(0).all()


def test_keys_at_minus_infinity_are_taken_last():
    row, column = scores(9, 10, seed=2)
    row[:, :, 3:], column[:, :, 2:] = -INF, -INF
    score_THK, cell_THK = topk(row, column, 8)
    wanted_score, wanted_cell = reference.product_key_topk(row, column, 8)
    assert torch.equal(score_THK, wanted_score)
    finite = torch.isfinite(score_THK)
    assert finite.sum(-1).eq(6).all()
    assert torch.equal(cell_THK[finite], wanted_cell[finite])
    assert cell_THK.ge(0).all()
    assert cell_THK.lt(90).all()
    assert cell_THK.sort(-1).values.diff(dim=-1).gt(0).all()


def test_ties_go_to_the_first_keys_and_zeros_of_both_signs_tie():
    row, column = torch.tensor([0.0, -0.0, 0.0]).expand(1, H, 3), torch.tensor([-0.0, 0.0, -1.0]).expand(1, H, 3)
    score_THK, cell_THK = topk(row.contiguous(), column.contiguous(), 3)
    assert score_THK.eq(0).all()
    assert cell_THK[0, 0].tolist() == [0, 1, 3]


def test_no_tokens_reach_no_cells():
    row, column = scores(9, 9, tokens=0)
    score_THK, cell_THK = topk(row, column, 3)
    assert score_THK.shape == cell_THK.shape == (0, H, 3)
    assert threshold(row, column, torch.zeros(H)).shape == (0, 4)
    empty = torch.zeros(0, H, 3, device=DEVICE)
    assert triton.topk_backward(empty, empty.long(), 9, 7)[1].shape == (0, H, 7)


@pytest.mark.parametrize(("num_rows", "num_columns", "k"), [(9, 7, 5), (70, 65, 4)])
def test_gradients_flow_to_the_scores_that_were_taken(num_rows, num_columns, k):
    row, column = (a.requires_grad_() for a in scores(num_rows, num_columns, seed=3))
    score_THK, cell_THK = reference.product_key_topk(row, column, k)
    dscore_THK = torch.randn(T, H, k, generator=torch.Generator().manual_seed(4))
    wanted = torch.autograd.grad(score_THK, (row, column), dscore_THK)
    got = triton.topk_backward(dscore_THK.to(DEVICE), cell_THK.to(DEVICE), num_rows, num_columns)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
        assert torch.equal(ours.cpu() == 0, theirs == 0)


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "limit"), [(9, 9, -1.0), (5, 11, 0.5), (35, 300, 2.8), (70, 6, 1.5)]
)
def test_the_cells_that_fire_are_those_of_the_whole_grid_in_order(num_rows, num_columns, limit):
    row, column = scores(num_rows, num_columns, tokens=2)
    threshold_H = limit + torch.tensor([0.0, -0.4])
    wanted = torch.stack(reference.product_key_threshold(row, column, threshold_H), dim=1)
    assert 0 < len(wanted) < 2 * H * num_rows * num_columns
    assert torch.equal(threshold(row, column, threshold_H), wanted)


def test_bfloat16_scores_fire_on_their_float32_sums():
    row, column = scores(9, 10, seed=5, dtype=torch.bfloat16, tokens=2)
    wanted = torch.stack(reference.product_key_threshold(row.float(), column.float(), torch.ones(H)), dim=1)
    assert torch.equal(threshold(row, column, torch.ones(H)), wanted)


def test_with_a_threshold_of_minus_infinity_the_pairs_of_finite_scores_fire():
    row, column = scores(9, 9, tokens=2)
    row[row < 0.3], column[column < -0.2] = -INF, -INF
    row[1, 1] = -INF
    limit_H = torch.full((H,), -INF)
    wanted = torch.stack(reference.product_key_threshold(row, column, limit_H), dim=1)
    assert 0 < len(wanted) < 2 * H * 81
    assert torch.equal(threshold(row, column, limit_H), wanted)


def test_above_every_sum_nothing_fires_and_an_equal_sum_does_not():
    row, column = scores(9, 9)
    highest_H = (row.amax(-1) + column.amax(-1)).amax(0)
    assert len(threshold(row, column, highest_H)) == 0
    row, column = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, -1.0, 1.5]]])
    assert threshold(row, column, torch.tensor([2.0])).tolist() == [[0, 0, 0, 0], [0, 0, 0, 2]]
