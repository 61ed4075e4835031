"""PEER -> PEER int4: tables u and v alone, two values a byte, each row at its best clip."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus import Corpus
from pipeline.measures import MeasureConfig, measure_against, measure_routing, measure_tables
from pipeline.models import LanguageModel, PeerModel
from pipeline.models.quantization import sqnr_db, to_int4
from pipeline.models.quantization_error import table_errors
from pipeline.plots import quantization_error
from pipeline.stage import Output, StageConfig, stage


class QuantizeInt4Config(StageConfig):
    """How rows are scaled and how the result is measured."""

    clips: int = Field(
        default=21,
        ge=1,
        le=1000,
        description="Scales tried a row, from the absmax down to half of it; 1 is plain absmax.",
    )
    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a window of the measurement.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="quantize-int4", version=2)
def quantize_int4(
    config: QuantizeInt4Config, *, corpus: Annotated[Corpus, "corpus"], peer: PeerModel
) -> Output[LanguageModel]:
    """PEER -> PEER int4: rows of u and v at half a byte a weight, measured against the float PEER."""
    model = to_int4(peer, clips=config.clips)
    metrics = {
        **measure_against(model, peer, corpus, config.measure, config.context_length),
        **measure_routing(model, corpus, config.measure, config.context_length),
        **measure_tables(model),
        "sqnr_db": sqnr_db(model, peer),
    }
    title = (
        f"PEER in int4: {metrics['sqnr_db']:.1f} dB, held-out loss {metrics['loss_increase_nats']:+.4f} nats a token"
    )
    files = {"plot.png": quantization_error(title, table_errors(model, peer))}
    return Output(value=model, metrics=metrics, files=files)
