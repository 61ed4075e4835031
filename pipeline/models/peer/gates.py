"""PEER's gates: which pairs of a row and a column a token reaches, with what weight, and how that is said.

`GATES` has one entry for each name that `PeerSpec.gate` takes, and everything that depends on the gate asks it. An
entry has no state of its own: norms and thresholds are the router's, under the names that artifacts have for them.
"""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, X either, C pairs of a row and a column,
# P pairs (a token and a cell), in order of their tokens

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kernels.backends import CpuLibrary, cpu_library_for
from kernels.errors import Mistake
from kernels.jump_router import jump_router
from kernels.jump_router.native import Router
from kernels.jump_router.packed import Packed
from kernels.jump_router.tables import AxisStatistics, Rule
from kernels.pairs import starts
from kernels.product_key_topk import product_key_threshold, product_key_topk
from pipeline.models.axis_threshold import axis_deviations, fit_norm, passing_logits
from pipeline.models.derived import Derived
from pipeline.models.number_types import at_least_float32
from pipeline.models.peer.routing import LogGates, PassingKeys, PeerRouting

if TYPE_CHECKING:  # a spec is checked by its gate, and a router selects by it
    from pipeline.models.peer.router import PeerRouter
    from pipeline.models.peer.spec import PeerSpec

GateName = Literal["softmax", "jumprelu", "relu"]
Axes = tuple[Tensor, Tensor]
"""(N, H, I) of the rows and (N, H, J) of the columns."""

THRESHOLD_GAIN = 0.03
"""How far a head's threshold moves a training step for each pair that fires beside the target (research prototype)."""


@dataclass(frozen=True, slots=True)
class AxisCuts:
    """Which scores of an axis pass: those so many deviations above their head's mean."""

    rows: nn.BatchNorm1d
    columns: nn.BatchNorm1d
    deviations: float


class Gate(ABC):
    """What a gate is asked. `router` is one that `prepare` has seen."""

    rule: ClassVar[str]
    """When an expert fires and with what gate, of the fields that `symbolic/showing/expert_form.py` gives."""
    words: ClassVar[tuple[str, ...]]
    """The same as lines of text."""
    axis_gates: ClassVar[bool]
    """Whether a row or column has a gate of its own, which axis biases are weighted by."""
    thresholds: ClassVar[tuple[str, ...]]
    """The router's buffers that may hold minus infinity."""
    runtime_code: ClassVar[int | None]
    """Its number in `symbolic/exporting/runtime.c`; None where that program has no such gate."""

    @abstractmethod
    def check(self, spec: "PeerSpec") -> None:
        """ValueError for fields that do not go with this gate."""

    @abstractmethod
    def check_doubling(self, spec: "PeerSpec") -> None:
        """ValueError where a pool of twice as many experts cannot have twice as many pairs a head."""

    @abstractmethod
    def prepare(self, router: "PeerRouter") -> None:
        """Gives a new router the modules and buffers that the gate keeps."""

    @abstractmethod
    def select(self, router: "PeerRouter", x_ND: Tensor) -> PeerRouting:
        """The pairs that these states reach; in training the gate may learn from them."""

    @abstractmethod
    def log_gates(self, router: "PeerRouter", scores: Axes) -> Axes | None:
        """Log gates of the axes, minus infinity for sub-keys that do not pass; None without `axis_gates`."""

    @abstractmethod
    def high(self, router: "PeerRouter", scores: Axes) -> Axes:
        """Where a sub-key is high: without that no pair that has it can fire."""

    @abstractmethod
    def cuts(self, router: "PeerRouter") -> AxisCuts | None:
        """What passes of an axis; None where everything does."""

    @abstractmethod
    def limits(self, router: "PeerRouter") -> Tensor | None:
        """(H) what the log gates of a pair must add up to more than; None where it must be among its head's best
        `pairs_per_head`."""

    @abstractmethod
    def aim(self, router: "PeerRouter", routings: Sequence[PeerRouting]) -> None:
        """Lets heads reach `pairs_per_head` pairs a token on average over these routings of its own."""

    @abstractmethod
    def fit(self, router: "PeerRouter", x_ND: Tensor, share: float = 1.0) -> None:
        """What the gate keeps, anew from the scores of these states; heads then reach `share` times `pairs_per_head`
        pairs a token, where the gate leaves that open."""

    @abstractmethod
    def hold_statistics(self, router: "PeerRouter") -> None:
        """Statistics of scores stay as they are, in training too, until `train` is called again."""

    @abstractmethod
    def copy_doubled(self, new: "PeerRouter", old: "PeerRouter") -> None:
        """What the gate keeps, for an axis whose sub-keys all have a twin: each pair is found twice, at half its
        gate."""


