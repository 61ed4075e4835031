"""quantize-int8 and quantize-int4: little is lost, less with more bits, more scales and the better clip."""

import csv
import io
import math

import pytest
import torch
from pydantic import ValidationError

from artifacts.meanings import MODEL
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.tables.rounding import SMALLEST_SCALE
from pipeline.models.tables.rounding import quantize_int4 as quantized_rows
from pipeline.transforms.precision import requantized, rows_below_smallest_scale, to_int4, to_int8
from pipeline.transforms.table_error import sqnr_db, table_errors
from stages.errors import exit_code
from stages.quantize_int4 import QuantizeInt4Config, quantize_int4
from stages.quantize_int8 import QuantizeInt8Config, quantize_int8
from tests.pictures import assert_picture
from tests.tiny import JUMP, tiny_model, tiny_tokens
from tests.tolerances import assert_close

METRICS = {
    "held_out_loss_nats", "held_out_loss_standard_error_nats", "held_out_bits_per_byte", "held_out_tokens_measured",
    "loss_increase_nats", "loss_increase_standard_error_nats", "kl_to_teacher_nats", "loss_without_experts_nats",
    "loss_recovered", "effective_experts", "effective_experts_least", "active_experts_per_token", "firing_mismatches",
    "num_experts", "expert_bytes", "table_bytes_per_parameter", "sqnr_db", "rows_below_smallest_scale",
    "firing_drift_mean", "firing_drift_gate_weighted", "firing_drift_same_rate_null_mean", "experts_drifted_share",
    "gate_shift_mean",
}  # fmt: skip
COMMON = {"context_length": 23, "measure": MeasureConfig(tokens=300, batch_size=5)}


@pytest.fixture(scope="module")
def outputs(run_in, corpus, peer):
    inputs = {"corpus": corpus, "peer": peer.value}
    return {
        "int8": run_in(quantize_int8, QuantizeInt8Config(**COMMON), **inputs),
        "int4": run_in(quantize_int4, QuantizeInt4Config(**COMMON), **inputs),
        "absmax": run_in(quantize_int4, QuantizeInt4Config(clips=1, **COMMON), **inputs),
        "grouped": run_in(quantize_int4, QuantizeInt4Config(scale_groups=5, **COMMON), **inputs),
    }


def test_metrics_are_there_and_finite(outputs):
    for output in outputs.values():
        assert set(output.metrics) == METRICS <= set(MODEL)
        assert all(math.isfinite(value) for value in output.metrics.values())


def test_kinds_and_sizes_are_those_of_the_precision(outputs):
    assert {name: output.value.kind for name, output in outputs.items()} == {
        "int8": "peer-int8",
        "int4": "peer-int4",
        "absmax": "peer-int4",
        "grouped": "peer-int4",
    }
    index = (37 + 2 * 4) / 40  # of 36 cells, and where the last one ends: a byte each, in two blocks
    bytes_of = {name: output.metrics["expert_bytes"] - index for name, output in outputs.items()}
    wanted = {"int8": 2 * 22 + 4, "int4": 2 * 12 + 4, "absmax": 2 * 12 + 4, "grouped": 2 * 20 + 4}
    assert bytes_of == pytest.approx(wanted)


def test_more_bits_more_scales_and_better_clips_lose_less(outputs):
    sqnr = {name: output.metrics["sqnr_db"] for name, output in outputs.items()}
    assert sqnr["absmax"] < sqnr["int4"] < sqnr["grouped"] < sqnr["int8"]
    assert sqnr["int8"] - sqnr["absmax"] > 20  # 4 bits are 24 dB
    assert outputs["int8"].metrics["kl_to_teacher_nats"] < 0.05 * outputs["int4"].metrics["kl_to_teacher_nats"]


def test_int8_is_nearly_the_float_model(outputs):
    assert 0 < outputs["int8"].metrics["kl_to_teacher_nats"] < 1e-3
    assert outputs["int8"].metrics["loss_recovered"] == pytest.approx(1, abs=0.02)


