"""Splines on pykan's basis, snapping to functions, and pykan kept behind its door."""

import random
import sys

import numpy as np
import pytest
import torch

from pipeline.symbolic.formulas._pykan import DEGREE, spline_basis
from pipeline.symbolic.formulas.functions import CATALOGUE
from pipeline.symbolic.formulas.spline import KNOTS, SLACK, Splines, evaluate_pairs, fit_splines, snap
from tests.catalogue import BY_NAME

# E experts, S samples an expert, P pairs

GELU = BY_NAME["gelu"].code


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def samples(generator, experts=3, number=157, width=4.0):
    """(E, S) arguments, each expert on a range of its own."""
    middle_E1 = torch.arange(experts)[:, None] - 1.0
    return middle_E1 + width * (torch.rand(experts, number, generator=generator) - 0.5)


def on_grid(splines, points=53):
    """(E, P) arguments inside each spline's range, and the rows to evaluate them with."""
    share_P = torch.linspace(0, 1, points)
    z_EP = splines.low_E[:, None] + (splines.high_E - splines.low_E)[:, None] * share_P
    return z_EP, torch.arange(len(z_EP))[:, None].expand_as(z_EP)


def test_a_cubic_is_fitted_inside_its_range_to_within_the_ridge(generator):
    z_ES = samples(generator)
    coefficient_E1 = torch.tensor([[1.0], [-0.5], [2.0]])

    def cubic(z):
        return coefficient_E1 * (0.3 * z**3 - z**2 + 0.7 * z - 2)

    splines = fit_splines(z_ES, cubic(z_ES), torch.ones_like(z_ES))
    z_EP, row_EP = on_grid(splines)
    found_EP = evaluate_pairs(splines, row_EP.flatten(), z_EP.flatten()).view_as(z_EP)
    wanted_EP = cubic(z_EP)
    # Splines of degree 3 hold cubics; only the ridge of 1e-4, felt most at the ends, bends the fit (2.5e-3, 2026-11).
    assert ((found_EP - wanted_EP).abs().amax(1) < 5e-3 * wanted_EP.abs().amax(1)).all()
    assert ((found_EP - wanted_EP).square().mean(1) < 1e-4 * wanted_EP.var(1)).all()


def test_evaluation_is_pykans_basis_times_the_coefficients(generator):
    low_E, high_E = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.0, 0.75, 11.0])
    splines = Splines(low_E, high_E, torch.randn(3, KNOTS + 2, generator=generator))
    share_EP = torch.rand(3, 29, generator=generator) * 0.999
    z_EP = low_E[:, None] + (high_E - low_E)[:, None] * share_EP
    knots_EG = low_E[:, None] + (high_E - low_E)[:, None] * torch.linspace(0, 1, KNOTS)
    basis_PEK = spline_basis(z_EP.T.contiguous(), knots_EG)
    assert basis_PEK.shape[-1] == KNOTS - 1 + DEGREE
    wanted_EP = torch.einsum("pek,ek->ep", basis_PEK, splines.coefficient_EK)
    row_EP = torch.arange(3)[:, None].expand_as(z_EP)
    found_P = evaluate_pairs(splines, row_EP.flatten(), z_EP.flatten())
    torch.testing.assert_close(found_P, wanted_EP.flatten(), rtol=1e-4, atol=1e-5)


def test_a_spline_is_constant_outside_its_range(generator):
    splines = Splines(torch.tensor([-1.0]), torch.tensor([2.0]), torch.randn(1, KNOTS + 2, generator=generator))
    row_P = torch.zeros(6, dtype=torch.int64)
    below, above = evaluate_pairs(splines, row_P, torch.tensor([-1.0, -1.5, -900.0, 2.0, 2.1, 1e6])).view(2, 3)
    assert torch.unique(below).numel() == torch.unique(above).numel() == 1


def test_samples_of_weight_zero_change_nothing(generator):
    z_ES, weight_ES = samples(generator), torch.ones(3, 157)
    weight_ES[:, 100:] = 0
    y_ES = torch.sin(z_ES)
    wild_z_ES, wild_y_ES = z_ES.clone(), y_ES.clone()
    wild_z_ES[:, 100:], wild_y_ES[:, 100:] = 1e4, -1e4
    quiet, wild = fit_splines(z_ES, y_ES, weight_ES), fit_splines(wild_z_ES, wild_y_ES, weight_ES)
    torch.testing.assert_close(quiet.low_E, wild.low_E)
    torch.testing.assert_close(quiet.coefficient_EK, wild.coefficient_EK)
    quiet, wild = snap(z_ES, y_ES, weight_ES, GELU), snap(wild_z_ES, wild_y_ES, weight_ES, GELU)
    assert torch.equal(quiet.code_E, wild.code_E)
    torch.testing.assert_close(quiet.scale_E, wild.scale_E)


