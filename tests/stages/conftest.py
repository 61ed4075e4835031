"""A tiny corpus, a Monet trained on it for a second and the PEER it becomes; one thread, as the shapes are small."""

import pytest

from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.monet import MonetSpec
from pipeline.models.transformer import TransformerShape
from pipeline.run import Run, running
from pipeline.training.config import TrainingConfig
from pipeline.transforms.sparsity import Sparsity
from stages.distill_peer import DistillPeerConfig, distill_peer
from stages.train_monet import TrainMonetConfig, train_monet
from tests.tiny import tiny_corpus

SHAPE = TransformerShape(d_model=20, num_layers=2, num_heads=2, num_kv_heads=1)
MONET = MonetSpec(
    decomposition="vertical", num_sub_experts=6, d_expert=4, num_heads=2, active_sub_experts=2, router_group=2
)
MEASURE = MeasureConfig(tokens=300, batch_size=5)


@pytest.fixture(scope="session")
def corpus():
    return tiny_corpus()


@pytest.fixture(scope="session")
def training():
    """training(steps, **changes): a schedule over windows of 23 tokens."""

    def training(steps, **changes):
        return TrainingConfig(
            **({"steps": steps, "batch_size": 6, "context_length": 23, "learning_rate": 0.01, "warmup_steps": 5}
               | changes)
        )  # fmt: skip

    return training


@pytest.fixture(scope="session")
def run_in():
    """run_in(stage, config, seed=0, **inputs): the stage's output, as run_stage would have it, without a store."""

    def run_in(stage, config, seed=0, **inputs):
        with running(Run(seed=seed)):
            return stage.fn(config, **inputs)

    return run_in


@pytest.fixture(scope="session")
def monet_config(training):
    return TrainMonetConfig(transformer=SHAPE, monet=MONET, training=training(60), measure=MEASURE)


@pytest.fixture(scope="session")
def monet(run_in, monet_config, corpus):
    """The output of train-monet. Its value is nobody's to change."""
    return run_in(train_monet, monet_config, corpus=corpus)


@pytest.fixture(scope="session")
def distill_config(training):
    return DistillPeerConfig(
        pairs_per_head=1,
        num_experts=40,
        calibration_tokens=600,
        sparsity=Sparsity(),
        training=training(40, learning_rate=2e-3, weight_decay=0.0, final_rate_share=0.0),
        measure=MEASURE,
    )


@pytest.fixture(scope="session")
def peer(run_in, distill_config, corpus, monet):
    """The output of distill-peer."""
    return run_in(distill_peer, distill_config, corpus=corpus, monet=monet.value)
