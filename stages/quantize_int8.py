"""PEER -> PEER int8: tables u and v alone, symmetric, one scale a row."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.models import LanguageModel, PeerModel
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.distillation import ShortDistillation
from pipeline.transforms.precision import to_int8
from stages.quantizing import quantized


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
    held_out = HeldOut(corpus, config.measure, config.context_length)
    rounded = to_int8(peer)
    return quantized(rounded, peer, config.distillation, held_out, precision="int8")
