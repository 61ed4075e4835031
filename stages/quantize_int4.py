"""PEER -> PEER int4: tables u and v alone, two values a byte, each group of a row at its best clip."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.models import LanguageModel, PeerModel
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.distillation import ShortDistillation
from pipeline.transforms.precision import to_int4
from stages.quantizing import quantized


class QuantizeInt4Config(StageConfig):
    """How rows are scaled, what follows, and how the result is measured."""

    clips: int = Field(
        default=21,
        ge=1,
        le=1000,
        description="Scales tried a row, from the absmax down to half of it; 1 is plain absmax.",
    )
    scale_groups: int = Field(
        default=1,
        ge=1,
        le=2**10,
        description="Scales a row, a divisor of half the width. More than 1 is for inference on a CPU: finetune-int4 "
        "refuses it.",
    )
    distillation: ShortDistillation = Field(
        default=ShortDistillation(), description="What it learns from the float PEER; nothing by default."
    )
    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a window of the measurement.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="quantize-int4", version=4)
def quantize_int4(
    config: QuantizeInt4Config, *, corpus: Annotated[Corpus, "corpus"], peer: PeerModel
) -> Output[LanguageModel]:
    """PEER -> PEER int4: rows of u and v at half a byte a weight, measured against the float PEER."""
    held_out = HeldOut(corpus, config.measure, config.context_length)
    rounded = to_int4(peer, clips=config.clips, groups=config.scale_groups)
    return quantized(rounded, peer, config.distillation, held_out, precision="int4")
