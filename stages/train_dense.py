"""Corpus -> dense model: the baseline beside every claim."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models import LanguageModel
from pipeline.models.dense import DenseSpec
from pipeline.models.equal_size import dense_as_large_as
from pipeline.models.monet import MonetSpec
from pipeline.models.transformer import TransformerShape
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.config import TrainingConfig
from stages.pretraining import pretrain


class TrainDenseConfig(StageConfig):
    """Shape and training of the dense baseline."""

    transformer: TransformerShape = Field(default=TransformerShape(), description="Shape of everything but the MLPs.")
    mlp: DenseSpec = Field(
        default=dense_as_large_as(MonetSpec(), TransformerShape()),
        description="Shape of the MLPs; by default with as many parameters as Monet's routers and experts.",
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="How it trains.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="train-dense", version=2)
def train_dense(config: TrainDenseConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
    """Corpus -> dense model: a transformer with one MLP a block, trained on next tokens."""
    return pretrain(
        corpus=corpus,
        shape=config.transformer,
        experts=config.mlp,
        training=config.training,
        measured=config.measure,
    )
