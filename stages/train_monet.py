"""Corpus -> Monet: mixture of monosemantic experts, trained with its uniformity and ambiguity losses."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models import LanguageModel
from pipeline.models.monet import MonetSpec
from pipeline.models.transformer import Trace, TransformerShape
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import Losses
from pipeline.training.losses import ambiguity, uniformity
from stages.pretraining import pretrain


class TrainMonetConfig(StageConfig):
    """Shape and training of Monet."""

    transformer: TransformerShape = Field(
        default=TransformerShape(), description="Shape of everything but the experts."
    )
    monet: MonetSpec = Field(default=MonetSpec(), description="Shape of router and experts.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How it trains.")
    uniformity_weight: float = Field(
        default=0.1, ge=0, le=10, description="Weight of the uniformity loss (paper: 1e-3)."
    )
    ambiguity_weight: float = Field(
        default=1e-3, ge=0, le=10, description="Weight of the ambiguity loss (paper: 1e-3)."
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="train-monet", version=2)
def train_monet(config: TrainMonetConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
    """Corpus -> Monet: experts composed of sub-experts on two axes, trained on next tokens."""

    def auxiliary(trace: Trace) -> Losses:
        routings = list({id(r): r for r in trace.routings}.values())
        uniform, ambiguous = uniformity(routings), ambiguity(routings)
        return config.uniformity_weight * uniform + config.ambiguity_weight * ambiguous, {
            "uniformity_loss": uniform.item(),
            "ambiguity_loss": ambiguous.item(),
        }

    return pretrain(
        corpus=corpus,
        shape=config.transformer,
        experts=config.monet,
        training=config.training,
        measured=config.measure,
        auxiliary=auxiliary,
    )
