"""expert_sum against its oracle: output and every gradient, where tokens repeat experts, or have none."""

import math

import pytest
import torch

from kernels.activations import ACTIVATIONS, activation
from kernels.expert_sum import bags, chunks, expert_sum, expert_sum_backward, expert_sum_forward, reference
from kernels.packing import pack_int4, unpack_int4
from kernels.pairs import tokens_of_pairs
from tests.tolerances import assert_close

# T tokens, D model width, E experts, P pairs (a token and one of its experts)
T, D, E = 7, 12, 9
EXPERTS_OF_TOKENS = [[3, 3, 0], [], [8, 1, 3, 5], [], [2, 2, 2], [7], []]  # 4 and 6 are nobody's
NAMES = ("x", "u", "bias", "v", "gate")


def problem(dtype=torch.float64, experts_of_tokens=EXPERTS_OF_TOKENS, seed=0):
    """The arguments of expert_sum but for the activation; float ones need their gradient."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    counts = torch.tensor([len(experts) for experts in experts_of_tokens], dtype=torch.int64)
    start_T1 = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    expert_P = torch.tensor([e for experts in experts_of_tokens for e in experts], dtype=torch.int64)
    x, u, bias, v = normal(len(counts), D), normal(E, D), normal(E), normal(E, D)
    return x, u, bias, v, expert_P, start_T1, normal(len(expert_P))


PRECISIONS = ("float32", "bfloat16", "int8", "int4")


def quantized_problem(precision, width=D, experts_of_tokens=EXPERTS_OF_TOKENS, seed=0):
    """((x, bias, gate) in float32, u, its scales, v, its scales, expert_P, start_T1) with random tables."""
    x, _, bias, _, expert_P, start_T1, gate = problem(torch.float32, experts_of_tokens, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(len(x), width, generator=generator).requires_grad_()

    def table():
        if precision in ("float32", "bfloat16"):
            return torch.randn(E, width, generator=generator).to(getattr(torch, precision)), None
        top = 127 if precision == "int8" else 7
        values = torch.randint(-top, top + 1, (E, width), dtype=torch.int8, generator=generator)
        scale_E = (0.5 + torch.rand(E, generator=generator)).half() / top
        return (values if precision == "int8" else pack_int4(values)), scale_E

    return (x, bias, gate), *table(), *table(), expert_P, start_T1


def rows_of(table_EB, scale_E):
    """A table as the oracle takes it: float64."""
    if scale_E is None:
        return table_EB.double()
    values_ED = unpack_int4(table_EB) if table_EB.dtype == torch.uint8 else table_EB
    return values_ED.double() * scale_E.double()[:, None]


def with_gradients(function, arguments, act):
    """Output, then the gradients of x, u, bias, v and gate under one fixed dy."""
    y_TD = function(*arguments, act)
    dy_TD = torch.randn(y_TD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(y_TD.dtype)
    leaves = [argument for argument in arguments if argument.requires_grad]
    return [y_TD, *torch.autograd.grad(y_TD, leaves, dy_TD)]


def test_the_oracle_is_the_sum_written_out():
    x, u, bias, v, _, _, gate = problem()
    wanted = torch.zeros(T, D, dtype=torch.float64)
    gates = iter(gate)
    for t, experts in enumerate(EXPERTS_OF_TOKENS):
        for e in experts:
            wanted[t] += next(gates) * torch.nn.functional.silu(u[e] @ x[t] + bias[e]) * v[e]
    assert_close(reference.expert_sum(*problem(), "silu"), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_output_and_every_gradient_are_the_oracles(act, dtype):
    ours = with_gradients(expert_sum, problem(dtype), act)
    theirs = with_gradients(reference.expert_sum, problem(dtype), act)
    for got, wanted in zip(ours, theirs, strict=True):
        assert wanted.abs().max() > 0
        assert_close(got, wanted)


def test_gradients_are_those_of_finite_differences():
    x, u, bias, v, expert_P, start_T1, gate_P = problem(experts_of_tokens=[[3, 3], [], [1, 0, 3]])

    def of_floats(*floats):
        x, u, bias, v, gate_P = floats
        return expert_sum(x, u, bias, v, expert_P, start_T1, gate_P, "gelu")

    narrow = [t[..., :3].detach().contiguous().requires_grad_() for t in (x, u[:4], v[:4])]
    assert torch.autograd.gradcheck(of_floats, (narrow[0], narrow[1], bias[:4], narrow[2], gate_P))


def test_tokens_without_pairs_get_nothing_and_give_nothing():
    y, dx, *_ = with_gradients(expert_sum, problem(), "gelu")
    alone = [t for t, experts in enumerate(EXPERTS_OF_TOKENS) if not experts]
    assert y[alone].eq(0).all()
    assert dx[alone].eq(0).all()


def test_experts_without_tokens_get_no_gradient():
    _, _, du, dbias, dv, _ = with_gradients(expert_sum, problem(), "gelu")
    for gradient in (du, dbias, dv):
        assert gradient[[4, 6]].eq(0).all()
        assert gradient[[0, 1, 2, 3, 5, 7, 8]].ne(0).all()


def test_an_expert_twice_is_one_with_both_gates():
    x, u, bias, v, _, _, gate_P = problem(experts_of_tokens=[[5, 5]])
    twice = expert_sum(x, u, bias, v, torch.tensor([5, 5]), torch.tensor([0, 2]), gate_P, "gelu")
    once = expert_sum(x, u, bias, v, torch.tensor([5]), torch.tensor([0, 1]), gate_P.sum()[None], "gelu")
    assert_close(twice, once)


@pytest.mark.parametrize("experts_of_tokens", [[[], [], []], []], ids=["no pairs", "no tokens"])
def test_nothing_in_gives_nothing_out(experts_of_tokens):
    arguments = problem(experts_of_tokens=experts_of_tokens)
    y, dx, du, dbias, dv, dgate = with_gradients(expert_sum, arguments, "gelu")
    assert y.shape == dx.shape == (len(experts_of_tokens), D)
    assert dgate.shape == (0,)
    for zero in (y, dx, du, dbias, dv):
        assert zero.eq(0).all()


def test_a_gradient_of_a_transposed_view_is_read_right():
    """dy as autograd hands it on from a transpose: not contiguous."""
    for function in (expert_sum, reference.expert_sum):
        arguments = problem()
        function(*arguments, "gelu").T.mul(torch.arange(T, dtype=torch.float64)).square().sum().backward()
        if function is expert_sum:
            ours = [a.grad for a in arguments if a.requires_grad]
        else:
            for got, wanted in zip(ours, [a.grad for a in arguments if a.requires_grad], strict=True):
                assert_close(got, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_operators_are_what_torch_asks_of_one(precision):
    x, bias, gate = (a.detach().requires_grad_() for a in quantized_problem(precision)[0])
    _, u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(precision)
    arguments = x, u, u_scale, bias, v, v_scale, expert_P, start_T1, gate, "gelu"
    torch.library.opcheck(expert_sum_forward, arguments)
    y, pre_P = (a.detach() for a in expert_sum_forward(*arguments))
    backward = (torch.ones_like(y), u, u_scale, v, v_scale, expert_P, start_T1, gate.detach(), pre_P, "gelu")
    torch.library.opcheck(expert_sum_backward, backward)


def test_the_operator_gives_float_tables_their_gradients():
    x, u, bias, v, expert_P, start_T1, gate = problem(torch.float32)
    torch.library.opcheck(expert_sum_forward, (x, u, None, bias, v, None, expert_P, start_T1, gate, "gelu"))


# Dynamo reads .grad of its own intermediates and hides the warning only where warnings are no errors (torch 2.13).
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_it_works_under_torch_compile():
    compiled = torch.compile(lambda *arguments: expert_sum(*arguments, "relu2").square(), backend="aot_eager")
    ours = with_gradients(lambda *a: compiled(*a[:-1]), problem(), "relu2")
    theirs = with_gradients(lambda *a: reference.expert_sum(*a).square(), problem(), "relu2")
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("wrong", [-1, E])
def test_an_index_outside_the_table_is_refused(wrong):
    x, u, bias, v, expert_P, start_T1, gate_P = problem()
    expert_P[4] = wrong
    with pytest.raises(ValueError, match=f"got expert_P with index {wrong}; it takes 0 to 8, rows of the table"):
        expert_sum(x, u, bias, v, expert_P, start_T1, gate_P, "gelu")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1],
        lambda s: s.int(),
        lambda s: torch.cat([s[:-1], s[-1:] - 1]),
        lambda s: torch.cat([s[:1] + 1, s[1:]]),
        lambda s: torch.cat([s[:2], s[3:4] + 1, s[3:]]),
    ],
    ids=["too short", "int32", "ends before the pairs", "starts after the pairs", "goes back"],
)
def test_starts_that_do_not_fit_are_refused(change):
    x, u, bias, v, expert_P, start_T1, gate_P = problem()
    with pytest.raises(ValueError, match="expert_sum got start_T1"):
        expert_sum(x, u, bias, v, expert_P, change(start_T1), gate_P, "gelu")


def test_a_gate_must_stand_by_every_pair():
    x, u, bias, v, expert_P, start_T1, gate_P = problem()
    with pytest.raises(
        ValueError, match=r"got gate_P with shape \(10,\), torch.float64; it takes \(11,\) of a float, one a pair"
    ):
        expert_sum(x, u, bias, v, expert_P, start_T1, gate_P[:-1], "gelu")


def test_a_bag_is_the_weighted_sum_of_its_rows():
    table_ED = torch.arange(E * 3.0, dtype=torch.float64).view(E, 3)
    weight_P = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    got = bags.bag_sum(table_ED, torch.tensor([4, 4, 1]), torch.tensor([0, 2, 2, 3]), weight_P)
    assert torch.equal(got, torch.stack([table_ED[4], torch.zeros(3, dtype=torch.float64), table_ED[1] / 2]))


def test_every_activation_has_the_gradients_of_its_own_derivative():
    """A gate of one and v of ones: dx is act'(u . x + b) * u, summed over the width of v."""
    x, u, bias, _, _, _, _ = problem(experts_of_tokens=[[2]])
    for act in ACTIVATIONS:
        y = expert_sum(
            x, u, bias, torch.ones(E, D, dtype=torch.float64), torch.tensor([2]), torch.tensor([0, 1]),
            torch.ones(1, dtype=torch.float64), act,
        )  # fmt: skip
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert_close(dx[0], D * activation(act).derivative(u[2] @ x[0] + bias[2]) * u[2])


