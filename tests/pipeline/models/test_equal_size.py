"""The dense baseline has as many parameters as Monet: whole models are counted, embeddings and norms included."""

import pytest

from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.equal_size import dense_as_large_as
from pipeline.models.transformer import TransformerSpec
from stages.presets import PRESETS
from tests.tiny import HORIZONTAL, SHAPE, VERTICAL


def num_parameters(experts, shape, vocab_size) -> int:
    transformer = TransformerSpec(**shape.model_dump(), vocab_size=vocab_size)
    model = LanguageModel(ModelSpec(transformer=transformer, experts=experts))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["tiny", "small", "shakespeare"])
def test_dense_and_monet_of_a_preset_are_of_one_shape_and_size(name):
    plan = PRESETS[name]()
    dense, monet = plan.train_dense, plan.train_monet
    vocab_size = plan.prepare_corpus.vocab_size if plan.prepare_corpus.tokenizer == "bpe" else 256
    assert dense.transformer == monet.transformer
    ratio = num_parameters(dense.mlp, dense.transformer, vocab_size) / num_parameters(
        monet.monet, monet.transformer, vocab_size
    )
    assert abs(ratio - 1) < 0.01


@pytest.mark.parametrize("monet", [HORIZONTAL, VERTICAL], ids=["horizontal", "vertical"])
def test_no_other_width_is_nearer(monet):
    """Three blocks of which the first two share a router: routers are counted once."""
    dense, wanted = dense_as_large_as(monet, SHAPE), num_parameters(monet, SHAPE, 23)
    away = {
        width: abs(num_parameters(dense.model_copy(update={"d_hidden": width}), SHAPE, 23) - wanted)
        for width in range(dense.d_hidden - 3, dense.d_hidden + 4)
    }
    assert min(away, key=lambda width: away[width]) == dense.d_hidden


def test_the_widths_of_the_presets():
    """By hand, tiny: two routers of 2 * 128 * 64 and four MLPs of 2 * 128 * 512 + 512 + 32 * 128 in 559.3 units."""
    widths = {name: PRESETS[name]().train_dense.mlp.d_hidden for name in ("tiny", "small", "gpu")}
    assert widths == {"tiny": 559, "small": 1119, "gpu": 4479}
    assert widths["tiny"] == round(((2 * 2 * 128 * 64 + 4 * (2 * 128 * 512 + 512 + 32 * 128)) / 4 - 128) / 257)