class Softmax(Gate):
    """Softmax over the best pairs of a head, as published (arXiv 2407.04153)."""

    rule = (
        "a and b are the scores of a head's rows and columns. The expert fires by a head iff a_row + b_column is among "
        "the pairs_per_head largest sums of one row and one column of that head. Its gate is the sum, over the heads "
        "that it fires by, of exp(a_row + b_column) over the sum of exp of those largest sums."
    )
    words = (
        "A^h_r = a^h_r and B^h_c = b^h_c; best are the largest sums of one row and one column of the head",
        "gate = exp(A^h_r + B^h_c) / (sum of exp over the best sums), summed over the heads by which it fires",
    )
    axis_gates = False
    thresholds = ()
    runtime_code = 0

    def check(self, spec: "PeerSpec") -> None:
        if spec.pairs_per_head > spec.num_keys:
            raise Mistake(f"pairs_per_head={spec.pairs_per_head} is more than num_keys={spec.num_keys}")

    def check_doubling(self, spec: "PeerSpec") -> None:
        if spec.pools == "per-head":
            raise Mistake("heads with pools of their own do not grow; grow a pool that all heads share")
        if 2 * spec.pairs_per_head > (1 if spec.aspect % 2 else 2) * spec.num_keys:
            raise Mistake(
                f"a head would keep {2 * spec.pairs_per_head} pairs of {spec.num_keys} rows; grow a pool of more "
                "keys, or with fewer pairs_per_head"
            )

    def prepare(self, router: "PeerRouter") -> None:
        """It keeps nothing."""

    def select(self, router: "PeerRouter", x_ND: Tensor) -> PeerRouting:
        score_NHK, cell_NHK = product_key_topk(*router.scores(x_ND), router.spec.pairs_per_head)
        if router.spec.pools == "per-head":
            head_H = torch.arange(router.spec.num_heads, device=x_ND.device)
            cell_NHK = cell_NHK + router.spec.num_cells * head_H[:, None]
        pairs = cell_NHK[0].numel() if len(cell_NHK) else 0
        start_N1 = torch.arange(len(x_ND) + 1, device=x_ND.device) * pairs
        return PeerRouting(cell_NHK.flatten(), start_N1, self.gates(score_NHK).flatten(), None)

    def gates(self, score_NHK: Tensor) -> Tensor:
        """Of a head's best pairs, from their scores."""
        return torch.softmax(score_NHK, dim=-1)

    def log_gates(self, router: "PeerRouter", scores: Axes) -> None:
        """The gate of a pair is no product of one of its row and one of its column."""

    def high(self, router: "PeerRouter", scores: Axes) -> Axes:
        """Among as many best of its head as pairs are kept."""
        rows, columns = (_among_best(score_NHX, router.spec.pairs_per_head) for score_NHX in scores)
        return rows, columns

    def cuts(self, router: "PeerRouter") -> None:
        """Every sub-key passes."""

    def limits(self, router: "PeerRouter") -> None:
        """Pairs are compared with each other."""

    def aim(self, router: "PeerRouter", routings: Sequence[PeerRouting]) -> None:
        """Heads always keep as many pairs as that."""

    def fit(self, router: "PeerRouter", x_ND: Tensor, share: float = 1.0) -> None:
        """It keeps nothing."""

    def hold_statistics(self, router: "PeerRouter") -> None:
        """It keeps none."""

    def copy_doubled(self, new: "PeerRouter", old: "PeerRouter") -> None:
        """It keeps nothing."""


class Rectified(Softmax):
    """The positive part of a pair's own score: scores do not compete (arXiv 2310.10837, lucidrains' default)."""

    rule = (
        "a and b are the scores of a head's rows and columns. The expert fires by a head iff a_row + b_column is among "
        "the pairs_per_head largest sums of one row and one column of that head, and above 0. Its gate is the sum of "
        "a_row + b_column over the heads that it fires by."
    )
    words = (
        "A^h_r = a^h_r and B^h_c = b^h_c; best are the largest sums of one row and one column of the head",
        "gate = A^h_r + B^h_c where that is above 0, summed over the heads by which it fires",
    )
    runtime_code = None

    def check_doubling(self, spec: "PeerSpec") -> None:
        raise Mistake(
            "a pair of the relu gate that is found twice does not have half the gate; grow another gate's pool"
        )

    def gates(self, score_NHK: Tensor) -> Tensor:
        return torch.relu(score_NHK)


