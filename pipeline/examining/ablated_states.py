"""Logits of a model at single positions with both of two experts, without either, and without both.

Attention is causal, so nothing before the position changes: keys and values are computed once for all that is looked at
in a window, and from the experts' block on only the position itself is computed again, four times.
"""

# W windows of B at a time, T tokens a window, P positions in question, S states, D model width, V vocabulary,
# N = P * S * R tokens of which routers read R

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.models.contract import Chosen
from pipeline.models.language_model import LanguageModel
from pipeline.models.registry import kind_of
from pipeline.models.transformer import Block
from pipeline.run import steps

STATES = 4
"""With both, without the first, without the second, without both."""
FREE, FROZEN = "free", "frozen"
_WINDOWS = 16
"""That are run at once."""
_POSITIONS = 256
"""That are looked at, at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Logits:
    """Of some of the positions in question."""

    place_P: Tensor
    """Which they are, of all."""
    by_mode: Mapping[str, Tensor]
    """(P, S, V) each: routers above choose anew (free), or keep what they chose with both (frozen)."""


class States(Protocol):
    """What answers for a model: `of` gives each position once, in an order of its own."""

    def of(self, row_P: Tensor, first_P: Tensor, second_P: Tensor) -> Iterator[Logits]:
        """At rows of a record, of two experts there."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStates:
    """A model's, at tokens of windows."""

    model: LanguageModel
    block: int
    tokens_WT: Tensor

    @torch.no_grad()
    def of(self, row_P: Tensor, first_P: Tensor, second_P: Tensor) -> Iterator[Logits]:
        """A row is window * T + position."""
        device, length = self.model.lm_head.weight.device, self.tokens_WT.shape[1]
        window_P, position_P = row_P // length, row_P % length
        order_P = torch.argsort(window_P, stable=True)
        windows, counts = window_P[order_P].unique_consecutive(return_counts=True)
        batches = list(zip(windows.split(_WINDOWS), counts.split(_WINDOWS), strict=True))
        first = 0
        for at in steps("ablate pairs", len(batches)):
            window_B, count_B = batches[at]
            prefix = _Prefix.of(self.model, self.block, self.tokens_WT[window_B].to(device))
            place_X = order_P[first : first + int(count_B.sum())]
            for place_P in self._alike(place_X, position_P):
                inside_P = torch.searchsorted(window_B, window_P[place_P])
                asked = (
                    of_P.to(device) for of_P in (inside_P, *(of[place_P] for of in (position_P, first_P, second_P)))
                )
                yield Logits(place_P=place_P, by_mode=prefix.by_mode(_Asked(*asked)))
            first += len(place_X)

    def _alike(self, place_X: Tensor, position_P: Tensor) -> Iterator[Tensor]:
        """A few at a time, before which as many tokens are read."""
        most = kind_of(self.model.spec.experts).reads(self.model.spec.experts)
        reads_X = (position_P[place_X] + 1).clamp(max=most)
        for reads in reads_X.unique():
            yield from place_X[reads_X == reads].split(_POSITIONS)


