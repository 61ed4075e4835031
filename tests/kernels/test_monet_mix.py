"""monet_mix against the composed gates written out."""

import pytest
import torch

from kernels.monet_mix import monet_mix, reference
from tests.tolerances import assert_close

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert
T, H, I, J, M = 7, 3, 5, 9, 6

SHAPES = [
    (T, H, I, J, M),
    (1, 1, 1, 1, 1),
    (3, 8, 11, 2, 5),
    (2, 1, 4, 13, 16),
    (2, 9, 32, 48, 17),
    (520, 2, 64, 64, 16),  # large and aligned: written past the caches
]

pytestmark = pytest.mark.usefixtures("cpu_path")


def problem(dtype=torch.float64, shape=(T, H, I, J, M)):
    num_tokens, num_heads, num_from, num_to, num_units = shape
    generator = torch.Generator().manual_seed(0)
    shapes = (num_tokens, num_from, num_units), (num_tokens, num_heads, num_from), (num_tokens, num_heads, num_to)
    return [torch.randn(*s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in shapes]


def with_gradients(function, arguments):
    """Output, then the gradients of hidden, from and to under one fixed dout."""
    out_TJM = function(*arguments)
    dout = torch.linspace(-1, 2, out_TJM.numel(), dtype=torch.float64).to(out_TJM.dtype).view(out_TJM.shape)
    return [out_TJM, *torch.autograd.grad(out_TJM, arguments, dout)]


def test_the_oracle_is_the_sum_over_heads_and_sub_experts_written_out():
    hidden, g1, g2 = problem()
    wanted = torch.zeros(T, J, M, dtype=torch.float64)
    for h in range(H):
        for i in range(I):
            wanted += g2[:, h, :, None] * (g1[:, h, i, None] * hidden[:, i])[:, None]
    assert_close(reference.monet_mix(hidden, g1, g2), wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_and_every_gradient_are_the_oracles(dtype, shape):
    ours, theirs = (with_gradients(f, problem(dtype, shape)) for f in (monet_mix, reference.monet_mix))
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)


def test_bfloat16_is_near_what_float64_makes_of_the_same_numbers():
    arguments = problem(torch.bfloat16)
    exact = [a.detach().double().requires_grad_() for a in arguments]
    ours, theirs = with_gradients(monet_mix, arguments), with_gradients(reference.monet_mix, exact)
    for got, wanted in zip(ours, theirs, strict=True):
        assert got.dtype == torch.bfloat16
        assert_close(got.double(), wanted, limit=0.01)  # four roundings of 2^-9: two products, their operands, dout


def test_gates_of_zero_have_gradients_too():
    arguments = problem()
    with torch.no_grad():
        for gate in arguments[1:]:
            gate[..., ::2] = 0
    ours, theirs = (with_gradients(f, arguments) for f in (monet_mix, reference.monet_mix))
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)
    assert all(gradient[gate == 0].ne(0).all() for gate, gradient in zip(arguments[1:], ours[2:], strict=True))


def test_arguments_in_any_layout_are_taken():
    arguments = [a.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for a in problem()]
    assert not any(a.is_contiguous() for a in arguments)
    ours, theirs = with_gradients(monet_mix, arguments), with_gradients(reference.monet_mix, problem())
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)
    # The gradient of a sum is one number in every place.
    ours, theirs = (torch.autograd.grad(f(*arguments).sum(), arguments) for f in (monet_mix, reference.monet_mix))
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(monet_mix, problem(shape=(2, 3, 4, 5, 2)))


def test_both_operators_keep_torchs_rules():
    arguments = problem(torch.float32)
    torch.library.opcheck(torch.ops.legible.monet_mix.default, arguments)
    out_TJM, head_THM = (t.detach() for t in torch.ops.legible.monet_mix(*arguments))
    backward = torch.randn_like(out_TJM), *(a.detach() for a in arguments), head_THM
    torch.library.opcheck(torch.ops.legible.monet_mix_backward.default, backward)


def test_compiled_it_is_one_graph_and_gives_the_same():
    compiled = torch.compile(monet_mix, backend="aot_eager", fullgraph=True)
    ours, theirs = with_gradients(compiled, problem()), with_gradients(monet_mix, problem())
    for got, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(got, wanted)


def test_no_tokens_give_nothing():
    out, *gradients = with_gradients(monet_mix, problem(shape=(0, H, I, J, M)))
    assert out.shape == (0, J, M)
    assert [g.shape for g in gradients] == [(0, I, M), (0, H, I), (0, H, J)]


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (T, I), r"got hidden_TIM of shape \(7, 5\); it takes \(tokens, sub-experts, units\)"),
        (1, (T, H, I + 1), r"got from_THI of shape \(7, 3, 6\) for .* \(7, 5, 6\); it takes \(7, heads, 5\)"),
        (1, (T + 1, H, I), "got from_THI of shape"),
        (1, (T, I), "got from_THI of shape"),
        (2, (T, H + 1, J), r"got to_THJ of shape \(7, 4, 9\) for .* \(7, 3, 5\); it takes \(7, 3, sub-experts\)"),
        (2, (T + 1, H, J), "got to_THJ of shape"),
        (2, (T, J), "got to_THJ of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(place, shape, message):
    arguments = problem()
    arguments[place] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        monet_mix(*arguments)


@pytest.mark.parametrize(("place", "name"), [(1, "from_THI"), (2, "to_THJ")])
def test_mixed_dtypes_are_refused_by_name(place, name):
    arguments = problem()
    arguments[place] = arguments[place].float()
    with pytest.raises(ValueError, match=f"got {name} of torch.float32 and hidden_TIM of torch.float64; convert"):
        monet_mix(*arguments)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"got hidden_TIM of torch.int64; it takes floating ones"):
        monet_mix(*(a.detach().long() for a in problem()))
