"""From random weights to a measured language model: what the three training stages share."""

from collections.abc import Callable

import torch

from pipeline.corpus.splits import Corpus
from pipeline.figures.training import Panel, training_curve
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure, validation_loss
from pipeline.measuring.routing import measure_routing
from pipeline.measuring.sizes import measure_size
from pipeline.models.language_model import ExpertSpec, LanguageModel, ModelSpec
from pipeline.models.transformer import Trace, TransformerShape, TransformerSpec
from pipeline.run import current_run
from pipeline.stage import Output
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import Batch, Losses, Rate, Tables, fit
from pipeline.training.losses import next_token
from pipeline.training.training_curve import to_csv

FREQUENCY_SAMPLE_TOKENS = 1_000_000


def pretrain(
    *,
    corpus: Corpus,
    shape: TransformerShape,
    experts: ExpertSpec,
    training: TrainingConfig,
    measured: MeasureConfig,
    auxiliary: Callable[[Trace], Losses] | None = None,
    rates: Callable[[LanguageModel], list[Rate]] = lambda model: [],
    tables: Callable[[LanguageModel], Tables | None] = lambda model: None,
) -> Output[LanguageModel]:
    """The trained model. `auxiliary` adds losses on the trace, `rates` sets learning rates apart, and `tables` starts
    what no torch optimizer holds and says how it moves.
    """
    spec = ModelSpec(
        transformer=TransformerSpec(**shape.model_dump(), vocab_size=corpus.spec.vocab_size), experts=experts
    )
    model = LanguageModel(spec).to(current_run().device)
    model.train()
    fitted = fit(
        model, split=corpus.train, config=training, loss=_loss(model, auxiliary), rates=rates(model),
        tables=tables(model), what=f"train {model.kind}",
    )  # fmt: skip
    held_out = HeldOut(corpus, measured, training.context_length)
    metrics = {
        **measure(model, held_out),
        "validation_loss_nats": validation_loss(model, held_out),
        **measure_routing(model, held_out),
        **measure_size(model),
        **fitted.losses,
        **{name: fitted.totals[name] for name in ("rows_refused",) if name in fitted.totals},
        "steps_skipped": float(fitted.skipped_steps),
        "train_tokens": float(training.train_tokens),
        "tokens_per_second": fitted.tokens_per_second,
    }
    panel = Panel(
        number="train_loss_nats",
        label="loss, nats a token",
        held_out=metrics["held_out_loss_nats"],
        baseline=("held out, token frequencies alone", loss_without_context(held_out)),
        from_zero=False,
    )
    title = f"{model.kind}, {metrics['num_parameters']:,.0f} parameters: loss on the next token"
    files = {"plot.png": training_curve(title, fitted.curve, [panel]), "training.csv": to_csv(fitted.curve)}
    return Output(value=model, metrics=metrics, files=files)


def _loss(model: LanguageModel, auxiliary: Callable[[Trace], Losses] | None) -> Callable[[Batch, int], Losses]:
    def loss(batch: Batch, step: int) -> Losses:
        inputs_BT, targets_BT = batch
        trace = model.trace(inputs_BT)
        language = next_token(trace.logits_BTV, targets_BT)
        numbers = {"train_loss_nats": language.item()}
        if auxiliary is None:
            return language, numbers
        more, more_numbers = auxiliary(trace)
        return language + more, {**numbers, **more_numbers}

    return loss


def loss_without_context(held_out: HeldOut) -> float:
    """Held-out loss, in nats a token, of guessing by how frequent each token is in training: what context must beat."""
    corpus = held_out.corpus
    num_tokens, vocab_size = corpus.train.num_tokens, corpus.spec.vocab_size
    sample = min(num_tokens, FREQUENCY_SAMPLE_TOKENS)
    tokens_N = corpus.train.tokens_at(torch.arange(sample) * num_tokens // sample)
    count_V = torch.bincount(tokens_N, minlength=vocab_size).double() + 1  # none is impossible
    _, targets_WT = held_out.windows
    return -(count_V / count_V.sum()).log()[targets_WT].mean().item()
