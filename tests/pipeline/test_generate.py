"""Text from a model: sampling, and finding the tokenizer through the lineage."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artifacts import ArtifactError, Recipe, Store
from pipeline.generate import command
from pipeline.generate.__main__ import main
from pipeline.generate.sampling import Sampling, generate
from pipeline.models.dense import DenseSpec
from pipeline.models.trained_length import trained_length
from pipeline.models.transformer import TransformerShape
from pipeline.stage import run_stage
from pipeline.training.config import TrainingConfig
from stages.prepare_corpus import PrepareCorpusConfig, prepare_corpus
from stages.record_activations import RecordActivationsConfig, record_activations
from stages.train_dense import MeasureConfig, TrainDenseConfig, train_dense
from tests.circumstance import CIRCUMSTANCE
from tests.tiny import JUMP, tiny_model, tiny_tokens

VOCABULARY, CONTEXT = 11, 16


class NextUp(nn.Module):
    """Sure that each token is followed by the next higher one, and notes how much it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def forward(self, tokens_BT: Tensor) -> Tensor:
        self.lengths.append(tokens_BT.shape[1])
        return 9 * torch.nn.functional.one_hot((tokens_BT + 1) % VOCABULARY, VOCABULARY).float()


def _sampling(**changes: float) -> Sampling:
    return Sampling(**{"tokens": 5, "temperature": 0.0, "top_k": 50, "seed": 0, **changes})  # type: ignore[arg-type]


def test_temperature_zero_takes_the_likeliest_token():
    assert list(generate(NextUp(), [3], _sampling(), context=CONTEXT)) == [4, 5, 6, 7, 8]


def test_top_k_of_one_takes_the_likeliest_token_at_any_temperature():
    assert list(generate(NextUp(), [9], _sampling(temperature=50.0, top_k=1), context=CONTEXT)) == [10, 0, 1, 2, 3]


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    def drawn(seed: int) -> list[int]:
        sampling = _sampling(tokens=30, temperature=20.0, seed=seed)
        return list(generate(NextUp(), [0], sampling, context=CONTEXT))

    assert drawn(1) == drawn(1) != drawn(2)


def test_only_the_last_tokens_are_shown_to_the_model():
    model = NextUp()
    list(generate(model, [0] * (CONTEXT - 2), _sampling(), context=CONTEXT))
    assert max(model.lengths) == CONTEXT


def test_a_long_prompt_is_gone_on_from_as_its_last_tokens_alone_are():
    model, prompt = tiny_model(JUMP), tiny_tokens(batch=1, length=3 * CONTEXT)[0].tolist()
    sampling = _sampling(tokens=9)
    with torch.no_grad():
        wanted = prompt.copy()
        for _ in range(9):
            wanted.append(int(model(torch.tensor([wanted[-CONTEXT:]]))[0, -1].argmax()))
    made = list(generate(model, prompt, sampling, context=CONTEXT))
    assert made == wanted[-9:] == list(generate(model, prompt[-CONTEXT:], sampling, context=CONTEXT))


@pytest.mark.parametrize("temperature", [1e-45, 5e-324, 1e-9])
def test_the_least_temperatures_take_the_likeliest_token_too(temperature):
    sampling = _sampling(temperature=temperature)
    assert list(generate(NextUp(), [3], sampling, context=CONTEXT)) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -math.inf, -0.1])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(
        ValueError, match=r"--temperature: got .*, wanted 0 \(always the likeliest\) or more, and finite"
    ):
        _sampling(temperature=temperature)


