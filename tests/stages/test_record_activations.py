"""record-activations: a record in the store with its picture and words, again the same, goes on after a kill."""

import pytest

from artifacts import Store
from artifacts.meanings import meaning
from pipeline import codec
from pipeline.records import recording
from pipeline.records.record import ActivationRecord
from pipeline.stage import run_stage
from stages.record_activations import RecordActivationsConfig, record_activations
from tests.pictures import assert_picture
from tests.pipeline.test_codec import published
from tests.tiny import DENSE, JUMP, tiny_corpus, tiny_model

CONFIG = RecordActivationsConfig(tokens=200, context_length=10, batch_size=3, experts_per_token=4)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def inputs(store):
    """inputs(experts): ids of the corpus and of a model with these experts."""

    def inputs(experts):
        values = {"corpus": tiny_corpus(), "model": tiny_model(experts, vocab_size=256)}
        return {
            role: published(store, value.kind, value.spec.model_dump(mode="json"), value.to_tensors(), value.to_files())
            for role, value in values.items()
        }

    return inputs


def test_figures_are_those_of_the_record_and_have_words(run_in):
    output = run_in(record_activations, CONFIG, corpus=tiny_corpus(), model=tiny_model(DENSE, vocab_size=256))
    assert output.files.keys() == {"plot.png"}
    assert_picture(output.files["plot.png"])
    found, record = output.metrics, output.value
    assert all(meaning(name, "record") for name in found)
    fired = [record.of_block(block, "fired").tolist() for block in range(3)]
    experts = [record.of_block(block, "expert").tolist() for block in range(3)]
    kept = [[one for row in rows for one in row if one >= 0] for rows in experts]
    shares = [record.of_block(block, "omitted_share").tolist() for block in range(3)]
    assert found["recorded_tokens"] == 200 == len(fired[0])
    assert found["recorded_documents"] == len(set(record.tensors["document"].tolist()))
    assert found["recorded_domains"] == 1
    assert found["fired_experts_per_token"] == pytest.approx(sum(map(sum, fired)) / 600)
    assert found["kept_experts_per_token"] == pytest.approx(sum(map(len, kept)) / 600)
    assert found["omitted_share_mean"] == pytest.approx(sum(map(sum, shares)) / 600)
    assert found["omitted_share_most"] == pytest.approx(max(sum(share) / 200 for share in shares))
    assert found["experts_seen_share"] == pytest.approx(sum(len(set(of)) for of in kept) / (3 * 18))
    assert found["recorded_loss_nats"] == pytest.approx(sum(record.tensors["loss_nats"].tolist()) / 200)
    assert found["record_bytes_per_block"] == 200 * (4 * (4 + 2) + 4 + 4)


def test_at_32_experts_a_million_tokens_take_less_than_250_mb_a_block(run_in):
    """With all that a file of one block holds, and the cells of 262,144 experts."""
    config = CONFIG.model_copy(update={"experts_per_token": 32})
    record = run_in(record_activations, config, corpus=tiny_corpus(), model=tiny_model(JUMP, vocab_size=256)).value
    shared = sum(values.nbytes for name, values in record.tensors.items() if "." not in name)
    block = sum(values.nbytes for name, values in record.tensors.items() if name.startswith("layers.0."))
    cells = record.cells_of(0).nbytes
    assert cells == 37 * 8
    assert (shared + block - cells) / 200 * 1e6 + 262_144 * 8 < 250e6


def test_killed_and_run_again_it_publishes_the_same_bits(store, inputs, monkeypatch):
    monkeypatch.setattr(recording, "_TOKENS_A_BLOCK", 60)
    ids, batches, seen = inputs(JUMP), recording.batch_columns, []

    def killed(*arguments):
        seen.append(None)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return batches(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "batch_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage(record_activations, CONFIG, inputs=ids, store=store)
    resumed = run_stage(record_activations, CONFIG, inputs=ids, store=store)
    assert isinstance(codec.load(store.open(resumed.id)), ActivationRecord)
    again = run_stage(record_activations, CONFIG, inputs=ids, store=store, force=True)
    assert again.id == resumed.id  # of other bytes it would be a second attempt


@pytest.mark.parametrize(
    "wrong", [{"experts_per_token": 0}, {"tokens": 0}, {"context_length": 0}, {"split": "test"}], ids=str
)
def test_a_config_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RecordActivationsConfig(**wrong)


def test_a_split_without_a_window_is_refused(store, inputs):
    config = CONFIG.model_copy(update={"context_length": 5000})
    with pytest.raises(ValueError, match="holds no window of 5000 inputs and their targets"):
        run_stage(record_activations, config, inputs=inputs(JUMP), store=store)
