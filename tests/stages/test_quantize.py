"""quantize-int8 and quantize-int4: little is lost, less with more bits and with the better clip."""

import math

import pytest
import torch

from pipeline.measures import MeasureConfig
from stages.quantize_int4 import QuantizeInt4Config, quantize_int4
from stages.quantize_int8 import QuantizeInt8Config, quantize_int8
from tests.pictures import assert_picture

METRICS = {
    "held_out_loss_nats", "held_out_loss_standard_error_nats", "held_out_bits_per_byte", "held_out_tokens_measured",
    "loss_increase_nats", "loss_increase_standard_error_nats", "kl_to_teacher_nats", "loss_without_experts_nats",
    "loss_recovered", "effective_experts", "effective_experts_least", "active_experts_per_token", "firing_mismatches",
    "num_experts", "expert_bytes", "table_bytes_per_parameter", "sqnr_db",
}  # fmt: skip
COMMON = {"context_length": 23, "measure": MeasureConfig(tokens=300, batch_size=5)}


@pytest.fixture(scope="module")
def outputs(run_in, corpus, peer):
    inputs = {"corpus": corpus, "peer": peer.value}
    return {
        "int8": run_in(quantize_int8, QuantizeInt8Config(**COMMON), **inputs),
        "int4": run_in(quantize_int4, QuantizeInt4Config(**COMMON), **inputs),
        "absmax": run_in(quantize_int4, QuantizeInt4Config(clips=1, **COMMON), **inputs),
    }


def test_metrics_are_there_and_finite(outputs):
    for output in outputs.values():
        assert set(output.metrics) == METRICS
        assert all(math.isfinite(value) for value in output.metrics.values())


def test_kinds_and_sizes_are_those_of_the_precision(outputs):
    assert {name: output.value.kind for name, output in outputs.items()} == {
        "int8": "peer-int8",
        "int4": "peer-int4",
        "absmax": "peer-int4",
    }
    bytes_of = {name: output.metrics["expert_bytes"] for name, output in outputs.items()}
    assert bytes_of == {"int8": 2 * 22 + 4, "int4": 2 * 12 + 4, "absmax": 2 * 12 + 4}


def test_more_bits_and_better_clips_lose_less(outputs):
    sqnr = {name: output.metrics["sqnr_db"] for name, output in outputs.items()}
    assert sqnr["absmax"] < sqnr["int4"] < sqnr["int8"]
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
        assert output.files.keys() == {"plot.png"}
        assert_picture(output.files["plot.png"])
    assert outputs["int4"].files != outputs["absmax"].files