def test_routing_and_all_else_stay_float_and_equal(outputs, peer):
    teacher = peer.value.state_dict()
    for output in outputs.values():
        state = output.value.state_dict()
        shared = {name for name in state if name in teacher}
        assert {name for name in teacher if name not in shared} == {
            f"model.layers.{layer}.moe.{table}" for layer in range(2) for table in "uv"
        }
        assert all(torch.equal(state[name], teacher[name]) for name in shared)
        assert output.metrics["firing_mismatches"] == 0


def test_quantizing_draws_nothing(run_in, outputs, corpus, peer):
    again = run_in(quantize_int4, QuantizeInt4Config(**COMMON), seed=77, corpus=corpus, peer=peer.value)
    state = again.value.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in outputs["int4"].value.state_dict().items())
    assert again.files == outputs["int4"].files


def test_each_has_a_picture_of_its_own_errors(outputs):
    for output in outputs.values():
        assert output.files.keys() == {"plot.png", "drift.csv"}
        assert_picture(output.files["plot.png"])
    assert outputs["int4"].files != outputs["absmax"].files


def test_one_router_before_all_tables_fires_as_it_did(outputs):
    """These two blocks share it; tests/pipeline/measuring/test_drift.py has routers that read what tables wrote."""
    for output in outputs.values():
        names = "firing_drift_mean", "firing_drift_gate_weighted", "experts_drifted_share", "gate_shift_mean"
        assert [output.metrics[name] for name in names] == [0, 0, 0, 0]
        assert 0 < output.metrics["firing_drift_same_rate_null_mean"] < 1


def test_the_csv_has_the_mean_drift_that_is_reported(outputs):
    for output in outputs.values():
        rows = list(csv.DictReader(io.StringIO(output.files["drift.csv"].decode())))
        order = [(int(row["block"]), int(row["expert"])) for row in rows]
        assert order == sorted(set(order))
        drift = [float(row["drift"]) for row in rows]
        assert sum(drift) / len(drift) == pytest.approx(output.metrics["firing_drift_mean"], abs=1e-5)


def test_a_grouped_row_reads_as_its_groups_each_quantized_alone():
    rows_ED = torch.randn(9, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 9)[:, None]
    value_ED, scale_EG = quantized_rows(rows_ED, 21, groups=5)
    for group in range(5):
        part = slice(4 * group, 4 * group + 4)
        value_EF, scale_E = quantized_rows(rows_ED[:, part], 21)
        assert torch.equal(value_ED[:, part], value_EF)
        assert torch.equal(scale_EG[:, group], scale_E)


def test_each_split_of_the_groups_raises_the_signal_to_noise():
    peer = tiny_model(JUMP)  # of width 12
    models = [to_int4(peer, clips=21, groups=groups) for groups in (1, 2, 6)]
    sqnr = [sqnr_db(model, peer) for model in models]
    assert sqnr == sorted(set(sqnr))
    for name in "uv":  # and so do the errors behind the picture
        blocks = [table_errors(model, peer)[name].sqnr_db for model in models]
        assert all(list(rising) == sorted(set(rising)) for rising in zip(*blocks, strict=True))


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_experts_are_the_float_experts_of_their_rows(groups):
    block = to_int4(tiny_model(JUMP), clips=21, groups=groups).blocks()[0]
    assert block.moe.u.groups == groups
    twin = PeerExperts(JUMP, 12)
    every = torch.arange(JUMP.num_experts)
    x_ND = torch.randn(19, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        twin.u.copy_(block.moe.u.rows(every))
        twin.v.copy_(block.moe.v.rows(every))
        shared = {k: t for k, t in block.moe.state_dict().items() if k in twin.state_dict()}
        twin.load_state_dict(shared, strict=False)
        routing = block.router(x_ND, torch.zeros(1, 19, dtype=torch.int64))
        got, wanted = block.moe(x_ND, routing), twin(x_ND, routing)
        pairs = block.moe.pairs(x_ND, routing)
    assert wanted.abs().max() > 0.1
    assert_close(got, wanted)
    assert len(pairs.expert_P) > 20
    pre_P = (x_ND[pairs.token_P] * twin.u[pairs.expert_P]).sum(1) + twin.bias[pairs.expert_P]
    assert_close(pairs.pre_PM[:, 0], pre_P)


def test_a_grouped_model_is_written_and_read_back():
    model = to_int4(tiny_model(JUMP), clips=3, groups=3)
    again = type(model).restore(model.kind, model.spec.model_dump(), model.to_tensors(), {})
    with torch.no_grad():
        assert torch.equal(again.eval()(tiny_tokens()), model(tiny_tokens()))


def test_one_group_has_the_tensors_that_it_always_had():
    state = to_int4(tiny_model(JUMP), clips=3).blocks()[0].moe.u.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"weight_EB": (37, 6), "scale_E": (37,)}


