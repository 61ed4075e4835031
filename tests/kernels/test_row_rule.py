"""The row rule on every grid: as its oracle, right on average, within its bounds; and float32 rounded to bfloat16."""

import math

import pytest
import torch

from kernels.sr_update.constants import CLIP, GROWTH, MOMENT_DECAY
from kernels.sr_update.reference import sr_update_row
from kernels.sr_update.row_rule import INT4, INT8, NIBBLES, normalised, step_on, to_bfloat16

# R rows of width D
R, D = 9, 14
GRIDS = {"nibbles": NIBBLES, "int8": INT8, "int4": INT4}
ENDS = {"nibbles": (-120, 119, 16), "int8": (-127, 127, 1), "int4": (-7, 7, 1)}
"""Lowest, highest, and how many units of the grid a row's scale stands for."""

every_grid = pytest.mark.parametrize("name", GRIDS)


def rows(name, seed=0, share=0.7):
    """(R, D) whole numbers within this share of a grid, (R) scales, gradients whose rows differ in size, moments.

    The moment of every other row is that of one never touched.
    """
    generator = torch.Generator().manual_seed(seed)
    widest = int(share * ENDS[name][1])
    value_RD = torch.randint(-widest, widest + 1, (R, D), generator=generator).float()
    scale_R = (0.1 + torch.rand(R, generator=generator)).half()
    gradient_RD = torch.randn(R, D, generator=generator) * torch.logspace(-3, 2, R)[:, None]
    moment_R = gradient_RD.square().mean(1) * torch.rand(R, generator=generator) * (torch.arange(R) % 2)
    return value_RD, scale_R, gradient_RD, moment_R


