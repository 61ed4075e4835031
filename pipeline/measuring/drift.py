"""Drift: which tokens fire an expert in a student and not in its teacher, or the reverse, since states upstream differ.

Routers may be the same to the bit: what they read has passed the other blocks' experts.
"""

# E experts of a block, P pairs (a token and an expert), F pairs that fire, each once, X experts of all blocks that
# fire in either model

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from artifacts.csv_file import csv_file
from pipeline.measuring.held_out import HeldOut
from pipeline.models.contract import Pairs
from pipeline.models.language_model import LanguageModel
from pipeline.models.registry import kind_of

DRIFTED_ABOVE = 0.1
"""Drift of an expert that is said to have drifted: one firing in ten is not the teacher's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Firings:
    """What fires in a block of two models on the same tokens, on the CPU."""

    tokens: int
    teacher_E: Tensor
    """Tokens that an expert fires on, by however many heads."""
    student_E: Tensor
    both_E: Tensor
    """Tokens that it fires on in both models."""
    teacher_gate_E: Tensor
    """Its gates, summed over tokens and heads."""
    student_gate_E: Tensor

    @property
    def either_E(self) -> Tensor:
        """Tokens that an expert fires on in either model."""
        return self.teacher_E + self.student_E - self.both_E

    @property
    def drift_E(self) -> Tensor:
        """1 - both / either, the Jaccard distance of the two sets of tokens; 0 for an expert that never fires."""
        return (self.either_E - self.both_E).double() / self.either_E.clamp(min=1)

    @property
    def same_rate_drift_E(self) -> Tensor:
        """What an unrelated set of as many tokens as the teacher's would drift, about: 1 - p / (2 - p) at rate p."""
        rate_E = self.teacher_E.double() / max(1, self.tokens)
        return 1 - rate_E / (2 - rate_E)


@torch.no_grad()
def measure_firings(student: LanguageModel, teacher: LanguageModel, held_out: HeldOut) -> list[Firings]:
    """Of every block, over FEW_TOKENS held-out tokens at most. ValueError for models of two pools of experts."""
    _check_one_pool(student, teacher)
    device = student.lm_head.weight.device
    total: list[Firings] = []
    for inputs_BT, _ in held_out.few.batches("measure drift"):
        inputs = inputs_BT.to(device)
        batch = [
            _firings(ours.pairs(), theirs.pairs(), inputs.numel(), ours.experts.num_experts)
            for ours, theirs in zip(student.walk(inputs), teacher.walk(inputs), strict=True)
        ]
        total = [_sum(a, b) for a, b in zip(total, batch, strict=True)] if total else batch
    return total


def drift_metrics(firings: Sequence[Firings]) -> dict[str, float]:
    """Over the experts of all blocks that fire in either model."""

    def live_X(of: Callable[[Firings], Tensor]) -> Tensor:
        return torch.cat([of(f)[f.either_E > 0] for f in firings])

    drift_X, null_X = live_X(lambda f: f.drift_E), live_X(lambda f: f.same_rate_drift_E)
    gate_X, student_gate_X = live_X(lambda f: f.teacher_gate_E), live_X(lambda f: f.student_gate_E)
    # A model that fires nothing has drifted nowhere; a metric must be finite.
    experts, gates = max(1, len(drift_X)), max(1e-30, gate_X.sum().item())
    return {
        "firing_drift_mean": drift_X.sum().item() / experts,
        "firing_drift_gate_weighted": (drift_X * gate_X).sum().item() / gates,
        "firing_drift_same_rate_null_mean": null_X.sum().item() / experts,
        "experts_drifted_share": (drift_X > DRIFTED_ABOVE).sum().item() / experts,
        "gate_shift_mean": (student_gate_X - gate_X).abs().sum().item() / gates,
    }


def drift_csv(firings: Sequence[Firings]) -> bytes:
    """A line an expert that fires in either model, in order of blocks and experts."""
    rows: list[Sequence[object]] = []
    for block, f in enumerate(firings):
        expert_X = torch.nonzero(f.either_E)[:, 0]
        counts, numbers = (f.teacher_E, f.student_E, f.both_E), (f.drift_E, f.teacher_gate_E, f.student_gate_E)
        columns = [expert_X.tolist(), *(count_E[expert_X].tolist() for count_E in counts)]
        columns += [[f"{number:.6g}" for number in number_E[expert_X].tolist()] for number_E in numbers]
        rows += [(block, *cells) for cells in zip(*columns, strict=True)]
    head = "block expert fired_teacher fired_student fired_both drift gate_teacher gate_student"
    return csv_file(head.split(), rows)


def _check_one_pool(student: LanguageModel, teacher: LanguageModel) -> None:
    if len(student.blocks()) != len(teacher.blocks()):
        raise ValueError(
            f"drift got a student of {len(student.blocks())} blocks and a teacher of {len(teacher.blocks())}; "
            "it takes models of one pool of experts, such as a PEER and what it was quantized to"
        )
    for layer, (ours, theirs) in enumerate(zip(student.expert_layers(), teacher.expert_layers(), strict=True)):
        try:
            kind_of(student.spec.experts).check_same_pool(ours, theirs)
        except ValueError as error:
            raise ValueError(
                f"drift got, in block {layer}, {error}; it takes models of one pool of experts, such as a PEER and "
                "what it was quantized to"
            ) from None


def _firings(student: Pairs, teacher: Pairs, tokens: int, num_experts: int) -> Firings:
    def fired_F(pairs: Pairs) -> Tensor:
        return torch.unique(pairs.token_P * num_experts + pairs.expert_P).cpu()

    def count_E(pair_F: Tensor) -> Tensor:
        return torch.bincount(pair_F % num_experts, minlength=num_experts)

    def gate_E(pairs: Pairs) -> Tensor:
        return torch.bincount(pairs.expert_P.cpu(), weights=pairs.gate_P.cpu().double(), minlength=num_experts)

    student_F, teacher_F = fired_F(student), fired_F(teacher)
    return Firings(
        tokens=tokens,
        teacher_E=count_E(teacher_F),
        student_E=count_E(student_F),
        both_E=count_E(student_F[torch.isin(student_F, teacher_F, assume_unique=True)]),
        teacher_gate_E=gate_E(teacher),
        student_gate_E=gate_E(student),
    )


def _sum(a: Firings, b: Firings) -> Firings:
    return Firings(
        tokens=a.tokens + b.tokens,
        teacher_E=a.teacher_E + b.teacher_E,
        student_E=a.student_E + b.student_E,
        both_E=a.both_E + b.both_E,
        teacher_gate_E=a.teacher_gate_E + b.teacher_gate_E,
        student_gate_E=a.student_gate_E + b.student_gate_E,
    )
