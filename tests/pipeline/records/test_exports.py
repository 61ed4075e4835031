"""A block of a record as a file of the documented layout, a window as vLLM returns it, and whose record it is."""

import json

import pytest
import torch

from artifacts import ArtifactError
from artifacts.tensors_file import read_header, read_tensors
from kernels.errors import Mistake
from pipeline import codec
from pipeline.corpus.splits import Corpus, CorpusSpec
from pipeline.corpus.tokenizer import BpeTokenizer
from pipeline.examining.record import read_record, record_of
from pipeline.records.__main__ import main
from pipeline.records.exports import layer_file, layer_tensors, routed_experts
from pipeline.records.record import ActivationRecord
from pipeline.records.recording import Recording, record_activations
from tests.pipeline.test_codec import published, through
from tests.tiny import DENSE, JUMP, tiny_corpus, tiny_model

LENGTH, MOST = 9, 3
RECORDING = Recording(
    split="held_out", tokens=100, context_length=LENGTH, batch_size=4, most=MOST, contributions="float16"
)
INTEGERS = ("token", "label", "document", "stratum", "position", "domain")


@pytest.fixture(scope="module")
def corpus():
    return tiny_corpus()


@pytest.fixture(scope="module")
def model():
    return tiny_model(JUMP, vocab_size=256)


@pytest.fixture(scope="module")
def record(model, corpus):
    return record_activations(model, corpus, RECORDING)


def test_a_block_is_a_file_of_the_documented_layout(record, tmp_path):
    layer_file(record, 1, tmp_path / "block.safetensors")
    found = read_tensors(tmp_path / "block.safetensors")
    tokens = record.spec.tokens
    assert found["expert"].dtype == torch.int32
    assert found["expert"].shape == found["contribution"].shape == (tokens, MOST)
    assert found["contribution"].dtype == torch.float16
    for name in INTEGERS:
        assert (found[name].dtype, found[name].shape) == (torch.int32, (tokens,)), name
    assert found["loss_nats"].shape == found["omitted_share"].shape == (tokens,)
    assert found["experts"].tolist() == [37]
    assert found["cell"].shape == (37, 2)
    for name, values in layer_tensors(record, 1).items():
        assert torch.equal(found[name], values), name
    assert torch.equal(found["stratum"], found["domain"])
    about = json.loads(read_header(tmp_path / "block.safetensors")["__metadata__"]["recipe"])
    assert about["block"] == 1
    assert about["model_sha256"] == record.spec.model_sha256


def test_a_window_has_the_shape_that_vllm_returns(record):
    found = routed_experts(record, 2)
    assert (found.dtype, found.shape) == (torch.int32, (LENGTH, record.blocks, MOST))
    for place in range(LENGTH):
        for block in range(record.blocks):
            row = record.of_block(block, "expert")[2 * LENGTH + place]
            assert found[place, block].tolist() == row.tolist()
    windows = record.spec.tokens // LENGTH
    with pytest.raises(ValueError, match=f"windows 0 to {windows - 1}, and window {windows} was asked for"):
        routed_experts(record, windows)


def test_of_a_block_that_is_not_there_nothing_is_written(record, tmp_path):
    with pytest.raises(ValueError, match="blocks 0 to 2, and block 3 was asked for"):
        layer_file(record, 3, tmp_path / "block.safetensors")
    assert not (tmp_path / "block.safetensors").exists()


def test_it_goes_through_the_store_with_the_same_bits(record, store):
    back = through(store, record)
    assert isinstance(back, ActivationRecord)
    assert back.spec == record.spec
    assert back.tensors.keys() == record.tensors.keys()
    for name, values in record.tensors.items():
        assert torch.equal(back.tensors[name], values), name


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("layers.0.expert", None, r"'layers.0.expert' is none, where its spec wants \(99, 3\) of torch.int32"),
        ("layers.1.contribution", lambda t: t.float(), "'layers.1.contribution' is .*float32, .* wants .*float16"),
        ("token", lambda t: t[:-1], r"'token' is \(98,\) of torch.int32, where its spec wants \(99,\)"),
        ("layers.7.expert", lambda t: torch.zeros(2), "'layers.7.expert' is .*, where its spec wants none"),
    ],
    ids=["gone", "type", "short", "more"],
)
def test_tensors_that_do_not_fit_the_spec_are_refused_by_name(name, changed, says, record, store):
    tensors = record.to_tensors()
    value = tensors.pop(name, None)
    if changed is not None:
        tensors[name] = changed(value)
    id = published(store, "record", record.spec.model_dump(mode="json"), tensors)
    with pytest.raises(ArtifactError, match=says):
        codec.load(store.open(id))


