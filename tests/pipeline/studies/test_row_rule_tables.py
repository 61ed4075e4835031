"""The row rule on tables of every format: against the gradient, by the rate, right on average or not at all."""

import math

import pytest
import torch

from kernels.packing import pack_int4, split_latent
from kernels.sr_update import RowGradients
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table
from pipeline.run import Run, running
from pipeline.studies.row_rule_tables import ArmTables
from pipeline.training.losses import next_token
from pipeline.training.table_updates import Int4Tables, table_layers
from tests.tiny import SHAPE, SOFTMAX, tiny_model, tiny_tokens
from tests.tolerances import assert_close

# D model width, E experts, all of them touched
D, E = SHAPE.d_model, 1500
STEP = 0.25
"""Scale of one step of int8 and int4: a power of two, exact in float16."""
SPECS = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "int8": {"precision": "int8"},
    "int4": {"precision": "int4"},
    "int4-accumulator": {"precision": "int4", "accumulator": True},
}
UNIT = {"bfloat16": 2.0**-8, "int8": STEP, "int4": STEP, "int4-accumulator": STEP / 16}
"""Between neighbours on the grid, for weights from 1/2 to 1 in bfloat16."""

every_arm = pytest.mark.parametrize("arm", SPECS)
every_rounded_arm = pytest.mark.parametrize("arm", UNIT)


def model_of(arm, experts=E, start=0.75):
    """Every weight of every table the same, far from the ends of its grid."""
    model = tiny_model(SOFTMAX.model_copy(update={**SPECS[arm], "num_experts": experts}))
    for layer in table_layers(model):
        for table in (layer.u, layer.v):
            put(table, torch.full((experts, D), start))
    return model


def put(table, weight_ED):
    """Weights that the table can hold, at the scale STEP, its accumulator and moments at zero."""
    match table:
        case Int8Table():
            table.value_ED.copy_(weight_ED / STEP)
            table.scale_E.fill_(STEP)
        case Int4Table():
            table.weight_EB.copy_(pack_int4((weight_ED / STEP).to(torch.int8)))
            table.scale_E.fill_(STEP)
            if table.has_accumulator:
                table.accumulator_EB.zero_(), table.moment_E.zero_()
        case _:
            table.value_ED.copy_(weight_ED)


def read(table):
    """(E, D) float64 weights as they are learnt: with the accumulator, where there is one."""
    every = torch.arange(len(table.stored))
    has_accumulator = isinstance(table, Int4Table) and table.has_accumulator
    return (table.latent_rows(every) if has_accumulator else table.rows(every)).double()


def tables_of(model):
    return [table for layer in table_layers(model) for table in (layer.u, layer.v)]


def give(model, gradient_ED):
    """Leaves the same gradients with every table, as a backward pass does."""
    rows = len(gradient_ED)
    gradients = RowGradients(
        gradient_ED.float(), torch.arange(rows), torch.arange(rows + 1), torch.arange(rows), torch.ones(rows)
    )
    for layer in table_layers(model):
        layer.gradients = gradients, gradients


