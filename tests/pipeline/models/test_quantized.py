"""Quantization errs by half a step at most; quantized experts compute what their dequantized tables would."""

import pytest
import torch

from kernels.expert_sum.bags import bag_sum
from kernels.packing import unpack_int4
from pipeline.measuring.swapped import experts_zeroed
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import LogGates
from pipeline.models.tables.experts import TableExperts
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table
from pipeline.models.tables.rounding import (
    INT4_MOST,
    INT8_MOST,
    SMALLEST_SCALE,
    absmax_scales,
    quantize_int4,
    quantize_int8,
)
from pipeline.transforms.precision import requantized, to_int4, to_int8
from pipeline.transforms.table_error import sqnr_db
from tests.tiny import INT4, INT8, JUMP, SHAPE, TRAINABLE, tiny_model, tiny_tokens
from tests.tolerances import assert_close

# E experts, D model width, R experts touched
E, D = 29, SHAPE.d_model


def rows_of(seed=0):
    """Rows of widths from 1e-3 to 1e2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(E, D, generator=generator) * 10 ** torch.linspace(-3, 2, E)[:, None]


def test_int8_errs_by_half_a_step_at_most():
    rows = rows_of()
    value_ED, scale_E = quantize_int8(rows)
    assert (value_ED.dtype, scale_E.dtype) == (torch.int8, torch.float16)
    step_E1 = scale_E.float()[:, None]
    assert ((value_ED.float() * step_E1 - rows).abs() <= step_E1 * (0.5 + 1e-4)).all()
    large_E = rows.abs().amax(1) > 127 * SMALLEST_SCALE
    assert 0 < large_E.sum() < E
    assert value_ED.int().abs().amax(1)[large_E].eq(127).all()


def test_int4_errs_by_half_a_step_within_its_clip():
    rows = rows_of()
    value_ED, scale_E = quantize_int4(rows, clips=21)
    assert value_ED.abs().max() == 7
    step_E1 = scale_E.float()[:, None]
    error_ED = (value_ED.float() * step_E1 - rows).abs()
    inside = rows.abs() <= 7.5 * step_E1
    assert (error_ED <= step_E1 * (0.5 + 1e-4))[inside].all()
    outside = ~inside
    assert outside.any()
    assert torch.equal(value_ED[outside].float(), 7 * rows[outside].sign())


def test_more_clips_never_err_more_than_the_absmax_does():
    rows = rows_of(1)

    def error_E(clips):
        value_ED, scale_E = quantize_int4(rows, clips)
        return (value_ED.float() * scale_E.float()[:, None] - rows).square().sum(1)

    absmax_E, best_E = error_E(1), error_E(21)
    assert (best_E <= absmax_E).all()
    assert (best_E < absmax_E).float().mean() > 0.5


def test_one_clip_is_plain_absmax():
    value_ED, scale_E = quantize_int4(rows_of(), clips=1)
    torch.testing.assert_close(scale_E.float(), rows_of().abs().amax(1) / 7, rtol=2**-10, atol=0)
    assert value_ED.abs().amax(1).eq(7).all()


@pytest.mark.parametrize("quantize", [quantize_int8, lambda rows: quantize_int4(rows, 21)], ids=["int8", "int4"])
def test_rows_of_zeros_stay_zeros_with_a_finite_scale(quantize):
    rows = rows_of()
    rows[[0, 5]] = 0
    value_ED, scale_E = quantize(rows)
    assert value_ED[[0, 5]].eq(0).all()
    assert torch.isfinite(scale_E).all()
    assert (scale_E > 0).all()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_table_of_no_rows_is_quantized_to_one_of_no_rows(groups):
    none = torch.zeros(0, 12)
    assert absmax_scales(none, INT4_MOST, groups).shape == (0, groups)
    (int8_ED, scale_E), (int4_ED, step) = quantize_int8(none), quantize_int4(none, 5, groups)
    assert (int8_ED.shape, int8_ED.dtype, scale_E.shape, scale_E.dtype) == ((0, 12), torch.int8, (0,), torch.float16)
    assert (int4_ED.shape, int4_ED.dtype, step.dtype) == ((0, 12), torch.int8, torch.float16)
    assert step.shape == ((0,) if groups == 1 else (0, groups))
    table = Int4Table(0, 12, accumulator=False, groups=groups)
    table.set(int4_ED, step)
    assert table.rows(torch.zeros(0, dtype=torch.int64)).shape == (0, 12)


@pytest.mark.parametrize(("most", "limit"), [(INT4_MOST, 458528.0), (INT8_MOST, 8319008.0)])
def test_a_value_just_above_what_a_scale_can_hold_is_told_apart_from_the_limit(most, limit):
    rows_ED = torch.zeros(3, 12)
    rows_ED[1, 5] = limit
    assert absmax_scales(rows_ED, most)[1, 0] == 65504
    rows_ED[1, 5] = torch.tensor(limit).nextafter(torch.tensor(torch.inf))
    above = {INT4_MOST: "458528.03125", INT8_MOST: "8319008.5"}[most]
    with pytest.raises(ValueError, match=rf"^row 1 holds {above}; .* at most {most} \* 65504 = {limit:.0f}: train"):
        absmax_scales(rows_ED, most)


@pytest.mark.parametrize("quantize", [quantize_int8, lambda rows: quantize_int4(rows, 21)], ids=["int8", "int4"])
def test_quantizing_is_odd(quantize):
    (value, scale), (opposite, same_scale) = quantize(rows_of()), quantize(-rows_of())
    assert torch.equal(opposite, -value)
    assert torch.equal(same_scale, scale)


@pytest.mark.parametrize("quantize", [quantize_int8, lambda rows: quantize_int4(rows, 1)], ids=["int8", "int4"])
def test_quantizing_what_was_quantized_changes_nothing(quantize):
    value_ED, scale_E = quantize(rows_of()[9:])
    again, same_scale = quantize(value_ED.float() * scale_E.float()[:, None])
    assert torch.equal(again, value_ED)
    torch.testing.assert_close(same_scale, scale_E, rtol=2**-10, atol=0)


def float_twin(experts: TableExperts) -> PeerExperts:
    """The same experts over dequantized float tables."""
    twin = PeerExperts(experts.spec.model_copy(update={"precision": "float", "accumulator": False}), D)
    every = torch.arange(experts.spec.num_experts)
    with torch.no_grad():
        twin.u.copy_(experts.u.rows(every))
        twin.v.copy_(experts.v.rows(every))
        twin.bias.copy_(experts.bias)
        twin.index.load_state_dict(experts.index.state_dict())
        twin.axis_bias.load_state_dict(experts.axis_bias.state_dict())
    return twin


def block_and_inputs(spec):
    model = tiny_model(spec)
    block = model.blocks()[0]
    x_ND = torch.randn(19, D, generator=torch.Generator().manual_seed(2))
    assert isinstance(block.router, PeerRouter)
    return block, x_ND, torch.zeros(1, 19, dtype=torch.int64)


@pytest.mark.parametrize("spec", [INT8, INT4, TRAINABLE], ids=["int8", "int4", "int4-accumulator"])
def test_quantized_experts_are_the_float_experts_of_their_dequantized_tables(spec):
    block, x_ND, tokens = block_and_inputs(spec)
    with torch.no_grad():
        routing = block.router(x_ND, tokens)
        got, wanted = block.moe(x_ND, routing), float_twin(block.moe)(x_ND, routing)
    assert wanted.abs().max() > 0.1
    assert_close(got, wanted)


def test_the_forward_pass_reads_no_accumulator():
    block, x_ND, tokens = block_and_inputs(TRAINABLE)
    routing = block.router(x_ND, tokens)
    before = block.moe(x_ND, routing)
    for table in (block.moe.u, block.moe.v):
        table.accumulator_EB.random_(0, 256)
    assert torch.equal(block.moe(x_ND, routing), before)
    block.moe.v.weight_EB.random_(0, 256)
    assert not torch.equal(block.moe(x_ND, routing), before)


def test_the_latent_view_is_the_weights_plus_a_sixteenth_of_the_accumulator():
    table = tiny_model(TRAINABLE).blocks()[0].moe.u
    every = torch.arange(len(table.scale_E))
    a_ED = unpack_int4(table.accumulator_EB).float()
    wanted = table.rows(every) + a_ED * table.scale_E.float()[:, None] / 16
    assert_close(table.latent_rows(every), wanted)


def dense(gradients, num_rows):
    """The table's gradient written out, from its weighted pairs."""
    table = torch.zeros(num_rows, gradients.source_TD.shape[1])
    table[gradients.row_R] = bag_sum(
        gradients.source_TD, gradients.token_P, gradients.start_R1, gradients.weight_P.detach()
    )
    return table


