"""Exports: their modeling file computes what the model does, they are read back bit for bit, and appear whole."""

import json
import re
import stat

import pytest
import torch
from tokenizers import Tokenizer

from artifacts import ArtifactError, Circumstance, Recipe, Store
from kernels.errors import Mistake
from pipeline import codec
from pipeline.corpus.tokenizer import BpeTokenizer
from pipeline.exchange.__main__ import main
from pipeline.exchange.exporting import _of_corpus, export, read_export
from pipeline.models.transformer import TransformerShape
from pipeline.stage import run_stage
from stages.import_monet import ImportMonetConfig, import_monet
from tests.public_monet import write_checkpoint, write_tokenizer
from tests.stand_in_transformers import opened
from tests.tiny import EVERY_KIND, INT4, JUMP, SOFTMAX, tiny_corpus, tiny_model
from tests.tiny_symbols import symbols_model
from tests.tolerances import assert_close

MODELS = {
    **{name: lambda spec=spec: tiny_model(spec, vocab_size=256) for name, spec in EVERY_KIND.items()},
    "relu, pools of heads": lambda: tiny_model(
        SOFTMAX.model_copy(update={"gate": "relu", "pools": "per-head", "num_experts": 80}), vocab_size=256
    ),
    "shared keys, wide grid": lambda: tiny_model(
        SOFTMAX.model_copy(update={"sub_keys": "shared", "aspect": 2, "query_norm": False}), vocab_size=256
    ),
    "features, tie margin": lambda: tiny_model(
        JUMP.model_copy(
            update={"sub_keys": "identity", "d_key": 5, "query_norm": False, "score_features": 7, "tie_margin": 0.1}
        ),
        vocab_size=256,
    ),
    "scales of groups": lambda: tiny_model(
        INT4.model_copy(update={"scale_groups": 2}), vocab_size=256,
        shape=TransformerShape(d_model=12, num_layers=2, num_heads=3, num_kv_heads=3),
    ),
    "symbols": symbols_model,
}  # fmt: skip
TOKENS = torch.randint(256, (2, 19), generator=torch.Generator().manual_seed(3))


