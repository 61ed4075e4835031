"""Level B: a function of planted experts, wired by hand, in which some pairs compute what neither does alone.

Every expert adds a direction of its own to a state of noise; a norm and a linear readout follow. Of *code* pairs every
other one has a unit behind an AND of its two directions, which says C and takes A and B back (hidden); the others have
A, B and C in the linear readout alone. *Composed* pairs add to the same labels. *Redundant* pairs have nearly the same
direction. Everything but the units is linear up to the norm, so that only the former are hidden functions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.examining.ablated_states import FREE, FROZEN, Logits
from pipeline.examining.record import Record, record_of
from tests.planted_records import Pair, Planted

# T tokens, K experts a token, E experts, D width, L labels, A units, P positions, S states

STRENGTH, THRESHOLD, NOISE = 8.0, 1.3, 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WiredStates:
    """Answers for the rows of a record."""

    expert_TK: Tensor
    """-1 for none."""
    noise_TD: Tensor
    v_ED: Tensor
    readout_DL: Tensor
    unit_DA: Tensor
    unit_says_AL: Tensor

    def of(self, row_P: Tensor, first_P: Tensor, second_P: Tensor) -> Iterator[Logits]:
        for place_P in torch.arange(len(row_P)).split(2048):
            row, first, second = row_P[place_P], first_P[place_P], second_P[place_P]
            state_PSD = self.state(row)[:, None].repeat(1, 4, 1)
            state_PSD[:, 1::2] -= self.v_ED[first, None]
            state_PSD[:, 2:] -= self.v_ED[second, None]
            logits_PSV = self.logits(state_PSD)
            yield Logits(place_P=place_P, by_mode={FREE: logits_PSV, FROZEN: logits_PSV})

    def state(self, row_P: Tensor) -> Tensor:
        expert_PK = self.expert_TK[row_P]
        return self.noise_TD[row_P] + (self.v_ED[expert_PK] * (expert_PK >= 0)[..., None]).sum(1)

    def logits(self, state_XD: Tensor) -> Tensor:
        width = state_XD.shape[-1]
        normed_XD = state_XD / state_XD.square().mean(-1, keepdim=True).sqrt() * ((NOISE**2 + 8) / width) ** 0.5
        return normed_XD @ self.readout_DL + torch.relu(normed_XD @ self.unit_DA - THRESHOLD) @ self.unit_says_AL


def wire(planted: Planted, *, seed: int = 0, width: int = 256) -> tuple[WiredStates, Record, frozenset[Pair]]:
    """The function, the record whose labels are what it says, and the hidden pairs."""
    rng, record = np.random.default_rng(seed), record_of(planted.tensors)
    code, composed, redundant = (sorted(pairs) for pairs in (planted.code, planted.composed, planted.redundant))
    v_ED = rng.normal(size=(record.experts, width))
    v_ED /= np.linalg.norm(v_ED, axis=1, keepdims=True)
    for i, j in redundant:
        v_ED[j] = 0.95 * v_ED[i] + (1 - 0.95**2) ** 0.5 * v_ED[j]
        v_ED[j] /= np.linalg.norm(v_ED[j])
    labels = 3 * len(code) + 4 * len(composed) + len(redundant)
    readout_LD, units, says = np.zeros((labels, width)), list[np.ndarray](), list[np.ndarray]()
    for number, (i, j) in enumerate(code):
        a, b, c = range(3 * number, 3 * number + 3)
        apart = 0.0 if number % 2 == 0 else 0.6
        readout_LD[a] += STRENGTH * (v_ED[i] - apart * v_ED[j])
        readout_LD[b] += STRENGTH * (v_ED[j] - apart * v_ED[i])
        readout_LD[c] += STRENGTH * apart * (v_ED[i] + v_ED[j])
        if number % 2 == 0:
            units.append(v_ED[i] + v_ED[j])
            says.append(np.bincount([a, b, c], [-2 * STRENGTH, -2 * STRENGTH, 3 * STRENGTH], labels))
    first = 3 * len(code)
    for number, (i, j) in enumerate(composed):
        for label in range(first + 4 * number, first + 4 * number + 4):
            readout_LD[label] += rng.normal(0, 3) * v_ED[i] + rng.normal(0, 3) * v_ED[j]
    first += 4 * len(composed)
    for number, (i, _) in enumerate(redundant):
        readout_LD[first + number] += STRENGTH * v_ED[i]
    wired = {expert for pair in planted.all for expert in pair}
    for expert in np.unique(record.expert_TK[record.expert_TK >= 0]).tolist():
        if expert not in wired:
            readout_LD[rng.integers(0, labels)] += rng.normal(0, 5) * v_ED[expert]
    states = WiredStates(
        expert_TK=torch.from_numpy(record.expert_TK.astype(np.int64)),
        noise_TD=torch.randn(record.tokens, width, generator=torch.Generator().manual_seed(seed)) * NOISE / width**0.5,
        v_ED=torch.from_numpy(v_ED).float(),
        readout_DL=torch.from_numpy(readout_LD.T).float(),
        unit_DA=torch.from_numpy(np.array(units).T).float(),
        unit_says_AL=torch.from_numpy(np.array(says)).float(),
    )
    # As if v were as long as what it does to the logits, so that partners of a like effect are found.
    size_E = np.linalg.norm(v_ED @ readout_LD.T, axis=1)
    contribution_TK = np.where(record.expert_TK >= 0, size_E[record.expert_TK], 0)
    said = [states.logits(states.state(row)).argmax(-1) for row in torch.arange(record.tokens).split(8192)]
    record = replace(record, label_T=torch.cat(said).numpy(), contribution_TK=contribution_TK)
    return states, record, frozenset(code[::2])