def random_gradients(rows=E, seed=0):
    """Rows of any size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D, generator=generator) * torch.logspace(-3, 3, rows)[:, None]


def unit_rows(gradient_ED):
    """Rows of root mean square one; none of twelve values is above 8 then, where the rule clips."""
    return gradient_ED.double() / gradient_ED.double().square().mean(1, keepdim=True).sqrt()


@every_arm
def test_every_table_moves_against_its_gradient_by_the_rate(arm):
    """The mean over rows and columns of (step . direction) is the rate, within 4 standard errors of its rounding."""
    model, rate, gradient_ED = model_of(arm), 0.02, random_gradients()
    before = [read(table) for table in tables_of(model)]
    direction_ED = -unit_rows(gradient_ED)
    give(model, gradient_ED)
    ArmTables(model, peak_rate=4 * rate).step(0, 0.25)
    assert all(layer.gradients is None for layer in table_layers(model))
    for table, start in zip(tables_of(model), before, strict=True):
        along = ((read(table) - start) * direction_ED).mean().item()
        error = 4 * 0.5 * UNIT.get(arm, 0) / math.sqrt(E * D)
        assert along == pytest.approx(rate, abs=error + 1e-6)
        assert error < 0.2 * rate


def test_float32_moves_by_the_rate_in_every_row():
    model, gradient_ED = model_of("float32"), random_gradients()
    give(model, gradient_ED)
    ArmTables(model, peak_rate=0.02).step(0, 1.0)
    for table in tables_of(model):
        # 0.75 of float32 is exact to 6e-8, which is 3e-6 of the rate.
        assert_close(0.75 - read(table), 0.02 * unit_rows(gradient_ED), 1e-5)


def test_a_rows_moment_is_a_running_mean_square_and_its_next_step_is_against_it():
    model = model_of("float32", experts=40)
    arms = ArmTables(model, peak_rate=0.02)
    first_ED, second_ED = random_gradients(40, seed=1), 5 * random_gradients(40, seed=2)
    give(model, first_ED)
    arms.step(0, 1.0)
    between = [read(table) for table in tables_of(model)]
    give(model, second_ED)
    arms.step(1, 1.0)
    moment_E = 0.98 * first_ED.double().square().mean(1) + 0.02 * second_ED.double().square().mean(1)
    wanted_ED = 0.02 * (second_ED.double() / moment_E.sqrt()[:, None]).clamp(-8, 8)
    for table, start in zip(tables_of(model), between, strict=True):
        assert_close(start - read(table), wanted_ED, 1e-5)
        assert_close(arms.moments[table].double(), moment_E, 1e-6)


@every_rounded_arm
def test_to_the_nearest_a_table_stands_still_under_half_a_unit(arm):
    model, gradient_ED = model_of(arm), random_gradients()
    rate = 0.45 * UNIT[arm] / unit_rows(gradient_ED).abs().max().item()
    arms = ArmTables(model, peak_rate=rate, rounding="nearest")
    before = [read(table) for table in tables_of(model)]
    for step in range(6):
        give(model, gradient_ED)
        arms.step(step, 1.0)
    assert all(torch.equal(read(table), start) for table, start in zip(tables_of(model), before, strict=True))


@every_rounded_arm
def test_stochastically_the_same_steps_add_up_on_average(arm):
    """To six times the rate, within 4 standard errors of a draw's deviation (at most half a unit)."""
    model, gradient_ED = model_of(arm), random_gradients()
    direction_ED = -unit_rows(gradient_ED)
    rate = 0.45 * UNIT[arm] / direction_ED.abs().max().item()
    arms = ArmTables(model, peak_rate=rate)
    for step in range(6):
        give(model, gradient_ED)
        arms.step(step, 1.0)
    for table in tables_of(model):
        along = ((read(table) - 0.75) * direction_ED).mean().item()
        error = 4 * 0.5 * UNIT[arm] * math.sqrt(6 / (E * D))
        assert along == pytest.approx(6 * rate, abs=error)
        assert error < 0.3 * 6 * rate


@every_rounded_arm
def test_to_the_nearest_a_step_of_more_than_half_a_unit_lands_on_the_nearest(arm):
    model, gradient_ED = model_of(arm), random_gradients()
    rate = 1.3 * UNIT[arm]
    give(model, gradient_ED)
    ArmTables(model, peak_rate=rate, rounding="nearest").step(0, 1.0)
    exact_ED = 0.75 - rate * unit_rows(gradient_ED)
    error_ED = (read(tables_of(model)[0]) - exact_ED).abs() / UNIT[arm]
    assert error_ED.max() <= 0.5 + 1e-3  # a weight of float32 is exact to 1e-5 of the smallest unit
    assert error_ED.max() > 0.45


