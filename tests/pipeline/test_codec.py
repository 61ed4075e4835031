"""Every kind of model goes into the store and comes back the same, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from artifacts import ArtifactError, Circumstance, Recipe
from kernels.pairs import starts
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.models import LanguageModel
from pipeline.models.peer.cells import CellIndex
from stages.chain import STAGES
from tests.tiny import EVERY_KIND, tiny_model, tiny_tokens

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "dense": "dense",
    "monet-horizontal": "monet",
    "monet-vertical": "monet",
    "peer-softmax": "peer",
    "peer-jumprelu": "peer",
    "int8": "peer-int8",
    "int4": "peer-int4",
    "int4-accumulator": "peer-int4",
}


def published(store, kind, spec, tensors, files=None):
    return store.publish(
        recipe=Recipe(stage="make-it", stage_version=1, config={}, seed=0, inputs={}),
        kind=kind,
        spec=spec,
        tensors=tensors,
        metrics={},
        files=files or {},
        circumstance=Circumstance.now(device="cpu", seconds=0.1),
    )


def through(store, value):
    """The value as another process would open it."""
    id = published(store, value.kind, value.spec.model_dump(mode="json"), value.to_tensors(), value.to_files())
    return codec.load(store.open(id))


def test_a_process_that_imports_codec_alone_opens_every_kind():
    code = (
        "import sys\n"
        "from pipeline import codec\n"
        "assert 'pipeline.models' not in sys.modules\n"
        "print(*codec.known_kinds())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted({*KINDS.values(), "corpus", "record", "report", "symbols"})


def test_the_kinds_of_a_class_are_those_that_it_restores():
    """Each from outside: what restores a model is asked by every kind there is."""
    assert set(codec.kinds_of(LanguageModel)) == {*KINDS.values(), "symbols"}
    assert codec.kinds_of(Corpus) == ("corpus",)


def test_load_finds_the_home_of_a_kind_itself(store, monkeypatch):
    """As in a process that has imported nothing else: the registry is empty until it is asked."""
    id = published(store, "dense", (model := tiny_model(EVERY_KIND["dense"])).spec.model_dump(), model.to_tensors())
    registry = dict(codec._CLASSES)
    monkeypatch.setattr(codec, "_CLASSES", {})
    monkeypatch.setattr(codec.importlib, "import_module", lambda home: codec._CLASSES.update(registry))
    assert codec.load(store.open(id)).kind == "dense"


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_model_comes_back_with_every_bit(store, name):
    model = tiny_model(EVERY_KIND[name])
    assert model.kind == KINDS[name]
    back = through(store, model)
    assert (type(back), back.kind, back.spec) == (type(model), model.kind, model.spec)
    state, opened = model.state_dict(), back.state_dict()
    assert opened.keys() == state.keys()
    for key, tensor in state.items():
        assert opened[key].dtype == tensor.dtype
        assert torch.equal(opened[key], tensor), key
    with torch.no_grad():
        assert torch.equal(back.eval()(tiny_tokens()), model(tiny_tokens()))


def test_a_model_that_comes_back_can_be_changed_and_leaves_its_artifact(store):
    model = tiny_model(EVERY_KIND["int4-accumulator"])
    back = through(store, model)
    with torch.no_grad():
        for tensor in back.state_dict().values():
            tensor.zero_()
    assert store.verify() == []
    again = codec.load(store.open(store.ids()[0]))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_corpus_comes_back_with_its_windows_and_its_text(store, corpus):
    back = through(store, corpus)
    for split in ("train", "held_out"):
        wanted = held_out_windows(getattr(corpus, split), num_tokens=None, length=11)
        got = held_out_windows(getattr(back, split), num_tokens=None, length=11)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert back.spec == corpus.spec
    assert back.tokenizer.decode(back.train.tokens_at(torch.arange(7)).tolist()) == "the cat"


def test_an_unknown_kind_is_told_the_known_ones(store):
    id = published(store, "oracle", {}, {"x": torch.zeros(3)})
    with pytest.raises(ArtifactError, match=r"is of kind 'oracle', which nothing here can open; known kinds: .*monet"):
        codec.load(store.open(id))


def test_a_kind_has_one_class():
    before = codec.known_kinds()
    with pytest.raises(ValueError, match="kind 'monet' is already restored by LanguageModel"):
        codec.artifact_kinds("monet")(type("Impostor", (), {}))
    assert codec.known_kinds() == before


def test_every_kind_a_stage_takes_is_known():
    taken = {kind for stage in STAGES for role in stage.inputs.values() for kind in role.kinds}
    assert {"corpus", "monet", "peer", "peer-int4"} <= taken <= set(codec.known_kinds())


def test_tensors_that_do_not_fit_the_spec_are_refused(store):
    model = tiny_model(EVERY_KIND["dense"])
    tensors = model.to_tensors()
    del tensors["lm_head.weight"]
    id = published(store, "dense", model.spec.model_dump(mode="json"), tensors)
    with pytest.raises(ArtifactError, match=r"'lm_head\.weight' is none, where this version wants \(23, 12\) of"):
        codec.load(store.open(id))


def test_int4_tables_of_another_layout_are_refused(store):
    model = tiny_model(EVERY_KIND["int4"])
    spec = model.spec.model_dump(mode="json")
    spec["experts"]["nibble_layout"] = "interleaved"
    id = published(store, "peer-int4", spec, model.to_tensors())
    with pytest.raises(
        ArtifactError, match=r"does not read \(experts.peer.nibble_layout: 'interleaved', Input should be"
    ):
        codec.load(store.open(id))


def as_once(model):
    """The model's tensors with an int32 row of starts a layer, as artifacts of before held them."""
    tensors = model.to_tensors()
    for name, module in model.named_modules():
        if isinstance(module, CellIndex):
            del tensors[f"{name}.offset_C1"], tensors[f"{name}.block_start_K"]
            tensors[f"{name}.cell_start_C1"] = module.stored.row()
    return tensors


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.startswith("peer")])
@pytest.mark.parametrize("most", [1, 300])
def test_artifacts_whose_cells_are_a_row_of_int32_open_as_the_model_that_they_are(store, name, most):
    spec = EVERY_KIND[name]
    count_C = torch.randint(most + 1, (spec.num_cells,), generator=torch.Generator().manual_seed(3))
    count_C[4] += 1
    model = tiny_model(spec.model_copy(update={"num_experts": int(count_C.sum())}))
    for block in model.blocks():
        block.moe.index.place(starts(count_C))
    offset_C1 = model.blocks()[0].moe.index.offset_C1
    assert offset_C1.dtype == (torch.uint8 if most == 1 else torch.int32)
    id = published(store, model.kind, model.spec.model_dump(mode="json"), as_once(model))
    back = codec.load(store.open(id))
    state, opened = model.state_dict(), back.state_dict()
    assert opened.keys() == state.keys()
    assert all(opened[key].dtype == state[key].dtype and torch.equal(opened[key], state[key]) for key in state)
    with torch.no_grad():
        assert torch.equal(back.eval()(tiny_tokens()), model(tiny_tokens()))
    model.load_state_dict(as_once(model))  # so do checkpoints of training