def test_taped_gradients_are_autograds_of_the_dequantized_tables():
    block, x_ND, tokens = block_and_inputs(TRAINABLE)
    x_ND = x_ND[:4]
    routing = block.router(x_ND, tokens)
    twin = float_twin(block.moe)
    dy_ND = torch.randn(4, D, generator=torch.Generator().manual_seed(3))
    gradients = []
    for experts in (block.moe, twin):
        x = x_ND.clone().requires_grad_()
        gate_P = routing.gate_P.detach().clone().requires_grad_()
        log_gates = LogGates(*(g.detach() for g in (routing.log_gate1_NHI, routing.log_gate2_NHJ)))
        y = experts(x, type(routing)(routing.cell_P, routing.start_N1, gate_P, log_gates))
        biases = [experts.bias, experts.axis_bias.row, experts.axis_bias.column]
        experts.zero_grad()
        y.backward(dy_ND)
        gradients.append([x.grad, gate_P.grad, *(b.grad for b in biases)])
    for got, wanted in zip(*gradients, strict=True):
        assert wanted.abs().max() > 0
        assert_close(got, wanted)
    num = block.moe.spec.num_experts
    for got, wanted in zip(block.moe.gradients, (twin.u.grad, twin.v.grad), strict=True):
        assert 0 < len(got.row_R) < num
        assert_close(dense(got, num), wanted)


