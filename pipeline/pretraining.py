"""From random weights to a measured language model: what the three training stages share."""

from collections.abc import Callable

from pipeline.corpus import Corpus
from pipeline.losses import next_token
from pipeline.measures import MeasureConfig, measure, measure_routing, measure_size
from pipeline.models.language_model import ExpertSpec, LanguageModel, ModelSpec
from pipeline.models.transformer import Trace, TransformerShape, TransformerSpec
from pipeline.run import current_run
from pipeline.training import Batch, Losses, Rate, TrainingConfig, fit


def pretrain(
    *,
    corpus: Corpus,
    shape: TransformerShape,
    experts: ExpertSpec,
    training: TrainingConfig,
    measured: MeasureConfig,
    auxiliary: Callable[[Trace], Losses] | None = None,
    rates: Callable[[LanguageModel], list[Rate]] = lambda model: [],
) -> tuple[LanguageModel, dict[str, float]]:
    """The trained model and its metrics. `auxiliary` adds losses on the trace, `rates` sets learning rates apart."""
    spec = ModelSpec(
        transformer=TransformerSpec(**shape.model_dump(), vocab_size=corpus.spec.vocab_size), experts=experts
    )
    model = LanguageModel(spec).to(current_run().device)

    def loss(batch: Batch, step: int) -> Losses:
        inputs_BT, targets_BT = batch
        trace = model.trace(inputs_BT)
        language = next_token(trace.logits_BTV, targets_BT)
        numbers = {"train_loss_nats": language.item()}
        if auxiliary is None:
            return language, numbers
        more, more_numbers = auxiliary(trace)
        return language + more, {**numbers, **more_numbers}

    model.train()
    fitted = fit(model, split=corpus.train, config=training, loss=loss, rates=rates(model), what=f"train {model.kind}")
    metrics = {
        **measure(model, corpus, measured, training.context_length),
        **measure_routing(model, corpus, measured, training.context_length),
        **measure_size(model),
        **fitted.losses,
        "train_tokens": float(training.train_tokens),
        "tokens_per_second": fitted.tokens_per_second,
    }
    return model, metrics
