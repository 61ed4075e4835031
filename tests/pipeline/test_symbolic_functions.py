"""The catalogue: what torch computes and what sympy shows are one function."""

import pytest
import sympy
import torch

from kernels.activations import ACTIVATIONS
from pipeline.models.symbols import activation_code
from pipeline.symbolic.functions import BY_CODE, BY_NAME, CATALOGUE, SPLINE_CODE, apply_codes


@pytest.mark.parametrize("function", CATALOGUE, ids=lambda function: function.name)
def test_a_functions_torch_form_is_its_sympy_form(function):
    z = sympy.Symbol("z", real=True)
    points_P = torch.linspace(-4, 4, 41, dtype=torch.float64)
    shown = [float(function.symbol(z).subs(z, point)) for point in points_P.tolist()]
    torch.testing.assert_close(function.f(points_P), torch.tensor(shown, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_codes_and_names_are_unique_and_none_is_the_splines():
    assert len(BY_CODE) == len(BY_NAME) == len(CATALOGUE)
    assert SPLINE_CODE not in BY_CODE
    assert all(BY_CODE[code].code == code for code in BY_CODE)


def test_codes_keep_their_meaning():
    """Artifacts hold these numbers; a change here makes old ones say something else."""
    names = ["constant", "identity", "square", "relu", "relu2", "gelu"]
    names += ["silu", "sigmoid", "tanh", "softplus", "abs", "gaussian"]
    assert {function.code: function.name for function in CATALOGUE} == dict(enumerate(names))


def test_every_pair_gets_the_function_of_its_own_code():
    code_P = torch.tensor([2, 4, 1, 2, 10], dtype=torch.uint8)
    z_P = torch.tensor([-3.0, 2.0, -5.0, 0.5, -7.0])
    assert apply_codes(code_P, z_P).tolist() == [9.0, 4.0, -5.0, 0.25, 7.0]


@pytest.mark.parametrize("code", [12, 99, SPLINE_CODE])
def test_a_code_outside_the_catalogue_is_refused(code):
    with pytest.raises(ValueError, match=f"code {code} is not in the catalogue"):
        apply_codes(torch.tensor([1, code], dtype=torch.uint8), torch.zeros(2))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_of_a_model_is_in_the_catalogue(name):
    z_P = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(BY_CODE[activation_code(name)].f(z_P), ACTIVATIONS[name].f(z_P))
