"""grouped_expert_sum: rows of several scales compute what their decoded rows would, and one group is expert_sum."""

import pytest
import torch

from kernels.activations import ACTIVATIONS
from kernels.expert_sum import expert_sum, reference
from kernels.expert_sum.grouped import grouped_expert_sum
from kernels.packing import pack_int4
from tests.tolerances import assert_close

# T tokens, D model width, E experts, G groups of a row, F values of a group, P pairs (a token and one of its experts)
D, E = 20, 9
EXPERTS_OF_TOKENS = [[3, 3, 0], [], [8, 1, 3, 5], [], [2, 2, 2], [7], []]  # 4 and 6 are nobody's
ERROR = {"avx512": 1e-4}
"""Of the output, where tokens are rounded to 15 bits of their largest element."""


def problem(groups, experts_of_tokens=EXPERTS_OF_TOKENS, width=D):
    """The arguments of grouped_expert_sum but for the activation, and the float64 rows of u and of v."""
    generator = torch.Generator().manual_seed(0)

    def table():
        value_EGF = torch.randint(-7, 8, (E, groups, width // groups), dtype=torch.int8, generator=generator)
        # Groups of one row differ a thousandfold, so that a scale of another one is no near miss.
        scale_EG = (10 ** (-3 * torch.rand(E, groups, generator=generator))).half()
        rows_ED = (value_EGF.double() * scale_EG.double()[:, :, None]).flatten(1)
        return (pack_int4(value_EGF).flatten(1), scale_EG), rows_ED

    (u, u_rows), (v, v_rows) = table(), table()
    counts = torch.tensor([len(experts) for experts in experts_of_tokens], dtype=torch.int64)
    start_T1 = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    expert_P = torch.tensor([e for experts in experts_of_tokens for e in experts], dtype=torch.int64)
    x, bias, gate = (torch.randn(*shape, generator=generator) for shape in ((len(counts), width), (E,), expert_P.shape))
    return (x, *u, bias, *v, expert_P, start_T1, gate), (u_rows, v_rows)


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
@pytest.mark.parametrize("groups", [1, 2, 5, 10])
def test_it_is_the_oracle_over_decoded_rows(cpu_path, groups, act):
    arguments, (u_rows, v_rows) = problem(groups)
    x, _, _, bias, _, _, expert_P, start_T1, gate = arguments
    wanted = reference.expert_sum(
        x.double(), u_rows, bias.double(), v_rows, expert_P, start_T1, gate.double(), act
    ).float()
    got = grouped_expert_sum(*arguments, act)
    assert wanted.abs().max() > 0.1
    assert_close(got, wanted, ERROR.get(cpu_path))
    assert got[[1, 3, 6]].eq(0).all()


def test_one_group_is_expert_sum_to_the_bit(cpu_path):
    arguments, _ = problem(1)
    x, u, u_scale, bias, v, v_scale, expert_P, start_T1, gate = arguments
    scales = u_scale[:, 0].contiguous(), v_scale[:, 0].contiguous()
    wanted = expert_sum(x, u, bias, v, expert_P, start_T1, gate, "gelu", scales)
    assert torch.equal(grouped_expert_sum(*arguments, "gelu"), wanted)


def test_groups_of_one_scale_are_one_group(cpu_path):
    (x, u, u_scale, bias, v, v_scale, *pairs), _ = problem(1)
    whole = grouped_expert_sum(x, u, u_scale, bias, v, v_scale, *pairs, "relu2")
    u_GF, v_GF = (  # as a row of two groups lies: each packed by itself
        pack_int4(unpacked(table_EB).unflatten(1, (2, -1))).flatten(1) for table_EB in (u, v)
    )
    halves = grouped_expert_sum(x, u_GF, u_scale.repeat(1, 2), bias, v_GF, v_scale.repeat(1, 2), *pairs, "relu2")
    assert not torch.equal(u_GF, u)
    assert_close(halves, whole, ERROR.get(cpu_path))


def unpacked(table_EB):
    low, high = (table_EB << 4).view(torch.int8) >> 4, table_EB.view(torch.int8) >> 4
    return torch.cat([low, high], 1)


@pytest.mark.parametrize("experts_of_tokens", [[[], [], []], []], ids=["no pairs", "no tokens"])
def test_nothing_in_gives_nothing_out(cpu_path, experts_of_tokens):
    arguments, _ = problem(2, experts_of_tokens)
    y = grouped_expert_sum(*arguments, "gelu")
    assert y.shape == (len(experts_of_tokens), D)
    assert y.eq(0).all()


def test_tokens_may_be_bfloat16_and_transposed(cpu_path):
    arguments, _ = problem(2)
    x = arguments[0].bfloat16()
    wanted = grouped_expert_sum(x.float(), *arguments[1:], "gelu")
    got = grouped_expert_sum(x.T.contiguous().T, *arguments[1:], "gelu")
    assert torch.equal(got, wanted.bfloat16())


@pytest.mark.parametrize(("place", "name"), [(0, "x_TD"), (3, "bias_E"), (8, "gate_P")])
def test_a_gradient_is_refused_with_the_remedy(place, name):
    arguments, _ = problem(2)
    arguments[place].requires_grad_()
    with pytest.raises(
        ValueError, match=rf"gradient to keep for {name}; .* for inference; .*no_grad\(\), or train with one"
    ):
        grouped_expert_sum(*arguments, "gelu")
    with torch.no_grad():
        grouped_expert_sum(*arguments, "gelu")


def test_another_device_is_refused_with_the_remedy():
    arguments, _ = problem(2)
    with pytest.raises(
        ValueError, match=r"tensors on meta; it takes CPU tensors; .* one scale a row \(scale_groups=1\)"
    ):
        grouped_expert_sum(*(argument.to("meta") for argument in arguments), "gelu")


NAMES = ("x", "u", "u_scale", "bias", "v", "v_scale", "expert", "start", "gate")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("u", lambda u: u.view(torch.int8), "u with torch.int8; it takes torch.uint8"),
        ("u_scale", lambda s: s[:, 0], r"u_scale_EG with shape (9,); it takes (9, groups)"),
        ("v_scale", lambda s: s[:, :1], r"v_scale_EG with shape (9, 1); it takes (9, groups), as many"),
        ("u_scale", lambda s: s.float(), "u_scale_E with shape (9,), torch.float32"),
        ("v", lambda v: v[:, :-1], "v with shape (9, 9)"),
        ("expert", lambda e: e + 6, "expert_P with index 14; it takes 0 to 8"),
        ("gate", lambda g: g[:-1], "gate_P with shape (10,)"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name, change, said):
    arguments, _ = problem(2)
    changed = dict(zip(NAMES, arguments, strict=True))
    changed[name] = change(changed[name])
    with pytest.raises(ValueError, match="expert_sum got") as caught:
        grouped_expert_sum(*changed.values(), "gelu")
    assert said in str(caught.value)


def test_groups_of_an_odd_width_are_refused():
    (x, u, _, bias, v, _, *pairs), _ = problem(2)
    scale_EG = torch.ones(E, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="4 groups for a width of 20; it takes groups of one even width"):
        grouped_expert_sum(x, u, scale_EG, bias, v, scale_EG, *pairs, "gelu")
