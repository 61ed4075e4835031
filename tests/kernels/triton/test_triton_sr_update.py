"""sr_update's Triton kernels take the steps of the oracle, with the draws of kernels/philox.py, row by row."""

import math

import pytest
import torch

from kernels.packing import latent, split_latent, unpack_int4
from kernels.philox import row_uniforms
from kernels.sr_update import stock
from kernels.sr_update import triton as kernels
from kernels.sr_update.constants import GROWTH
from kernels.sr_update.reference import sr_update_row
from tests.kernels.triton.device import DEVICE, fill_new_tensors_with_nan
from tests.tolerances import assert_close

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token)
E, T = 9, 6
STREAM, STEP = 0x1E3779B97F4A7C15, 3  # a key with two halves that differ


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_new_tensors_with_nan(monkeypatch)


def random_table(width, rows=E, seed=0, widest=100):
    """Packed w and a, scales, and second moments: 0, of a row never touched, in every third row."""
    generator = torch.Generator().manual_seed(seed)
    q_ED = torch.randint(-widest, widest + 1, (rows, width), dtype=torch.int8, generator=generator)
    scale_E = (0.1 + torch.rand(rows, generator=generator)).half()
    moment_E = torch.rand(rows, generator=generator) * (torch.arange(rows) % 3 > 0)
    return [t.to(DEVICE) for t in (*split_latent(q_ED), scale_E, moment_E)]


def copy_of(table):
    return [t.clone() for t in table]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def update(table, source_TD, rows, tokens_of_rows, weights, learning_rate=0.05, stream=STREAM, step=STEP):
    counts = torch.tensor([len(tokens) for tokens in tokens_of_rows], dtype=torch.int64)
    start_R1 = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    token_P = torch.tensor([t for tokens in tokens_of_rows for t in tokens], dtype=torch.int64)
    arguments = [t.to(DEVICE) for t in (source_TD, torch.tensor(rows, dtype=torch.int64), start_R1, token_P, weights)]
    return kernels.update_rows(*table, *arguments, learning_rate=learning_rate, stream=stream, step=step)


def update_by_rows(table, gradient_RD, rows, **options):
    """One pair a row, of weight 1: the gradient is the source's row."""
    return update(table, gradient_RD, rows, [[r] for r in range(len(rows))], torch.ones(len(rows)), **options)


