"""Corpus -> PEER from random weights, float or in int4: the arm beside a PEER that was distilled."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field, field_validator

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import MeasureConfig
from pipeline.measuring.sizes import measure_tables, measure_training_tables
from pipeline.models import LanguageModel
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import Rate
from pipeline.training.table_start import draw_tables
from pipeline.training.table_updates import Int4Tables
from stages.pretraining import pretrain


class TrainPeerConfig(StageConfig):
    """Shape and training of PEER."""

    transformer: TransformerShape = Field(
        default=TransformerShape(), description="Shape of everything but the experts."
    )
    peer: PeerSpec = Field(default=PeerSpec(sub_keys="shared"), description="Shape of router and experts.")
    training: TrainingConfig = Field(default=TrainingConfig(learning_rate=2e-3), description="How it trains.")
    table_rate: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Rate of u and v, as a multiple of the learning rate. Of int4 tables it is the peak step: a "
        "weight's change under a gradient of unit row norm.",
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")

    @field_validator("peer")
    @classmethod
    def _trains(cls, peer: PeerSpec) -> PeerSpec:
        if peer.precision not in ("float", "int4"):
            raise Mistake(
                f"tables of precision {peer.precision} are not trained from random weights; use float or int4"
            )
        if peer.score_terms or peer.u_terms:
            raise Mistake(
                f"score_terms={peer.score_terms} and u_terms={peer.u_terms} are found by distill-peer; random weights "
                "start dense: leave them 0"
            )
        if peer.num_experts < peer.num_indexed_cells:
            raise Mistake(
                f"num_experts={peer.num_experts:,} leaves {peer.num_indexed_cells - peer.num_experts:,} of "
                f"{peer.num_indexed_cells:,} cells empty (num_keys * num_keys * aspect), and what a token's gates "
                "give to those is lost: use as many experts as cells, or fewer num_keys"
            )
        return PeerSpec.model_validate({**peer.model_dump(), "accumulator": peer.precision == "int4"})


@stage(name="train-peer", version=4)
def train_peer(config: TrainPeerConfig, *, corpus: Annotated[Corpus, "corpus"]) -> Output[LanguageModel]:
    """Corpus -> PEER: single-neuron experts behind product keys, trained on next tokens."""
    in_int4 = config.peer.precision == "int4"

    def rates(model: LanguageModel) -> list[Rate]:
        return [Rate(parameters=model.table_parameters(), multiplier=config.table_rate)]

    def tables(model: LanguageModel) -> Int4Tables | None:
        if not in_int4:
            return None
        draw_tables(model)
        return Int4Tables(model, peak_rate=config.training.learning_rate * config.table_rate)

    output = pretrain(
        corpus=corpus,
        shape=config.transformer,
        experts=config.peer,
        training=config.training,
        measured=config.measure,
        rates=rates,
        tables=tables,
    )
    sizes = (measure_training_tables if in_int4 else measure_tables)(output.value)
    return replace(output, metrics={**output.metrics, **sizes})
