"""A jump router fires what its rule says: the stock ops and each variant of the C++ library against the oracle."""

import math

import pytest
import torch

from kernels import backends
from kernels.jump_router import jump_router, reference
from kernels.jump_router.tables import AxisStatistics, Fired, Rule, SparseRows, compact
from tests.tolerances import assert_close

# N tokens, H heads, I sub-keys of the rows, J of the columns, S scores, R features, K features a score

R, K = 11, 4
SHAPES = [(0, 2, 5, 7), (1, 1, 2, 3), (7, 3, 5, 10), (37, 2, 9, 4), (16, 1, 33, 66)]
INF = math.inf

pytestmark = pytest.mark.usefixtures("cpu_path")


def case(shape, *, threshold=-3.0, deviations=0.8, tie_margin=0.0, seed=0):
    tokens, heads, rows, columns = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator)

    scores = heads * (rows + columns)
    weight_SR = normal(scores, R) / 2
    weight_SR[torch.rand(scores, R, generator=generator).argsort(1) >= K] = 0
    weight_SR[0] = 0  # a score that is its intercept
    means, variances = (0.1 * normal(2, heads), 0.5 + torch.rand(2, heads, generator=generator))
    statistics = AxisStatistics(means[0], variances[0], means[1], variances[1], torch.full((heads,), threshold))
    sparse = compact(weight_SR, 0.1 * normal(scores))
    return normal(R, tokens), sparse, statistics, Rule(rows, deviations, tie_margin, 1e-5)


def scores_of(feature_RN, sparse) -> torch.Tensor:
    return reference.sparse_scores(feature_RN, sparse).float()


def assert_same(got: Fired, wanted: Fired):
    """The same pairs and keys; numbers as near as float32 is to float64."""
    for name, one, other in zip(Fired._fields, got, wanted, strict=True):
        if other.dtype.is_floating_point:
            assert one.dtype == torch.float32
            assert_close(one.double(), other, 1e-6)
        else:
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threshold", [-INF, -3.0, -0.5, 1.0])
def test_pairs_and_passing_scores_are_those_of_the_rule(shape, threshold):
    features, sparse, statistics, rule = case(shape, threshold=threshold)
    score_SN = scores_of(features, sparse)
    fired = jump_router(score_SN, None, statistics, rule)
    assert_same(fired, reference.jump_router(score_SN, statistics, rule))
    assert len(fired.key_start_N1) == shape[0] + 1
    if threshold > 0:
        assert len(fired.cell_P) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_may_be_sums_of_few_features(shape):
    features, sparse, statistics, rule = case(shape, seed=1)
    fired = jump_router(features, sparse, statistics, rule)
    assert_same(fired, reference.jump_router(reference.sparse_scores(features, sparse), statistics, rule))


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_the_best_of_a_head_passes_however_low(shape):
    features, sparse, statistics, rule = case(shape, threshold=-INF, deviations=50.0)
    tokens, heads, rows, columns = shape
    fired = jump_router(features, sparse, statistics, rule)
    score_NS = scores_of(features, sparse).T
    cut = heads * rows
    best = [score_NS[:, :cut].unflatten(1, (heads, rows)), score_NS[:, cut:].unflatten(1, (heads, columns))]
    row_NH, column_NH = (score.argmax(-1) for score in best)
    assert torch.equal(fired.cell_P, (row_NH * columns + column_NH).flatten())
    assert torch.equal(fired.gate_P, torch.ones(tokens * heads))
    assert torch.equal(fired.start_N1, heads * torch.arange(tokens + 1))


