"""import-monet: the public release's function from its files, and one sentence for every checkpoint that is none."""

import json
import random
import re
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import Store
from artifacts.meanings import meaning
from kernels.errors import Failure, Mistake
from pipeline import codec
from pipeline.corpus.imported_tokenizer import imported_tokenizer
from pipeline.models.trained_length import trained_length
from pipeline.stage import run_stage
from stages.distill_peer import distill_peer
from stages.import_monet import ImportMonetConfig, import_monet
from stages.prepare_corpus import PrepareCorpusConfig, prepare_corpus
from tests.pictures import assert_picture
from tests.public_monet import CONFIG, LARGE, forward, write_checkpoint, write_tokenizer

TEXT = "the cat sat on the mat; a dog ran to the barn, and the hen hid. "
NONE = {"tokenizer": "none"}


def imported(source, **fields):
    return import_monet.fn(ImportMonetConfig(source=str(source), **(NONE | fields)))


def all_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


VARIANTS = {
    "vertical": {},
    "horizontal": {"moe_decompose": "horizontal", "moe_dim": 3},
    "no groups, no shared heads": {"moe_groups": 1, "num_key_value_heads": 3, "num_attention_heads": 3},
    "one group, other vocabulary": {"moe_groups": 3, "vocab_size": 41},
    "one head": {"moe_heads": 1, "moe_topk": 1, "num_attention_heads": 1, "num_key_value_heads": None},
}