@every_arm
def test_float32_alone_needs_no_rounding(arm):
    moved = []
    for rounding in ("stochastic", "nearest"):
        model = model_of(arm)
        give(model, random_gradients())
        ArmTables(model, peak_rate=0.01, rounding=rounding).step(0, 1.0)
        moved.append(read(tables_of(model)[0]))
    assert torch.equal(*moved) == (arm == "float32")


def test_int4_without_an_accumulator_moves_by_whole_steps_and_has_nothing_else():
    model, gradient_ED = model_of("int4"), random_gradients()
    names = {name.rpartition(".")[2] for name in model.state_dict() if ".moe.u." in name}
    assert names == {"weight_EB", "scale_E"}
    arms = ArmTables(model, peak_rate=0.05)
    for step in range(3):
        give(model, gradient_ED)
        arms.step(step, 1.0)
    for table in tables_of(model):
        assert table.scale_E.eq(STEP).all()
        steps_ED = (read(table) - 0.75) / STEP
        assert torch.equal(steps_ED, steps_ED.round())
        assert 0.1 < steps_ED.ne(0).double().mean() < 0.9
    assert {name.rpartition(".")[2] for name in model.state_dict() if ".moe.u." in name} == names


@pytest.mark.parametrize("arm", ["int8", "int4", "int4-accumulator"])
def test_a_table_that_meets_its_ends_grows_its_scales_and_keeps_to_its_grid(arm):
    most = {"int8": 127, "int4": 7, "int4-accumulator": 7}[arm]
    model = model_of(arm, experts=60, start=STEP * most)
    gradient_ED = -torch.ones(60, D)  # further up
    arms = ArmTables(model, peak_rate=STEP * 1.5)
    for step in range(4):
        before = [table.scale_E.clone() for table in tables_of(model)]
        give(model, gradient_ED)
        arms.step(step, 1.0)
        assert all((t.scale_E >= s).all() for t, s in zip(tables_of(model), before, strict=True))
    wanted = STEP * most + 4 * 1.5 * STEP
    for table in tables_of(model):
        assert (table.scale_E > STEP).all()
        # Each of the growths rounds at most once, as does each step: half a unit of the last scale on average.
        assert read(table).mean().item() == pytest.approx(wanted, abs=0.5 * table.scale_E.max().item())
        values = table.value_ED if arm == "int8" else table.rows(torch.arange(60)) / table.scale_E.float()[:, None]
        assert values.float().abs().max() <= most


def test_on_nibbles_the_arm_and_sr_update_agree_on_average():
    """Rows with the same values and gradients: the means over rows are the exact step, to 4 standard errors of each."""
    generator = torch.Generator().manual_seed(4)
    q_D = torch.randint(-90, 91, (D,), generator=generator)
    gradient_ED = torch.randn(D, generator=generator).expand(E, D)
    rate, unit = 0.01, STEP / 16
    exact_D = q_D * unit - rate * unit_rows(gradient_ED)[0]
    assert (exact_D / unit - (exact_D / unit).round()).abs().max() > 0.3  # rounding to nearest would be seen
    means, moments = [], []
    for tables_type in (ArmTables, Int4Tables):
        model = model_of("int4-accumulator")
        for table in tables_of(model):
            weight_EB, accumulator_EB = split_latent(q_D.to(torch.int8).expand(E, D))
            table.weight_EB.copy_(weight_EB), table.accumulator_EB.copy_(accumulator_EB)
        give(model, gradient_ED)
        tables = tables_type(model, peak_rate=2 * rate)
        tables.step(3, 0.5)
        for table in tables_of(model):
            means.append(read(table).mean(0))
            moments.append(tables.moments[table] if isinstance(tables, ArmTables) else table.moment_E)
    limit = 4 * 0.5 * unit / math.sqrt(E)
    assert all((mean_D - exact_D).abs().max() < limit for mean_D in means)
    for moment_E in moments:
        torch.testing.assert_close(moment_E, gradient_ED.square().mean(1), rtol=1e-6, atol=0)


def planes(model):
    return [t.clone() for name, t in model.state_dict().items() if ".moe.u." in name or ".moe.v." in name]