def test_a_record_knows_the_model_that_made_it(record):
    record.check_is_of(tiny_model(JUMP, vocab_size=256))
    other = tiny_model(JUMP, vocab_size=256)
    with torch.no_grad():
        other.expert_layers()[2].bias[5] += 1e-6
    with pytest.raises(ValueError, match=r"record is of another model, a 'peer' with the digest .* record this model"):
        record.check_is_of(other)
    with pytest.raises(ValueError, match="of this 'dense'"):
        record.check_is_of(tiny_model(DENSE, vocab_size=256))


def test_a_record_knows_its_tokenizer(record, corpus):
    record.check_speaks_as(tiny_corpus(repeats=20))
    tokenizer = BpeTokenizer.train(["the cat sat on the mat"] * 3, 300)
    spec = CorpusSpec(tokenizer="bpe", vocab_size=len(tokenizer.token_bytes), domains=("farm",))
    other = Corpus(
        spec, train=corpus.train, validation=corpus.validation, held_out=corpus.held_out, tokenizer=tokenizer
    )
    with pytest.raises(ValueError, match="record is of another tokenizer, of 256 tokens, and the corpus has one of"):
        record.check_speaks_as(other)


def test_a_block_of_a_stored_record_is_written_by_a_command_and_examined(record, store, tmp_path, capsys):
    id = published(store, record.kind, record.spec.model_dump(mode="json"), record.to_tensors())
    file = tmp_path / "block.safetensors"
    assert main([id, "--block", "1", "--to", str(file), "--store", str(store.root)]) == 0
    assert f"python -m pipeline.examining {file}" in capsys.readouterr().out
    assert read_record(file).expert_TK.tolist() == record.of_block(1, "expert").sort(dim=1).values.tolist()
    for words, says in (
        (["--block", "9", "--to", str(file)], "blocks 0 to 2, and block 9 was asked for"),
        (["--block", "1", "--to", str(tmp_path / "no" / "file")], "there is no folder"),
    ):
        assert main([id, *words, "--store", str(store.root)]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token", 256), ("token", -1), ("label", 256), ("label", -1), ("document", -1), ("position", -1), ("domain", 1),
        ("domain", -1), ("loss_nats", -1.0), ("loss_nats", float("nan")), ("loss_nats", float("inf")),
        ("layers.0.expert", 37), ("layers.1.expert", -2), ("layers.0.fired", 38), ("layers.0.fired", -1),
        ("layers.1.contribution", -0.5), ("layers.1.contribution", float("nan")),
        ("layers.0.contribution", float("inf")), ("layers.0.omitted_share", 1.5),
        ("layers.0.omitted_share", float("nan")), ("layers.1.cell", -1),
    ],
)  # fmt: skip
def test_what_no_model_has_done_is_no_record(record, name, value):
    tensors = {key: tensor.clone() for key, tensor in record.to_tensors().items()}
    assert len(record.spec.domains) == 1
    spec = record.spec.model_dump(mode="json")
    ActivationRecord.restore("record", spec, tensors, {})
    tensors[name].view(-1)[5] = value
    with pytest.raises(ArtifactError, match=f"^tensor '{name}' holds .* can be; make the record again$"):
        ActivationRecord.restore("record", spec, tensors, {})


@pytest.mark.parametrize("name", ["loss_nats", "omitted_share"])
def test_a_record_of_another_writer_with_figures_that_are_none_is_told(record, tmp_path, name):
    layer_file(record, 0, tmp_path / "block.safetensors")
    tensors = {key: tensor.clone() for key, tensor in read_tensors(tmp_path / "block.safetensors").items()}
    tensors[name][3] = float("nan")
    with pytest.raises(Mistake, match=f"'{name}' holds nan .* at token 3; leave it out, or record again"):
        record_of(tensors)