def test_groups_that_do_not_divide_the_width_are_refused(run_in, corpus, peer):
    with pytest.raises(ValueError, match=r"scale_groups=4 does not divide d_model / 2 = 10, .* use a divisor of it"):
        run_in(quantize_int4, QuantizeInt4Config(scale_groups=4, **COMMON), corpus=corpus, peer=peer.value)


def test_a_grouped_model_does_not_train(capsys):
    grouped = to_int4(tiny_model(JUMP), clips=1, groups=2)
    with pytest.raises(ValueError, match="grouped scales are for inference"):
        grouped(tiny_tokens())
    with pytest.raises(ValidationError):
        requantized(grouped, {"accumulator": True})
    assert exit_code(lambda: requantized(grouped, {"accumulator": True}) and 0) == 2
    said = capsys.readouterr().err
    assert said.startswith("int4 tables that train have one scale a row, not scale_groups=2; ")
    assert said.count("\n") == 1


CONVERSIONS = pytest.mark.parametrize(
    ("convert", "most"),
    [(to_int8, 127), (lambda p: to_int4(p, clips=3), 7), (lambda p: to_int4(p, clips=3, groups=2), 7)],
    ids=["int8", "int4", "int4 grouped"],
)


def spoilt(table, place, value):
    """A PEER with one entry of a table of block 1 set."""
    peer = tiny_model(JUMP)
    with torch.no_grad():
        getattr(peer.blocks()[1].moe, table)[place] = value
    return peer


@CONVERSIONS
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_named(convert, most, wrong):
    with pytest.raises(ValueError, match=r"^v of block 1: row 29 holds a value that is not finite.* train it again"):
        convert(spoilt("v", (29, 7), wrong))


@CONVERSIONS
def test_a_row_whose_scale_float16_cannot_hold_is_named(convert, most):
    largest = most * 65504.0
    convert(spoilt("u", (4, 11), -largest))
    with pytest.raises(ValueError, match=rf"^u of block 1: row 4 holds [0-9.e+]+; .* at most {most} \* 65504 = "):
        convert(spoilt("u", (4, 11), -1.01 * largest))


@CONVERSIONS
def test_rows_below_the_smallest_scale_are_counted(convert, most):
    peer = tiny_model(JUMP)
    assert rows_below_smallest_scale(convert(peer), peer) == 0
    limit = most * SMALLEST_SCALE
    with torch.no_grad():
        u, v = peer.blocks()[0].moe.u, peer.blocks()[2].moe.v
        u[3] = 0.9 * limit
        u[5] = limit
        u[6] = 0  # has no scale to round
        v[[0, 36]] *= 0.5 * limit / v[[0, 36]].abs().amax(1, keepdim=True)
    assert rows_below_smallest_scale(convert(peer), peer) == 3
