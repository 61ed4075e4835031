"""PEER -> PEER int8: tables u and v alone, symmetric, one scale a row."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus import Corpus
from pipeline.measures import MeasureConfig, measure_against, measure_routing, measure_tables
from pipeline.models import LanguageModel, PeerModel
from pipeline.models.quantization import sqnr_db, to_int8
from pipeline.models.quantization_error import table_errors
from pipeline.plots import quantization_error
from pipeline.stage import Output, StageConfig, stage


class QuantizeInt8Config(StageConfig):
    """How int8 is measured; the scheme itself has no knob."""

    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a window of the measurement.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="quantize-int8", version=2)
def quantize_int8(
    config: QuantizeInt8Config, *, corpus: Annotated[Corpus, "corpus"], peer: PeerModel
) -> Output[LanguageModel]:
    """PEER -> PEER int8: rows of u and v at one byte a weight, measured against the float PEER."""
    model = to_int8(peer)
    metrics = {
        **measure_against(model, peer, corpus, config.measure, config.context_length),
        **measure_routing(model, corpus, config.measure, config.context_length),
        **measure_tables(model),
        "sqnr_db": sqnr_db(model, peer),
    }
    title = (
        f"PEER in int8: {metrics['sqnr_db']:.1f} dB, held-out loss {metrics['loss_increase_nats']:+.4f} nats a token"
    )
    files = {"plot.png": quantization_error(title, table_errors(model, peer))}
    return Output(value=model, metrics=metrics, files=files)
