"""expert_sum's Triton kernels against autograd of the oracle, in every precision that a table may have."""

import resource

import pytest
import torch

from kernels.activations import ACTIVATIONS
from kernels.expert_sum import reference, triton
from kernels.packing import pack_int4, unpack_int4
from kernels.pairs import tokens_of_pairs
from tests.kernels.triton.device import DEVICE, fill_new_tensors_with_nan
from tests.tolerances import assert_close

# T tokens, D model width, E experts, P pairs (a token and one of its experts)
E = 9
EXPERTS_OF_TOKENS = [[3, 3, 0], [], [8, 1, 3, 5], [], [2] * 17, [7], []]  # 4 and 6 are nobody's
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": 8, "int4": 4}
ROUNDED = 2**-8  # of bfloat16: half a last bit, at worst, on a GPU; the interpreter drops the bits instead


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_new_tensors_with_nan(monkeypatch)


def table(precision, rows, width, generator):
    """The stored table, its scales, and what it stands for in float32."""
    values_ED = torch.randn(rows, width, generator=generator)
    if precision in (4, 8):
        levels = 7 if precision == 4 else 127
        scale_E = (values_ED.abs().amax(1) / levels).half()
        q_ED = (values_ED / scale_E.float()[:, None]).round().clamp(-levels - 1, levels).to(torch.int8)
        q_ED[0, :3] = torch.tensor([-levels - 1, levels, 0])
        stored = pack_int4(q_ED) if precision == 4 else q_ED
        return stored, scale_E, q_ED.float() * scale_E.float()[:, None]
    return values_ED.to(precision), None, values_ED.to(precision).float()


