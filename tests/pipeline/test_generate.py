"""Text from a model: sampling, and finding the tokenizer through the lineage."""

import torch
from torch import Tensor, nn

from artifacts import Store
from pipeline.generate import CONTEXT, Sampling, generate, main
from pipeline.models.dense import DenseSpec
from pipeline.models.transformer import TransformerShape
from pipeline.stage import run_stage
from pipeline.training.config import TrainingConfig
from stages.prepare_corpus import PrepareCorpusConfig, prepare_corpus
from stages.train_dense import MeasureConfig, TrainDenseConfig, train_dense

VOCABULARY = 11


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
    assert list(generate(NextUp(), [3], _sampling())) == [4, 5, 6, 7, 8]


def test_top_k_of_one_takes_the_likeliest_token_at_any_temperature():
    assert list(generate(NextUp(), [9], _sampling(temperature=50.0, top_k=1))) == [10, 0, 1, 2, 3]


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    def drawn(seed: int) -> list[int]:
        return list(generate(NextUp(), [0], _sampling(tokens=30, temperature=20.0, seed=seed)))

    assert drawn(1) == drawn(1) != drawn(2)


def test_only_the_last_tokens_are_shown_to_the_model():
    model = NextUp()
    list(generate(model, [0] * (CONTEXT - 2), _sampling()))
    assert max(model.lengths) == CONTEXT


def test_the_latest_model_goes_on_from_a_prompt(tmp_path, text_file, capsys):
    store = Store(tmp_path / "store")
    corpus = run_stage(
        prepare_corpus, PrepareCorpusConfig(sources=(str(text_file),), tokenizer="bytes"), inputs={}, store=store
    ).id
    config = TrainDenseConfig(
        transformer=TransformerShape(d_model=12, num_layers=1, num_heads=1, num_kv_heads=1),
        mlp=DenseSpec(d_hidden=9),
        training=TrainingConfig(steps=2, batch_size=3, context_length=7),
        measure=MeasureConfig(tokens=256),
    )
    run_stage(train_dense, config, inputs={"corpus": corpus}, store=store)
    assert main(["latest", "--prompt", "The cat", "--tokens", "5", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out.startswith("The cat")
    assert main([corpus, "--prompt", "x", "--store", str(store.root)]) == 2
    assert "is a 'corpus'" in capsys.readouterr().err
    assert main(["latest", "--prompt", "x", "--top-k", "0", "--store", str(store.root)]) == 2
    assert "--top-k: got 0" in capsys.readouterr().err
