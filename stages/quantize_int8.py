"""PEER -> PEER int8: tables u and v alone, symmetric, one scale a row."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.figures.tables import quantization_error
from pipeline.measuring.drift import drift_csv, drift_metrics, measure_firings
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure_against
from pipeline.measuring.routing import measure_routing
from pipeline.measuring.sizes import measure_tables
from pipeline.models import LanguageModel, PeerModel
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.distillation import ShortDistillation, distilled
from pipeline.transforms.precision import rows_below_smallest_scale, sqnr_db, to_int8
from pipeline.transforms.table_error import table_errors


class QuantizeInt8Config(StageConfig):
    """What follows the rounding, which itself has no knob, and how the result is measured."""

    distillation: ShortDistillation = Field(
        default=ShortDistillation(), description="What it learns from the float PEER; nothing by default."
    )
    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a window of the measurement.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="quantize-int8", version=4)
def quantize_int8(
    config: QuantizeInt8Config, *, corpus: Annotated[Corpus, "corpus"], peer: PeerModel
) -> Output[LanguageModel]:
    """PEER -> PEER int8: rows of u and v at one byte a weight, measured against the float PEER."""
    rounded = to_int8(peer)
    model = distilled(rounded, peer, config.distillation, corpus=corpus, context_length=config.context_length)
    held_out = HeldOut(corpus, config.measure, config.context_length)
    firings = measure_firings(model, peer, held_out)
    metrics = {
        **measure_against(model, peer, held_out),
        **measure_routing(model, held_out),
        **measure_tables(model),
        **drift_metrics(firings),
        "sqnr_db": sqnr_db(model, peer),
        "rows_below_smallest_scale": float(rows_below_smallest_scale(model, peer)),
    }
    title = (
        f"PEER in int8: {metrics['sqnr_db']:.1f} dB, held-out loss {metrics['loss_increase_nats']:+.4f} nats a token"
    )
    files = {"plot.png": quantization_error(title, table_errors(model, peer)), "drift.csv": drift_csv(firings)}
    return Output(value=model, metrics=metrics, files=files)