def test_twins_of_the_best_pass_where_they_differ_by_less_than_the_margin():
    score_SN = torch.tensor([[1.0], [1.0 - 1e-4], [0.5], [2.0], [2.0], [1.9]]).repeat(1, 20)
    numbers = torch.zeros(1), torch.ones(1)
    statistics = AxisStatistics(*numbers, *numbers, torch.tensor([-INF]))
    for margin, passing in ((0.0, [0, 3, 4]), (1e-3, [0, 1, 3, 4]), (0.09, [0, 1, 3, 4])):
        fired = jump_router(score_SN, None, statistics, Rule(3, 9.0, margin, 0.0))
        assert fired.score_Q.tolist() == passing * 20


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
@pytest.mark.parametrize("tokens", [1, 19])
def test_a_score_that_is_not_finite_is_refused(value, tokens):
    features, sparse, statistics, rule = case((tokens, 2, 5, 7))
    score_SN = scores_of(features, sparse)
    score_SN[-1, -1] = value
    with pytest.raises(ValueError, match=r"nan or infinite.*the model diverged"):
        jump_router(score_SN, None, statistics, rule)
    features[:, -1] = value
    with pytest.raises(ValueError, match="nan or infinite"):
        jump_router(features, sparse, statistics, rule)


@pytest.mark.parametrize("index", [-1, R])
def test_rows_that_point_outside_are_refused(index):
    features, sparse, statistics, rule = case((3, 2, 5, 7))
    sparse.index_SK[4, 1] = index
    with pytest.raises(ValueError, match="points outside"):
        jump_router(features, sparse, statistics, rule)


def test_what_does_not_fit_is_refused_by_name():
    features, sparse, statistics, rule = case((3, 2, 5, 7))
    score_SN = scores_of(features, sparse)
    for arguments, message in (
        ((score_SN[:-1], None, statistics, rule), "23 scores for 2 heads of 5 rows"),
        ((score_SN, None, statistics, rule._replace(num_rows=12)), "24 scores for 2 heads of 12 rows"),
        ((score_SN[0], None, statistics, rule), r"read_XN of shape \(3,\)"),
        ((score_SN, None, statistics._replace(row_var_H=torch.ones(3)), rule), r"row_var_H of shape \(3,\)"),
        ((features, sparse._replace(index_SK=sparse.index_SK.long()), statistics, rule), "index_SK.*int64"),
        ((features, sparse._replace(intercept_S=torch.ones(2)), statistics, rule), r"intercept_S of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jump_router(*arguments)


def test_threads_change_nothing():
    features, sparse, statistics, rule = case((37, 2, 9, 4))
    before = torch.get_num_threads()
    fired = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            fired.append(jump_router(features, sparse, statistics, rule))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*fired, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_double_precision_goes_by_the_stock_ops():
    features, sparse, statistics, rule = case((7, 3, 5, 10))
    statistics = AxisStatistics(*(number.double() for number in statistics))
    score_SN = reference.sparse_scores(features, sparse)
    fired = jump_router(score_SN, None, statistics, rule)
    for one, other in zip(fired, reference.jump_router(score_SN, statistics, rule), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_compact_rows_hold_the_non_zeros_and_nothing_else():
    generator = torch.Generator().manual_seed(3)
    weight_SR = torch.randn(6, 9, generator=generator) * (torch.rand(6, 9, generator=generator) < 0.4)
    weight_SR[2] = 0
    for weight in (weight_SR, torch.zeros(6, 9)):
        rows = compact(weight, torch.ones(6))
        assert rows.index_SK.shape[1] == max(1, int((weight != 0).sum(1).max()))
        again = torch.zeros(6, 9).scatter_add(1, rows.index_SK.long(), rows.coefficient_SK)
        assert torch.equal(again, weight)


def test_under_compilation_the_operator_runs_and_gives_the_same():
    features, sparse, statistics, rule = case((7, 3, 5, 10))

    def layer(features, coefficients):
        rows = SparseRows(sparse.index_SK, coefficients, sparse.intercept_S)
        return jump_router(features, rows, statistics, rule)

    got = torch.compile(layer, backend="aot_eager", fullgraph=True)(features, sparse.coefficient_SK)
    for one, other in zip(got, layer(features, sparse.coefficient_SK), strict=True):
        assert torch.equal(one, other)


def test_the_operator_keeps_torchs_rules(cpu_path):
    if cpu_path in ("portable", "avx512"):
        pytest.skip("one variant of the library is enough")
    features, sparse, statistics, rule = case((7, 3, 5, 10))
    checks = "test_schema", "test_faketensor"
    given = features, list(sparse), list(statistics), *rule
    torch.library.opcheck(torch.ops.legible.jump_router.default, given, test_utils=checks)
    assert backends.cpu_library() is None or cpu_path != "stock"