def stepped(arm, step=5, seed=1, before=()):
    """The tables after this step, the first of a run or after others."""
    model = model_of(arm, experts=50)
    arms = ArmTables(model, peak_rate=0.3 * UNIT[arm])
    with running(Run(seed=seed)):
        for earlier in before:
            give(model, torch.zeros(50, D))
            arms.step(earlier, 1.0)
        give(model, torch.ones(50, D))
        arms.step(step, 1.0)
    return planes(model)


@every_rounded_arm
def test_a_step_draws_by_the_seed_the_step_and_the_table_alone(arm):
    first = stepped(arm)
    assert all(torch.equal(a, b) for a, b in zip(first, stepped(arm), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, stepped(arm, before=(0, 3)), strict=True))
    values = [plane for plane in first if len(plane.unique()) > 1]
    assert len(values) == 2 * SHAPE.num_layers
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    for others in (stepped(arm, step=6), stepped(arm, seed=2)):
        assert not any(torch.equal(a, b) for a, b in zip(first, others, strict=True) if len(a.unique()) > 1)


@every_arm
def test_rows_that_were_not_touched_keep_every_bit(arm):
    model = model_of(arm, experts=30)
    give(model, torch.ones(11, D))
    before = planes(model)
    ArmTables(model, peak_rate=0.3).step(0, 1.0)
    after = planes(model)
    assert any(not torch.equal(now[:11], then[:11]) for now, then in zip(after, before, strict=True))
    assert all(torch.equal(now[11:], then[11:]) for now, then in zip(after, before, strict=True))


@every_arm
def test_skipped_gradients_move_nothing_and_are_forgotten(arm):
    model = model_of(arm, experts=30)
    arms = ArmTables(model, peak_rate=0.3)
    give(model, torch.ones(30, D))
    assert arms.finite()
    give(model, torch.full((30, D), math.nan))
    assert not arms.finite()
    before = planes(model)
    arms.skip()
    assert all(layer.gradients is None for layer in table_layers(model))
    assert all(torch.equal(now, then) for now, then in zip(planes(model), before, strict=True))
    assert all(moment_E.eq(0).all() for moment_E in arms.moments.values())


@every_arm
def test_arms_learn_from_a_backward_pass_of_their_model(arm):
    """Of any precision: only int4 with an accumulator leaves gradients by itself."""
    model = tiny_model(SOFTMAX.model_copy(update=SPECS[arm]))
    for table in tables_of(model):
        generator = torch.Generator().manual_seed(0)
        put(table, torch.randint(-5, 6, (37, D), generator=generator) * STEP)
    tables = ArmTables(model, peak_rate=0.02)
    tokens = tiny_tokens(length=8)
    losses = []
    for step in range(25):
        loss = next_token(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        tables.step(step, 1.0)
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


@pytest.mark.parametrize("accumulator", [True, False])
def test_a_row_whose_scale_would_leave_float16_stays_and_is_counted(accumulator):
    experts = SOFTMAX.model_copy(update={"precision": "int4", "accumulator": accumulator})
    model = tiny_model(experts)
    tables = ArmTables(model, peak_rate=60_000.0)
    rows = torch.arange(2)
    for layer in table_layers(model):
        for table in (layer.u, layer.v):
            table.scale_E.fill_(0.05)
            table.scale_E[0] = 60_000.0
            table.weight_EB[0] = 0x77
        left = RowGradients(-torch.ones(1, 12), rows, torch.arange(3), torch.zeros(2, dtype=torch.int64), torch.ones(2))
        layer.gradients = (left, left)
    before = [t.weight_EB[0].clone() for e in table_layers(model) for t in (e.u, e.v)]
    assert tables.step(0, 1.0)["rows_refused"] == len(before)
    for table, weight_B in zip((t for e in table_layers(model) for t in (e.u, e.v)), before, strict=True):
        assert torch.equal(table.weight_EB[0], weight_B)
        assert table.scale_E[0] == 60_000.0
        assert torch.isfinite(table.scale_E).all()
