"""Tokens after a prompt, one by one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.errors import Mistake
from pipeline.run import check_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    tokens: int
    temperature: float
    top_k: int
    seed: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise Mistake(f"--tokens: got {self.tokens}, wanted at least 1")
        if not 0 <= self.temperature < math.inf:
            raise Mistake(f"--temperature: got {self.temperature}, wanted 0 (always the likeliest) or more, and finite")
        if self.top_k < 1:
            raise Mistake(f"--top-k: got {self.top_k}, wanted at least 1")
        check_seed(self.seed)


@torch.no_grad()
def generate(model: nn.Module, prompt: Sequence[int], sampling: Sampling, *, context: int) -> Iterator[int]:
    """Token ids after the prompt, one by one, each sampled from the last `context` before it; a model has learnt
    nothing of more than it was trained on (`trained_length`)."""
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt)
    for _ in range(sampling.tokens):
        logits_V = model(torch.tensor([ids[-context:]]))[0, -1]
        ids.append(_sampled(logits_V, sampling, generator))
        yield ids[-1]


def _sampled(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    best, ids = logits_V.float().topk(min(sampling.top_k, len(logits_V)))
    if sampling.temperature == 0:
        return int(ids[0])
    # In doubles and from the best down: nothing overflows at any temperature.
    chances = torch.softmax((best - best[0]).double() / sampling.temperature, dim=0)
    return int(ids[torch.multinomial(chances, 1, generator=generator)])
