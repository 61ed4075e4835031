"""A model is restored only if every number in it is one that it may hold; what is restored runs alike on every path."""

from dataclasses import replace

import pytest
import torch

from artifacts import ArtifactError
from kernels import backends
from pipeline.models import LanguageModel
from tests.tiny import EVERY_KIND, HORIZONTAL, INT4, INT8, JUMP, TRAINABLE, tiny_model, tiny_tokens
from tests.tiny_symbols import symbols_model

NAMES = [*EVERY_KIND, "symbols"]


def made(name):
    return symbols_model() if name == "symbols" else tiny_model(EVERY_KIND[name])


def restored(model, tensors=None, **changes):
    """From these tensors of it and its spec, `changes` being of the spec of its experts."""
    spec = model.spec.model_dump(mode="json")
    spec["experts"] |= changes
    held = model.to_tensors() if tensors is None else tensors
    return LanguageModel.restore(model.kind, spec, {key: tensor.clone() for key, tensor in held.items()}, {})


def said(name, key, value):
    table = key.split(".")[-1]
    if name == "symbols" and f".moe.{table}" in key:
        layer = key.split(".")[2]
        where = rf"model\.layers\.{layer}\.moe, symbolic experts"
        return rf"^{where}: ({table} holds {value} at |spline_low_W .* not below {table};)"
    return rf"^tensor '{key}' holds {value} at .*; it takes finite .*; copy"


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_not_finite_is_refused_in_every_tensor(name, value):
    model = made(name)
    floats = [key for key, tensor in model.to_tensors().items() if tensor.is_floating_point()]
    assert len(floats) > 20
    for key in floats:
        tensors = {k: tensor.clone() for k, tensor in model.to_tensors().items()}
        tensors[key].view(-1)[-1] = value
        if key.endswith("threshold_H") and value == -torch.inf:
            restored(model, tensors)  # every pair that passes both axes fires
            continue
        with pytest.raises(ArtifactError, match=said(name, key, value)):
            restored(model, tensors)


@pytest.mark.parametrize(
    ("spec", "tensor", "value", "message"),
    [
        (
            INT4,
            "moe.u.weight_EB",
            0x08,
            r"holds 8 at \(36, 5\); it takes bytes of two nibbles from -7 to 7, none of -8",
        ),
        (INT4, "moe.v.weight_EB", 0x81, r"holds 129 at \(36, 5\); it takes bytes of two nibbles"),
        (INT8, "moe.u.value_ED", -128, r"holds -128 at \(36, 11\); it takes values from -127 to 127"),
        (INT8, "moe.v.scale_E", 0.0, r"holds 0\.0 at 36; it takes finite scales above 0"),
        (INT4, "moe.u.scale_E", -0.5, r"holds -0\.5 at 36; it takes finite scales above 0"),
        (TRAINABLE, "moe.u.moment_E", -1.0, r"holds -1\.0 at 36; it takes finite numbers of at least 0"),
        (HORIZONTAL, "router.norm1.running_var", -1.0, r"holds -1\.0 at 2; it takes finite numbers of at least 0"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_its_entry(spec, tensor, value, message):
    model = tiny_model(spec)
    model.state_dict()[f"model.layers.0.{tensor}"].view(-1)[-1] = value
    with pytest.raises(ArtifactError, match=rf"^tensor 'model\.layers\.0\.{tensor}' {message}"):
        restored(model)


def test_an_accumulator_holds_any_nibble():
    model = tiny_model(TRAINABLE)
    model.blocks()[0].moe.u.accumulator_EB.fill_(0x88)
    assert torch.equal(restored(model).blocks()[0].moe.u.accumulator_EB, model.blocks()[0].moe.u.accumulator_EB)


@pytest.mark.parametrize("form", ["a row of int32", "offsets and blocks"])
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 1, "holds 1 at 0"),
        (0, -3, "holds -3 at 0"),
        (7, 40, "holds 12 at 8"),
        (7, 2**31 - 1, "holds 12 at 8"),
        (25, 36, "holds 36 at 25"),
        (25, 38, "holds 38 at 25"),
    ],
)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("dense", "symbols") and "monet" not in name])
def test_cells_that_do_not_rise_from_0_to_the_number_of_experts_are_refused(name, form, at, value, message):
    model = made(name)
    index = model.blocks()[1].moe.index
    start_C1 = index.stored.row()
    assert start_C1[8] == 12
    start_C1[at] = value
    index.place(start_C1)
    tensors = model.to_tensors()
    prefix = "model.layers.1.moe.index"
    if form == "a row of int32":
        del tensors[f"{prefix}.offset_C1"], tensors[f"{prefix}.block_start_K"]
        tensors[f"{prefix}.cell_start_C1"] = start_C1
    wanted = (
        rf"^tensor 'model\.layers\.1\.moe\.index\.offset_C1' {message}; it takes starts of cells that rise from 0 to"
    )
    with pytest.raises(ArtifactError, match=wanted + " 37, the number of experts"):
        restored(model, tensors)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dense", {"d_hidden": 2**24}),
        ("monet-vertical", {"num_sub_experts": 4096, "d_expert": 1024}),
        ("monet-horizontal", {"num_sub_experts": 4096, "d_expert": 1024}),
        ("peer-softmax", {"num_experts": 2**30}),
        ("peer-jumprelu", {"num_keys": 2**15, "aspect": 64}),
        ("int8", {"num_experts": 2**30}),
        ("int4", {"num_experts": 2**30}),
        ("symbols", {"num_dense": (2**30, 1)}),
        ("symbols", {"num_literals": (4, 2**30)}),
        ("symbols", {"coordinates": 4096, "num_gates": (2**30, 1)}),
    ],
)
def test_every_size_is_compared_with_the_file_before_it_is_made(name, changes):
    with pytest.raises(
        ArtifactError, match=r"^the spec asks for \d+ numbers and more, where the file holds \d+: it is"
    ):
        restored(made(name), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_dense": (1,)}, "num_dense is of 1 blocks, and num_layers=2"),
        ({"num_literals": (4, 4, 4)}, "num_literals is of 3 blocks, and num_layers=2"),
        ({"num_gates": (3, -1)}, "num_gates.1\n  Input should be greater than or equal to 0"),
        ({"num_splines": (1, 2**40)}, "num_splines.1\n  Input should be less than or equal to 1073741824"),
        ({"vocab_size": 300}, "literals speak of 300 tokens, and vocab_size=256"),
    ],
)
def test_the_sizes_of_symbols_are_those_of_their_transformer(symbols, changes, message):
    with pytest.raises(ValueError, match=message):
        restored(symbols, **changes)