class JumpRelu(Gate):
    """Every pair whose log gates add up to more than its head's threshold: (r, c) iff A_r + B_c > threshold_h.

    A and B are the log gates of Monet's router (logits that pass an axis threshold, minus their log-sum-exp), so the
    gate exp(A_r + B_c) keeps the untruncated partition function, which factorises over the axes.
    """

    rule = (
        "a and b are the scores of a head's rows and columns. Row r of a head passes iff a_r >= min(cut.limit, the "
        "head's largest a - cut.margin); columns likewise with b. A_r = a_r - log(sum of exp(a_i) over the head's rows "
        "i that pass), B_c likewise over its columns. The expert fires by a head iff its row and its column pass and "
        "A_row + B_column > threshold (null: no threshold). Its gate is the sum of exp(A_row + B_column) over the "
        "heads that it fires by."
    )
    words = (
        "A^h_r = a^h_r - log(sum of exp(a^h_i) over the rows i of head h that pass)",
        "row r of head h passes iff a^h_r >= min(cut, the head's largest a^h_i - margin)",
        "B^h_c likewise: b^h_c and the columns; a row or column that does not pass fires nothing",
        "gate = exp(A^h_r + B^h_c), summed over the heads by which it fires",
    )
    axis_gates = True
    thresholds = ("threshold_H",)
    runtime_code = 1

    def check(self, spec: "PeerSpec") -> None:
        if spec.active_keys >= spec.num_keys:
            raise Mistake(f"active_keys={spec.active_keys} must be below num_keys={spec.num_keys}")

    def check_doubling(self, spec: "PeerSpec") -> None:
        """Nor is there a limit to them then."""

    def prepare(self, router: "PeerRouter") -> None:
        spec = router.spec
        router.deviations = axis_deviations(spec.active_keys, spec.num_keys)
        router.norm1 = nn.BatchNorm1d(spec.num_heads, affine=False)
        router.norm2 = nn.BatchNorm1d(spec.num_heads, affine=False)
        router.rule = Rule(spec.num_keys, router.deviations, spec.tie_margin, router.norm1.eps)
        router.ready = Derived()
        # Minus infinity: every pair that passes both axes fires, as in Monet; the first training batch sets it.
        router.register_buffer("threshold_H", torch.full((spec.num_heads,), -torch.inf))

    def select(self, router: "PeerRouter", x_ND: Tensor) -> PeerRouting:
        if router.training or torch.is_grad_enabled():
            return self._recorded(router, x_ND)
        return self._fired(router, x_ND)

    def log_gates(self, router: "PeerRouter", scores: Axes) -> Axes:
        (row_NHI, column_NHJ), margin = scores, router.spec.tie_margin
        return (
            torch.log_softmax(passing_logits(row_NHI, router.norm1, router.deviations, margin), dim=-1),
            torch.log_softmax(passing_logits(column_NHJ, router.norm2, router.deviations, margin), dim=-1),
        )

    def high(self, router: "PeerRouter", scores: Axes) -> Axes:
        """Above its head's threshold, as no log gate of the other axis is above 0."""
        # Where the threshold is minus infinity, what passes is still finite and above it.
        rows, columns = (gate_NHX > router.threshold_H[:, None] for gate_NHX in self.log_gates(router, scores))
        return rows, columns

    def cuts(self, router: "PeerRouter") -> AxisCuts:
        return AxisCuts(router.norm1, router.norm2, router.deviations)

    def limits(self, router: "PeerRouter") -> Tensor:
        return router.threshold_H

    def aim(self, router: "PeerRouter", routings: Sequence[PeerRouting]) -> None:
        row_NHI = torch.cat([routing.log_gate1_NHI for routing in routings])  # type: ignore[misc] - it has axis gates
        column_NHJ = torch.cat([routing.log_gate2_NHJ for routing in routings])  # type: ignore[misc]
        router.threshold_H.copy_(threshold_for(row_NHI, column_NHJ, router.spec.pairs_per_head))

    def fit(self, router: "PeerRouter", x_ND: Tensor, share: float = 1.0) -> None:
        scores = router.scores(x_ND)
        for norm, score_NHX in zip((router.norm1, router.norm2), scores, strict=True):
            fit_norm(norm, score_NHX)
        router.threshold_H.copy_(threshold_for(*self.log_gates(router, scores), share * router.spec.pairs_per_head))

    def hold_statistics(self, router: "PeerRouter") -> None:
        router.norm1.eval()
        router.norm2.eval()

    def copy_doubled(self, new: "PeerRouter", old: "PeerRouter") -> None:
        new.threshold_H.copy_(old.threshold_H - math.log(2))

    def _recorded(self, router: "PeerRouter", x_ND: Tensor) -> PeerRouting:
        """Differentiable in the states and the router; in training the thresholds follow what fires."""
        spec = router.spec
        row_NHI, column_NHJ = self.log_gates(router, router.scores(x_ND))
        if router.training and bool(torch.isneginf(router.threshold_H).any()):
            router.threshold_H.copy_(threshold_for(row_NHI, column_NHJ, spec.pairs_per_head))
        token_P, head_P, r_P, c_P = product_key_threshold(row_NHI, column_NHJ, router.threshold_H)
        if router.training:
            fired_H = torch.bincount(head_P, minlength=spec.num_heads) / len(x_ND)
            router.threshold_H += THRESHOLD_GAIN * (fired_H - spec.pairs_per_head)
        gate_P = torch.exp(row_NHI[token_P, head_P, r_P] + column_NHJ[token_P, head_P, c_P]).to(x_ND.dtype)
        start_N1 = starts(torch.bincount(token_P, minlength=len(x_ND)))
        return PeerRouting(r_P * spec.num_columns + c_P, start_N1, gate_P, LogGates(row_NHI, column_NHJ))

    def _fired(self, router: "PeerRouter", x_ND: Tensor) -> PeerRouting:
        """What `_recorded` gives in evaluation, without gradients and without a tensor of all log gates."""
        spec, library = router.spec, cpu_library_for(x_ND)
        if library is not None:
            return PeerRouting.of_packed(_packed(router, x_ND, library))
        weight_XD, rows = router.reads(), router.compact_rows() if spec.score_terms else None
        read_XN = weight_XD @ x_ND.T if weight_XD is not None else router.score_SN(x_ND)
        fired = jump_router(at_least_float32(read_XN), rows, _statistics(router), router.rule)
        keys = PassingKeys(
            sizes=(spec.num_heads, spec.num_keys, spec.num_columns),
            score_Q=fired.score_Q, start_N1=fired.key_start_N1, log_gate_Q=fired.log_gate_Q, gate_Q=fired.gate_Q,
        )  # fmt: skip
        return PeerRouting(fired.cell_P, fired.start_N1, fired.gate_P.to(x_ND.dtype), keys)


