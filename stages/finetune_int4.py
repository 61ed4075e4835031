"""PEER int4 -> PEER int4, fine-tuned: a second int4 plane accumulates what the first cannot hold."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field

from kernels.sr_update import UpdateCounts, sr_update
from pipeline.corpus import Corpus
from pipeline.curve import Curve, to_csv
from pipeline.losses import logit_kl, next_token
from pipeline.measures import MeasureConfig, measure_against, measure_routing, measure_size, measure_tables
from pipeline.models import Int4Model, LanguageModel, PeerModel
from pipeline.models.quantization import requantized
from pipeline.models.quantized import Int4Table, QuantizedExperts
from pipeline.plots import Panel, training_curve
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.training import Batch, Losses, TrainingConfig, fit


class FinetuneInt4Config(StageConfig):
    """What the int4 model learns from, and how fast its tables move."""

    objective: Literal["distill", "next-token"] = Field(
        default="distill", description="Learn from the float PEER's logits, or from the corpus's next tokens."
    )
    table_rate: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="Peak step of u and v: a weight's change under a gradient of unit row norm.",
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(steps=80, learning_rate=3e-4, warmup_steps=10, weight_decay=0.0),
        description="How it trains; the learning rate is that of the expert and axis biases, which stay float.",
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="finetune-int4", version=3)
def finetune_int4(
    config: FinetuneInt4Config, *, corpus: Annotated[Corpus, "corpus"], int4: Int4Model, peer: PeerModel
) -> Output[LanguageModel]:
    """PEER int4 -> PEER int4: trained at one byte a parameter, weights and accumulator in nibbles."""
    model = requantized(int4, {"accumulator": True})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".moe." in name)

    def loss(batch: Batch, step: int) -> Losses:
        inputs_BT, targets_BT = batch
        logits_BTV = model(inputs_BT)
        if config.objective == "next-token":
            nats = next_token(logits_BTV, targets_BT)
            return nats, {"train_loss_nats": nats.item()}
        with torch.no_grad():
            teacher_BTV = peer(inputs_BT)
        divergence = logit_kl(logits_BTV, teacher_BTV)
        return divergence, {"train_kl_to_teacher_nats": divergence.item()}

    def update(step: int, rate_share: float) -> Mapping[str, float]:
        counts = update_tables(model, config.table_rate * rate_share, step)
        weights = max(1, sum(c.rows for c in counts)) * model.shape.d_model
        return {
            "flips_per_touched_weight": sum(c.flips for c in counts) / weights,
            "scale_growths": float(sum(c.growths for c in counts)),
        }

    # Routers stay as they are: in evaluation mode their thresholds do not follow the batch.
    model.eval()
    fitted = fit(model, split=corpus.train, config=config.training, loss=loss, after_backward=update, what="fine-tune")
    model.requires_grad_(True)
    length = config.training.context_length
    before = measure_against(model, int4, corpus, config.measure, length)
    metrics = {
        **measure_against(model, peer, corpus, config.measure, length),
        **measure_routing(model, corpus, config.measure, length),
        **_training_bytes(model),
        **measure_size(model),
        **fitted.losses,
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


def _training_bytes(model: LanguageModel) -> dict[str, float]:
    """Table sizes while training: beside what is stored, AdamW holds two float32 moments of every expert's bias."""
    sizes = measure_tables(model)
    return {
        **sizes,
        "table_bytes_per_parameter": sizes["table_bytes_per_parameter"] + 8 / (2 * model.shape.d_model),
    }


def update_tables(model: LanguageModel, learning_rate: float, step: int) -> list[UpdateCounts]:
    """One step of every table against the gradients that the last backward pass left with its layer."""
    counts = []
    for layer, block in enumerate(model.blocks()):
        experts = block.moe
        assert isinstance(experts, QuantizedExperts)
        assert experts.gradients is not None
        for which, table, gradients in zip("uv", (experts.u, experts.v), experts.gradients, strict=True):
            assert isinstance(table, Int4Table)
            key = (current_run().stream(f"table {which} of block {layer}"), step)
            counts.append(sr_update(table.state(), gradients, learning_rate=learning_rate, key=key))
        experts.gradients = None
    return counts
