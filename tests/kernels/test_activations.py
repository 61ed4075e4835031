"""Each activation is its formula, and its derivative is what autograd finds."""

import math

import pytest
import torch

from kernels.activations import ACTIVATIONS, activation

X = torch.linspace(-4, 4, 90, dtype=torch.float64)  # even: 0, where relu has no derivative, is not among them
FORMULAS = {
    "relu2": lambda x: max(x, 0.0) ** 2,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_is_its_formula(name):
    wanted = torch.tensor([FORMULAS[name](x) for x in X.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activation(name).f(X), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_derivative_is_autograds(name):
    x = X.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(activation(name).f(x).sum(), x)
    torch.testing.assert_close(activation(name).derivative(X), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_derivative_keeps_shape_and_dtype(name):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert activation(name).derivative(x).shape == x.shape
    assert activation(name).derivative(x).dtype == x.dtype


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'swish' is unknown; use one of gelu, relu, relu2, silu"):
        activation("swish")
