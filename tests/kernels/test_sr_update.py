"""The two-nibble rule: as its oracle, unbiased, reproducible, and kept within the nibbles."""

import math
from dataclasses import replace

import pytest
import torch

from kernels import backends
from kernels.packing import latent, pack_int4, split_latent, unpack_int4
from kernels.pairs import pairs_by_row
from kernels.philox import row_uniforms
from kernels.sr_update import NibbleTable, RowGradients, _sr_update, sr_update, stock
from kernels.sr_update.constants import GROWTH
from kernels.sr_update.reference import sr_update_row

# D model width, E table rows, R touched rows, P pairs (a row and a token)
D, E = 14, 9
KEY = (5, 17)

pytestmark = pytest.mark.usefixtures("cpu_path")


def table_of(q_ED, scale_E=None, moment_E=None) -> NibbleTable:
    q_ED = torch.as_tensor(q_ED, dtype=torch.int8)
    rows = len(q_ED)
    scale_E = torch.full((rows,), 0.25) if scale_E is None else scale_E
    moment_E = torch.zeros(rows) if moment_E is None else moment_E
    return NibbleTable(*split_latent(q_ED), scale_E.half(), moment_E.float())


def random_table(seed=0, widest=100) -> NibbleTable:
    """Every other row was touched before."""
    generator = torch.Generator().manual_seed(seed)
    q_ED = torch.randint(-widest, widest + 1, (E, D), generator=generator)
    moment_E = torch.rand(E, generator=generator) * (torch.arange(E) % 2)
    return table_of(q_ED, 0.1 + torch.rand(E, generator=generator), moment_E)


def row_gradients(gradient_RD, row_R=None) -> RowGradients:
    """One pair a row, of weight one."""
    gradient_RD = torch.as_tensor(gradient_RD, dtype=torch.float32)
    rows = len(gradient_RD)
    return RowGradients(
        source_TD=gradient_RD,
        row_R=torch.arange(rows) if row_R is None else torch.as_tensor(row_R),
        start_R1=torch.arange(rows + 1),
        token_P=torch.arange(rows),
        weight_P=torch.ones(rows),
    )