ROUNDED_TOKENS = 1e-4
"""AVX-512 reads a token as 15 bits of its largest element where it multiplies integers."""


@pytest.mark.parametrize(
    ("width", "act", "small_table"),
    [(12, "gelu", chunks.SMALL_TABLE), (64, "relu", 0), (130, "relu2", chunks.SMALL_TABLE), (300, "silu", 0)],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tables_of_every_precision_agree_with_the_oracle_on_their_rows(
    cpu_path, monkeypatch, precision, width, act, small_table
):
    monkeypatch.setattr(chunks, "SMALL_TABLE", small_table)
    (x, bias, gate), u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(precision, width)
    y = expert_sum(x, u, bias, v, expert_P, start_T1, gate, act, (u_scale, v_scale))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    ours = [y, *torch.autograd.grad(y, (x, bias, gate), dy)]
    doubles = [a.detach().double().requires_grad_() for a in (x, bias, gate)]
    wanted = reference.expert_sum(
        doubles[0], rows_of(u, u_scale), doubles[1], rows_of(v, v_scale), expert_P, start_T1, doubles[2], act
    )
    theirs = [wanted, *torch.autograd.grad(wanted, doubles, dy.double())]
    limit = ROUNDED_TOKENS if cpu_path == "avx512" and precision.startswith("int") else 2e-6
    for got, want in zip(ours, theirs, strict=True):
        assert want.abs().max() > 0
        assert_close(got, want.float(), limit)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_pairs_coefficients_are_the_tables_gradients(cpu_path, precision):
    """Summed by expert: du times x, and dv times dy."""
    (x, bias, gate), u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(precision, 20)
    dy = torch.randn(T, 20, generator=torch.Generator().manual_seed(9))
    _, pre_P = expert_sum_forward(x, u, u_scale, bias, v, v_scale, expert_P, start_T1, gate, "silu")
    _, _, du_P, dv_P = expert_sum_backward(
        dy, u, u_scale, v, v_scale, expert_P, start_T1, gate.detach(), pre_P.detach(), "silu"
    )
    tables = [rows_of(u, u_scale).requires_grad_(), rows_of(v, v_scale).requires_grad_()]
    wanted = reference.expert_sum(
        x.detach().double(), tables[0], bias.detach().double(), tables[1], expert_P, start_T1,
        gate.detach().double(), "silu",
    )  # fmt: skip
    token_P = tokens_of_pairs(start_T1)
    for coefficient_P, source, want in zip(
        (du_P, dv_P), (x.detach(), dy), torch.autograd.grad(wanted, tables, dy.double()), strict=True
    ):
        got = torch.zeros_like(want).index_add(0, expert_P, coefficient_P[:, None].double() * source[token_P].double())
        assert_close(got, want, ROUNDED_TOKENS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_share_the_tokens(cpu_path, precision):
    (x, bias, gate), u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(precision)
    outputs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        outputs.append(expert_sum(x, u, bias, v, expert_P, start_T1, gate, "gelu", (u_scale, v_scale)))
    torch.set_num_threads(1)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("experts_of_tokens", [[[], [], []], []], ids=["no pairs", "no tokens"])
def test_nothing_in_gives_nothing_out_at_every_precision(cpu_path, precision, experts_of_tokens):
    (x, bias, gate), u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(
        precision, experts_of_tokens=experts_of_tokens
    )
    y = expert_sum(x, u, bias, v, expert_P, start_T1, gate, "gelu", (u_scale, v_scale))
    dx, dbias, dgate = torch.autograd.grad(y, (x, bias, gate), torch.ones_like(y))
    assert y.shape == dx.shape == (len(experts_of_tokens), D)
    assert y.eq(0).all()
    assert dx.eq(0).all()
    assert dbias.eq(0).all()
    assert dgate.shape == (0,)


def test_many_chunks_are_as_one_and_as_the_whole_table(monkeypatch):
    results = []
    for pairs, small in ((2, 0), (1024, 0), (1024, 2**22)):
        monkeypatch.setattr(chunks, "PAIRS_A_CHUNK", pairs)
        monkeypatch.setattr(chunks, "SMALL_TABLE", small)
        (x, _, gate), u, u_scale, *_, expert_P, start_T1 = quantized_problem("int4")
        results.append(
            (
                chunks.row_dots(x.detach(), u, u_scale, expert_P, start_T1),
                chunks.row_sums(u, u_scale, expert_P, start_T1, gate.detach(), D),
            )
        )
    for many, one, whole in zip(*results, strict=True):
        assert torch.equal(many, one)
        assert torch.equal(many, whole)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_token_that_is_not_finite_poisons_its_own_output_alone(cpu_path, precision, wrong):
    (x, bias, gate), u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(precision)
    x = x.detach().clone()
    x[2, 5] = wrong
    y = expert_sum(x, u, bias, v, expert_P, start_T1, gate, "gelu", (u_scale, v_scale))
    assert not torch.isfinite(y[2]).all()
    assert torch.isfinite(y[[0, 1, 3, 4, 5, 6]]).all()


def test_rows_beyond_two_to_the_31_bytes_are_found(cpu_path):
    """Of 2.5 GB, which are never touched but at both ends, the system gives only the pages that are written."""
    u, v = (torch.empty(5_000_000, 512, dtype=torch.uint8) for _ in range(2))
    ends = torch.tensor([0, 1, 4_999_998, 4_999_999])
    small = torch.randint(0, 256, (2, 4, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    u[ends], v[ends] = small[0], small[1]
    scale_E, bias_E = torch.ones(len(u), dtype=torch.float16), torch.zeros(len(u))
    x = torch.randn(2, 1024, generator=torch.Generator().manual_seed(1))
    start, gate = torch.tensor([0, 2, 4]), torch.ones(4)
    far = expert_sum(x, u, bias_E, v, ends, start, gate, "gelu", (scale_E, scale_E))
    near = expert_sum(
        x, small[0], bias_E[:4], small[1], torch.arange(4), start, gate, "gelu", (scale_E[:4], scale_E[:4])
    )
    assert torch.equal(far, near)
    assert far.abs().max() > 0


def refusal(change, precision="int8"):
    """What expert_sum says after `change` has spoilt one of its arguments."""
    (x, bias, gate), u, u_scale, v, v_scale, expert_P, start_T1 = quantized_problem(precision)
    arguments = {
        "x": x.detach(), "u": u, "u_scale": u_scale, "bias": bias.detach(), "v": v, "v_scale": v_scale,
        "expert": expert_P, "start": start_T1, "gate": gate.detach().clone(),
    }  # fmt: skip
    change(arguments)
    with pytest.raises(ValueError, match="expert_sum got") as caught:
        expert_sum_forward(*arguments.values(), "gelu")
    return str(caught.value)


def spoil(name, change):
    return lambda arguments: arguments.update({name: change(arguments[name])})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil("gate", lambda g: g.index_fill(0, torch.tensor(3), math.nan)), "gate_P with nan at pair 3"),
        (spoil("gate", lambda g: g.index_fill(0, torch.tensor(0), math.inf)), "gate_P with inf at pair 0"),
        (spoil("u", lambda u: u.int()), "u with torch.int32; it takes float32"),
        (spoil("v", lambda v: v.float()), "v_scale_E with a scale for torch.float32"),
        (spoil("u", lambda u: u[:, :-1]), r"u with shape (9, 11); it takes (9, 12)"),
        (spoil("u", lambda u: u.T.contiguous().T), "u with strides (1, 9); it takes contiguous rows"),
        (spoil("u_scale", lambda s: s.float()), "u_scale_E with shape (9,), torch.float32"),
        (spoil("v_scale", lambda s: None), "v_scale_E with no scale for torch.int8"),
        (spoil("x", lambda x: x.double()), "u with torch.int8 with x_TD of torch.float64"),
        (spoil("x", lambda x: x[0]), "x_TD with shape (12,)"),
        (spoil("bias", lambda b: b[:-1]), "bias_E with shape (8,)"),
        (spoil("expert", lambda e: e.int()), "expert_P with shape (11,), torch.int32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_does_not_fit_is_named(change, said):
    assert said in refusal(change)


def test_tables_of_two_precisions_are_refused():
    v, v_scale = quantized_problem("int4")[3:5]
    assert "v with torch.uint8 beside u of torch.int8" in refusal(lambda a: a.update(v=v, v_scale=v_scale))


def test_an_odd_width_has_no_int4_rows():
    said = refusal(spoil("x", lambda x: x[:, :11]), "int4")
    assert said == "expert_sum got u with int4 rows for a width of 11; it takes an even width: a byte holds two values"