def uniforms(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def exact(name, value_RD, scale_R, normal_RD, learning_rate):
    """(R, D) float64: where a step goes before it is rounded, in units of the grid."""
    rate_R1 = learning_rate * ENDS[name][2] / scale_R.double()[:, None]
    return value_RD.double() - rate_R1 * normal_RD.double()


def test_a_normalised_gradient_is_in_units_of_its_rows_running_norm():
    _, _, gradient_RD, moment_R = rows("nibbles")
    normal_RD, new_moment_R = normalised(gradient_RD, moment_R)
    for r in range(R):
        gradient_D = gradient_RD[r].tolist()
        mean_square = math.fsum(g * g for g in gradient_D) / D
        old = moment_R[r].item()
        wanted = MOMENT_DECAY * old + (1 - MOMENT_DECAY) * mean_square if old else mean_square
        assert new_moment_R[r].item() == pytest.approx(wanted, rel=1e-6)
        clipped_D = [max(-CLIP, min(CLIP, g / math.sqrt(wanted))) for g in gradient_D]
        assert normal_RD[r].tolist() == pytest.approx(clipped_D, rel=1e-6)
    first_R = moment_R == 0
    assert normal_RD[first_R].square().mean(1).tolist() == pytest.approx([1.0] * int(first_R.sum()), rel=1e-6)


def test_one_large_value_of_a_row_is_clipped_at_eight():
    gradient_RD = torch.zeros(2, 210)
    gradient_RD[0, 3], gradient_RD[1, 5] = 1e4, -1e-4
    normal_RD, _ = normalised(gradient_RD, torch.zeros(2))
    assert (normal_RD[0, 3], normal_RD[1, 5]) == (8, -8)  # the root of 210 is more


def test_a_row_without_a_gradient_stays_unborn():
    normal_RD, moment_R = normalised(torch.zeros(3, D), torch.tensor([0.0, 0.0, 4.0]))
    assert torch.equal(normal_RD, torch.zeros(3, D))
    assert moment_R.tolist() == pytest.approx([0.0, 0.0, 4.0 * MOMENT_DECAY])


def test_the_change_of_sign_or_size_of_a_gradient_changes_the_sign_alone():
    """Of the first one; powers of two, so that no rounding differs."""
    _, _, gradient_RD, _ = rows("nibbles")
    normal_RD, _ = normalised(gradient_RD, torch.zeros(R))
    for factor in (-1.0, 2.0**-20, -(2.0**20)):
        again_RD, _ = normalised(factor * gradient_RD, torch.zeros(R))
        torch.testing.assert_close(again_RD, math.copysign(1, factor) * normal_RD, rtol=1e-6, atol=0)


def test_on_nibbles_a_step_is_the_oracles_row_by_row():
    value_RD, scale_R, gradient_RD, moment_R = rows("nibbles")
    uniform_RD = uniforms(R, D)
    normal_RD, new_moment_R = normalised(gradient_RD, moment_R)
    got_RD, new_scale_R, grows_R = step_on(NIBBLES, value_RD, scale_R, normal_RD, uniform_RD, 0.05)
    for r in range(R):
        q_D = [int(q) for q in value_RD[r].tolist()]
        wanted_D, scale, moment = sr_update_row(
            q_D, scale_R[r].item(), moment_R[r].item(), gradient_RD[r].tolist(), uniform_RD[r].tolist(), 0.05
        )
        assert got_RD[r].tolist() == wanted_D != q_D
        assert new_scale_R[r].item() == scale
        assert new_moment_R[r].item() == pytest.approx(moment, rel=1e-6)
    assert not grows_R.any()


def test_on_nibbles_growth_is_the_oracles_but_for_the_rounding_of_its_scale():
    """A float16 scale is within 2^-11 of the oracle's, and 120 units by that share move less than one."""
    value_RD, scale_R, gradient_RD, moment_R = rows("nibbles", share=1.0)
    uniform_RD = uniforms(R, D)
    normal_RD, _ = normalised(gradient_RD, moment_R)
    got_RD, new_scale_R, grows_R = step_on(NIBBLES, value_RD, scale_R, normal_RD, uniform_RD, 0.3)
    for r in range(R):
        q_D = [int(q) for q in value_RD[r].tolist()]
        wanted_D, scale, _ = sr_update_row(
            q_D, scale_R[r].item(), moment_R[r].item(), gradient_RD[r].tolist(), uniform_RD[r].tolist(), 0.3
        )
        assert bool(grows_R[r]) == (scale > scale_R[r].item())
        assert new_scale_R[r].item() == pytest.approx(scale, rel=2**-11)
        assert max(abs(a - b) for a, b in zip(got_RD[r].tolist(), wanted_D, strict=True)) <= int(grows_R[r])
    assert 0 < grows_R.sum() < R


@every_grid
def test_rounding_is_right_on_average(name):
    """The mean over draws is the exact step, within 4 standard errors of a draw's deviation (at most 1/2)."""
    draws, learning_rate = 4000, 0.27 / ENDS[name][2]
    value_RD, scale_R, gradient_RD, _ = rows(name, share=0.5)
    value_RD, scale_R = value_RD[:1].expand(draws, D), scale_R[:1].expand(draws)
    normal_RD = normalised(gradient_RD[:1], torch.zeros(1))[0].expand(draws, D)
    got_RD, new_scale_R, _ = step_on(GRIDS[name], value_RD, scale_R, normal_RD, uniforms(draws, D), learning_rate)
    assert torch.equal(new_scale_R, scale_R)
    exact_D = exact(name, value_RD, scale_R, normal_RD, learning_rate)[0]
    assert (got_RD.double().mean(0) - exact_D).abs().max() < 4 * 0.5 / math.sqrt(draws)
    assert (exact_D - exact_D.round()).abs().max() > 0.3  # rounding to the nearest would be seen


@every_grid
def test_a_draw_is_one_of_the_two_whole_numbers_around_the_exact_step(name):
    value_RD, scale_R, gradient_RD, moment_R = rows(name, share=0.5)
    normal_RD, _ = normalised(gradient_RD, moment_R)
    rate = 0.2 / ENDS[name][2]
    exact_RD = exact(name, value_RD, scale_R, normal_RD, rate)
    for seed in range(20):
        got_RD, new_scale_R, _ = step_on(GRIDS[name], value_RD, scale_R, normal_RD, uniforms(R, D, seed=seed), rate)
        assert torch.equal(new_scale_R, scale_R)
        assert ((got_RD == exact_RD.floor()) | (got_RD == exact_RD.ceil())).all()


@every_grid
def test_a_half_rounds_to_the_nearest(name):
    value_RD, scale_R, gradient_RD, moment_R = rows(name, share=0.5)
    normal_RD, _ = normalised(gradient_RD, moment_R)
    rate = 0.2 / ENDS[name][2]
    got_RD, _, grows_R = step_on(GRIDS[name], value_RD, scale_R, normal_RD, torch.full((R, D), 0.5), rate)
    assert not grows_R.any()
    error_RD = (got_RD.double() - exact(name, value_RD, scale_R, normal_RD, rate)).abs()
    assert error_RD.max() <= 0.5 + 1e-5  # float32 of at most 120 units, rounded a few times
    assert error_RD.max() > 0.4


@every_grid
def test_a_value_half_way_goes_up_with_a_draw_of_a_half_or_more(name):
    """As floor(x + u) does. Powers of two, so that half way is exact."""
    value_RD, scale_R = torch.tensor([[3.0, -3.0, 0.0, -4.0]]), torch.tensor([0.25]).half()
    rate = 0.25 / 2 / ENDS[name][2]
    for uniform, wanted in ((0.5, [3, -3, 0, -4]), (0.5 - 2.0**-20, [2, -4, -1, -5])):
        got_RD, _, _ = step_on(GRIDS[name], value_RD, scale_R, torch.ones(1, 4), torch.full((1, 4), uniform), rate)
        assert got_RD.tolist() == [wanted]


@every_grid
def test_a_value_without_a_gradient_is_never_moved(name):
    """Not even by a draw next to 1, to which float32 would round the sum."""
    value_RD, scale_R, _, _ = rows(name, share=1.0)
    last_RD = torch.full((R, D), 1 - 2.0**-24)
    for uniform_RD in (torch.zeros(R, D), last_RD, uniforms(R, D)):
        got_RD, new_scale_R, grows_R = step_on(GRIDS[name], value_RD, scale_R, torch.zeros(R, D), uniform_RD, 0.5)
        assert torch.equal(got_RD.float(), value_RD)
        assert torch.equal(new_scale_R, scale_R)
        assert not grows_R.any()


@every_grid
def test_values_stay_on_their_grid_and_scales_grow_by_the_rule_under_large_steps(name):
    lowest, highest, units = ENDS[name]
    value_RD, scale_R, _, moment_R = rows(name)
    growths = 0
    for step in range(15):
        gradient_RD = rows(name, seed=step)[2]
        normal_RD, moment_R = normalised(gradient_RD, moment_R)
        rate = 0.1 * highest / units
        moved_RD = exact(name, value_RD, scale_R, normal_RD, rate)
        got_RD, new_scale_R, grows_R = step_on(
            GRIDS[name], value_RD, scale_R, normal_RD, uniforms(R, D, seed=step), rate
        )
        for r in range(R):
            beyond = sum(abs(x) > -lowest for x in moved_RD[r].tolist())
            assert bool(grows_R[r]) == (beyond > D / 64)
            ratio = new_scale_R[r].item() / scale_R[r].item()
            assert ratio == (pytest.approx(GROWTH, rel=2**-11) if grows_R[r] else 1)
        assert lowest <= got_RD.min() <= got_RD.max() <= highest
        growths += int(grows_R.sum())
        value_RD, scale_R = got_RD.float(), new_scale_R
    assert 0 < growths < 15 * R


def test_growth_divides_by_the_ratio_of_the_stored_scales_and_not_by_a_fourth_root_of_two():
    """Every latent value, at every scale from 1/16 to 1/8. Five more values a row go beyond the end."""
    scale_R = torch.arange(1024, 2048).half() / 2**14
    value_RD = torch.cat([torch.arange(-119, 120), torch.tensor([119] * 5)]).float().expand(1024, -1)
    normal_RD = torch.cat([torch.zeros(239), torch.full((5,), -8.0)]).expand(1024, -1)
    half_RD = torch.full((1024, 244), 0.5)
    got_RD, new_scale_R, grows_R = step_on(NIBBLES, value_RD, scale_R, normal_RD, half_RD, 0.1)
    assert grows_R.all()
    ratio_R1 = (new_scale_R.double() / scale_R.double())[:, None]
    wanted_RD = torch.floor(value_RD[:, :239].double() / ratio_R1 + 0.5)
    assert torch.equal(got_RD[:, :239].double(), wanted_RD)
    unrounded_RD = torch.floor(value_RD[:, :239].double() / GROWTH + 0.5)
    assert int((unrounded_RD != wanted_RD).sum()) == 3219  # of 244,736: what dividing by 2^(1/4) would get wrong
    assert (ratio_R1 / GROWTH - 1).abs().max() == pytest.approx(4.86e-4, rel=1e-3)


@pytest.mark.parametrize(("name", "outwards"), [("nibbles", 3), ("int8", 3), ("int4", 1)])
def test_growth_changes_the_weights_by_nothing_but_rounding(name, outwards):
    """The mean weight after growth is the exact step, within 4 standard errors, though float16 rounds the scale."""
    draws = 5000
    _, highest, units = ENDS[name]
    # Of the scales from 1/16 to 1/8 the one whose growth float16 rounds most, by nearly 2^-11 of it.
    scale_S = torch.arange(1024, 2048).half() / 2**14
    rounded_S = (scale_S.double() * GROWTH).half().double() / (scale_S.double() * GROWTH)
    scale = scale_S[(rounded_S - 1).abs().argmax()]
    learning_rate = outwards * scale.item() / units
    value_D = torch.linspace(-highest, highest, D).round()
    normal_D = -torch.sign(value_D)
    value_RD, scale_R, normal_RD = value_D.expand(draws, D), scale.expand(draws), normal_D.expand(draws, D)
    got_RD, new_scale_R, grows_R = step_on(GRIDS[name], value_RD, scale_R, normal_RD, uniforms(draws, D), learning_rate)
    assert grows_R.all()
    unit = new_scale_R[0].item() / units
    wanted_D = exact(name, value_RD, scale_R, normal_RD, learning_rate)[0] * scale.item() / units
    assert (wanted_D / unit).abs().max() < highest  # nothing is clamped after the growth
    error_D = (got_RD.double() * unit).mean(0) - wanted_D
    assert error_D.abs().max() < 4 * 0.5 / math.sqrt(draws) * unit


@every_grid
def test_no_more_than_one_value_in_64_beyond_the_end_is_clamped_and_the_scale_stays(name):
    lowest, highest, units = ENDS[name]
    value_RD = torch.zeros(1, 128)
    value_RD[0, 3], value_RD[0, 77] = highest, lowest
    normal_RD = -torch.sign(value_RD)
    scale_R = torch.tensor([0.25]).half()
    learning_rate = 3 * 0.25 / units
    uniform_RD = uniforms(1, 128)
    got_RD, new_scale_R, grows_R = step_on(GRIDS[name], value_RD, scale_R, normal_RD, uniform_RD, learning_rate)
    assert (got_RD[0, 3], got_RD[0, 77]) == (highest, lowest)
    assert got_RD.count_nonzero() == 2
    assert (new_scale_R.item(), bool(grows_R)) == (0.25, False)
    value_RD[0, 5], normal_RD[0, 5] = highest, -1.0  # a third
    _, new_scale_R, grows_R = step_on(GRIDS[name], value_RD, scale_R, normal_RD, uniform_RD, learning_rate)
    assert (new_scale_R.item(), bool(grows_R)) == (pytest.approx(0.25 * GROWTH, rel=2**-11), True)


def every_bfloat16():
    """All finite values, ascending, as float32; zero once for either sign."""
    value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    return value[torch.isfinite(value)].sort().values


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-24])
def test_what_bfloat16_holds_is_not_changed(uniform):
    value_RD = every_bfloat16()[:, None]
    got_RD = to_bfloat16(value_RD, torch.full_like(value_RD, uniform))
    assert got_RD.dtype == torch.bfloat16
    assert torch.equal(got_RD.float().view(torch.int32), value_RD.view(torch.int32))  # signs of zero, too