def weighted_gradients(seed=1) -> tuple[RowGradients, dict[int, torch.Tensor]]:
    """Gradients of the rows 1, 2, 5 and 8 out of several pairs each, and the same written out."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {1: [0, 3, 3], 2: [2], 5: [4, 0], 8: [1, 2, 3, 4, 0]}
    source_TD = torch.randn(5, D, generator=generator)
    weight_P = torch.randn(sum(map(len, pairs.values())), generator=generator)
    start_R1 = torch.tensor([0, *map(len, pairs.values())]).cumsum(0)
    token_P = torch.tensor([t for tokens in pairs.values() for t in tokens])
    dense, weights = {}, iter(weight_P)
    for row, tokens in pairs.items():
        dense[row] = sum(next(weights) * source_TD[t] for t in tokens)
    return RowGradients(source_TD, torch.tensor(list(pairs)), start_R1, token_P, weight_P), dense


def copy_of(table: NibbleTable) -> NibbleTable:
    return NibbleTable(*(t.clone() for t in parts(table)))


def parts(table: NibbleTable) -> tuple[torch.Tensor, ...]:
    return table.weight_EB, table.accumulator_EB, table.scale_E, table.moment_E


def state(table: NibbleTable) -> torch.Tensor:
    return latent(table.weight_EB, table.accumulator_EB)


def rows(table: NibbleTable, row_R: list[int]) -> NibbleTable:
    return NibbleTable(*(t[row_R] for t in parts(table)))


def same(a: NibbleTable, b: NibbleTable) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def test_every_latent_is_16_w_plus_a_with_w_rounded_to_nearest():
    q = torch.arange(-120, 120, dtype=torch.int8)[None]
    weight, accumulator = split_latent(q)
    w, a = unpack_int4(weight).int(), unpack_int4(accumulator).int()
    assert torch.equal(16 * w + a, q.int())
    assert torch.equal(latent(weight, accumulator), q)
    assert (w.min(), w.max(), a.min(), a.max()) == (-7, 7, -8, 7)
    assert (q.int() - 16 * w).abs().max() == 8


def test_a_step_is_the_oracles_row_by_row():
    table, (gradients, dense) = random_table(), weighted_gradients()
    before = copy_of(table)
    uniform_RD = row_uniforms(gradients.row_R, D, stream=KEY[0], step=KEY[1])
    counts = sr_update(table, gradients, learning_rate=0.05, key=KEY)
    flips = 0
    for r, (row, gradient_D) in enumerate(dense.items()):
        q_D, scale, moment = sr_update_row(
            state(before)[row].tolist(),
            before.scale_E[row].item(),
            before.moment_E[row].item(),
            gradient_D.tolist(),
            uniform_RD[r].tolist(),
            0.05,
        )
        assert state(table)[row].tolist() == q_D
        assert table.scale_E[row].item() == scale
        assert table.moment_E[row].item() == pytest.approx(moment, rel=1e-5)
        flips += sum((a + 8) // 16 != (b + 8) // 16 for a, b in zip(state(before)[row].tolist(), q_D, strict=True))
    assert (counts.rows, counts.flips, counts.growths) == (4, flips, 0)
    assert not torch.equal(state(table), state(before))


def test_rows_that_were_not_touched_keep_every_bit():
    table, (gradients, dense) = random_table(), weighted_gradients()
    before = copy_of(table)
    sr_update(table, gradients, learning_rate=0.3, key=KEY)
    others = [row for row in range(E) if row not in dense]
    for now, then in zip(parts(table), parts(before), strict=True):
        assert torch.equal(now[others], then[others])


def test_a_value_without_a_gradient_is_never_moved():
    """float32 sums of a value near 100 and a draw near 1 round up to the next integer; the rule does not."""
    rows, width = 6000, 210
    q_ED = torch.randint(-119, 120, (rows, width), dtype=torch.int8, generator=torch.Generator().manual_seed(2))
    table = table_of(q_ED, moment_E=torch.ones(rows))
    gradient_RD = torch.zeros(rows, width)
    gradient_RD[:, 0] = 1e-6
    sr_update(table, row_gradients(gradient_RD), learning_rate=0.01, key=KEY)
    assert torch.equal(state(table)[:, 1:], q_ED[:, 1:])


def test_a_row_whose_gradient_is_zero_from_the_start_stays_unborn():
    table = random_table()
    before = copy_of(table)
    sr_update(table, row_gradients(torch.zeros(1, D), [4]), learning_rate=0.3, key=KEY)
    assert before.moment_E[4] == 0
    assert same(table, before)


def test_rounding_is_right_on_average():
    """The mean over draws is the exact step, within 4 standard errors of a draw's deviation (at most 1/2)."""
    rows, draws = 150, 30
    generator = torch.Generator().manual_seed(3)
    q_D, gradient_D = torch.randint(-90, 91, (D,), generator=generator), torch.randn(D, generator=generator)
    scale, learning_rate = 0.25, 0.017
    normal_D = gradient_D.double() / gradient_D.double().square().mean().sqrt()
    exact_D = q_D - learning_rate * 16 / scale * normal_D
    total_D = torch.zeros(D, dtype=torch.float64)
    for draw in range(draws):
        table = table_of(q_D.expand(rows, D))
        sr_update(table, row_gradients(gradient_D.expand(rows, D)), learning_rate=learning_rate, key=(3, draw))
        total_D += state(table).double().sum(0)
    error_D = total_D / (rows * draws) - exact_D
    assert error_D.abs().max() < 4 * 0.5 / math.sqrt(rows * draws)
    assert (exact_D - exact_D.round()).abs().max() > 0.3  # rounding to nearest would be seen


