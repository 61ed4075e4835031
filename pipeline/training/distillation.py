"""A part of a model learns from a teacher's logits and layers, or from next tokens; the rest of it stays."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import random_windows
from pipeline.models.language_model import LanguageModel
from pipeline.run import current_run
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import Batch, Fitted, Losses, Tables, fit
from pipeline.training.losses import layer_match, logit_kl, next_token
from pipeline.training.table_updates import Int4Tables
from pipeline.transforms.precision import requantized
from pipeline.transforms.sparsity import hold_zeros

Part = Literal["experts", "routers", "all"]
"""What learns: the expert layers alone, their routers with them, or everything."""


def calibration_batches(corpus: Corpus, training: TrainingConfig, tokens: int) -> list[Tensor]:
    """Train windows of about so many tokens, (B, T) each, on the run's device: what is fitted before training."""
    run = current_run()
    generator = run.generator("calibration")
    size, length = training.batch_size, training.context_length
    return [
        random_windows(corpus.train, batch=size, length=length, generator=generator)[0].to(run.device)
        for _ in range(max(1, tokens // (size * length)))
    ]


def fit_part(
    model: LanguageModel,
    part: Part,
    loss: Callable[[Batch, int], Losses],
    *,
    corpus: Corpus,
    training: TrainingConfig,
    tables: Tables | None,
    what: str,
) -> Fitted:
    """Trains this part of `model` in place: expert tables by `tables`, all else by AdamW.

    A sparse model stays as sparse. In evaluation mode: what a router has gathered over batches, its thresholds among
    them, stays as it is.
    """
    model.requires_grad_(part == "all")
    for learns in {"experts": ("experts",), "routers": ("experts", "routers"), "all": ()}[part]:
        for parameter in model.parameters_of(learns):
            parameter.requires_grad_(True)
    hold_zeros(model)
    model.eval()
    fitted = fit(model, split=corpus.train, config=training, loss=loss, tables=tables, what=what)
    model.requires_grad_(True)
    return fitted


def from_teacher(
    student: LanguageModel, teacher: LanguageModel, *, layer_weight: float
) -> Callable[[Batch, int], Losses]:
    """KL(teacher || student) of the logits, plus `layer_weight` times the error of the expert layers' outputs.

    That error is a share of the teacher's mean square; each model runs on its own states.
    """

    def loss(batch: Batch, step: int) -> Losses:
        tokens_BT, _ = batch
        with torch.no_grad():
            taught = teacher.trace(tokens_BT)
        learnt = student.trace(tokens_BT)
        divergence = logit_kl(learnt.logits_BTV, taught.logits_BTV)
        numbers = {"train_kl_to_teacher_nats": divergence.item()}
        if layer_weight == 0:
            return divergence, numbers
        error = layer_match(learnt.expert_outputs, taught.expert_outputs)
        return divergence + layer_weight * error, {**numbers, "layer_error_share": error.item()}

    return loss


def from_next_tokens(model: LanguageModel) -> Callable[[Batch, int], Losses]:
    """Cross-entropy of the next token."""

    def loss(batch: Batch, step: int) -> Losses:
        inputs_BT, targets_BT = batch
        nats = next_token(model(inputs_BT), targets_BT)
        return nats, {"train_loss_nats": nats.item()}

    return loss


class ShortDistillation(BaseModel):
    """How a quantized model learns from the float model that it was made from, if it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=0, ge=0, le=10_000_000, description="Optimizer steps; 0 leaves the model as rounded.")
    batch_size: int = Field(default=8, ge=1, le=65_536, description="Sequences a step.")
    learning_rate: float = Field(default=3e-4, gt=0, le=1, description="Peak learning rate of AdamW, for the biases.")
    table_rate: float = Field(
        default=3e-4,
        gt=0,
        le=1,
        description="Peak step of int4 tables: a weight's change under a gradient of unit row norm. int8 tables stay.",
    )
    layer_weight: float = Field(
        default=1.0, ge=0, le=1000, description="Weight of the error of the layers' outputs, beside the KL of logits."
    )

    def training(self, context_length: int) -> TrainingConfig:
        return TrainingConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            context_length=context_length,
            learning_rate=self.learning_rate,
            warmup_steps=self.steps // 8,
            weight_decay=0.0,
        )


def distilled(
    model: LanguageModel, teacher: LanguageModel, config: ShortDistillation, *, corpus: Corpus, context_length: int
) -> LanguageModel:
    """The quantized model after `config.steps` against its teacher, in its own format. Without any, itself.

    int4 tables learn with an accumulator, which is dropped in the end; of int8 the biases alone learn.
    """
    if config.steps == 0:
        return model
    in_int4 = model.kind == "peer-int4"
    student = requantized(model, {"accumulator": True}) if in_int4 else model
    fit_part(
        student,
        "experts",
        from_teacher(student, teacher, layer_weight=config.layer_weight),
        corpus=corpus,
        training=config.training(context_length),
        tables=Int4Tables(student, peak_rate=config.table_rate) if in_int4 else None,
        what="distil",
    )
    return requantized(student, {"accumulator": False}) if in_int4 else student
