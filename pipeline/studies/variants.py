"""One arm of a study of number formats: a small PEER trained with its tables in one format, by one rule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure, validation_loss
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape, TransformerSpec
from pipeline.run import current_run
from pipeline.studies.row_rule_tables import ArmTables, Rounding
from pipeline.training.config import TrainingConfig
from pipeline.training.distillation import from_next_tokens
from pipeline.training.loop import Rate, Tables, fit
from pipeline.training.table_start import draw_tables
from pipeline.training.table_updates import Int4Tables
from pipeline.transforms.precision import requantized

Format = Literal["float", "float32", "bfloat16", "int8", "int4"]


def _differ(rates: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(rates)) < len(rates):
        raise ValueError(f"got {rates}, wanted each rate once")
    return rates


Rates = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1), AfterValidator(_differ)]
"""Rates of the tables that an arm may choose from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How the tables of one arm are stored and learn."""

    name: str
    says: str
    """What it is, in words."""
    format: Format
    """float is float32 under AdamW; the others learn by the row rule."""
    accumulator: bool = False
    rounding: Rounding = "stochastic"
    frozen: bool = False
    """Whether the tables stay as they start."""


class ArmConfig(BaseModel):
    """The model and the training that all arms of a study have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transformer: TransformerShape = Field(
        default=TransformerShape(d_model=64, num_layers=2), description="Shape of everything but the experts."
    )
    peer: PeerSpec = Field(
        default=PeerSpec(num_keys=96, num_experts=9216), description="Shape of router and experts; arms set its format."
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(steps=500, learning_rate=3e-3, warmup_steps=50),
        description="How everything but the tables trains.",
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


def train_arm(arm: Arm, config: ArmConfig, corpus: Corpus, table_rate: float) -> Mapping[str, float]:
    """Losses and speed of a model trained so. Arms of one seed start alike and see the same batches."""
    run = current_run()
    float_spec = ModelSpec(
        transformer=TransformerSpec(**config.transformer.model_dump(), vocab_size=corpus.spec.vocab_size),
        experts=config.peer,
    )
    model = LanguageModel(float_spec).to(run.device)
    if arm.format != "float":
        model = requantized(model, {"precision": arm.format, "accumulator": arm.accumulator})
    draw_tables(model)
    model.train()
    fitted = fit(
        model, split=corpus.train, config=config.training, loss=from_next_tokens(model), what="train",
        rates=_rates(model, table_rate / config.training.learning_rate), tables=_tables(arm, model, table_rate),
    )  # fmt: skip
    held_out = HeldOut(corpus, config.measure, config.training.context_length)
    measured = measure(model, held_out)
    return {
        "validation_loss_nats": validation_loss(model, held_out),
        "held_out_loss_nats": measured["held_out_loss_nats"],
        "held_out_loss_standard_error_nats": measured["held_out_loss_standard_error_nats"],
        "tokens_per_second": fitted.tokens_per_second,
        "table_rate": table_rate,
        "num_experts": float(config.peer.num_experts),
        "seconds": fitted.seconds,
        "steps_skipped": float(fitted.skipped_steps),
    }


def _rates(model: LanguageModel, multiplier: float) -> list[Rate]:
    return [Rate(parameters=model.table_parameters(), multiplier=multiplier)]


def _tables(arm: Arm, model: LanguageModel, table_rate: float) -> Tables | None:
    if arm.frozen or arm.format == "float":
        return None
    if arm.accumulator and arm.rounding == "stochastic":
        return Int4Tables(model, peak_rate=table_rate)
    return ArmTables(model, peak_rate=table_rate, rounding=arm.rounding)