def test_a_spec_whose_fields_do_not_fit_is_told_in_one_sentence():
    model = tiny_model(INT4)
    with pytest.raises(ArtifactError, match=r"^its spec makes no model: scale_groups=5 does not divide d_model / 2"):
        restored(model, scale_groups=5)


def test_a_kind_that_is_not_the_specs_is_refused():
    model = tiny_model(JUMP)
    with pytest.raises(ArtifactError, match="it is of kind 'peer-int8', but its spec is that of a 'peer'; copy"):
        LanguageModel.restore("peer-int8", model.spec.model_dump(mode="json"), model.to_tensors(), {})


def mutated(tensors, generator):
    """These tensors with one bit of one of them flipped, and its name."""
    names = sorted(key for key, tensor in tensors.items() if tensor.numel())
    name = names[int(torch.randint(len(names), (), generator=generator))]
    raw = bytearray(tensors[name].numpy().tobytes())
    raw[int(torch.randint(len(raw), (), generator=generator))] ^= 1 << int(torch.randint(8, (), generator=generator))
    changed = torch.frombuffer(raw, dtype=tensors[name].dtype).reshape(tensors[name].shape)
    return {**tensors, name: changed}, name


@pytest.mark.parametrize("name", ["peer-jumprelu", "int8", "int4", "symbols"])
def test_a_flipped_bit_is_refused_or_gives_the_same_numbers_on_every_path(name, best_library, monkeypatch):
    model = made(name)
    tokens_BT = tiny_tokens()
    generator = torch.Generator().manual_seed(15)
    refused = 0
    for _ in range(40):
        tensors, changed = mutated(model.to_tensors(), generator)
        try:
            back = restored(model, tensors)
        except ArtifactError:
            refused += 1
            continue
        logits = []
        for library in (None, replace(best_library)):
            monkeypatch.setattr(backends, "cpu_library", lambda library=library: library)
            with torch.no_grad():
                logits.append(back(tokens_BT))
        # A bit of an exponent magnifies the rounding in which the paths differ.
        most = 1e-3 * max(1.0, float(logits[0].nan_to_num(0, 0, 0).abs().max()))
        assert torch.allclose(*logits, rtol=0, atol=most, equal_nan=True), changed
    assert 0 < refused < 40