def test_experts_without_samples_or_with_one_stay_finite(generator):
    z_ES, weight_ES = samples(generator), torch.zeros(3, 157)
    weight_ES[1, 4], weight_ES[2] = 1, 1
    splines, snapped = fit_splines(z_ES, z_ES.square(), weight_ES), snap(z_ES, z_ES.square(), weight_ES, GELU)
    for numbers in (splines.low_E, splines.high_E, splines.coefficient_EK, snapped.scale_E, snapped.offset_E):
        assert torch.isfinite(numbers).all()
    row_P = torch.arange(3)
    assert torch.isfinite(evaluate_pairs(splines, row_P, torch.tensor([0.0, 5.0, -1.0]))).all()
    one = evaluate_pairs(splines, torch.tensor([1]), z_ES[1, 4:5])
    torch.testing.assert_close(one, z_ES[1, 4:5].square(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", [function.name for function in CATALOGUE if function.name != "constant"])
def test_snapping_recovers_a_planted_function_with_its_scale_and_offset(generator, name):
    z_ES = samples(generator, number=400, width=8.0)
    scale_E, offset_E = torch.tensor([2.5, -0.3, 1.0]), torch.tensor([0.0, 4.0, -1.5])
    y_ES = scale_E[:, None] * BY_NAME[name].f(z_ES) + offset_E[:, None]
    snapped = snap(z_ES, y_ES, torch.rand(3, 400, generator=generator) + 0.1, GELU)
    assert snapped.code_E.tolist() == [BY_NAME[name].code] * 3
    torch.testing.assert_close(snapped.scale_E, scale_E, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(snapped.offset_E, offset_E, rtol=1e-3, atol=1e-3)


def test_snapping_sees_arguments_as_large_as_they_are():
    z_ES = torch.linspace(-100, 100, 201)[None]
    snapped = snap(z_ES, 3 * z_ES + 1, torch.ones_like(z_ES), GELU)
    assert snapped.code_E.tolist() == [BY_NAME["identity"].code]
    torch.testing.assert_close(snapped.scale_E, torch.tensor([3.0]), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu2", "softplus", "tanh"])
def test_what_the_known_activation_made_is_said_by_it_however_noisy(generator, name):
    """On a short range others are as close, and each wins some samples; without noise each is told apart."""
    z_ES, known = torch.rand(40, 256, generator=generator) - 0.3, BY_NAME[name].code
    y_ES = BY_NAME[name].f(z_ES)
    noise_ES = 0.3 * y_ES.std(1, keepdim=True) * torch.randn(40, 256, generator=generator)
    assert snap(z_ES, y_ES + noise_ES, torch.ones_like(z_ES), known).code_E.tolist() == [known] * 40
    other = GELU if known != GELU else BY_NAME["silu"].code
    assert snap(z_ES, y_ES, torch.ones_like(z_ES), other).code_E.tolist() == [known] * 40


def test_of_functions_that_fit_alike_the_simplest_is_taken_and_its_error_is_near_the_least(generator):
    z_ES = 0.3 * torch.rand(50, 256, generator=generator)
    y_ES = z_ES + 0.1 * z_ES.std() * torch.randn(50, 256, generator=generator)
    snapped = snap(z_ES, y_ES, torch.ones_like(z_ES), GELU)
    assert set(snapped.code_E.tolist()) <= {GELU, BY_NAME["identity"].code}
    alone = [((y_ES - y_ES.mean(1, keepdim=True)) - _slope(f.f(z_ES), y_ES)).square().sum(1) for f in CATALOGUE]
    assert (snapped.error_E <= SLACK * torch.stack(alone).amin(0) * (1 + 1e-4)).all()


def _slope(f_ES, y_ES):
    """(E, S) the part of y that a line in f explains, about its mean."""
    f_ES, y_ES = (t - t.mean(1, keepdim=True) for t in (f_ES, y_ES))
    return f_ES * (f_ES * y_ES).sum(1, keepdim=True) / f_ES.square().sum(1, keepdim=True).clamp(min=1e-9)


def test_pykan_leaves_generators_output_and_the_folder_alone(monkeypatch, tmp_path, capfd):
    for module in [name for name in sys.modules if name == "kan" or name.startswith("kan.")]:
        monkeypatch.delitem(sys.modules, module)  # so that this import is its first
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    spline_basis(torch.rand(5, 2, generator=torch.Generator()), torch.linspace(0, 1, KNOTS).expand(2, KNOTS))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert "kan.spline" in sys.modules