def problem(precision, width, experts_of_tokens=EXPERTS_OF_TOKENS, dtype=torch.float32, seed=0):
    """x, (u, its scales, u as floats), bias, (v, its scales, v as floats), experts, starts, gates, dy."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([len(experts) for experts in experts_of_tokens], dtype=torch.int64)
    start_T1 = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    expert_P = torch.tensor([e for experts in experts_of_tokens for e in experts], dtype=torch.int64)
    x_TD, dy_TD = (torch.randn(len(counts), width, generator=generator).to(dtype) for _ in range(2))
    u, v = (table(precision, E, width, generator) for _ in range(2))
    bias_E, gate_P = torch.randn(E, generator=generator), torch.randn(len(expert_P), generator=generator)
    return x_TD, u, bias_E, v, expert_P, start_T1, gate_P, dy_TD


def on_device(values):
    return [None if value is None else value.to(DEVICE) for value in values]


def ours(x_TD, u, bias_E, v, expert_P, start_T1, gate_P, dy_TD, act):
    """y, pre, dx, dgate, and the rows' gradients and the bias's summed up from the coefficients."""
    x, u_q, u_s, bias, v_q, v_s, expert, start, gate, dy = on_device(
        (x_TD, *u[:2], bias_E, *v[:2], expert_P, start_T1, gate_P, dy_TD)
    )
    y_TD, pre_P = triton.forward(x, u_q, u_s, bias, v_q, v_s, expert, start, gate, act)
    dx_TD, dgate_P, du_P, dv_P = triton.backward(dy, u_q, u_s, v_q, v_s, expert, start, gate, pre_P, act)
    assert pre_P.dtype == dgate_P.dtype == du_P.dtype == dv_P.dtype == torch.float32
    memories = {t.untyped_storage().data_ptr() for t in (pre_P, dgate_P, du_P, dv_P)}
    assert len(memories) == 4 or not len(pre_P)  # operators may not return two views of one tensor
    y_TD, pre_P, dx_TD, dgate_P, du_P, dv_P = (t.cpu() for t in (y_TD, pre_P, dx_TD, dgate_P, du_P, dv_P))
    token_P = tokens_of_pairs(start_T1)
    zeros_ED = torch.zeros_like(u[2])
    du_ED = zeros_ED.index_add(0, expert_P, du_P[:, None] * x_TD.float()[token_P])
    dv_ED = zeros_ED.index_add(0, expert_P, dv_P[:, None] * dy_TD.float()[token_P])
    dbias_E = torch.zeros_like(bias_E).index_add(0, expert_P, du_P)
    return y_TD, pre_P, dx_TD, du_ED, dbias_E, dv_ED, dgate_P


def theirs(x_TD, u, bias_E, v, expert_P, start_T1, gate_P, dy_TD, act):
    """The same of the oracle, in float64."""
    leaves = [t.double().requires_grad_() for t in (x_TD, u[2], bias_E, v[2], gate_P)]
    x, u_ED, bias, v_ED, gate = leaves
    y_TD = reference.expert_sum(x, u_ED, bias, v_ED, expert_P, start_T1, gate, act)
    token_P = tokens_of_pairs(start_T1)
    pre_P = (x[token_P] * u_ED[expert_P]).sum(-1) + bias[expert_P]
    return y_TD, pre_P, *torch.autograd.grad(y_TD, leaves, dy_TD.double())


def assert_all_close(got, wanted, limit=2e-6):
    for ours_, theirs_ in zip(got, wanted, strict=True):
        assert_close(ours_.double(), theirs_.detach(), limit)


@pytest.mark.parametrize(
    ("precision", "width", "act"),
    [
        ("float32", 24, "gelu"),
        ("float32", 41, "relu2"),
        ("bfloat16", 40, "silu"),
        ("float16", 24, "relu"),
        ("int8", 40, "gelu"),
        ("int8", 23, "relu2"),
        ("int4", 24, "silu"),
        ("int4", 40, "gelu"),
    ],
)
def test_output_and_every_gradient_are_the_oracles(precision, width, act):
    arguments = (*problem(PRECISIONS[precision], width), act)
    assert_all_close(ours(*arguments), theirs(*arguments))


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_every_activation_has_its_value_and_its_derivative(act):
    arguments = (*problem(torch.float32, 8, [[e] for e in range(E)], seed=1), act)
    wanted = theirs(*arguments)
    assert wanted[1].min() < -1
    assert wanted[1].max() > 1
    assert_all_close(ours(*arguments), wanted)


@pytest.mark.parametrize("precision", ["bfloat16", "int4"])
def test_tokens_may_be_bfloat16_and_sums_are_float32(precision):
    arguments = (*problem(PRECISIONS[precision], 40, dtype=torch.bfloat16), "gelu")
    got, wanted = ours(*arguments), theirs(*arguments)
    assert got[0].dtype == got[2].dtype == torch.bfloat16
    for i in (0, 2):
        assert_close(got[i].double(), wanted[i].detach(), ROUNDED)
    assert_all_close(got[3:], wanted[3:])


def test_every_nibble_is_read_at_its_place():
    """One expert a column pair: the pre-activation of a unit token is the element itself."""
    width = 24
    q_ED = torch.arange(16 * width).remainder(16).sub(8).to(torch.int8).view(16, width)
    u, scale_E = pack_int4(q_ED), torch.ones(16).half()
    expert_P, start_T1 = torch.arange(16).repeat(width), torch.arange(width + 1) * 16
    x, u, scale, bias, expert, start, gate = on_device(
        (torch.eye(width), u, scale_E, torch.zeros(16), expert_P, start_T1, torch.ones(16 * width))
    )
    y_TD, pre_P = triton.forward(x, u, scale, bias, u, scale, expert, start, gate, "relu")
    assert torch.equal(pre_P.cpu().view(width, 16), q_ED.T.float())
    assert torch.equal(y_TD.cpu(), torch.relu(q_ED.float()).T @ q_ED.float())
    assert torch.equal(unpack_int4(u.cpu()), q_ED)


@pytest.mark.parametrize("precision", ["float32", "int4"])
@pytest.mark.parametrize("experts_of_tokens", [[[], [], []], []], ids=["no pairs", "no tokens"])
def test_nothing_in_gives_zeros_out(precision, experts_of_tokens):
    y, pre, dx, du, _, dv, dgate = ours(*problem(PRECISIONS[precision], 24, experts_of_tokens), "gelu")
    assert y.shape == dx.shape == (len(experts_of_tokens), 24)
    assert pre.shape == dgate.shape == (0,)
    for zero in (y, dx, du, dv):
        assert zero.eq(0).all()


@pytest.mark.parametrize(
    ("dtype", "width", "rows"), [(torch.uint8, 1024, 5_000_000), (torch.int8, 512, 5_000_000)], ids=["int4", "int8"]
)
def test_rows_beyond_two_billion_bytes_are_read_where_they_are(dtype, width, rows, monkeypatch):
    """2.5 GB of addresses; memory is taken for the pages of the few rows that are written."""
    monkeypatch.undo()
    if DEVICE.type == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    last_E = torch.tensor([rows - 1, rows - 3, 1])
    generator = torch.Generator().manual_seed(2)
    small = torch.randint(0, 127, (3, 512), dtype=torch.uint8, generator=generator).view(dtype)
    big, scale_E, bias_E = (
        torch.empty(rows, 512, dtype=dtype, device=DEVICE),
        torch.empty(rows, dtype=torch.float16, device=DEVICE),
        torch.empty(rows, device=DEVICE),
    )
    big[last_E], scale_E[last_E], bias_E[last_E] = small.to(DEVICE), 0.25, 0.5
    x_TD, gate_P, start_T1 = torch.randn(2, width, generator=generator), torch.ones(3), torch.tensor([0, 2, 3])
    results = []
    for table_, scale, bias, expert_P in (
        (big, scale_E, bias_E, last_E),
        (small, torch.full((3,), 0.25).half(), torch.full((3,), 0.5), torch.arange(3)),
    ):
        arguments = on_device((x_TD, table_, scale, bias, table_, scale, expert_P, start_T1, gate_P))
        results.append(triton.forward(*arguments, "gelu"))
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)
        assert got.isfinite().all()
    if DEVICE.type == "cpu":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_an_int4_table_whose_width_is_no_multiple_of_eight_is_refused():
    with pytest.raises(ValueError, match="int4 tables of width 20; its GPU kernel takes a multiple of 8"):
        ours(*problem(4, 20), "gelu")
