"""What each expert of a PEER model did on a sample: on which tokens it fired, with what gate, on what input."""

# N tokens, D model width, E experts (or other things that happen on tokens), P pairs (an expert and a token it fired
# on), in order of experts, O token positions looked back, X those of E that are asked for

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.pairs import starts
from kernels.symbol_table.tables import context_of
from pipeline.models.language_model import LanguageModel
from pipeline.models.tables.experts import QuantizedExperts
from pipeline.run import steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """On which tokens each of E things happens: an expert fires, a score is high."""

    token_P: Tensor
    start_E1: Tensor
    """Where each one's pairs start."""
    context_ON: Tensor
    """The token o places back, -1 before the beginning of its sequence."""

    @property
    def count_E(self) -> Tensor:
        return self.start_E1.diff()

    @property
    def expert_P(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.start_E1) - 1), self.count_E)

    @property
    def num_tokens(self) -> int:
        return self.context_ON.shape[1]

    @property
    def rate_E(self) -> Tensor:
        return self.count_E / self.num_tokens

    def places(self, chosen_X: Tensor) -> Tensor:
        """(P) where the pairs of these ones are, one after the other."""
        count_X = self.count_E[chosen_X]
        first_X = self.start_E1[chosen_X] - (count_X.cumsum(0) - count_X)
        return torch.arange(int(count_X.sum())) + torch.repeat_interleave(first_X, count_X)

    def of(self, chosen_X: Tensor) -> "Events":
        """These ones alone, in this order."""
        token_P, start_X1 = self.token_P[self.places(chosen_X)], starts(self.count_E[chosen_X])
        return Events(token_P=token_P, start_E1=start_X1, context_ON=self.context_ON)

    def on_tokens(self) -> Tensor:
        """(E, N) bool: whether each one happens on each token."""
        happens_EN = torch.zeros(len(self.count_E), self.num_tokens, dtype=torch.bool)
        happens_EN[self.expert_P, self.token_P] = True
        return happens_EN

    def permuted(self, generator: torch.Generator) -> "Events":
        """The same on the tokens of one random permutation: what happens together still does."""
        order_N = torch.randperm(self.num_tokens, generator=generator)
        return replace(self, token_P=order_N[self.token_P])


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRecord:
    """One block's sample. A pair's gate is summed over the heads that reached the expert."""

    x_ND: Tensor
    events: Events
    """The firings. All blocks share their `context_ON`."""
    gate_P: Tensor
    pre_P: Tensor
    """u . x + b, before the activation."""


@torch.no_grad()
def record(model: LanguageModel, batches: list[Tensor], *, places: int, what: str) -> list[LayerRecord]:
    """Runs the model on (B, T) token batches and keeps every firing, block by block."""
    layers: list[list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]] = [[] for _ in model.blocks()]
    seen = 0
    for step in steps(what, len(batches)):
        trace = model.trace(batches[step])
        for layer, (block, x_ND, routing) in enumerate(
            zip(model.blocks(), trace.expert_inputs, trace.routings, strict=True)
        ):
            assert isinstance(block.moe, QuantizedExperts)
            expert_P, start_N1, gate_P = block.moe.index(routing)
            token_P = torch.repeat_interleave(torch.arange(len(x_ND)), start_N1.diff())
            # Heads that reach one expert for one token add their gates.
            key_P, where_P = torch.unique(expert_P * len(x_ND) + token_P, return_inverse=True)
            merged_P = torch.zeros(len(key_P)).index_add(0, where_P, gate_P)
            pair_expert_P, pair_token_P = key_P // len(x_ND), key_P % len(x_ND)
            pre_P = block.moe.pre_activations(x_ND, pair_expert_P, pair_token_P)
            layers[layer].append((x_ND, pair_expert_P, pair_token_P + seen, merged_P, pre_P))
        seen += batches[step].numel()
    context_ON = torch.cat([context_of(tokens_BT, places) for tokens_BT in batches], dim=1)
    return [_joined(model, parts, context_ON) for parts in layers]


def _joined(
    model: LanguageModel, parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]], context_ON: Tensor
) -> LayerRecord:
    x, expert, token, gate, pre = (torch.cat(columns) for columns in zip(*parts, strict=True))
    order = torch.argsort(expert, stable=True)
    num_experts = model.spec.experts.num_experts  # type: ignore[union-attr]
    start_E1 = starts(torch.bincount(expert, minlength=num_experts))
    events = Events(token_P=token[order], start_E1=start_E1, context_ON=context_ON)
    return LayerRecord(x_ND=x, events=events, gate_P=gate[order], pre_P=pre[order])
