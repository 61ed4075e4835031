"""monet_mix against the composed gates written out."""

import torch

from kernels.monet_mix import monet_mix, reference
from tests.tolerances import assert_close

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert
T, H, I, J, M = 7, 3, 5, 9, 6


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (T, I, M), (T, H, I), (T, H, J)
    return [torch.randn(*s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in shapes]


def test_the_oracle_is_the_sum_over_heads_and_sub_experts_written_out():
    hidden, g1, g2 = problem()
    wanted = torch.zeros(T, J, M, dtype=torch.float64)
    for h in range(H):
        for i in range(I):
            wanted += g2[:, h, :, None] * (g1[:, h, i, None] * hidden[:, i])[:, None]
    assert_close(reference.monet_mix(hidden, g1, g2), wanted)


def test_output_and_every_gradient_are_the_oracles():
    for dtype in (torch.float32, torch.float64):
        results = []
        for function in (monet_mix, reference.monet_mix):
            arguments = problem(dtype)
            y_TJM = function(*arguments)
            dy = torch.linspace(-1, 2, y_TJM.numel(), dtype=dtype).view(y_TJM.shape)
            results.append([y_TJM, *torch.autograd.grad(y_TJM, arguments, dy)])
        for got, wanted in zip(*results, strict=True):
            assert_close(got, wanted)