@dataclass(frozen=True, slots=True)
class _Asked:
    row_P: Tensor
    """Of the batch of windows."""
    position_P: Tensor
    first_P: Tensor
    second_P: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prefix:
    """What a batch of windows was before anything was left out."""

    model: LanguageModel
    block: int
    tokens_BT: Tensor
    attended_BTD: Tensor
    """The residual stream before the experts of the block."""
    routed_BTD: Tensor
    """What the router of the block's routing read."""
    memories: list[Any]
    """Of the attention of each block above."""

    @classmethod
    def of(cls, model: LanguageModel, block: int, tokens_BT: Tensor) -> "_Prefix":
        attended_BTD = routed_BTD = None
        memories, turn, blocks = list[Any](), model.turn(tokens_BT), model.blocks()
        for number, visit in enumerate(model.walk(tokens_BT)):
            if number <= block and (visit.block.router is not None or routed_BTD is None):
                routed_BTD = visit.x_ND.unflatten(0, tokens_BT.shape)
            if number == block:
                attended_BTD = visit.attended_BTD
            if block <= number < len(blocks) - 1:
                above = blocks[number + 1]
                memories.append(above.self_attn.memory(above.input_layernorm(visit.stream_BTD), turn))
        assert attended_BTD is not None
        assert routed_BTD is not None
        return cls(
            model=model, block=block, tokens_BT=tokens_BT, attended_BTD=attended_BTD, routed_BTD=routed_BTD,
            memories=memories,
        )  # fmt: skip

    def by_mode(self, asked: _Asked) -> dict[str, Tensor]:
        """(P, S, V) each."""
        free_PSV = self.logits(asked, frozen=False)
        if all(block.router is None for block in self.model.blocks()[self.block + 1 :]):
            return {FREE: free_PSV, FROZEN: free_PSV}
        return {FREE: free_PSV, FROZEN: self.logits(asked, frozen=True)}

    def logits(self, asked: _Asked, *, frozen: bool) -> Tensor:
        """(P, S, V)"""
        blocks, reads = self.model.blocks(), kind_of(self.model.spec.experts).reads(self.model.spec.experts)
        reads = min(reads, int(asked.position_P[0]) + 1)
        context_NR = self._context(asked, reads)
        own, above = blocks[self.block], blocks[self.block + 1 :]
        owner = next((block for block in reversed(blocks[: self.block + 1]) if block.router is not None), None)
        at = asked.row_P, asked.position_P
        routing = None
        if owner is not None and owner.router is not None:
            routing = owner.router(_repeated(_states(self.routed_BTD[at]), reads), context_NR)
        stream_PSD = _states(self.attended_BTD[at])
        stream_PSD = stream_PSD + self._with_and_without(own, stream_PSD, routing, asked, reads)
        for block, memory in zip(above, self.memories, strict=True):
            x_PSD = block.input_layernorm(stream_PSD)
            stream_PSD = stream_PSD + block.self_attn.at(memory, *at, x_PSD)
            x_PSD = block.post_attention_layernorm(stream_PSD)
            if block.router is not None:
                routed_PSD = _states(x_PSD[:, 0]) if frozen else x_PSD
                routing = block.router(_repeated(routed_PSD, reads), context_NR)
            stream_PSD = stream_PSD + _last(block.moe(_repeated(x_PSD, reads), routing), reads, x_PSD)
        return self.model.logits(stream_PSD)

    def _context(self, asked: _Asked, reads: int) -> Tensor:
        """(N / R, R) the last tokens up to each position."""
        back_R = torch.arange(1 - reads, 1, device=asked.row_P.device)
        tokens_PR = self.tokens_BT[asked.row_P[:, None], asked.position_P[:, None] + back_R]
        return tokens_PR.repeat_interleave(STATES, 0)

    def _with_and_without(self, block: Block, stream_PSD: Tensor, routing: Any, asked: _Asked, reads: int) -> Tensor:
        """(P, S, D) what the experts add, in each state without those that are left out."""
        x_PSD = block.post_attention_layernorm(stream_PSD)
        x_ND = _repeated(x_PSD, reads)
        whole_PSD = _last(block.moe(x_ND, routing), reads, x_PSD)
        # Of the experts' shares, each alone: in places of the first state and of the second.
        place_P = torch.arange(len(asked.row_P), device=x_ND.device) * STATES
        token_Q = torch.cat([place_P, place_P + 1]) * reads + reads - 1
        chosen = Chosen(expert_X=token_Q[:0], token_Q=token_Q, expert_Q=torch.cat([asked.first_P, asked.second_P]))
        shares_PSD = _last(block.experts.added(x_ND, routing, chosen), reads, x_PSD)
        first_PD, second_PD = shares_PSD[:, 0], shares_PSD[:, 1]
        left_out_PSD = torch.stack([torch.zeros_like(first_PD), first_PD, second_PD, first_PD + second_PD], dim=1)
        return whole_PSD - left_out_PSD


def _states(of_PD: Tensor) -> Tensor:
    """(P, S, D) the same in each state."""
    return of_PD[:, None].expand(-1, STATES, -1)


def _repeated(x_PSD: Tensor, reads: int) -> Tensor:
    """(N, D) each state R times, as the last of R tokens and, unread, as those before it."""
    return x_PSD.flatten(0, 1).repeat_interleave(reads, 0)


def _last(y_ND: Tensor, reads: int, like_PSD: Tensor) -> Tensor:
    """(P, S, D) of the last of each R tokens."""
    return y_ND[reads - 1 :: reads].view_as(like_PSD)
