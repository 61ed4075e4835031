"""Matching pursuit: planted supports, the whole u, and experts that hardly fire."""

import itertools

import pytest
import torch

from pipeline.transforms.pursuit import matching_pursuit

# E experts, S samples, D model width

E, S, D = 5, 211, 13


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


@pytest.fixture
def x_ESD(generator):
    """Correlated coordinates with a mean that is not zero."""
    mix_DD = torch.eye(D) + 0.1 * torch.randn(D, D, generator=generator)
    return torch.randn(E, S, D, generator=generator) @ mix_DD + 0.5


def written_out(support, size):
    """(E, D) dense u and (E) intercept of the support's first `size` coordinates."""
    coefficient_EK = support.coefficients[size]
    u_ED = torch.zeros(len(coefficient_EK), D).scatter_add(1, support.index_EK[:, :size], coefficient_EK[:, :-1])
    return u_ED, coefficient_EK[:, -1]


def squared_error(x_ESD, weight_ES, u_ED, bias_E, support, size):
    found_ED, intercept_E = written_out(support, size)
    wrong_ES = torch.einsum("esd,ed->es", x_ESD, found_ED - u_ED) + (intercept_E - bias_E)[:, None]
    return (weight_ES * wrong_ES.square()).sum(1)


def test_a_planted_sparse_u_is_found_with_its_bias(x_ESD, generator):
    u_ED = torch.zeros(E, D)
    for expert in range(E):
        u_ED[expert, torch.randperm(D, generator=generator)[:3]] = torch.tensor([1.5, -2.0, 1.0])
    bias_E = torch.randn(E, generator=generator)
    support = matching_pursuit(x_ESD, torch.ones(E, S), u_ED, bias_E, (1, 3))
    found_ED, intercept_E = written_out(support, 3)
    # 1e-3: the ridge of 1e-4 shrinks coefficients by about as much.
    torch.testing.assert_close(found_ED, u_ED, rtol=0, atol=1e-3)
    torch.testing.assert_close(intercept_E, bias_E, rtol=0, atol=1e-3)


def test_all_coordinates_are_u_itself(x_ESD, generator):
    u_ED, bias_E = torch.randn(E, D, generator=generator), torch.randn(E, generator=generator)
    support = matching_pursuit(x_ESD, torch.rand(E, S, generator=generator) + 0.1, u_ED, bias_E, (D,))
    assert support.index_EK.sort(1).values.tolist() == [list(range(D))] * E
    found_ED, intercept_E = written_out(support, D)
    torch.testing.assert_close(found_ED, u_ED, rtol=0, atol=5e-3)
    torch.testing.assert_close(intercept_E, bias_E, rtol=0, atol=5e-3)


def test_the_error_never_grows_along_the_ladder_and_ladders_share_their_beginning(x_ESD, generator):
    u_ED, bias_E = torch.randn(E, D, generator=generator), torch.randn(E, generator=generator)
    weight_ES = torch.rand(E, S, generator=generator)
    ladder = (1, 2, 4, 8, 12)
    support = matching_pursuit(x_ESD, weight_ES, u_ED, bias_E, ladder)
    errors = [squared_error(x_ESD, weight_ES, u_ED, bias_E, support, size) for size in ladder]
    for shorter_E, longer_E in itertools.pairwise(errors):
        assert (longer_E <= shorter_E * (1 + 1e-5)).all()
    short = matching_pursuit(x_ESD, weight_ES, u_ED, bias_E, (1, 2))
    assert torch.equal(short.index_EK, support.index_EK[:, :2])
    torch.testing.assert_close(short.coefficients[2], support.coefficients[2])


def test_the_first_coordinate_is_the_best_single_one(x_ESD, generator):
    u_ED, bias_E = torch.randn(E, D, generator=generator), torch.randn(E, generator=generator)
    weight_ES = torch.ones(E, S)
    support = matching_pursuit(x_ESD - x_ESD.mean(1, keepdim=True), weight_ES, u_ED, bias_E, (1,))
    centred_ESD = x_ESD - x_ESD.mean(1, keepdim=True)
    target_ES = torch.einsum("esd,ed->es", centred_ESD, u_ED)
    dots_ED = torch.einsum("esd,es->ed", centred_ESD, target_ES)
    gain_ED = dots_ED.square() / centred_ESD.square().sum(1)
    assert torch.equal(support.index_EK[:, 0], gain_ED.argmax(1))


def test_samples_of_weight_zero_do_not_count(x_ESD, generator):
    u_ED, bias_E = torch.randn(E, D, generator=generator), torch.zeros(E)
    weight_ES = torch.ones(E, S)
    weight_ES[:, 150:] = 0
    wild_ESD = x_ESD.clone()
    wild_ESD[:, 150:] *= 100
    quiet, wild = (matching_pursuit(x, weight_ES, u_ED, bias_E, (4,)) for x in (x_ESD, wild_ESD))
    assert torch.equal(quiet.index_EK, wild.index_EK)
    torch.testing.assert_close(quiet.coefficients[4], wild.coefficients[4])


def test_experts_that_fire_once_or_never_stay_finite(x_ESD, generator):
    weight_ES = torch.ones(E, S)
    weight_ES[0], weight_ES[1] = 0, 0
    weight_ES[1, 5] = 1
    support = matching_pursuit(x_ESD, weight_ES, torch.randn(E, D, generator=generator), torch.ones(E), (1, 4, 8))
    assert all(torch.isfinite(coefficients).all() for coefficients in support.coefficients.values())
    assert ((support.index_EK >= 0) & (support.index_EK < D)).all()