@torch.no_grad()
@pytest.mark.parametrize("extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gates_are_those_of_the_release(tmp_path, name, extreme):
    config = CONFIG | VARIANTS[name]
    config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    for seed in range(2):
        folder = tmp_path / str(seed)
        write_checkpoint(folder, config, seed=seed, extreme=extreme, shards=1 + seed)
        (folder / "config.json").write_text(json.dumps(CONFIG | VARIANTS[name]))
        model = imported(folder).value
        generator = torch.Generator().manual_seed(9)
        tokens_BT = torch.randint(config["vocab_size"], (2, 40), generator=generator)
        logits, gates = forward(config, all_of(folder), tokens_BT)
        trace = model.trace(tokens_BT)
        assert float((trace.logits_BTV - logits).abs().max()) < 1e-4
        routings = list({id(routing): routing for routing in trace.routings}.values())
        for routing, axes in zip(routings, gates, strict=True):
            for ours, theirs in zip((routing.gate1_NHI, routing.gate2_NHJ), axes, strict=True):
                assert float((ours - theirs.flatten(0, 1)).abs().max()) < 1e-4
                assert bool((theirs.flatten(0, 1)[ours == 0] == 0).all())


def angles_in_float64(length, head_width, theta, device):
    half = [[t / theta ** (2 * i / head_width) for i in range(head_width // 2)] for t in range(length)]
    angle_TK = torch.tensor(half, dtype=torch.float64).repeat(1, 2)
    return angle_TK.cos(), angle_TK.sin()


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_wildest_router_leaves_between_them_is_rounding(tmp_path, monkeypatch, name):
    """Where two scores are nearly equal float32 shows it. A model has its angles in float32, whatever its own type."""
    monkeypatch.setattr("pipeline.models.transformer.rotary", angles_in_float64)
    config = CONFIG | VARIANTS[name]
    config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    write_checkpoint(tmp_path, config, router=1000)
    tokens_BT = torch.randint(config["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(9))
    weights = {name: it.double() if it.is_floating_point() else it for name, it in all_of(tmp_path).items()}
    logits, _ = forward(config, weights, tokens_BT)
    assert float((imported(tmp_path).value.double()(tokens_BT) - logits).abs().max()) < 1e-10


def test_defaults_of_the_release_and_the_words_of_transformers_5_are_read(tmp_path):
    config = {name: value for name, value in CONFIG.items() if name != "rope_theta"}
    written = config | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "head_dim": 8}
    write_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps(written))
    assert imported(tmp_path / "a").value.spec.transformer.rope_theta == 5000.0
    write_checkpoint(tmp_path / "b", dtype=torch.bfloat16)
    model = imported(tmp_path / "b").value
    assert {tensor.dtype for name, tensor in model.state_dict().items()} == {torch.float32, torch.int64}
    assert torch.equal(model.lm_head.weight, all_of(tmp_path / "b")["lm_head.weight"].float())


def test_counters_of_batch_norms_may_be_missing_and_a_derived_tensor_be_there(tmp_path):
    write_checkpoint(tmp_path)
    tensors = {name: t for name, t in all_of(tmp_path).items() if not name.endswith("num_batches_tracked")}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert int(imported(tmp_path).value.blocks()[0].router.norm1.num_batches_tracked) == 0


def test_the_artifact_is_one_of_lineage_and_later_stages_take_it(tmp_path, run_in, distill_config):
    folder, store = tmp_path / "release", Store(tmp_path / "store")
    write_checkpoint(folder, shards=2)
    write_tokenizer(folder)
    made = run_stage(import_monet, ImportMonetConfig(source=str(folder)), inputs={}, store=store)
    artifact = store.open(made.id, kind="monet")
    files = artifact.files()
    assert files.keys() == {"plot.png", "config.json", "checkpoint.json", "tokenizer.json", "tokenizer_config.json"}
    assert_picture(files["plot.png"].read_bytes())
    digests = json.loads(files["checkpoint.json"].read_text())
    assert len(digests) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values())
    assert artifact.lineage.sources_sha256
    assert "source" not in artifact.lineage.config
    assert all(meaning(name, "monet") for name in artifact.metrics)
    assert trained_length(store, made.id) == CONFIG["max_position_embeddings"]
    model = codec.load(artifact)
    for name, tensor in all_of(folder).items():
        assert torch.equal(model.state_dict()[name], tensor)
    # The same files elsewhere are the same artifact, and one other weight makes another.
    folder.rename(tmp_path / "moved")
    again = run_stage(import_monet, ImportMonetConfig(source=str(tmp_path / "moved")), inputs={}, store=store)
    assert again.reused
    write_checkpoint(tmp_path / "moved", shards=2, seed=1)
    assert (
        run_stage(import_monet, ImportMonetConfig(source=str(tmp_path / "moved")), inputs={}, store=store).id != made.id
    )

    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number}.txt").write_text(
            " ".join(random.Random(number).choices(TEXT.split(), k=120)) + f" {number} é\n"
        )
    config = PrepareCorpusConfig(
        sources=(str(texts),), tokenizer="imported", tokenizer_folder=str(store.root / made.id),
    )  # fmt: skip
    corpus_made = run_stage(prepare_corpus, config, inputs={}, store=store)
    corpus = codec.load(store.open(corpus_made.id))
    assert corpus.spec.vocab_size == 300
    assert corpus.tokenizer.separator == 2
    ids = corpus.train.tokens_at(torch.arange(corpus.train.num_tokens))
    first = ids[: int(corpus.train.document_start_D[1])]
    assert corpus.tokenizer.decode(first.tolist())[1:] in {(texts / f"{n}.txt").read_text() for n in range(12)}
    other = distill_config.model_copy(update={"num_experts": 30})
    peer = run_in(distill_peer, other, corpus=corpus, monet=model)
    assert peer.metrics["conversion_logit_error"] < 1e-4
    assert peer.metrics["held_out_bits_per_byte"] > 0


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path, run_in, distill_config, corpus):
    write_checkpoint(tmp_path)
    with pytest.raises(Mistake, match="the model reads 300 tokens and the corpus has a tokenizer of 256"):
        run_in(distill_peer, distill_config, corpus=corpus, monet=imported(tmp_path).value)


