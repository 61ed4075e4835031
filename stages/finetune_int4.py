"""PEER int4 -> PEER int4, fine-tuned: a second int4 plane accumulates what the first cannot hold."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.figures.training import Panel, training_curve
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure_against
from pipeline.measuring.routing import measure_routing
from pipeline.measuring.sizes import measure_size, measure_training_tables
from pipeline.models import Int4Model, LanguageModel
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.config import TrainingConfig
from pipeline.training.distillation import Part, calibration_batches, fit_part, from_next_tokens, from_teacher
from pipeline.training.table_updates import Int4Tables
from pipeline.training.training_curve import Curve, to_csv
from pipeline.transforms.precision import requantized
from pipeline.transforms.sparsity import Sparsity, sparsified


class FinetuneInt4Config(StageConfig):
    """What the int4 model learns from, and how fast its tables move."""

    objective: Literal["distill", "next-token"] = Field(
        default="distill", description="Learn from the float PEER's logits, or from the corpus's next tokens."
    )
    trained: Part = Field(
        default="experts",
        description="What learns: the expert layers alone, their routers with them (as after grow-int4), or all.",
    )
    table_rate: float = Field(
        default=3e-4,  # of 1e-3, 3e-4 and 1e-4 the least KL at the tiny chain's seed 0, 2026-11
        gt=0,
        le=1,
        description="Peak step of u and v: a weight's change under a gradient of unit row norm.",
    )
    sparsity: Sparsity = Field(
        default=Sparsity(), description="Makes the model sparse, or sparser, before it trains; 0 leaves it as it is."
    )
    calibration_tokens: int = Field(
        default=20_480, ge=256, description="Train tokens (forward only) that it is made sparse on."
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(steps=80, learning_rate=3e-4, warmup_steps=10, weight_decay=0.0),
        description="How it trains; the learning rate is that of biases and of all else that stays float.",
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")

    @model_validator(mode="after")
    def _learns_features(self) -> "FinetuneInt4Config":
        if self.sparsity.score_features and self.trained == "experts":
            raise Mistake(
                f"sparsity.score_features={self.sparsity.score_features} with trained='experts' would leave the new "
                "routers as they start; train 'routers' or 'all'"
            )
        return self


@stage(name="finetune-int4", version=6)
def finetune_int4(
    config: FinetuneInt4Config,
    *,
    corpus: Annotated[Corpus, "corpus"],
    int4: Int4Model,
    peer: Annotated[LanguageModel, "peer", "peer-int4"],
) -> Output[LanguageModel]:
    """PEER int4 -> PEER int4: trained at one byte a parameter, weights and accumulator in nibbles."""
    model = int4
    if not config.sparsity.dense:
        batches = calibration_batches(corpus, config.training, config.calibration_tokens)
        model = sparsified(int4, batches, config.sparsity)
    model = requantized(model, {"accumulator": True})
    taught = config.objective == "distill"
    loss = from_teacher(model, peer, layer_weight=0) if taught else from_next_tokens(model)
    tables = Int4Tables(model, peak_rate=config.table_rate)
    fitted = fit_part(
        model, config.trained, loss, corpus=corpus, training=config.training, tables=tables, what="fine-tune"
    )  # fmt: skip
    held_out = HeldOut(corpus, config.measure, config.training.context_length)
    before = measure_against(model, int4, held_out)
    metrics = {
        **measure_against(model, peer, held_out),
        **measure_routing(model, held_out),
        **measure_training_tables(model),
        **measure_size(model),
        **fitted.losses,
        "rows_refused": fitted.totals["rows_refused"],
        "steps_skipped": float(fitted.skipped_steps),
        "loss_increase_from_int4_nats": before["loss_increase_nats"],
        "loss_increase_from_int4_standard_error_nats": before["loss_increase_standard_error_nats"],
        "train_tokens": float(config.training.train_tokens),
        "tokens_per_second": fitted.tokens_per_second,
    }
    files = {"plot.png": _picture(config, fitted.curve, metrics), "training.csv": to_csv(fitted.curve)}
    return Output(value=model, metrics=metrics, files=files)


def _picture(config: FinetuneInt4Config, curve: Curve, metrics: Mapping[str, float]) -> bytes:
    """What is learnt, and that the nibbles move: rounded to the nearest they would stand still."""
    increase = metrics["loss_increase_from_int4_nats"]
    error = metrics["loss_increase_from_int4_standard_error_nats"]
    if config.objective == "next-token":
        loss = metrics["held_out_loss_nats"]
        learnt = Panel(
            number="train_loss_nats",
            label="loss, nats a token",
            held_out=loss,
            baseline=("held out, before", loss - increase),
            from_zero=False,
        )
    else:
        learnt = Panel(
            number="train_kl_to_teacher_nats",
            label="KL from the float PEER, nats a token",
            held_out=metrics["kl_to_teacher_nats"],
            baseline=("training, at the start", curve[0].numbers["train_kl_to_teacher_nats"]),
        )
    flips = Panel(number="flips_per_touched_weight", label="int4 weights that change in a step,\nshare of the touched")
    title = f"int4 fine-tuned: training changed the held-out loss by {increase:+.4f} ± {error:.4f} nats a token"
    return training_curve(title, curve, [learnt, flips])