GATES: Mapping[GateName, Gate] = {"softmax": Softmax(), "jumprelu": JumpRelu(), "relu": Rectified()}


def threshold_for(row_NHI: Tensor, column_NHJ: Tensor, pairs_per_head: float) -> Tensor:
    """(H) thresholds at which heads fire `pairs_per_head` pairs a token on average over these log gates."""
    limits = []
    for h in range(row_NHI.shape[1]):
        score_C = (row_NHI[:, h, :, None] + column_NHJ[:, h, None, :]).flatten()
        score_C = score_C[torch.isfinite(score_C)]
        rank = min(len(score_C), round(pairs_per_head * len(row_NHI)) + 1)
        limits.append(score_C.topk(rank).values[-1])
    return torch.stack(limits).detach()


def _among_best(score_NHX: Tensor, kept: int) -> Tensor:
    return score_NHX >= score_NHX.topk(min(kept, score_NHX.shape[-1]), dim=-1).values[..., -1:]


def _packed(router: "PeerRouter", x_ND: Tensor, library: CpuLibrary) -> Packed:
    ready = router.ready.of(router, library, lambda: _made_ready(router, library))
    if ready.reads_states:
        return ready.route(x_ND.contiguous())
    return ready.route_read(router.score_SN(x_ND))


def _made_ready(router: "PeerRouter", library: CpuLibrary) -> tuple[Router, tuple[Tensor, ...]]:
    spec, weight_XD = router.spec, router.reads()
    reads = spec.num_heads * (spec.num_keys + spec.num_columns) if weight_XD is None else len(weight_XD)
    rows = router.compact_rows() if spec.score_terms else None
    ready = Router(library, weight_XD, reads, rows, _statistics(router), router.rule)
    return ready, (*ready.copied, *((router.query.weight, router.query.bias) if spec.score_terms else ()))


def _statistics(router: "PeerRouter") -> AxisStatistics:
    row, column = router.norm1, router.norm2
    numbers = (row.running_mean, row.running_var, column.running_mean, column.running_var)
    return AxisStatistics(*numbers, router.threshold_H)  # type: ignore[arg-type]
