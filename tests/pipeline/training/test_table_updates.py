"""Tables that start alike at every precision, and int4 tables that take each backward pass's gradients once."""

import math

import pytest
import torch
from scipy import stats

from kernels.packing import unpack_int4
from kernels.sr_update import RowGradients
from pipeline.models.tables.row_steps import CLIP_DEVIATIONS
from pipeline.run import Run, running
from pipeline.training import table_start
from pipeline.training.losses import next_token
from pipeline.training.table_start import draw_tables
from pipeline.training.table_updates import Int4Tables, table_layers
from pipeline.transforms.precision import requantized
from tests.tiny import JUMP, SHAPE, SOFTMAX, TRAINABLE, tiny_model, tiny_tokens

# D model width, E experts
D, BLOCKS = SHAPE.d_model, SHAPE.num_layers
PRECISIONS = {
    "float": {"precision": "float"},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "int8": {"precision": "int8"},
    "int4": {"precision": "int4"},
    "int4-accumulator": {"precision": "int4", "accumulator": True},
}


def drawn(precision, seed=3, spec=SOFTMAX):
    """A model of this precision, and the (E, D) weights of its six tables."""
    model = requantized(tiny_model(spec), PRECISIONS[precision])
    with running(Run(seed=seed)):
        draw_tables(model)
    return model, [read(table) for block in model.blocks() for table in (block.moe.u, block.moe.v)]


def read(table):
    """What the forward pass reads."""
    return table.detach() if isinstance(table, torch.nn.Parameter) else table.rows(torch.arange(len(table.stored)))


def test_floats_of_one_seed_are_the_same_numbers_whoever_trains_them():
    for parameter, buffer in zip(drawn("float")[1], drawn("float32")[1], strict=True):
        assert torch.equal(parameter, buffer)


def test_bfloat16_differs_by_half_a_unit_of_its_eight_bits_at_most():
    for weight, rounded in zip(drawn("float32")[1], drawn("bfloat16")[1], strict=True):
        assert ((rounded - weight).abs() <= 2.0**-8 * weight.abs()).all()
        assert not torch.equal(rounded, weight)


def test_int8_differs_by_less_than_a_step_within_its_clip_and_stands_at_its_end_beyond():
    model, tables = drawn("int8")
    beyond = 0
    for weight, rounded, layer in zip(drawn("float32")[1], tables, [*range(BLOCKS)] * 2, strict=True):
        step = model.blocks()[layer].moe.u.scale_E.unique().item()  # the same for all rows of all tables
        inside = (weight / step > -120) & (weight / step < 119)
        assert ((rounded - weight).abs() < step * (1 + 1e-5))[inside].all()
        assert torch.equal(rounded[~inside], torch.where(weight > 0, 119.0, -120.0)[~inside] * step)
        beyond += int((~inside).sum())
    assert 0 < beyond < 0.02 * 6 * weight.numel()  # a normal value is beyond 2.7 deviations in 0.7 % of cases


def test_int8_and_the_latent_of_int4_are_the_same_numbers():
    model, _ = drawn("int4-accumulator")
    latents = [t.latent_rows(torch.arange(len(t.stored))) for b in model.blocks() for t in (b.moe.u, b.moe.v)]
    for latent, value in zip(latents, drawn("int8")[1], strict=True):
        assert torch.equal(latent, value)


def test_int4_reads_the_same_nibbles_with_and_without_its_accumulator():
    """Each within 9/16 of a step: half a step from w to the latent, and less than a sixteenth from there."""
    model, tables = drawn("int4")
    for bare, trained, weight in zip(tables, drawn("int4-accumulator")[1], drawn("float32")[1], strict=True):
        assert torch.equal(bare, trained)
        step = model.blocks()[0].moe.u.scale_E.unique().item()
        inside = weight.abs() < 7.4 * step
        assert ((bare - weight).abs() < 9 / 16 * step * (1 + 1e-5))[inside].all()
        assert (bare.abs() <= 7 * step).all()
    assert not model.blocks()[0].moe.u.has_accumulator


def test_rounding_adds_nothing_on_average():
    """Stochastic rounding to the steps of int8: errors have mean zero, within 4 standard errors."""
    larger = SOFTMAX.model_copy(update={"num_experts": 1003})
    model, rounded = drawn("int8", spec=larger)
    step = model.blocks()[0].moe.u.scale_E[0].item()
    for weight, value in zip(drawn("float32", spec=larger)[1], rounded, strict=True):
        inside = weight.abs() < 119 * step
        error = (value - weight)[inside].double() / step
        assert abs(error.mean().item()) < 4 * 0.5 / math.sqrt(len(error))
        assert error.std() > 0.3  # to the nearest it is 0.29