def test_a_pass_that_reaches_no_expert_leaves_empty_gradients():
    block, x_ND, tokens = block_and_inputs(TRAINABLE)
    block.router.threshold_H.fill_(1.0)
    y = block.moe(x_ND.requires_grad_(), block.router(x_ND, tokens))
    y.sum().backward()
    for gradients in block.moe.gradients:
        assert len(gradients.row_R) == 0


def test_without_gradients_nothing_is_left():
    block, x_ND, tokens = block_and_inputs(TRAINABLE)
    with torch.no_grad():
        block.moe(x_ND, block.router(x_ND, tokens))
    assert block.moe.gradients is None


def test_rows_of_an_odd_width_have_no_int4():
    with pytest.raises(ValueError, match="even number of values; d_model is 13"):
        Int4Table(3, 13, accumulator=False)


@pytest.mark.parametrize(("convert", "least_db"), [(to_int8, 38), (lambda p: to_int4(p, clips=21), 15)])
def test_a_converted_model_keeps_everything_but_the_tables(convert, least_db):
    peer = tiny_model(JUMP)
    model = convert(peer)
    state = peer.state_dict()
    shared = [name for name in model.state_dict() if name in state]
    assert len(shared) == len(state) - 2 * SHAPE.num_layers  # all but u and v
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in shared)
    assert sqnr_db(model, peer) > least_db  # normal rows of 12: 45 and 20 dB were seen, 2026-11
    with torch.no_grad():
        tokens = tiny_tokens()
        with experts_zeroed(peer):
            without = peer(tokens)
        wanted = peer(tokens)
        assert (model(tokens) - wanted).norm() < 0.3 * (without - wanted).norm()


def test_sqnr_is_the_ratio_of_signal_and_noise_in_decibels():
    peer = tiny_model(JUMP)
    model = to_int8(peer)
    tables, read = [], []
    for ours, theirs in zip(model.blocks(), peer.blocks(), strict=True):
        for table, rows in ((ours.moe.u, theirs.moe.u), (ours.moe.v, theirs.moe.v)):
            assert isinstance(table, Int8Table)
            tables.append(rows.detach().double())
            read.append(table.value_ED.double() * table.scale_E.double()[:, None])
    signal, noise = torch.cat(tables), torch.cat(tables) - torch.cat(read)
    assert sqnr_db(model, peer) == pytest.approx(20 * torch.log10(signal.norm() / noise.norm()).item(), abs=0.01)


def test_an_accumulator_starts_at_nothing_and_changes_no_logit():
    int4 = to_int4(tiny_model(JUMP), clips=21)
    model = requantized(int4, {"accumulator": True})
    for block in model.blocks():
        for table in (block.moe.u, block.moe.v):
            assert table.accumulator_EB.eq(0).all()
            assert table.moment_E.eq(0).all()
    with torch.no_grad():
        assert torch.equal(model(tiny_tokens()), int4(tiny_tokens()))