def test_the_same_key_gives_the_same_bits_and_another_gives_others():
    tables = [random_table() for _ in range(3)]
    for table, key in zip(tables, (KEY, KEY, (5, 18)), strict=True):
        sr_update(table, weighted_gradients()[0], learning_rate=0.02, key=key)
    assert same(tables[0], tables[1])
    assert not same(tables[0], tables[2])
    assert torch.equal(tables[0].moment_E, tables[2].moment_E)


@pytest.mark.parametrize("rows_a_piece", [1, 3])
def test_the_size_of_a_piece_changes_no_bit(monkeypatch, rows_a_piece):
    whole, cut = random_table(), random_table()
    counts = sr_update(whole, weighted_gradients()[0], learning_rate=0.1, key=KEY)
    monkeypatch.setattr(stock, "VALUES_A_PIECE", rows_a_piece * D)
    assert sr_update(cut, weighted_gradients()[0], learning_rate=0.1, key=KEY) == counts
    assert same(whole, cut)


def test_threads_change_no_bit():
    tables = [random_table(), random_table()]
    for table, threads in zip(tables, (1, 3), strict=True):
        torch.set_num_threads(threads)
        sr_update(table, weighted_gradients()[0], learning_rate=0.1, key=KEY)
    torch.set_num_threads(1)
    assert same(*tables)


def test_the_cpp_kernels_make_the_bits_of_the_stock_ops(monkeypatch):
    """Of a gradient of one pair a row: sums of several are rounded in another order."""
    generator = torch.Generator().manual_seed(8)
    q_ED = torch.randint(-119, 120, (200, 130), generator=generator)
    gradient_RD = torch.randn(200, 130, generator=generator)
    tables = [table_of(q_ED, 0.1 + torch.rand(200, generator=torch.Generator().manual_seed(9))) for _ in range(2)]
    counts = [sr_update(tables[0], row_gradients(gradient_RD), learning_rate=0.01, key=KEY)]
    monkeypatch.setattr(backends, "cpu_library", lambda: None)
    counts.append(sr_update(tables[1], row_gradients(gradient_RD), learning_rate=0.01, key=KEY))
    assert counts[0] == counts[1]
    assert counts[0].growths > 0
    assert torch.equal(state(tables[0]), state(tables[1]))
    torch.testing.assert_close(tables[0].moment_E, tables[1].moment_E, rtol=1e-6, atol=0)


def test_the_operator_is_what_torch_asks_of_one():
    table, (gradients, _) = random_table(), weighted_gradients()
    pairs = gradients.source_TD, gradients.row_R, gradients.start_R1, gradients.token_P, gradients.weight_P
    torch.library.opcheck(_sr_update, (*parts(table), *pairs, 0.1, *KEY))


def test_pairs_by_row_gathers_each_rows_pairs():
    row_P = torch.tensor([5, 0, 5, 3, 0, 5])
    order_P, row_R, start_R1 = pairs_by_row(row_P)
    assert row_R.tolist() == [0, 3, 5]
    groups = [order_P[a:b].tolist() for a, b in zip(start_R1.tolist(), start_R1.tolist()[1:], strict=False)]
    assert groups == [[1, 4], [3], [0, 2, 5]]


def test_w_and_a_stay_in_their_ranges_under_large_steps():
    table = random_table(widest=119)
    for step in range(12):
        sr_update(table, weighted_gradients(step)[0], learning_rate=0.5, key=(0, step))
        w, a = unpack_int4(table.weight_EB), unpack_int4(table.accumulator_EB)
        assert -7 <= w.min() <= w.max() <= 7
        assert -8 <= a.min() <= a.max() <= 7
        assert torch.equal(w.short(), (state(table).short() + 8) >> 4)