def test_cells_of_another_form_are_refused(store):
    model = tiny_model(EVERY_KIND["peer-jumprelu"])
    name = "model.layers.0.moe.index"
    spec, wrong = model.spec.model_dump(mode="json"), {}
    wrong["block_start_K' is none, where"] = as_once(model) | {
        f"{name}.cell_start_C1": torch.zeros(26, dtype=torch.int64)
    }
    wrong[r"offset_C1' is \(25,\) of torch.uint8"] = as_once(model) | {
        f"{name}.cell_start_C1": torch.zeros(25, dtype=torch.int32)
    }
    wrong[r"offset_C1' is .* of torch.int64, .* \(26,\) of torch.uint8"] = model.to_tensors() | {
        f"{name}.offset_C1": torch.zeros(26, dtype=torch.int64)
    }
    for number, (message, tensors) in enumerate(wrong.items()):
        store_tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        recipe = Recipe(stage="make-it", stage_version=2 + number, config={}, seed=0, inputs={})
        id = store.publish(
            recipe=recipe, kind=model.kind, spec=spec, tensors=store_tensors, metrics={}, files={},
            circumstance=Circumstance.now(device="cpu", seconds=0.1),
        )  # fmt: skip
        with pytest.raises(ArtifactError, match=message):
            codec.load(store.open(id))


def test_an_artifact_of_another_class_than_was_asked_for_is_named(store):
    model = tiny_model(EVERY_KIND["dense"])
    artifact = store.open(published(store, model.kind, model.spec.model_dump(mode="json"), model.to_tensors()))
    with pytest.raises(ArtifactError, match=rf"^{artifact.id} is of kind 'dense', and Corpus was needed here; name"):
        codec.load_as(Corpus, artifact)
    assert codec.load_as(LanguageModel, artifact).spec == model.spec
