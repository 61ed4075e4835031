"""Corpus and a model of any kind -> record: which experts fired on each token, and what they contributed."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.figures.records import firing_and_omission
from pipeline.models import AnyModel
from pipeline.records.record import SPLITS, ActivationRecord, Contributions
from pipeline.records.recording import Recording
from pipeline.records.recording import record_activations as recorded
from pipeline.records.usage import record_metrics, use_of
from pipeline.stage import Output, StageConfig, stage


class RecordActivationsConfig(StageConfig):
    """Which text is run through the model, and how much is kept of what its experts did."""

    split: SPLITS = Field(default="held_out", description="Split of the corpus that is recorded.")
    tokens: int = Field(
        default=65_536, ge=1, le=10**9, description="Tokens, in windows spread evenly; at most the split."
    )
    context_length: int = Field(default=128, ge=1, le=65_536, description="Tokens a window.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Windows a forward pass.")
    experts_per_token: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="K: experts kept a token and block, those that contribute most; the share of the others is stored.",
    )
    contributions: Contributions = Field(
        default="float16", description="Number type of the norms of contributions: 2 or 4 bytes each."
    )


@stage(name="record-activations", version=1)
def record_activations(
    config: RecordActivationsConfig, *, corpus: Annotated[Corpus, "corpus"], model: AnyModel
) -> Output[ActivationRecord]:
    """Model of any kind -> record: the experts of each block that fired on every token, and their contributions."""
    record = recorded(
        model,
        corpus,
        Recording(
            split=config.split,
            tokens=config.tokens,
            context_length=config.context_length,
            batch_size=config.batch_size,
            most=config.experts_per_token,
            contributions=config.contributions,
        ),
    )
    uses = [use_of(record, block) for block in range(record.blocks)]
    title = f"{record.spec.tokens:,} tokens of {config.split.replace('_', '-')} text, a model of kind {model.kind}"
    picture = firing_and_omission(
        title,
        [use.count_E.tolist() for use in uses],
        [use.fired.tolist() for use in uses],
        [use.omitted_share for use in uses],
        kept=config.experts_per_token,
    )
    return Output(value=record, metrics=record_metrics(record, uses), files={"plot.png": picture})
