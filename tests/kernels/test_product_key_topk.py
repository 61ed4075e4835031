"""Product-key selection finds what a search over every cell finds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.product_key_topk import product_key_threshold, product_key_topk, reference

# T tokens, H heads, N sub-keys an axis
T, H, N = 7, 3, 9
INF = math.inf


def scores(*sizes, seed=0, dtype=torch.float64):
    """Scores of the two axes; sums of normal doubles do not tie."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(T, H, n, dtype=dtype, generator=generator) for n in sizes)


def cells(token_P, head_P, row_P, column_P):
    found = list(zip(token_P.tolist(), head_P.tolist(), row_P.tolist(), column_P.tolist(), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("sizes", [(N, N), (5, 11), (11, 5)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_k_best_cells_are_those_of_the_whole_grid(sizes, k):
    row, column = scores(*sizes)
    got, wanted = product_key_topk(row, column, k), reference.product_key_topk(row, column, k)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_k_may_be_all_keys_of_an_axis():
    row, column = scores(N, N, seed=1)
    got, wanted = product_key_topk(row, column, N), reference.product_key_topk(row, column, N)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_a_cell_reads_its_row_and_column():
    row, column = scores(5, 11)
    score_THK, cell_THK = product_key_topk(row, column, 4)
    read = row.gather(-1, cell_THK // 11) + column.gather(-1, cell_THK % 11)
    assert torch.equal(score_THK, read)
    assert score_THK.diff(dim=-1).le(0).all()


def test_keys_at_minus_infinity_are_taken_last():
    row, column = scores(N, N, seed=2)
    row[:, :, 3:], column[:, :, 2:] = -INF, -INF
    score_THK, cell_THK = product_key_topk(row, column, 8)
    wanted = reference.product_key_topk(row, column, 8)
    assert torch.equal(score_THK, wanted[0])
    finite = torch.isfinite(score_THK)
    assert finite.sum(-1).eq(6).all()
    assert torch.equal(cell_THK[finite], wanted[1][finite])


def test_gradients_flow_to_the_scores_that_were_taken():
    weights = torch.randn(T, H, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gradients = []
    for function in (product_key_topk, reference.product_key_topk):
        axes = [a.requires_grad_() for a in scores(N, N)]
        gradients.append(torch.autograd.grad((function(*axes, 4)[0] * weights).sum(), axes))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)
        assert 0 < got.count_nonzero() < got.numel()


@pytest.mark.parametrize("k", [0, N + 1])
def test_a_k_that_no_axis_holds_is_refused(k):
    with pytest.raises(ValueError, match=f"got k={k} for 9 sub-keys an axis; use 1 to 9"):
        product_key_topk(*scores(N, 11), k)


def test_no_tokens_reach_no_cells():
    empty = torch.zeros(0, H, N)
    assert product_key_topk(empty, empty, 3)[1].shape == (0, H, 3)
    assert all(len(part) == 0 for part in product_key_threshold(empty, empty, torch.zeros(H)))


@pytest.mark.parametrize("sizes", [(N, N), (5, 11), (11, 5)], ids=str)
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.5])
def test_the_cells_that_fire_are_those_of_the_whole_grid(sizes, threshold):
    row, column = scores(*sizes)
    threshold_H = threshold + torch.tensor([0.0, -0.4, 0.7], dtype=torch.float64)
    wanted = cells(*reference.product_key_threshold(row, column, threshold_H))
    assert 0 < len(wanted) < T * H * sizes[0] * sizes[1]
    assert cells(*product_key_threshold(row, column, threshold_H)) == wanted


def test_pairs_come_in_order_of_tokens_then_heads():
    token_P, head_P, _, _ = product_key_threshold(*scores(N, N), torch.zeros(H, dtype=torch.float64))
    assert len(token_P) > T * H
    assert (token_P * H + head_P).diff().ge(0).all()


def test_with_no_threshold_every_pair_of_keys_that_pass_fires():
    row, column = scores(N, N)
    row[row < 0.3], column[column < -0.2] = -INF, -INF
    fired = cells(*product_key_threshold(row, column, torch.full((H,), -INF, dtype=torch.float64)))
    by_hand = {
        (t, h, r, c)
        for t in range(T)
        for h in range(H)
        for r in range(N)
        for c in range(N)
        if row[t, h, r] >= 0.3 and column[t, h, c] >= -0.2
    }
    assert fired == by_hand
    assert 0 < len(fired) < T * H * N * N


def test_above_every_sum_nothing_fires():
    row, column = scores(N, N)
    highest_H = (row.amax(-1) + column.amax(-1)).amax(0)
    assert all(len(part) == 0 for part in product_key_threshold(row, column, highest_H))


def test_a_sum_equal_to_the_threshold_does_not_fire():
    row, column = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, -1.0, 1.5]]])
    assert cells(*product_key_threshold(row, column, torch.tensor([2.0]))) == {(0, 0, 0, 0), (0, 0, 0, 2)}


whole = st.integers(-4, 4).map(float) | st.just(-INF)


@given(data=st.data(), tokens=st.integers(1, 3), heads=st.integers(1, 3), n=st.integers(1, 5), m=st.integers(1, 5))
def test_firing_agrees_with_the_whole_grid_on_any_scores(data, tokens, heads, n, m):
    def draw(size):
        count = tokens * heads * size
        return torch.tensor(data.draw(st.lists(whole, min_size=count, max_size=count))).view(tokens, heads, size)

    row, column = draw(n), draw(m)
    threshold_H = torch.tensor(data.draw(st.lists(whole, min_size=heads, max_size=heads)))
    arguments = row, column, threshold_H
    assert cells(*product_key_threshold(*arguments)) == cells(*reference.product_key_threshold(*arguments))
