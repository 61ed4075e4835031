"""monet_mix's Triton kernels against autograd of the oracle, at sizes that fill no block."""

import pytest
import torch

from kernels.monet_mix import reference, triton
from tests.kernels.triton.device import DEVICE, fill_new_tensors_with_nan
from tests.tolerances import assert_close

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert
ROUNDED = 2**-8  # of bfloat16: half a last bit, at worst, on a GPU; the interpreter drops the bits instead


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_new_tensors_with_nan(monkeypatch)


def problem(sizes, dtype=torch.float32):
    """hidden, from, to, and the gradient of the output."""
    tokens, heads, i, j, m = sizes
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, i, m), (tokens, heads, i), (tokens, heads, j), (tokens, j, m))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def ours(hidden_TIM, from_THI, to_THJ, dout_TJM):
    inputs = [t.to(DEVICE) for t in (hidden_TIM, from_THI, to_THJ)]
    out_TJM, head_THM = triton.forward(*inputs)
    assert head_THM.dtype == torch.float32
    gradients = triton.backward(dout_TJM.to(DEVICE), *inputs, head_THM)
    return [t.cpu() for t in (head_THM, out_TJM, *gradients)]


def theirs(hidden_TIM, from_THI, to_THJ, dout_TJM):
    """The same of the oracle, in float64."""
    leaves = [t.double().requires_grad_() for t in (hidden_TIM, from_THI, to_THJ)]
    out_TJM = reference.monet_mix(*leaves)
    head_THM = torch.einsum("thi,tim->thm", from_THI.double(), hidden_TIM.double())
    return head_THM, out_TJM, *torch.autograd.grad(out_TJM, leaves, dout_TJM.double())


@pytest.mark.parametrize(
    "sizes", [(5, 3, 7, 9, 5), (3, 1, 1, 1, 1), (2, 8, 70, 66, 6), (2, 5, 3, 130, 24), (1, 6, 5, 3, 300)], ids=str
)
def test_output_and_every_gradient_are_the_oracles(sizes):
    arguments = problem(sizes)
    for got, wanted in zip(ours(*arguments), theirs(*arguments), strict=True):
        assert wanted.abs().max() > 0
        assert_close(got.double(), wanted.detach(), 2e-6)


def test_bfloat16_is_summed_in_float32():
    arguments = problem((3, 3, 70, 9, 5), torch.bfloat16)
    head, *rounded = ours(*arguments)
    wanted_head, *wanted = theirs(*arguments)
    assert_close(head.double(), wanted_head, 2e-6)
    for got, want in zip(rounded, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert_close(got.double(), want.detach(), ROUNDED)


def test_views_that_are_not_contiguous_are_read_right():
    hidden, from_, to, dout = problem((3, 4, 4, 4, 4))
    views = [t.transpose(1, 2) for t in (hidden, from_, to, dout)]
    for got, wanted in zip(ours(*views), theirs(*views), strict=True):
        assert_close(got.double(), wanted.detach(), 2e-6)


def test_no_tokens_give_empty_outputs():
    assert [tuple(t.shape) for t in ours(*problem((0, 3, 7, 9, 5)))] == [
        (0, 3, 5),
        (0, 9, 5),
        (0, 7, 5),
        (0, 3, 7),
        (0, 3, 9),
    ]