def assert_is_the_oracles_step(before, after, gradient_RD, rows, learning_rate, step=STEP):
    """Every row's latent, its scale to the rounding of float16, and its moment; returns how many w changed."""
    before, after = ([t.cpu() for t in table] for table in (before, after))
    uniform_RD = row_uniforms(torch.tensor(rows), gradient_RD.shape[1], stream=STREAM, step=step)
    flips = 0
    for gradient_D, uniform_D, row in zip(gradient_RD, uniform_RD, rows, strict=True):
        then_D = latent(before[0], before[1])[row].tolist()
        q_D, scale, moment = sr_update_row(
            then_D,
            before[2][row].item(),
            before[3][row].item(),
            gradient_D.tolist(),
            uniform_D.tolist(),
            learning_rate,
        )
        assert latent(after[0], after[1])[row].tolist() == q_D
        assert after[2][row].item() == scale
        assert after[3][row].item() == pytest.approx(moment, rel=1e-6)
        flips += sum((a + 8) // 16 != (b + 8) // 16 for a, b in zip(then_D, q_D, strict=True))
    return flips


@pytest.mark.parametrize(("width", "dtype"), [(24, torch.float32), (40, torch.bfloat16), (64, torch.float32)])
def test_a_step_is_the_oracles_row_by_row(width, dtype):
    table, rows = random_table(width), [7, 0, 4]
    before = copy_of(table)
    gradient_RD = torch.randn(3, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    counts = update_by_rows(table, gradient_RD, rows)
    flips = assert_is_the_oracles_step(before, table, gradient_RD.float(), rows, 0.05)
    assert flips > 0
    assert counts == (flips, 0, 0)
    others = [row for row in range(E) if row not in rows]
    assert same([t[others] for t in table], [t[others] for t in before])


def test_a_step_is_the_stock_operators_to_the_bit_where_scales_grow_too():
    table = random_table(64, widest=119)
    theirs = [t.cpu() for t in copy_of(table)]
    gradient_ED = torch.randn(E, 64, generator=torch.Generator().manual_seed(8))
    counts = update_by_rows(table, gradient_ED, list(range(E)), learning_rate=0.2)
    pairs = gradient_ED, torch.arange(E), torch.arange(E + 1), torch.arange(E), torch.ones(E)
    wanted = stock.sr_update(*theirs, *pairs, 0.2, STREAM, STEP)
    assert counts == tuple(wanted.tolist())
    assert 0 < counts[1] < E
    assert same([t.cpu() for t in table[:3]], theirs[:3])
    assert_close(table[3].cpu(), theirs[3], 2e-7)


def test_gradients_are_weighted_sums_of_token_rows():
    """Weights and rows are small integers: any order of the sum gives the same float32."""
    generator = torch.Generator().manual_seed(2)
    source_TD = torch.randint(-3, 4, (T, 24), generator=generator).float()
    tokens_of_rows, rows = [[2], [0, 2, 5], [4, 4]], [8, 1, 3]
    weights = torch.tensor([2.0, -1.0, 3.0, 1.0, 1.0, -2.0])
    gradient_RD = torch.stack([weights[:1] @ source_TD[[2]], weights[1:4] @ source_TD[[0, 2, 5]], -source_TD[4]])
    table = random_table(24)
    before = copy_of(table)
    update(table, source_TD, rows, tokens_of_rows, weights)
    assert_is_the_oracles_step(before, table, gradient_RD, rows, 0.05)


@pytest.mark.parametrize("step", [0, 1, 2**31 + 5])
def test_the_draws_are_those_of_philox_at_any_step(step):
    table = random_table(24)
    before = copy_of(table)
    gradient_RD = torch.randn(1, 24, generator=torch.Generator().manual_seed(3))
    update_by_rows(table, gradient_RD, [5], step=step)
    assert_is_the_oracles_step(before, table, gradient_RD, [5], 0.05, step=step)


def test_hot_rows_are_summed_in_pieces_beside_cold_ones():
    """64 pairs are one piece; 65 are two, 150 three. Integers again, for the order of the sums."""
    generator = torch.Generator().manual_seed(4)
    source_TD = torch.randint(-3, 4, (T, 24), generator=generator).float()
    sizes, rows = [64, 65, 2, 150], [2, 8, 0, 5]
    tokens_of_rows = [torch.randint(0, T, (size,), generator=generator).tolist() for size in sizes]
    weights = torch.randint(-2, 3, (sum(sizes),), generator=generator).float()
    pieces = weights.split(sizes)
    gradient_RD = torch.stack([w @ source_TD[tokens] for w, tokens in zip(pieces, tokens_of_rows, strict=True)])
    table = random_table(24)
    before = copy_of(table)
    counts = update(table, source_TD, rows, tokens_of_rows, weights)
    assert counts == (assert_is_the_oracles_step(before, table, gradient_RD, rows, 0.05), 0, 0)


def test_rounding_is_right_on_average():
    """The mean over draws is the exact step, within 4.5 standard errors of a draw's deviation (at most 1/2)."""
    rows, repeats, cases = 10, 64, 8
    generator = torch.Generator().manual_seed(5)
    q_C, gradient_C = torch.randint(-90, 91, (cases,), generator=generator), torch.randn(cases, generator=generator)
    scale, learning_rate = 0.25, 0.017
    exact_C = q_C - learning_rate * 16 / scale * gradient_C.double() / gradient_C.double().square().mean().sqrt()
    planes = split_latent(q_C.to(torch.int8).repeat(rows, repeats))
    table = [t.to(DEVICE) for t in (*planes, torch.full((rows,), scale).half(), torch.zeros(rows))]
    update_by_rows(table, gradient_C.repeat(rows, repeats), list(range(rows)), learning_rate=learning_rate)
    error_C = latent(table[0], table[1]).double().view(-1, cases).mean(0).cpu() - exact_C
    assert error_C.abs().max() < 4.5 * 0.5 / math.sqrt(rows * repeats)
    assert (exact_C - exact_C.round()).abs().max() > 0.2  # rounding to nearest would be seen


def test_a_value_without_a_gradient_is_never_moved():
    table = random_table(64, widest=119)
    table[3].fill_(1.0)
    before = latent(table[0], table[1])
    gradient_RD = torch.zeros(E, 64)
    gradient_RD[:, 0] = 1e-6
    update_by_rows(table, gradient_RD, list(range(E)), learning_rate=0.01)
    assert torch.equal(latent(table[0], table[1])[:, 1:], before[:, 1:])


def test_a_row_whose_gradient_is_zero_from_the_start_stays_unborn():
    table = random_table(24)
    before = copy_of(table)
    assert before[3][3] == 0
    assert update_by_rows(table, torch.zeros(1, 24), [3]) == (0, 0, 0)
    assert same(table, before)


def test_a_row_that_meets_its_end_grows_its_scale_and_keeps_its_weights():
    width, rows, learning_rate, scale = 256, 4, 0.2, 0.25
    q_D = torch.linspace(-118, 118, width).round()
    gradient_D = torch.where(q_D < 0, 1.0, -1.0)  # pushes every value outwards; row norm 1
    planes = split_latent(q_D.to(torch.int8).expand(rows, width))
    table = [t.to(DEVICE) for t in (*planes, torch.full((rows,), scale).half(), torch.zeros(rows))]
    _, growths, refused = update_by_rows(
        table, gradient_D.expand(rows, width).contiguous(), list(range(rows)), learning_rate=learning_rate
    )
    assert (growths, refused) == (rows, 0)
    grown = torch.tensor(scale * GROWTH).half()
    assert table[2].cpu().eq(grown).all()
    wanted_D = (q_D.double() - learning_rate * 16 / scale * gradient_D) * scale / grown.double()
    q_RD = latent(table[0], table[1]).double().cpu()
    assert (q_RD - wanted_D).abs().max() < 1
    assert (q_RD - wanted_D).mean().abs() < 4.5 * 0.5 / math.sqrt(rows * width)


def test_w_and_a_stay_in_their_ranges_and_a_few_values_at_the_end_are_clamped():
    q_D = torch.zeros(128, dtype=torch.int8)
    q_D[3], q_D[77] = 119, -119
    gradient_D = torch.zeros(128)
    gradient_D[3], gradient_D[77] = -1.0, 1.0
    table = [t.to(DEVICE) for t in (*split_latent(q_D[None]), torch.full((1,), 0.25).half(), torch.zeros(1))]
    assert update_by_rows(table, gradient_D[None], [0], learning_rate=0.1)[1] == 0  # two of 128: no more than one in 64
    assert table[2].item() == 0.25
    assert (latent(table[0], table[1])[0, 3], latent(table[0], table[1])[0, 77]) == (119, -120)
    w, a = unpack_int4(table[0]), unpack_int4(table[1])
    assert -7 <= w.min() <= w.max() <= 7
    assert -8 <= a.min() <= a.max() <= 7


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the square of 1e30, in numpy
@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e30])
def test_a_row_whose_gradient_is_not_finite_is_left_and_the_others_are_not(wrong):
    table, rows = random_table(24), [1, 6, 2]
    before = copy_of(table)
    gradient_RD = torch.randn(3, 24, generator=torch.Generator().manual_seed(6))
    good_RD = gradient_RD[[0, 2]]
    gradient_RD[1, 5] = wrong
    flips, growths, refused = update_by_rows(table, gradient_RD, rows)
    assert (growths, refused) == (0, 1)
    assert same([t[6] for t in table], [t[6] for t in before])
    assert flips == assert_is_the_oracles_step(before, table, good_RD, [1, 2], 0.05)