def test_a_row_that_meets_its_end_grows_its_scale_and_keeps_its_values_on_average():
    rows, learning_rate, scale = 5000, 0.2, 0.25
    q_D = torch.linspace(-118, 118, D).round()
    gradient_D = -torch.sign(q_D)  # pushes every value outwards; row norm 1
    table = table_of(q_D.expand(rows, D), torch.full((rows,), scale))
    counts = sr_update(table, row_gradients(gradient_D.expand(rows, D)), learning_rate=learning_rate, key=KEY)
    assert counts.growths == rows
    assert table.scale_E[0].item() == pytest.approx(scale * GROWTH, rel=2**-11)
    wanted_D = (q_D.double() - learning_rate * 16 / scale * gradient_D) * scale / 16
    step = table.scale_E[0].item() / 16
    mean_D = (state(table).double() * step).mean(0)
    assert (wanted_D / step).abs().max() < 119  # nothing is clamped after the growth
    assert (mean_D - wanted_D).abs().max() < 4 * 0.5 / math.sqrt(rows) * step


def test_growth_agrees_with_the_oracle_but_for_the_rounding_of_its_scale():
    table = table_of(torch.linspace(-118, 118, D).round()[None])
    before = state(table)[0].tolist()
    gradient_D = [-1.0 if q < 0 else 1.0 for q in before]
    gradient_D = [-g for g in gradient_D]
    sr_update(table, row_gradients([gradient_D]), learning_rate=0.2, key=KEY)
    (uniform_D,) = row_uniforms(torch.tensor([0]), D, stream=KEY[0], step=KEY[1])
    q_D, scale, _ = sr_update_row(before, 0.25, 0.0, gradient_D, uniform_D.tolist(), 0.2)
    assert table.scale_E.item() == pytest.approx(scale, rel=2**-11)
    assert max(abs(a - b) for a, b in zip(state(table)[0].tolist(), q_D, strict=True)) <= 1


def test_a_few_values_at_the_end_are_clamped_and_the_scale_stays():
    """Two of 140 values: no more than one in 64."""
    q_D = torch.zeros(140)
    q_D[3], q_D[77] = 119, -119
    gradient_D = torch.zeros(140)
    gradient_D[3], gradient_D[77] = -1.0, 1.0
    table = table_of(q_D[None])
    counts = sr_update(table, row_gradients(gradient_D[None]), learning_rate=0.1, key=KEY)
    assert counts.growths == 0
    assert table.scale_E.item() == 0.25
    assert (state(table)[0, 3], state(table)[0, 77]) == (119, -120)


def test_a_gradient_of_one_value_moves_it_by_eight_at_most():
    """The normalised gradient of a single value is the root of the width; past 8 it is clipped."""
    table = table_of(torch.zeros(1, 210))
    gradient_D = torch.zeros(210)
    gradient_D[0] = 100.0
    sr_update(table, row_gradients(gradient_D[None]), learning_rate=2**-5, key=KEY)
    assert state(table)[0, 0] == -8 * 2  # 2**-5 * 16 / 0.25 = 2 steps of the latent for a unit gradient


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_leaves_the_table(wrong):
    table = random_table()
    before = copy_of(table)
    gradient_RD = torch.ones(2, D)
    gradient_RD[1, 3] = wrong
    with pytest.raises(
        ValueError, match=r"got source_TD with a gradient that is not finite; .* lower the learning rate"
    ):
        sr_update(table, row_gradients(gradient_RD), learning_rate=0.1, key=KEY)
    assert same(table, before)


def test_a_row_whose_scale_would_leave_float16_is_left_alone_and_counted():
    table = table_of(torch.tensor([119, 0]).expand(D, 2).T, torch.tensor([60000.0, 0.25]))
    before = copy_of(table)
    counts = sr_update(table, row_gradients(-torch.ones(2, D)), learning_rate=60000.0, key=KEY)
    assert (counts.rows, counts.refused) == (2, 1)
    assert same(rows(table, [0]), rows(before, [0]))
    assert not same(rows(table, [1]), rows(before, [1]))


