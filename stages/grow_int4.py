"""PEER int4 -> PEER int4 with more experts: the same function on a larger key grid, ready to be trained on."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.figures.studies import intervals
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure_against
from pipeline.measuring.routing import measure_routing
from pipeline.measuring.sizes import measure_size, measure_tables
from pipeline.models import Int4Model, LanguageModel
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.transforms.growth import doubled


class GrowInt4Config(StageConfig):
    """How far the pool grows, and how it is measured."""

    doublings: int = Field(default=1, ge=1, le=16, description="Times the pool doubles, an axis of its grid each time.")
    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a window of the measurement.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="grow-int4", version=2)
def grow_int4(config: GrowInt4Config, *, corpus: Annotated[Corpus, "corpus"], int4: Int4Model) -> Output[LanguageModel]:
    """PEER int4 -> larger PEER int4: new experts beside the old ones, the function as it was."""
    model, generator = int4, current_run().generator("new experts")
    for _ in range(config.doublings):
        model = doubled(model, generator)
    held_out = HeldOut(corpus, config.measure, config.context_length)
    metrics = {
        **measure_against(model, int4, held_out),
        **measure_routing(model, held_out),
        **measure_tables(model),
        **measure_size(model),
    }
    title = f"{metrics['num_experts']:,.0f} experts a block: held-out loss beside the smaller pool's"
    change = metrics["loss_increase_nats"], metrics["loss_increase_standard_error_nats"]
    files = {"plot.png": intervals(title, {"change": change}, "nats a token")}
    return Output(value=model, metrics=metrics, files=files)