def test_a_row_whose_scale_would_leave_float16_is_left():
    planes = split_latent(torch.full((1, 24), 119, dtype=torch.int8))
    table = [t.to(DEVICE) for t in (*planes, torch.tensor([60000.0]).half(), torch.zeros(1))]
    before = copy_of(table)
    assert update_by_rows(table, -torch.ones(1, 24), [0], learning_rate=60000.0) == (0, 0, 1)
    assert same(table, before)


def test_no_rows_are_no_step():
    table = random_table(24)
    before = copy_of(table)
    assert update(table, torch.zeros(0, 24), [], [], torch.zeros(0)) == (0, 0, 0)
    assert same(table, before)


def test_rows_beyond_two_billion_bytes_are_written_where_they_are(monkeypatch):
    """2.5 GB of addresses a plane; memory is taken for the pages that are written."""
    monkeypatch.undo()
    width, rows = 1024, 4_300_000
    small, row = random_table(width, rows=2), rows - 2
    table = [torch.empty(rows, *t.shape[1:], dtype=t.dtype, device=DEVICE) for t in small]
    for big, part in zip(table, small, strict=True):
        big[-2:] = part
    before = [t[-2:].clone() for t in table]
    gradient_RD = torch.randn(1, width, generator=torch.Generator().manual_seed(7))
    update_by_rows(table, gradient_RD, [row])
    after = [t[-2:] for t in table]
    assert same([t[1] for t in after], [t[1] for t in before])
    uniform_D = row_uniforms(torch.tensor([row]), width, stream=STREAM, step=STEP)[0].tolist()
    then_D = latent(before[0], before[1])[0].tolist()
    state = (before[2][0].item(), before[3][0].item())
    q_D, _, moment = sr_update_row(then_D, *state, gradient_RD[0].tolist(), uniform_D, 0.05)
    assert latent(after[0], after[1])[0].tolist() == q_D
    assert_close(after[3][:1].cpu(), torch.tensor([moment]))


def test_a_width_that_is_no_multiple_of_eight_is_refused():
    with pytest.raises(ValueError, match="rows of width 12; its GPU kernel takes a multiple of 8"):
        update_by_rows(random_table(12), torch.ones(1, 12), [0])