def test_weights_are_normal_with_the_variance_of_one_over_the_width():
    _, tables = drawn("float32", spec=SOFTMAX.model_copy(update={"num_experts": 1003}))
    for weight in tables:
        assert stats.kstest((weight * math.sqrt(D)).flatten().numpy(), "norm").pvalue > 1e-3
        across = torch.corrcoef(weight.T) - torch.eye(D)
        assert across.abs().max() < 5 / math.sqrt(1003)


def test_int4_clips_at_as_many_deviations_as_it_says():
    model, _ = drawn("int4")
    for block in model.blocks():
        for table in (block.moe.u, block.moe.v):
            (scale,) = table.scale_E.unique()
            assert 7.5 * scale.item() == pytest.approx(CLIP_DEVIATIONS / math.sqrt(D), rel=2**-11)


def test_every_table_block_and_seed_has_other_weights():
    tables = [*drawn("float32", seed=3)[1], *drawn("float32", seed=4)[1]]
    correlation = torch.corrcoef(torch.stack([t.flatten() for t in tables])) - torch.eye(len(tables))
    assert correlation.abs().max() < 5 / math.sqrt(tables[0].numel())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_seed_draws_the_same_whatever_else_was_drawn(precision):
    _, first = drawn(precision)
    model = requantized(tiny_model(SOFTMAX), PRECISIONS[precision])
    with running(Run(seed=3)) as run:
        torch.rand(17)
        run.generator("something else").initial_seed()
        draw_tables(model)
        draw_tables(model)  # over what is there
    again = [read(table) for block in model.blocks() for table in (block.moe.u, block.moe.v)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_tables_of_many_pieces_start_alike_at_every_precision_and_to_their_last_row(monkeypatch):
    monkeypatch.setattr(table_start, "VALUES_A_PIECE", 5 * D)  # 37 rows: seven pieces and two rows
    weights = drawn("float32")[1]
    step = drawn("int8")[0].blocks()[0].moe.u.scale_E[0].item()
    for weight, parameter, value in zip(weights, drawn("float")[1], drawn("int8")[1], strict=True):
        assert torch.equal(weight, parameter)
        assert len(weight.unique(dim=0)) == len(weight) == 37
        assert (weight != 0).all()
        inside = weight.abs() < 119 * step
        assert ((value - weight).abs() < step * (1 + 1e-5))[inside].all()


@pytest.mark.parametrize("spec", [SOFTMAX, JUMP], ids=["softmax", "jumprelu"])
def test_only_tables_are_drawn(spec):
    model = requantized(tiny_model(spec), {"precision": "int4"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw_tables(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".moe.u." not in name and ".moe.v." not in name), name


# Int4Tables


def gradients_of(num_rows=9, seed=None):
    """One pair a row; of ones, or random."""
    source_TD = torch.ones(1, D)
    weight_P = torch.ones(num_rows)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        source_TD, weight_P = torch.randn(1, D, generator=generator), torch.randn(num_rows, generator=generator)
    token_P = torch.zeros(num_rows, dtype=torch.int64)
    return RowGradients(source_TD, torch.arange(num_rows), torch.arange(num_rows + 1), token_P, weight_P)


def with_gradients(seed=None):
    """A model whose tables are zero at one scale, with the same gradients and rows everywhere."""
    model = tiny_model(TRAINABLE)
    for experts in table_layers(model):
        for table in (experts.u, experts.v):
            table.weight_EB.zero_(), table.accumulator_EB.zero_(), table.moment_E.zero_()
            table.scale_E.fill_(0.25)
        experts.gradients = gradients_of(seed=seed), gradients_of(seed=seed)
    return model


def planes(model):
    return [plane.clone() for e in table_layers(model) for t in (e.u, e.v) for plane in (t.weight_EB, t.accumulator_EB)]


def accumulators(model):
    return planes(model)[1::2]


def test_tables_draw_other_numbers_in_every_block_table_and_step():
    """The same gradients and rows everywhere: only the key of the draw differs."""

    def changed(step):
        model = with_gradients()
        numbers = Int4Tables(model, peak_rate=0.25 / 16).step(step, 0.5)
        assert numbers == {"flips_per_touched_weight": 0, "scale_growths": 0, "rows_refused": 0}
        assert all(experts.gradients is None for experts in table_layers(model))
        return accumulators(model)

    draws = [*changed(0), *changed(1)]
    assert len(draws) == 2 * 2 * BLOCKS
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert all(torch.equal(a, b) for a, b in zip(changed(0), draws[: 2 * BLOCKS], strict=True))


def test_another_seed_of_the_run_draws_other_numbers():
    drawn = []
    for seed in (0, 0, 1):
        model = with_gradients()
        with running(Run(seed=seed)):
            Int4Tables(model, peak_rate=0.25 / 16).step(3, 0.5)
        drawn.append(accumulators(model))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


def test_the_share_of_the_peak_rate_is_the_rate():
    """Powers of two, so that their product is exact."""
    moved = []
    for peak, share in ((2.0**-5, 0.25), (2.0**-7, 1.0)):
        model = with_gradients(seed=1)
        Int4Tables(model, peak_rate=peak).step(2, share)
        moved.append(planes(model))
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_whole_sub_steps_against_the_gradient_need_no_luck():
    """A row of ones has norm one: two sub-steps of the scale are two units of the accumulator, in every row touched."""
    model = with_gradients()
    Int4Tables(model, peak_rate=2 * 0.25 / 16).step(0, 1.0)
    for accumulator_EB in accumulators(model):
        a_ED = unpack_int4(accumulator_EB)
        assert a_ED[:9].eq(-2).all()
        assert a_ED[9:].eq(0).all()


def losses(model, seed=0):
    tokens = tiny_tokens(batch=3, length=8, seed=seed)
    return next_token(model(tokens[:, :-1]), tokens[:, 1:])


def test_what_is_reported_is_what_can_be_counted_in_the_tables():
    model = tiny_model(TRAINABLE)
    losses(model).backward()
    touched = sum(len(g.row_R) for experts in table_layers(model) for g in experts.gradients)
    before = [t.weight_EB.clone() for e in table_layers(model) for t in (e.u, e.v)]
    scales = [t.scale_E.clone() for e in table_layers(model) for t in (e.u, e.v)]
    numbers = Int4Tables(model, peak_rate=0.05).step(0, 1.0)
    tables = [t for e in table_layers(model) for t in (e.u, e.v)]
    flips = sum(int((unpack_int4(t.weight_EB) != unpack_int4(b)).sum()) for t, b in zip(tables, before, strict=True))
    assert flips > 0
    assert numbers["flips_per_touched_weight"] == pytest.approx(flips / (touched * D))
    grown = sum(int((t.scale_E != s).sum()) for t, s in zip(tables, scales, strict=True))
    assert numbers["scale_growths"] == grown > 0
    assert numbers["rows_refused"] == 0


def test_a_row_whose_gradient_overflows_is_counted_as_refused():
    model = with_gradients()
    huge = gradients_of()
    huge.weight_P[4] = 1e30
    table_layers(model)[1].gradients = gradients_of(), huge
    assert Int4Tables(model, peak_rate=0.01).finite()  # each number is
    assert Int4Tables(model, peak_rate=0.01).step(0, 1.0)["rows_refused"] == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["source_TD", "weight_P"])
@pytest.mark.parametrize(("block", "table"), [(0, 0), (BLOCKS - 1, 1)])
def test_gradients_that_are_not_finite_are_seen_and_can_be_skipped(block, table, where, wrong):
    model = with_gradients(seed=5)
    tables = Int4Tables(model, peak_rate=0.1)
    assert tables.finite()
    getattr(table_layers(model)[block].gradients[table], where).view(-1)[-1] = wrong
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not tables.finite()
    tables.skip()
    assert all(experts.gradients is None for experts in table_layers(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_second_backward_before_the_first_ones_gradients_are_taken_is_an_error():
    model = tiny_model(TRAINABLE)
    losses(model).backward()
    with pytest.raises(AssertionError, match="have not taken the gradients of the backward pass before"):
        losses(model).backward()


@pytest.mark.parametrize(
    "take", [lambda tables: tables.step(0, 1.0), lambda tables: tables.skip()], ids=["step", "skip"]
)
def test_taking_or_forgetting_the_gradients_makes_room_for_the_next(take):
    model = tiny_model(TRAINABLE)
    tables = Int4Tables(model, peak_rate=0.01)
    for seed in range(2):
        losses(model, seed).backward()
        take(tables)
        assert all(experts.gradients is None for experts in table_layers(model))


def test_a_step_without_a_backward_pass_is_an_error():
    with pytest.raises(AssertionError):
        Int4Tables(tiny_model(TRAINABLE), peak_rate=0.1).step(0, 1.0)


def test_steps_lower_the_loss_that_they_are_taken_against():
    model = tiny_model(TRAINABLE)
    tables = Int4Tables(model, peak_rate=0.03)
    first = losses(model).item()
    for step in range(20):
        loss = losses(model)
        loss.backward()
        tables.step(step, 1.0)
    assert loss.item() < 0.8 * first
