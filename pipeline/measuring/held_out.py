"""The text behind a stage's metrics, read once: held out for what is reported, validation for what is chosen."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.run import steps

# B windows, T tokens a window

FEW_TOKENS = 16_384
"""At most so many stand behind what is said of single experts, and behind what only stands beside a result."""

Windows = tuple[Tensor, Tensor]
"""(B, T) inputs and targets."""


class MeasureConfig(BaseModel):
    """How much of the held-out split stands behind a metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=65_536, ge=256, description="Held-out tokens, in windows spread evenly over the split.")
    batch_size: int = Field(default=16, ge=1, description="Windows a forward pass.")


@dataclass(frozen=True)
class HeldOut:
    """What a stage measures all its models on: windows of a corpus's text that no training reads.

    A split is read when its first batch is asked for, and not again.
    """

    corpus: Corpus
    config: MeasureConfig
    context_length: int

    def batches(self, what: str = "measure") -> Iterator[Windows]:
        """Of the held-out split, the same at every call: for what is reported."""
        return self._batches(self.windows, what)

    def validation_batches(self, what: str = "measure on validation") -> Iterator[Windows]:
        """The same of the validation split: for what is chosen."""
        return self._batches(self._validation_windows, what)

    def of_tokens(self, tokens: int) -> "HeldOut":
        """The same with another budget."""
        return replace(self, config=self.config.model_copy(update={"tokens": tokens}))

    @cached_property
    def few(self) -> "HeldOut":
        """The same with FEW_TOKENS at most."""
        return self if self.config.tokens <= FEW_TOKENS else self.of_tokens(FEW_TOKENS)

    @cached_property
    def windows(self) -> Windows:
        """All of the held-out split's."""
        return held_out_windows(self.corpus.held_out, num_tokens=self.config.tokens, length=self.context_length)

    @cached_property
    def _validation_windows(self) -> Windows:
        return held_out_windows(self.corpus.validation, num_tokens=self.config.tokens, length=self.context_length)

    def _batches(self, windows: Windows, what: str) -> Iterator[Windows]:
        inputs_WT, targets_WT = windows
        for batch in steps(what, math.ceil(len(inputs_WT) / self.config.batch_size)):
            rows = slice(batch * self.config.batch_size, (batch + 1) * self.config.batch_size)
            yield inputs_WT[rows], targets_WT[rows]
