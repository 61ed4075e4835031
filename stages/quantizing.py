"""From a rounded PEER to a measured one: what the two quantizing stages share."""

from pipeline.figures.tables import quantization_error
from pipeline.measuring.drift import drift_csv, drift_metrics, measure_firings
from pipeline.measuring.held_out import HeldOut
from pipeline.measuring.loss import measure_against
from pipeline.measuring.routing import measure_routing
from pipeline.measuring.sizes import measure_tables
from pipeline.models import LanguageModel
from pipeline.stage import Output
from pipeline.training.distillation import ShortDistillation, distilled
from pipeline.transforms.precision import rows_below_smallest_scale
from pipeline.transforms.table_error import sqnr_db, table_errors


def quantized(
    rounded: LanguageModel, peer: LanguageModel, distillation: ShortDistillation, held_out: HeldOut, *, precision: str
) -> Output[LanguageModel]:
    """The model after its short distillation, if any, measured against the float PEER; `precision` is its name."""
    length = held_out.context_length
    model = distilled(rounded, peer, distillation, corpus=held_out.corpus, context_length=length)
    firings = measure_firings(model, peer, held_out)
    metrics = {
        **measure_against(model, peer, held_out),
        **measure_routing(model, held_out),
        **measure_tables(model),
        **drift_metrics(firings),
        "sqnr_db": sqnr_db(model, peer),
        "rows_below_smallest_scale": float(rows_below_smallest_scale(model, peer)),
    }
    loss = f"held-out loss {metrics['loss_increase_nats']:+.4f} nats a token"
    title = f"PEER in {precision}: {metrics['sqnr_db']:.1f} dB, {loss}"
    files = {"plot.png": quantization_error(title, table_errors(model, peer)), "drift.csv": drift_csv(firings)}
    return Output(value=model, metrics=metrics, files=files)