def test_a_float_becomes_one_of_its_two_neighbours_and_itself_on_average():
    """Of either sign and any size; the mean of draws is within 4 standard errors of at most half their distance."""
    draws, values = 4000, 60
    generator = torch.Generator().manual_seed(2)
    value_D = torch.randn(values, generator=generator) * torch.logspace(-30, 30, values)
    assert 20 < (value_D < 0).sum() < 40
    all_X = every_bfloat16().double()
    above_D = torch.searchsorted(all_X, value_D.double())
    low_D, high_D = all_X[above_D - 1], all_X[above_D]
    got_RD = to_bfloat16(value_D.expand(draws, values), uniforms(draws, values)).double()
    assert ((got_RD == low_D) | (got_RD == high_D)).all()
    error_D = (got_RD.mean(0) - value_D.double()) / (high_D - low_D)
    assert error_D.abs().max() < 4 * 0.5 / math.sqrt(draws)


def test_a_half_rounds_to_the_nearest_bfloat16():
    value_RD = torch.randn(50, 20, generator=torch.Generator().manual_seed(3))
    got_RD = to_bfloat16(value_RD, torch.full_like(value_RD, 0.5))
    assert torch.equal(got_RD, value_RD.to(torch.bfloat16))  # which rounds so; no value here is a tie
