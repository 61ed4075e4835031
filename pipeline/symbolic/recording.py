"""What each expert of a model did on a sample: on which tokens it fired, with what gate, on what input."""

# N tokens, D model width, E experts (or other things that happen on tokens), P pairs (an expert and a token it fired
# on), in order of experts, M neurons of an expert, O token positions looked back, X those of E that are asked for

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.pairs import starts
from kernels.symbol_table.tables import context_of
from pipeline.models.contract import ExpertLayer, Pairs
from pipeline.models.language_model import LanguageModel
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
    pre_PM: Tensor
    """u . x + b of its neurons, before the activation."""

    @property
    def pre_P(self) -> Tensor:
        """Of experts that are one neuron each."""
        return self.pre_PM.squeeze(1)


@torch.no_grad()
def record(model: LanguageModel, batches: list[Tensor], *, places: int, what: str) -> list[LayerRecord]:
    """Runs the model on (B, T) token batches and keeps every firing, block by block."""
    layers: list[list[tuple[Tensor, ...]]] = [[] for _ in model.blocks()]
    seen = 0
    for step in steps(what, len(batches)):
        for layer, visit in enumerate(model.walk(batches[step])):
            expert_P, token_P, gate_P, pre_PM = _merged(visit.pairs(), len(visit.x_ND))
            layers[layer].append((visit.x_ND, expert_P, token_P + seen, gate_P, pre_PM))
        seen += batches[step].numel()
    context_ON = torch.cat([context_of(tokens_BT, places) for tokens_BT in batches], dim=1)
    return [_joined(experts, parts, context_ON) for experts, parts in zip(model.expert_layers(), layers, strict=True)]


def _merged(pairs: Pairs, num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) expert, token, gate and (P, M) pre-activations, by experts: heads that reach one expert for one token add
    their gates."""
    key_P, where_P = torch.unique(pairs.expert_P * num_tokens + pairs.token_P, return_inverse=True)
    gate_P = torch.zeros(len(key_P)).index_add(0, where_P, pairs.gate_P)
    pre_PM = pairs.pre_PM.new_empty(len(key_P), pairs.pre_PM.shape[1]).index_copy(0, where_P, pairs.pre_PM)
    return key_P // num_tokens, key_P % num_tokens, gate_P, pre_PM


def _joined(experts: ExpertLayer, parts: list[tuple[Tensor, ...]], context_ON: Tensor) -> LayerRecord:
    x_ND, expert_P, token_P, gate_P, pre_PM = (torch.cat(columns) for columns in zip(*parts, strict=True))
    order_P = torch.argsort(expert_P, stable=True)
    start_E1 = starts(torch.bincount(expert_P, minlength=experts.num_experts))
    events = Events(token_P=token_P[order_P], start_E1=start_E1, context_ON=context_ON)
    return LayerRecord(x_ND=x_ND, events=events, gate_P=gate_P[order_P], pre_PM=pre_PM[order_P])
