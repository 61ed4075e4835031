"""Corpus -> PEER from random weights: the arm beside a PEER that was distilled."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from pipeline.corpus import Corpus
from pipeline.measures import MeasureConfig, measure_tables
from pipeline.models import LanguageModel
from pipeline.models.peer import PeerExperts, PeerSpec
from pipeline.models.transformer import TransformerShape
from pipeline.pretraining import pretrain
from pipeline.stage import Output, StageConfig, stage
from pipeline.training import Rate, TrainingConfig


class TrainPeerConfig(StageConfig):
    """Shape and training of PEER."""

    transformer: TransformerShape = Field(
        default=TransformerShape(), description="Shape of everything but the experts."
    )
    peer: PeerSpec = Field(default=PeerSpec(), description="Shape of router and experts.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How it trains.")
    table_rate: float = Field(
        default=1.0, gt=0, le=100, description="Learning rate of u and v, as a multiple of the others'."
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="train-peer", version=2)
def train_peer(config: TrainPeerConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
    """Corpus -> PEER: single-neuron experts behind product keys, trained on next tokens."""

    def rates(model: LanguageModel) -> list[Rate]:
        layers = [block.moe for block in model.blocks() if isinstance(block.moe, PeerExperts)]
        return [Rate(parameters=[p for e in layers for p in (e.u, e.v)], multiplier=config.table_rate)]

    output = pretrain(
        corpus=corpus,
        shape=config.transformer,
        experts=config.peer,
        training=config.training,
        measured=config.measure,
        rates=rates,
    )
    return replace(output, metrics={**output.metrics, **measure_tables(output.value)})