def made(store, model, *, stage="train-model", corpus=True, config=None):
    """The id of the model, made from a corpus in the store."""
    circumstance = Circumstance.now(device="cpu", seconds=0.0)
    inputs = {}
    if corpus:
        value = tiny_corpus()
        inputs["corpus"] = store.publish(
            recipe=Recipe(stage="prepare-corpus", stage_version=1, config={}, seed=0, inputs={}), kind="corpus",
            spec=value.spec.model_dump(mode="json"), tensors=value.to_tensors(), metrics={}, files=value.to_files(),
            circumstance=circumstance,
        )  # fmt: skip
    config = {"training": {"context_length": 32}} if config is None else config
    return store.publish(
        recipe=Recipe(stage=stage, stage_version=1, config=config, seed=0, inputs=inputs), kind=model.kind,
        spec=model.spec.model_dump(mode="json"), tensors=model.to_tensors(), metrics={}, files={},
        circumstance=circumstance,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_modeling_file_computes_the_model_and_the_folder_is_read_back_bit_for_bit(store, tmp_path, name):
    model = MODELS[name]()
    folder = tmp_path / "out"
    export(store, made(store, model), folder)
    wanted = model(TOKENS)
    assert torch.equal(read_export(folder)(TOKENS), wanted)
    theirs = opened(folder)
    assert_close(theirs(TOKENS).logits, wanted, 1e-5)
    assert_routed(model, theirs)
    buffers = {name: buffer.clone() for name, buffer in theirs.named_buffers()}
    assert torch.isfinite(theirs.to(torch.bfloat16)(TOKENS).logits).all()
    for name, buffer in theirs.named_buffers():
        assert torch.equal(buffer, buffers[name]), name  # scales and statistics are what they were
    theirs = opened(folder)
    # In steps through the cache, of one and of several tokens; and a shorter text padded on its left beside a longer.
    cached, at = None, 0
    for length in (4, 1, 1, 5, 8):
        step = theirs(TOKENS[:, at : at + length], past_key_values=cached, use_cache=True)
        assert_close(step.logits, wanted[:, at : at + length], 1e-5)
        cached, at = step.past_key_values, at + length
    padded, mask = TOKENS.clone(), torch.ones_like(TOKENS)
    padded[0], mask[0, :6] = torch.cat([torch.full((6,), 7), TOKENS[0, :13]]), 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    together = theirs(padded, attention_mask=mask, position_ids=position, use_cache=False).logits
    assert_close(together[0, 6:], wanted[0, :13], 1e-5)
    assert_close(together[1], wanted[1], 1e-5)


def assert_routed(model, theirs):
    """Its routed experts are the pairs of the model, those of several heads as one, with their gates."""
    theirs.config.routed_experts_kept = 100
    output = theirs(TOKENS, output_routed_experts=True)
    if model.kind == "dense":
        assert output.routed_experts is None
        return
    assert output.routed_experts.shape == (*TOKENS.shape, model.shape.num_layers, 100)
    for layer, visit in enumerate(model.walk(TOKENS)):
        pairs, gates = visit.pairs(), {}
        for token, expert, gate in zip(
            pairs.token_P.tolist(), pairs.expert_P.tolist(), pairs.gate_P.tolist(), strict=True
        ):
            gates[token, expert] = gates.get((token, expert), 0.0) + gate
        experts = output.routed_experts[:, :, layer].flatten(0, 1)
        found = {
            (token, expert): gate
            for token, row in enumerate(experts.tolist())
            for expert, gate in zip(row, output.routed_gates[:, :, layer].flatten(0, 1)[token].tolist(), strict=True)
            if expert >= 0
        }
        assert found.keys() == gates.keys()
        assert all(found[pair] == pytest.approx(gate, abs=1e-5) for pair, gate in gates.items())


@torch.no_grad()
@pytest.mark.parametrize("name", ["peer-softmax", "peer-jumprelu", "int4", "symbols"])
def test_hook_points_see_and_change_what_experts_do(store, tmp_path, name):
    model = MODELS[name]()
    export(store, made(store, model), tmp_path / "out")
    theirs = opened(tmp_path / "out")
    moe, seen = theirs.model.layers[0].moe, {}
    hooks = [
        getattr(moe, f"hook_{what}").register_forward_hook(lambda _, __, out, what=what: seen.update({what: out}))
        for what in ("index", "gate", "pre", "contribution")
    ]
    before = theirs(TOKENS).logits
    for hook in hooks:
        hook.remove()
    assert {value.shape for value in seen.values()} == {seen["index"].shape}
    assert seen["index"].shape[:2] == TOKENS.shape
    assert bool((seen["gate"][seen["index"] < 0] == 0).all())
    expert = int(seen["index"][seen["contribution"].abs() > 1e-3][0])
    moe.hook_index.register_forward_hook(lambda _, __, out: out.masked_fill(out == expert, -1))
    without = theirs(TOKENS).logits
    assert float((without - before).abs().max()) > 1e-6
    # By the house: what the layer adds without that expert's row of v.
    v = model.expert_layers()[0].v
    (v if isinstance(v, torch.Tensor) else v.weight_EB)[expert] = 0
    assert_close(model(TOKENS), without, 1e-5)


@torch.no_grad()
def test_the_loss_is_of_the_labels_that_follow_and_count(store, tmp_path):
    model = MODELS["dense"]()
    export(store, made(store, model), tmp_path / "out")
    labels = TOKENS.clone()
    labels[0, 4:9] = -100  # which transformers leaves out
    log_p = torch.log_softmax(model(TOKENS).double(), -1)
    counted = [(row, t) for row in range(2) for t in range(1, 19) if labels[row, t] >= 0]
    wanted = -sum(float(log_p[row, t - 1, labels[row, t]]) for row, t in counted) / len(counted)
    assert float(opened(tmp_path / "out")(TOKENS, labels=labels).loss) == pytest.approx(wanted, rel=1e-5)


def test_large_weights_are_sharded_and_read_back(store, tmp_path):
    model = MODELS["int8"]()
    exported = export(store, made(store, model), tmp_path / "out", shard_bytes=4000)
    shards = [name for name in exported.files if name.endswith(".safetensors")]
    assert len(shards) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert torch.equal(read_export(tmp_path / "out")(TOKENS), model(TOKENS))


def test_the_tokenizer_is_that_of_the_corpus(store, tmp_path):
    export(store, made(store, MODELS["dense"]()), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "the cat\n  é ☃\x00\tdon't"
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 32
    assert config["eos_token_id"] is None
    trained = BpeTokenizer.train([text, "the cat the cat the cat"], 270)
    tokens = _of_corpus(trained)
    assert tokens.config["eos_token"] == "<|end|>"
    assert tokens.end == trained.separator
    assert Tokenizer.from_str(tokens.tokenizer.decode()).encode(text).ids == trained.encode(text)


def test_an_imported_checkpoint_goes_out_again_with_its_own_tokenizer(store, tmp_path):
    write_checkpoint(tmp_path / "release")
    write_tokenizer(tmp_path / "release")
    id = run_stage(import_monet, ImportMonetConfig(source=str(tmp_path / "release")), inputs={}, store=store).id
    export(store, id, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "release" / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["eos_token_id"]) == (64, 2)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    model = codec.load(store.open(id))
    assert torch.equal(read_export(tmp_path / "out")(TOKENS), model(TOKENS))


def test_the_folder_is_whole_or_not_there(store, tmp_path, capsys, monkeypatch):
    id = made(store, MODELS["dense"]())
    assert main(["export", id, "--to", str(tmp_path / "out"), "--store", str(store.root)]) == 0
    assert "from_pretrained" in capsys.readouterr().out
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_legible.py",
        "tokenizer.json", "tokenizer_config.json", "transformer_lens_legible.py",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert id in card
    assert "\nlibrary_name: transformers\n" in card.split("---\n")[1]
    for to, said in ((tmp_path / "out", "is there already"), (tmp_path / "no" / "out", "there is no folder")):
        assert main(["export", id, "--to", str(to), "--store", str(store.root)]) == 2
        assert re.search(said, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["export", id, "--to", str(tmp_path / "other"), "\x1b[2J" + "y" * 3000])
    err = capsys.readouterr().err
    assert "\\u001b[2J" in err
    assert "\x1b" not in err
    assert len(err) < 2500

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.exchange.exporting.write_shards", full)
    assert main(["export", id, "--to", str(tmp_path / "other"), "--store", str(store.root)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []


def test_what_cannot_be_exported_or_read_is_told_in_a_sentence(store, tmp_path):
    with pytest.raises(ArtifactError, match="made from no corpus and brought no tokenizer"):
        export(store, made(store, MODELS["dense"](), corpus=False), tmp_path / "a")
    with pytest.raises(ArtifactError, match="on how many tokens of context"):
        export(store, made(store, MODELS["dense"](), config={}), tmp_path / "a")
    with pytest.raises(Mistake, match="the model reads 23 tokens"):
        export(store, made(store, tiny_model(EVERY_KIND["dense"]), stage="train-other"), tmp_path / "a")
    write_checkpoint(tmp_path / "release")
    with pytest.raises(Mistake, match="has model_type 'monet'; wanted 'legible'"):
        read_export(tmp_path / "release")
    export(store, made(store, MODELS["dense"]()), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["experts"]["d_hidden"] += 1
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"moe\.down\.weight"):
        read_export(tmp_path / "b")
