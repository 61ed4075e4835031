"""Presets: settings, and so ids, that stay what they are; a smoke that goes through all stages at a small shape."""

import pytest

from artifacts import fingerprint
from stages.presets import PRESETS

PINNED = {
    "tiny": "beac7d236954",
    "small": "959663b99a40",
    "gpu": "b0e36fc19d39",
    "shakespeare": "fc8a17474e92",
    "monet_850m": "077f9f97b61e",
}
STAGES = (
    "prepare_corpus", "train_dense", "train_monet", "train_peer", "distill_peer", "quantize_int8", "quantize_int4",
    "finetune_int4", "grow_int4", "distill_symbols", "report", "record_activations", "study_int4_ablation",
    "study_precision",
)  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_the_settings_of_a_preset_are_those_that_stores_out_there_are_named_after(name):
    """Another digest here is another id for every artifact of the preset: a decision, and never a side effect."""
    plan = PRESETS[name]()
    assert fingerprint({stage: getattr(plan, stage).model_dump(mode="json") for stage in STAGES}) == PINNED[name]


def test_smoke_goes_through_the_whole_chain_at_a_small_shape():
    smoke, tiny = PRESETS["smoke"](), PRESETS["tiny"]()
    assert smoke.chain == tiny.chain
    assert smoke.train_monet.transformer == smoke.train_dense.transformer
    assert smoke.train_monet.training == smoke.train_dense.training
    assert smoke.train_monet.training.train_tokens == smoke.prepare_corpus.compressors.train_tokens == 307_200
    assert smoke.distill_peer.num_experts == 512
    measured = {config.measure.tokens for step in smoke.steps() if hasattr(config := smoke.config_of(step), "measure")}
    assert measured == {smoke.prepare_corpus.compressors.tokens} == {16_384}
