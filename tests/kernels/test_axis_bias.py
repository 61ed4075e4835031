"""axis_bias against its oracle: the stock ops and each variant of the C++ library."""

import pytest
import torch

from kernels.axis_bias import axis_bias, reference
from kernels.pairs import starts
from tests.tolerances import assert_close

# N tokens, H heads, I sub-keys of the rows, J of the columns, D model width, Q scores that pass

D = 13
SHAPES = [(0, 2, 5, 7), (1, 1, 2, 3), (7, 3, 5, 10), (37, 2, 9, 4), (16, 1, 33, 66)]

pytestmark = pytest.mark.usefixtures("cpu_path")


def case(shape, width=D, seed=0):
    """A third of all scores pass, on some tokens perhaps none; and rows for their sub-keys."""
    tokens, heads, rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    passes_NS = torch.rand(tokens, heads * (rows + columns), generator=generator) < 1 / 3
    score_Q = passes_NS.nonzero()[:, 1].to(torch.int32)
    tables = (torch.randn(keys, width, generator=generator) for keys in (rows, columns))
    return score_Q, torch.rand(len(score_Q), generator=generator), starts(passes_NS.sum(1)), heads, *tables


@pytest.mark.parametrize("width", [D, 64, 130])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_biases_of_the_passing_sub_keys_add_up_by_their_gates(shape, width):
    given = case(shape, width)
    wanted_ND = reference.axis_bias(*given)
    assert wanted_ND.shape == (shape[0], width)
    assert_close(axis_bias(*given).double(), wanted_ND, 1e-6)


def test_the_oracle_is_a_product_with_all_gates():
    score_Q, gate_Q, key_start_N1, heads, row_ID, column_JD = case((7, 3, 5, 10))
    gate_NS = torch.zeros(7, heads * 15)
    gate_NS[torch.repeat_interleave(torch.arange(7), key_start_N1.diff()), score_Q.long()] = gate_Q
    all_SD = torch.cat([row_ID.repeat(heads, 1), column_JD.repeat(heads, 1)])
    wanted_ND = reference.axis_bias(score_Q, gate_Q, key_start_N1, heads, row_ID, column_JD)
    assert_close(gate_NS.double() @ all_SD.double(), wanted_ND, 1e-12)


def test_biases_of_scores_that_no_router_gave_are_refused(cpu_path):
    if cpu_path == "stock":
        pytest.skip("torch's own ops bound their indices")
    tables = torch.ones(2, D), torch.ones(3, D)
    for score, start, message in (
        ([5], [0, 1], "points outside"),
        ([-1], [0, 1], "points outside"),
        ([0], [1, 0, 2], "ascend"),
    ):
        keys = torch.tensor(score, dtype=torch.int32), torch.ones(len(score)), torch.tensor(start)
        with pytest.raises(ValueError, match=message):
            axis_bias(*keys, 1, *tables)


def test_what_does_not_fit_is_refused_by_name():
    score_Q, gate_Q, key_start_N1, heads, row_ID, column_JD = case((7, 3, 5, 10))
    for arguments, message in (
        ((score_Q.long(), gate_Q, key_start_N1, heads, row_ID, column_JD), r"score_Q of shape .*int64"),
        ((score_Q, gate_Q[1:], key_start_N1, heads, row_ID, column_JD), "gate_Q of"),
        ((score_Q, gate_Q, key_start_N1, 0, row_ID, column_JD), "for 0 heads"),
        ((score_Q, gate_Q, key_start_N1, heads, row_ID, column_JD[:, 1:]), r"\(5, 13\) and \(10, 12\)"),
    ):
        with pytest.raises(ValueError, match=message):
            axis_bias(*arguments)


def test_under_compilation_the_operator_runs_and_gives_the_same():
    given = case((7, 3, 5, 10))
    compiled = torch.compile(axis_bias, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*given), axis_bias(*given))


def test_the_operator_keeps_torchs_rules(cpu_path):
    if cpu_path in ("portable", "avx512"):
        pytest.skip("one variant of the library is enough")
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(torch.ops.legible.axis_bias.default, case((7, 3, 5, 10)), test_utils=checks)
