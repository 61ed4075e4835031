"""Level C: trained toys whose truth can be enumerated. A layer of N experts, K a token, has to tell C concepts apart.

With fewer experts than concepts the layer must say some concepts by pairs. Which, is seen by asking it for every
concept which experts fire: it is a joint code if it is said by two experts or more and none of them is its own.
"""

# B a batch of concepts, D width, N experts, K experts a token, H width of the readout

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.examining.record import Record, record_of

CONCEPTS = 96
WIDTH, HIDDEN = 32, 128
BATCH, RATE, DECAY = 256, 8e-3, 1e-3
BALANCE = 2e-3
"""Step of an expert's bias towards equal use (aux-free balancing)."""
NOISE = 0.03
SEEN = 64
"""Samples of each concept in which the truth is enumerated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    """What a trained layer did on some tokens, and its truth."""

    record: Record
    joint_codes: float
    """Share of concepts."""
    accuracy: float


class ToyLayer:
    """Sparse experts between a concept's vector and a readout of two layers."""

    def __init__(self, experts: int, active: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.active = active
        self.concept_CD = torch.nn.functional.normalize(self._normal(CONCEPTS, WIDTH), dim=1)
        shapes = {
            "key": (experts, WIDTH), "v": (experts, WIDTH), "bias": (experts,),
            "up": (WIDTH, HIDDEN), "up_bias": (HIDDEN,), "down": (HIDDEN, CONCEPTS), "straight": (WIDTH, CONCEPTS),
        }  # fmt: skip
        scales = {"bias": 0.0, "up_bias": 0.0, "down": HIDDEN**-0.5, "straight": 1 / 8}
        self.of = {
            name: (self._normal(*shape) * scales.get(name, WIDTH**-0.5)).requires_grad_()
            for name, shape in shapes.items()
        }

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def __call__(self, concept_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C) logits, and (B, K) who fired with what gate."""
        of = self.of
        x_BD = self.concept_CD[concept_B] + NOISE * self._normal(len(concept_B), WIDTH)
        top = (x_BD @ of["key"].T + of["bias"]).topk(self.active)
        gate_BK = torch.sigmoid(top.values)
        h_BD = torch.einsum("bk,bkd->bd", gate_BK, of["v"][top.indices])
        h_BD = h_BD / (h_BD.square().mean(1, keepdim=True) + 1e-2).sqrt()
        hidden_BH = torch.relu(h_BD @ of["up"] + of["up_bias"])
        return h_BD @ of["straight"] + hidden_BH @ of["down"], top.indices, gate_BK

    def train(self, steps: int) -> None:
        optimizer = torch.optim.AdamW(self.of.values(), lr=RATE, weight_decay=DECAY)
        experts = len(self.of["key"])
        use_N = torch.ones(experts)
        for _ in range(steps):
            concept_B = torch.randint(0, CONCEPTS, (BATCH,), generator=self._generator)
            logits_BC, expert_BK, _ = self(concept_B)
            use_N = 0.99 * use_N + 0.01 * torch.bincount(expert_BK.flatten(), minlength=experts)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits_BC, concept_B).backward()
            with torch.no_grad():
                self.of["bias"] += BALANCE * torch.sign(use_N.mean() - use_N)
            optimizer.step()


def trained_toy(*, experts: int, active: int, seed: int, steps: int = 400, tokens: int = 60_000) -> Toy:
    layer = ToyLayer(experts, active, seed)
    layer.train(steps)
    with torch.no_grad():
        concept_B = torch.arange(CONCEPTS).repeat_interleave(SEEN)
        logits_BC, expert_BK, _ = layer(concept_B)
        fires_CN = (
            torch.zeros(len(concept_B), experts).scatter(1, expert_BK, 1.0).view(CONCEPTS, SEEN, -1).mean(1) > 0.5
        )
        owners_N = fires_CN.sum(0)
        shared_C = ((owners_N > 1) | ~fires_CN).all(1) & (fires_CN.sum(1) > 1)
        concept_T = torch.randint(0, CONCEPTS, (tokens,), generator=torch.Generator().manual_seed(seed))
        _, expert_TK, gate_TK = layer(concept_T)
    record = record_of(
        {
            "expert": expert_TK.to(torch.int32),
            "contribution": gate_TK,
            "token": concept_T,
            "label": concept_T,
            "document": torch.arange(tokens) // 100,
            "stratum": torch.zeros(tokens, dtype=torch.int64),
            "experts": torch.tensor(experts),
            "output_vector": layer.of["v"].detach(),
            "input_vector": layer.of["key"].detach(),
        }
    )
    accuracy = float((logits_BC.argmax(1) == concept_B).float().mean())
    return Toy(record=record, joint_codes=float(shared_C.float().mean()), accuracy=float(np.round(accuracy, 4)))