def test_pieces_stand_for_their_text(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = imported_tokenizer(tmp_path)
    for text in ("the cat", "  two  spaces ", "é ☃ \x00", "</s> is text", "\n\nthe"):
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.token_bytes[token] for token in ids) == b" " + text.encode()
        assert tokenizer.decode(ids) == " " + text
        assert 2 not in ids
    assert tokenizer.encode("the cat") == tokenizer._tokenizer.encode("the cat", add_special_tokens=False).ids
    assert len(tokenizer.encode("the cat")) == 2
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    record["normalizer"]["normalizers"].append({"type": "Lowercase"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(Mistake, match="does not keep text as it is: b'A cat' becomes b' a cat'"):
        imported_tokenizer(tmp_path).encode("A cat")
    record["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(Mistake, match="decodes by nothing"):
        imported_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "decoder": {"type": "ByteLevel"}}')
    with pytest.raises(Mistake, match="is none that `tokenizers` opens"):
        imported_tokenizer(tmp_path)


def edited(**fields):
    def edit(folder):
        file = folder / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def ending(**config):
    def edit(folder):
        (folder / "tokenizer_config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (edited(added_tokens=[{}]), "none that `tokenizers` opens .*missing field `id`"),
        (edited(added_tokens="x"), "none that `tokenizers` opens .*expected a sequence"),
        (edited(model=None), "none that `tokenizers` opens"),
        (lambda f: (f / "tokenizer.json").write_bytes(b"\xff{"), r"tokenizer\.json is no JSON"),
        (lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "no"}'), "has eos_token 'no', which"),
        (ending(eos_token_id=400), "ends with token 400, where the vocabulary has 285"),
        (ending(eos_token_id=-1), "ends with token -1, where"),
        (ending(vocab_size=100), "has a token 284, where the vocabulary has 100"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_told_in_a_sentence(tmp_path, spoil, said):
    write_tokenizer(tmp_path)
    spoil(tmp_path)
    with pytest.raises(Mistake, match=said):
        imported_tokenizer(tmp_path)


def changed(**fields):
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | fields))


def rewritten(change):
    def spoil(folder):
        tensors = all_of(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def indexed(change):
    def spoil(folder):
        write_checkpoint(folder, shards=3)
        (folder / "model.safetensors").unlink()
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        change(folder, index["weight_map"])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


LAST = "model-00003-of-00003.safetensors"
BAD = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "source: there is no folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json in"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read as JSON"),
    "another model": (changed(model_type="llama"), "has model_type 'llama', and 'monet' is"),
    "rope_scaling": (changed(rope_scaling={"type": "linear", "factor": 2.0}), "has rope_scaling="),
    "rope_parameters": (changed(rope_parameters={"rope_type": "yarn"}), "has rope_parameters.rope_type='yarn'"),
    "no number": (changed(rope_parameters={"rope_theta": "x"}), "rope_parameters.rope_theta: Input should be a valid"),
    "attention_bias": (changed(attention_bias=True), "has attention_bias=True"),
    "head_dim": (changed(head_dim=16), "has head_dim=16"),
    "tied": (changed(tie_word_embeddings=True), "has tie_word_embeddings=True"),
    "hidden_act": (changed(hidden_act="silu"), "has hidden_act='silu'"),
    "vocabulary": (changed(vocab_size=128_256), "has vocab_size=128256"),
    "decomposition": (changed(moe_decompose="diagonal"), "moe_decompose: Input should be 'vertical'"),
    "all active": (changed(moe_topk=6), "has moe_topk=6, .* fewer than moe_experts=6"),
    "heads": (changed(moe_heads=65), "moe_heads: Input should be less than or equal to 64"),
    "a word for a number": (changed(moe_experts="six"), "moe_experts: Input should be a valid integer"),
    "contradiction": (changed(moe_experts=7), r"router.w1.weight is \(12, 24\) in model.safetensors, where"),
    "more blocks": (changed(num_hidden_layers=4), "asks for the tensor model.layers.3"),
    "fewer blocks": (changed(num_hidden_layers=2), "holds the tensor model.layers.2"),
    "groups": (changed(moe_groups=1), "asks for the tensor model.layers.1.router"),
    "wrong shape": (
        rewritten(lambda t: t.update({"model.norm.weight": torch.ones(23)})), r"model.norm.weight is \(23,\)"
    ),
    "not finite": (rewritten(lambda t: t["lm_head.weight"].fill_(float("nan"))), "tensor 'lm_head.weight' holds nan"),
    "numbers for floats": (
        rewritten(lambda t: t.update({"model.norm.weight": torch.ones(24, dtype=torch.int64)})), "is of I64"
    ),
    "a pickle": (pickled, "has pytorch_model.bin and no model.safetensors: a pickle can run code"),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), "there is neither model.safetensors nor"),
    "a damaged file": (lambda f: (f / "model.safetensors").write_bytes(b"\x08" * 40), "is no file of safetensors"),
    "a missing shard": (indexed(lambda f, m: (f / LAST).unlink()), f"names {LAST}, which is not in"),
    "a path outside": (indexed(lambda f, m: m.update(x="../up.safetensors")), "names the file '../up.safetensors'"),
    "an absolute path": (indexed(lambda f, m: m.update(x="/etc/passwd")), "names the file '/etc/passwd'"),
    "a wrong place": (
        indexed(lambda f, m: m.update({"lm_head.weight": "model-00001-of-00003.safetensors"})), "does not hold it"
    ),
    "no map": (indexed(lambda f, m: m.update(x=3)), "has no weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_whole_checkpoint_is_told_in_a_sentence_and_leaves_nothing(tmp_path, what):
    spoil, said = BAD[what]
    folder, store = tmp_path / "release", Store(tmp_path / "store")
    write_checkpoint(folder)
    spoil(folder)
    with pytest.raises((Mistake, Failure, codec.ArtifactError), match=said) as told:
        run_stage(import_monet, ImportMonetConfig(source=str(folder), **NONE), inputs={}, store=store)
    assert "\n" not in str(told.value)
    assert store.ids() == []


def test_without_a_tokenizer_it_must_be_said_that_there_is_none(tmp_path):
    write_checkpoint(tmp_path)
    with pytest.raises(Mistake, match=r"no tokenizer\.json in .*--config.tokenizer none"):
        imported(tmp_path, tokenizer="files")
    with pytest.raises(Mistake, match="no source was named"):
        imported("")
    with pytest.raises(Mistake, match=r"no tokenizer\.json in"):
        imported_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="do not go together"):
        PrepareCorpusConfig(tokenizer="imported")


def test_a_name_of_the_hub_is_read_from_its_snapshot_or_told_in_a_sentence(tmp_path, monkeypatch):
    write_checkpoint(tmp_path)
    asked = []

    def snapshot(name, **asked_for):
        asked.append((name, asked_for["revision"]))
        if name == "they/have-none":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")
        return str(tmp_path)

    with pytest.raises(Mistake, match=r"'hf:\.\./etc' is no name of a model"):
        imported("hf:../etc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert imported("hf:they/have-one@main").metrics["context_tokens"] == 64
    with pytest.raises(Failure, match="'hf:they/have-none' cannot be reached"):
        imported("hf:they/have-none")
    assert asked[0] == ("they/have-one", "main")


MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from artifacts import Store
from pipeline.stage import run_stage
from stages.import_monet import ImportMonetConfig, import_monet
from tests.public_monet import write_checkpoint
folder, store = Path(sys.argv[1]), Store(Path(sys.argv[2]))
config = lambda name: ImportMonetConfig(source=str(folder / name), tokenizer="none")
write_checkpoint(folder / "tiny")
run_stage(import_monet, config("tiny"), inputs={}, store=store)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = run_stage(import_monet, config("large"), inputs={}, store=store)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / store.manifest(made.id).bytes)
"""


@pytest.mark.slow
def test_memory_is_at_most_1_3_times_the_size_of_a_model_of_many_shards(tmp_path):
    """Of one block as wide as those of the shape called 1.4B; all of it is `LARGE` itself, in 12 GB of disk."""
    config = LARGE | {"num_hidden_layers": 1, "vocab_size": 2000, "moe_experts": 256}
    write_checkpoint(tmp_path / "large", config, shards=4)
    code = [sys.executable, "-c", MEMORY, str(tmp_path), str(tmp_path / "store")]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3