def test_sampling_draws_each_token_as_often_as_its_chance():
    """Of two tokens whose logits differ by log 3, at temperature 1: a quarter of the draws, to 4 deviations."""

    class Two(nn.Module):
        def forward(self, tokens_BT: Tensor) -> Tensor:
            return torch.tensor([math.log(3.0), 0.0]).expand(*tokens_BT.shape, 2)

    drawn = list(generate(Two(), [0], _sampling(tokens=2000, temperature=1.0), context=CONTEXT))
    assert abs(sum(drawn) / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


TRAINED = 7
"""Tokens a sequence."""


@pytest.fixture(scope="module")
def trained(text_file, tmp_path_factory) -> tuple[Store, str]:
    """A store with a corpus and a dense model of it, and the corpus's id."""
    store = Store(tmp_path_factory.mktemp("trained") / "store")
    corpus = run_stage(
        prepare_corpus,
        PrepareCorpusConfig(sources=(str(text_file),), tokenizer="bytes"),
        inputs={},
        store=store,
    ).id
    config = TrainDenseConfig(
        transformer=TransformerShape(d_model=12, num_layers=1, num_heads=1, num_kv_heads=1),
        mlp=DenseSpec(d_hidden=9),
        training=TrainingConfig(steps=2, batch_size=3, context_length=TRAINED),
        measure=MeasureConfig(tokens=256),
    )
    run_stage(train_dense, config, inputs={"corpus": corpus}, store=store)
    return store, corpus


def _command(store: Store, *options: str, id: str = "latest") -> int:
    return main([id, *options, "--store", str(store.root)])


def test_the_latest_model_goes_on_from_a_prompt(trained, capsys):
    store, corpus = trained
    assert _command(store, "--prompt", "The", "--tokens", "5") == 0
    out, err = capsys.readouterr()
    assert out.startswith("The")
    assert err == ""
    assert _command(store, "--prompt", "x", id=corpus) == 2
    assert "is a 'corpus'" in capsys.readouterr().err
    assert _command(store, "--prompt", "x", "--top-k", "0") == 2
    assert "--top-k: got 0" in capsys.readouterr().err


def test_the_latest_model_is_none_of_what_was_made_of_it(trained, capsys):
    store, corpus = trained
    config = RecordActivationsConfig(tokens=64, context_length=TRAINED, experts_per_token=2)
    model = store.latest(stage="train-dense")
    record = run_stage(record_activations, config, inputs={"corpus": corpus, "model": model}, store=store).id
    assert store.latest() == record
    assert _command(store, "--prompt", "The", "--tokens", "1") == 0
    assert capsys.readouterr().out.startswith("The")
    store.remove(record)


def test_text_is_printed_as_it_comes(trained, monkeypatch, capsys):
    store, _ = trained
    printed: list[str] = []

    def tokens(_model: nn.Module, prompt: list[int], *_args: object, **_settings: object) -> Iterator[int]:
        for token in prompt:
            printed.append(capsys.readouterr().out)
            yield token

    monkeypatch.setattr(command, "generate", tokens)
    assert _command(store, "--prompt", "é") == 0
    assert printed[0] == "é"
    assert "".join([*printed, capsys.readouterr().out]) == "éé\n"


def test_more_context_than_the_model_was_trained_on_is_not_read_and_said(trained, capsys):
    store, _ = trained
    greedy = "--tokens", "1", "--temperature", "0"
    long = "The miller's cat"
    added = []
    for prompt in (long, long[-TRAINED:]):
        assert _command(store, "--prompt", prompt, *greedy) == 0
        out, err = capsys.readouterr()
        added.append(out.removeprefix(prompt))
        assert ("trained on 7 tokens of context, and the prompt's 16 with the 1 to add are more" in err) == (
            prompt == long
        )
    assert added[0] == added[1]


def _published(store: Store, stage: str, config: dict[str, object], **inputs: str) -> str:
    return store.publish(
        recipe=Recipe(stage=stage, stage_version=1, config=config, seed=0, inputs=inputs),  # type: ignore[arg-type]
        kind="monet", spec={}, tensors={}, metrics={}, files={}, circumstance=CIRCUMSTANCE,
    )  # fmt: skip


def test_the_trained_length_is_the_longest_that_a_model_or_its_ancestors_trained_on(store):
    corpus = _published(store, "prepare-corpus", {"compressors": {"context_length": 512}})
    monet = _published(store, "train-monet", {"training": {"steps": 9, "context_length": 96}}, corpus=corpus)
    measured = {"context_length": 256, "distillation": {"steps": 0}}
    rounded = _published(store, "quantize-int8", measured, corpus=corpus, peer=monet)
    learnt = _published(store, "quantize-int4", {**measured, "distillation": {"steps": 2}}, corpus=corpus, peer=monet)
    short = _published(store, "finetune-int4", {"training": {"context_length": 32}}, corpus=corpus, int4=rounded)
    assert [trained_length(store, id) for id in (monet, rounded, learnt, short)] == [96, 96, 256, 96]


@pytest.mark.parametrize("value", [None, True, 0, -3, 2**16 + 1, "128", 7.5])
def test_a_lineage_that_tells_no_length_is_refused(store, value):
    monet = _published(store, "train-monet", {"training": {"context_length": value}})
    with pytest.raises(ArtifactError, match="says on how many tokens of context it was trained"):
        trained_length(store, monet)


HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pipeline.generate.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("words", "code", "said"), [(("--help",), 0, "--temperature"), (("latest",), 2, "--prompt")])
def test_who_asks_for_help_or_mistypes_an_option_does_not_wait_for_torch(words, code, said):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", HELP_WITHOUT_TORCH, *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
