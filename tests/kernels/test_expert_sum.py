"""expert_sum against its oracle: output and every gradient, where tokens repeat experts, or have none."""

import pytest
import torch

from kernels.activations import ACTIVATIONS, activation
from kernels.expert_sum import _expert_sum, _expert_sum_backward, expert_sum, reference
from kernels.expert_sum.bags import bag_sum, pairs_by_expert
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

    narrow = [t[..., :3].detach().requires_grad_() for t in (x, u[:4], v[:4])]
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


def test_the_operator_is_what_torch_asks_of_one():
    arguments = (*problem(torch.float32), "gelu")
    torch.library.opcheck(_expert_sum, arguments)
    x, u, bias, v, expert_P, start_T1, gate_P = (a.detach() for a in problem(torch.float32))
    pre_P = (x[reference.tokens_of_pairs(start_T1)] * u[expert_P]).sum(-1) + bias[expert_P]
    backward = (torch.ones_like(x), x, u, v, expert_P, start_T1, gate_P, pre_P, "gelu")
    torch.library.opcheck(_expert_sum_backward, backward)


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
    with pytest.raises(ValueError, match="expert index outside the table of 9 rows"):
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
    with pytest.raises(ValueError, match="got 10 gates for 11 pairs; it takes one a pair"):
        expert_sum(x, u, bias, v, expert_P, start_T1, gate_P[:-1], "gelu")


def test_pairs_by_expert_gathers_each_experts_pairs():
    expert_P = torch.tensor([5, 0, 5, 3, 0, 5])
    order_P, rows_R, start_R1 = pairs_by_expert(expert_P)
    assert rows_R.tolist() == [0, 3, 5]
    groups = [order_P[a:b].tolist() for a, b in zip(start_R1.tolist(), start_R1.tolist()[1:], strict=False)]
    assert groups == [[1, 4], [3], [0, 2, 5]]


def test_a_bag_is_the_weighted_sum_of_its_rows():
    table_ED = torch.arange(E * 3.0, dtype=torch.float64).view(E, 3)
    weight_P = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    got = bag_sum(table_ED, torch.tensor([4, 4, 1]), torch.tensor([0, 2, 2, 3]), weight_P)
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