def test_a_row_whose_gradient_overflows_is_left_alone_and_counted():
    """Each pair is finite; their squares are not."""
    table = random_table()
    before = copy_of(table)
    gradient_RD = torch.ones(3, D)
    gradient_RD[1] = 1e30
    assert sr_update(table, row_gradients(gradient_RD), learning_rate=0.1, key=KEY).refused == 1
    assert same(rows(table, [1, 4, 8]), rows(before, [1, 4, 8]))
    assert not same(rows(table, [0, 2]), rows(before, [0, 2]))


def test_rows_beyond_two_to_the_31_bytes_are_updated():
    """Of 2.5 GB a plane, never touched but at the end, the system gives only the pages that are written."""
    far = NibbleTable(
        *(torch.empty(5_000_000, 512, dtype=torch.uint8) for _ in range(2)),
        torch.full((5_000_000,), 0.25, dtype=torch.float16),
        torch.zeros(5_000_000),
    )
    row, gradient_RD = 4_999_998, torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))
    far.weight_EB[row], far.accumulator_EB[row] = 0, 0
    sr_update(far, row_gradients(gradient_RD, [row]), learning_rate=0.1, key=KEY)
    assert (state(rows(far, [row])).float() * gradient_RD).sum() < -gradient_RD.square().sum()


def spoilt(change):
    table, (gradients, _) = random_table(), weighted_gradients()
    before = copy_of(table)
    table_changes, gradient_changes = change(table, gradients)
    with pytest.raises(ValueError, match="sr_update got") as caught:
        sr_update(replace(table, **table_changes), replace(gradients, **gradient_changes), learning_rate=0.1, key=KEY)
    assert same(table, before)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, g: ({"scale_E": t.scale_E.float()}, {}), "scale_E with (9,) of torch.float32"),
        (lambda t, g: ({"accumulator_EB": t.accumulator_EB[:, :-1]}, {}), "accumulator_EB with (9, 6)"),
        (lambda t, g: ({"moment_E": t.moment_E[::1][:-1]}, {}), "moment_E with (8,)"),
        (lambda t, g: ({}, {"source_TD": g.source_TD[:, :-1]}), "source_TD with an odd width of 13"),
        (lambda t, g: ({}, {"row_R": g.row_R + 1}), "row_R with indices from 2 to 9; it takes 0 to 8"),
        (lambda t, g: ({}, {"row_R": g.row_R.flip(0)}), "row_R with rows that do not ascend"),
        (lambda t, g: ({}, {"row_R": g.row_R.int()}), "row_R with (4,) of torch.int32"),
        (lambda t, g: ({}, {"token_P": g.token_P - 1}), "token_P with indices from -1"),
        (lambda t, g: ({}, {"start_R1": g.start_R1 + 1}), "start_R1 with starts from 1"),
        (lambda t, g: ({}, {"weight_P": g.weight_P[:-1]}), "weight_P with (10,)"),
        (lambda t, g: ({}, {"weight_P": g.weight_P / 0}), "weight_P with a gradient that is not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_does_not_fit_is_named_and_the_table_left(change, said):
    assert said in spoilt(change)


@pytest.mark.parametrize("key", [(-1, 0), (2**63, 0), (0, -1), (0, 2**32)])
def test_a_key_beyond_philoxs_words_is_refused(key):
    with pytest.raises(ValueError, match="sr_update got key"):
        sr_update(random_table(), weighted_gradients()[0], learning_rate=0.1, key=key)


def test_no_rows_are_no_step():
    table = random_table()
    before = copy_of(table)
    counts = sr_update(table, row_gradients(torch.zeros(0, D)), learning_rate=0.1, key=KEY)
    assert (counts.rows, counts.flips, counts.growths) == (0, 0, 0)
    assert same(table, before)


def test_the_latent_packs_into_the_bytes_of_one_int8_table():
    table = random_table()
    assert table.weight_EB.numel() + table.accumulator_EB.numel() == E * D
    assert torch.equal(pack_int4(unpack_int4(table.weight_EB)), table.weight_EB)
