"""Product-key selection finds what a search over every cell finds."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.product_key_topk import product_key_threshold, product_key_topk, reference, stock

# T tokens, H heads, N sub-keys an axis
T, H, N = 7, 3, 9
INF = math.inf

pytestmark = pytest.mark.usefixtures("cpu_path")


def scores(*sizes, seed=0, dtype=torch.float64):
    """Scores of the two axes; sums of normal doubles do not tie."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(T, H, n, dtype=dtype, generator=generator) for n in sizes)


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("sizes", [(N, N), (5, 11), (11, 5)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_k_best_cells_are_those_of_the_whole_grid(sizes, k):
    row, column = scores(*sizes)
    assert_same(product_key_topk(row, column, k), reference.product_key_topk(row, column, k))


@pytest.mark.parametrize("sizes", [(32, 32), (60, 36), (128, 32), (36, 130)], ids=str)
@pytest.mark.parametrize("k", [1, 2, 8])
def test_long_axes_are_searched_by_blocks_and_give_the_same(sizes, k):
    row, column = scores(*sizes, seed=5)
    assert_same(product_key_topk(row, column, k), reference.product_key_topk(row, column, k))


def test_k_may_be_all_keys_of_an_axis():
    row, column = scores(N, N, seed=1)
    assert_same(product_key_topk(row, column, N), reference.product_key_topk(row, column, N))


def test_a_cell_reads_its_row_and_column():
    row, column = scores(5, 11)
    score_THK, cell_THK = product_key_topk(row, column, 4)
    read = row.gather(-1, cell_THK // 11) + column.gather(-1, cell_THK % 11)
    assert torch.equal(score_THK, read)
    assert score_THK.diff(dim=-1).le(0).all()


@pytest.mark.parametrize("heads_first", [(True, True), (True, False), (False, True)], ids=str)
def test_scores_may_lie_in_memory_head_by_head(heads_first):
    """As the batched product of queries and keys leaves them."""
    row, column = scores(32, 36, seed=6, dtype=torch.float32)
    lain = [
        score.transpose(0, 1).contiguous().transpose(0, 1) if first else score
        for score, first in zip((row, column), heads_first, strict=True)
    ]
    got = product_key_topk(*lain, 5)
    assert_same(got, product_key_topk(row, column, 5))
    assert all(tensor.is_contiguous() for tensor in got)


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


@pytest.mark.parametrize("size", [N, 64])
def test_ties_give_the_values_of_the_whole_grid_and_no_cell_twice(size):
    row, column = (a.mul(2).round() for a in scores(size, size, seed=4))
    score_THK, cell_THK = product_key_topk(row, column, 4)
    assert torch.equal(score_THK, reference.product_key_topk(row, column, 4)[0])
    assert torch.equal(score_THK, row.gather(-1, cell_THK // size) + column.gather(-1, cell_THK % size))
    assert cell_THK.sort(dim=-1).values.diff(dim=-1).gt(0).all()


def test_gradients_are_those_of_finite_differences():
    axes = [a[:2].requires_grad_() for a in scores(5, 6)]
    assert torch.autograd.gradcheck(lambda row, column: product_key_topk(row, column, 3)[0], axes)


def test_bfloat16_scores_are_taken():
    row, column = (a.round() for a in scores(N, N, dtype=torch.bfloat16))
    score_THK, _ = product_key_topk(row, column, 4)
    assert_same([score_THK], [reference.product_key_topk(row, column, 4)[0]])
    threshold_H = torch.zeros(H, dtype=torch.bfloat16)
    fired = product_key_threshold(row, column, threshold_H)
    assert_same(fired, reference.product_key_threshold(row, column, threshold_H))


def test_all_operators_keep_torchs_rules():
    row, column = (a.requires_grad_() for a in scores(5, 11, dtype=torch.float32))
    torch.library.opcheck(torch.ops.legible.product_key_topk.default, (row, column, 3))
    score_THK, cell_THK = product_key_topk(row, column, 3)
    arguments = torch.randn_like(score_THK), cell_THK, 5, 11
    torch.library.opcheck(torch.ops.legible.product_key_topk_backward.default, arguments)
    torch.library.opcheck(torch.ops.legible.product_key_threshold.default, (row, column, torch.zeros(H)))


def test_compiled_each_is_one_graph_and_gives_the_same():
    def both(row, column, threshold_H):
        return product_key_topk(row, column, 3), product_key_threshold(row, column, threshold_H)

    arguments = *(a.requires_grad_() for a in scores(5, 11)), torch.zeros(H, dtype=torch.float64)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        best, fired = torch.compile(both, backend="aot_eager", fullgraph=True)(*arguments)
    wanted_best, wanted_fired = both(*arguments)
    assert_same(best, wanted_best)
    assert_same(fired, wanted_fired)
    ours, theirs = (torch.autograd.grad(score.sum(), arguments[:2]) for score, _ in (best, wanted_best))
    assert_same(ours, theirs)


@pytest.mark.parametrize("k", [0, N + 1])
def test_a_k_that_no_axis_holds_is_refused(k):
    with pytest.raises(ValueError, match=f"got k={k} for 9 sub-keys an axis; use 1 to 9"):
        product_key_topk(*scores(N, 11), k)


def test_no_tokens_reach_no_cells():
    empty = torch.zeros(0, H, N)
    assert product_key_topk(empty, empty, 3)[1].shape == (0, H, 3)
    assert all(len(part) == 0 for part in product_key_threshold(empty, empty, torch.zeros(H)))


@pytest.fixture(params=["rows with all columns", "rows with columns that pass", "in pieces"])
def search(request, monkeypatch):
    """Sends `stock.threshold` every way, whatever the size."""
    if request.param != "rows with all columns":
        monkeypatch.setattr(stock, "FEW", 0)
    if request.param == "in pieces":
        monkeypatch.setattr(stock, "PIECE", 20)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("sizes", [(N, N), (5, 11), (11, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_pairs_that_fire_are_those_of_the_whole_grid_in_its_order(sizes, threshold, dtype):
    row, column = scores(*sizes, dtype=dtype)
    threshold_H = threshold + torch.tensor([0.0, -0.4, 0.7], dtype=dtype)
    wanted = reference.product_key_threshold(row, column, threshold_H)
    assert sizes == (1, 1) or 0 < len(wanted[0]) < T * H * sizes[0] * sizes[1]
    assert_same(product_key_threshold(row, column, threshold_H), wanted)


@pytest.mark.usefixtures("search")
def test_with_no_threshold_every_pair_of_keys_that_pass_fires():
    row, column = scores(N, N)
    row[row < 0.3], column[column < -0.2] = -INF, -INF
    token_P, head_P, row_P, column_P = product_key_threshold(row, column, torch.full((H,), -INF, dtype=torch.float64))
    fired = list(zip(token_P.tolist(), head_P.tolist(), row_P.tolist(), column_P.tolist(), strict=True))
    by_hand = [
        (t, h, r, c)
        for t in range(T)
        for h in range(H)
        for r in range(N)
        for c in range(N)
        if row[t, h, r] >= 0.3 and column[t, h, c] >= -0.2
    ]
    assert fired == by_hand
    assert 0 < len(fired) < T * H * N * N


@pytest.mark.usefixtures("search")
def test_above_every_sum_nothing_fires():
    row, column = scores(N, N)
    highest_H = (row.amax(-1) + column.amax(-1)).amax(0)
    assert all(len(part) == 0 for part in product_key_threshold(row, column, highest_H))


def test_a_sum_equal_to_the_threshold_does_not_fire():
    row, column = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, -1.0, 1.5]]])
    _, _, row_P, column_P = product_key_threshold(row, column, torch.tensor([2.0]))
    assert (row_P.tolist(), column_P.tolist()) == ([0, 0], [0, 2])


def test_sums_are_compared_as_rounded():
    # In float32 2^24 + 1 is 2^24, which is not more than itself.
    row, column = torch.tensor([[[2.0**24]]]), torch.tensor([[[1.0, 2.0]]])
    _, _, _, column_P = product_key_threshold(row, column, torch.tensor([2.0**24]))
    assert column_P.tolist() == [1]


whole = st.integers(-4, 4).map(float) | st.just(-INF)


@pytest.mark.usefixtures("search")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), tokens=st.integers(1, 3), heads=st.integers(1, 3), n=st.integers(1, 5), m=st.integers(1, 5))
def test_firing_agrees_with_the_whole_grid_on_any_scores(data, tokens, heads, n, m):
    def draw(size):
        count = tokens * heads * size
        return torch.tensor(data.draw(st.lists(whole, min_size=count, max_size=count))).view(tokens, heads, size)

    row, column = draw(n), draw(m)
    threshold_H = torch.tensor(data.draw(st.lists(whole, min_size=heads, max_size=heads)))
    arguments = row, column, threshold_H
    assert_same(product_key_threshold(*arguments), reference.product_key_threshold(*arguments))


BOTH = [
    pytest.param(lambda row, column: product_key_topk(row, column, 2), id="product_key_topk"),
    pytest.param(lambda row, column: product_key_threshold(row, column, torch.zeros(H)), id="product_key_threshold"),
]


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("number", [math.nan, INF])
@pytest.mark.parametrize("axis", [0, 1])
def test_nan_and_plus_infinity_are_refused_and_located(op, number, axis):
    axes = scores(N, N)
    axes[1 - axis][6] = -INF
    axes[axis][3, 0, 7] = axes[axis][5, 2, 1] = number
    name = ("row_THN", "column_THM")[axis]
    with pytest.raises(ValueError, match=f"got {name} with {number} at token 3, head 0, sub-key 7; .*lower the learn"):
        op(*axes)


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ((T, N), (T, H, N), r"got row_THN of shape \(7, 9\); it takes \(tokens, heads, rows\)"),
        ((T, H, 0), (T, H, N), "got row_THN of shape"),
        ((T, H, N), (T, H + 1, N), r"got column_THM of shape \(7, 4, 9\) for .*; it takes \(7, 3, columns\)"),
        ((T, H, N), (T + 1, H, N), "got column_THM of shape"),
        ((T, H, N), (T, N), "got column_THM of shape"),
        ((T, H, N), (T, H, 0), "got column_THM of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(op, row, column, message):
    with pytest.raises(ValueError, match=message):
        op(torch.zeros(row), torch.zeros(column))


@pytest.mark.parametrize("op", BOTH)
def test_dtypes_that_do_not_fit_are_refused_by_name(op):
    row, column = scores(N, N)
    with pytest.raises(ValueError, match=r"got column_THM of torch.float32 and row_THN of torch.float64; convert"):
        op(row, column.float())
    with pytest.raises(ValueError, match=r"got row_THN of torch.int64; scores are floating"):
        op(row.long(), column.long())


@pytest.mark.parametrize("threshold", [torch.zeros(H + 1), torch.zeros(H, 1), torch.zeros(H, dtype=torch.int64)])
def test_thresholds_that_are_not_one_number_a_head_are_refused(threshold):
    with pytest.raises(ValueError, match=r"got threshold_H of shape .* for 3 heads; it takes \(3,\), floating"):
        product_key_threshold(*scores(N, N), threshold)


def test_a_threshold_of_nan_is_refused():
    with pytest.raises(ValueError, match="got threshold_H with nan at head 1; a threshold is a number"):
        product_key_threshold(*scores(N, N), torch.tensor([0.0, math.nan, math.nan]))
