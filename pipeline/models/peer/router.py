"""PEER's router: product keys (arXiv 2407.04153), gated by softmax or by a jump threshold."""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, Q width of a sub-key, P pairs (a token and
# a cell), in order of their tokens

import torch
from torch import Tensor, nn

from kernels.backends import CpuLibrary, cpu_library_for
from kernels.jump_router import jump_router
from kernels.jump_router.native import Router
from kernels.jump_router.packed import Packed
from kernels.jump_router.tables import AxisStatistics, Rule, SparseRows, compact
from kernels.pairs import starts
from kernels.product_key_topk import product_key_threshold, product_key_topk
from pipeline.models.derived import Kept
from pipeline.models.monet import axis_deviations, passing_logits
from pipeline.models.number_types import FullStatistics, at_least_float32, outside_autocast
from pipeline.models.peer.routing import PassingKeys, PeerRouting
from pipeline.models.peer.spec import PeerSpec

THRESHOLD_GAIN = 0.03
"""How far a head's threshold moves a training step for each pair that fires beside the target (research prototype)."""


class PeerRouter(FullStatistics):
    """Query, sub-keys and gate. With the jumprelu gate, head h reaches cell (r, c) iff A_r + B_c > threshold_h.

    A and B are the log gates of Monet's router (logits that pass an axis threshold, minus their log-sum-exp), so the
    gate exp(A_r + B_c) keeps the untruncated partition function, which factorises over the axes.
    """

    threshold_H: Tensor

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        column_width = spec.num_columns if spec.sub_keys == "identity" else spec.d_key
        self.widths = spec.num_heads * spec.d_key, spec.num_heads * column_width
        if spec.score_features:
            self.features = nn.Linear(d_model, spec.score_features, bias=False)
            nn.init.normal_(self.features.weight, std=d_model**-0.5)
            self._compact: Kept[SparseRows] = Kept()
        read = spec.score_features or d_model
        self.query = nn.Linear(read, sum(self.widths), bias=spec.score_features > 0)
        nn.init.normal_(self.query.weight, std=read**-0.5)
        self.query_norm = nn.BatchNorm1d(sum(self.widths), affine=False) if spec.query_norm else nn.Identity()
        if spec.sub_keys != "identity":
            heads = spec.num_heads if spec.sub_keys == "per-head" else 1
            self.row_keys = nn.Parameter(torch.randn(heads, spec.num_keys, spec.d_key) * spec.d_key**-0.5)
            self.column_keys = nn.Parameter(torch.randn(heads, spec.num_columns, spec.d_key) * spec.d_key**-0.5)
        if spec.gate == "jumprelu":
            self.deviations = axis_deviations(spec.active_keys, spec.num_keys)
            self.norm1 = nn.BatchNorm1d(spec.num_heads, affine=False)
            self.norm2 = nn.BatchNorm1d(spec.num_heads, affine=False)
            self.rule = Rule(spec.num_keys, self.deviations, spec.tie_margin, self.norm1.eps)
            self.ready: Kept[Router] = Kept()
            # Minus infinity: every pair that passes both axes fires, as in Monet; the first training batch sets it.
            self.register_buffer("threshold_H", torch.full((spec.num_heads,), -torch.inf))

    def scores(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, I) and (N, H, J) raw scores of the sub-keys of the rows and of the columns."""
        heads = self.spec.num_heads
        read_NX = self.features(x_ND) if self.spec.score_features else x_ND
        row_NHQ, column_NHQ = (
            query.unflatten(-1, (heads, -1))
            for query in self.query_norm(self.query(read_NX)).split(self.widths, dim=-1)
        )
        if self.spec.sub_keys == "identity":
            return row_NHQ, column_NHQ
        return (
            torch.einsum("nhq,hiq->nhi", row_NHQ, self.row_keys.expand(heads, -1, -1)),
            torch.einsum("nhq,hjq->nhj", column_NHQ, self.column_keys.expand(heads, -1, -1)),
        )

    def score_rows(self) -> tuple[Tensor, Tensor]:
        """(S, D) and (S): all scores, rows of all heads before columns, as sums over the state plus an intercept.

        Only with identity sub-keys and no query norm; else a score is not that.
        """
        if self.spec.sub_keys != "identity" or self.spec.query_norm:
            raise ValueError(
                f"scores of sub_keys {self.spec.sub_keys}{' behind a query norm' if self.spec.query_norm else ''} are "
                "no rows over the state; a PEER from distill-peer has identity keys"
            )
        if self.spec.score_features:
            return self.query.weight @ self.features.weight, self.query.bias
        return self.query.weight, self.query.weight.new_zeros(len(self.query.weight))

    def log_gates(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, I) and (N, H, J) log gates, minus infinity for sub-keys that do not pass. Only with jumprelu."""
        row_NHI, column_NHJ = self.scores(x_ND)
        return (
            torch.log_softmax(passing_logits(row_NHI, self.norm1, self.deviations, self.spec.tie_margin), dim=-1),
            torch.log_softmax(passing_logits(column_NHJ, self.norm2, self.deviations, self.spec.tie_margin), dim=-1),
        )

    @outside_autocast
    def forward(self, x_ND: Tensor, tokens_BT: Tensor) -> PeerRouting:
        if self.spec.gate == "softmax":
            return self._softmax(x_ND)
        return self._jump(x_ND) if self.training or torch.is_grad_enabled() else self._fired(x_ND)

    def _softmax(self, x_ND: Tensor) -> PeerRouting:
        score_NHK, cell_NHK = product_key_topk(*self.scores(x_ND), self.spec.pairs_per_head)
        pairs = cell_NHK[0].numel() if len(cell_NHK) else 0
        start_N1 = torch.arange(len(x_ND) + 1, device=x_ND.device) * pairs
        return PeerRouting(cell_NHK.flatten(), start_N1, torch.softmax(score_NHK, dim=-1).flatten(), None)

    def _jump(self, x_ND: Tensor) -> PeerRouting:
        row_NHI, column_NHJ = self.log_gates(x_ND)
        if self.training and bool(torch.isneginf(self.threshold_H).any()):
            self.threshold_H.copy_(threshold_for(row_NHI, column_NHJ, self.spec.pairs_per_head))
        token_P, head_P, r_P, c_P = product_key_threshold(row_NHI, column_NHJ, self.threshold_H)
        if self.training:
            fired_H = torch.bincount(head_P, minlength=self.spec.num_heads) / len(x_ND)
            self.threshold_H += THRESHOLD_GAIN * (fired_H - self.spec.pairs_per_head)
        gate_P = torch.exp(row_NHI[token_P, head_P, r_P] + column_NHJ[token_P, head_P, c_P]).to(x_ND.dtype)
        start_N1 = starts(torch.bincount(token_P, minlength=len(x_ND)))
        return PeerRouting(r_P * self.spec.num_columns + c_P, start_N1, gate_P, (row_NHI, column_NHJ))

    def _fired(self, x_ND: Tensor) -> PeerRouting:
        """What `_jump` gives in evaluation, without gradients and without a tensor of all log gates."""
        spec, library = self.spec, cpu_library_for(x_ND)
        if library is not None:
            return PeerRouting.of_packed(self._packed(x_ND, library))
        weight_XD, rows = self._reads(), self.compact_rows() if spec.score_terms else None
        read_XN = weight_XD @ x_ND.T if weight_XD is not None else self._score_SN(x_ND)
        fired = jump_router(at_least_float32(read_XN), rows, self._statistics(), self.rule)
        keys = PassingKeys(
            sizes=(spec.num_heads, spec.num_keys, spec.num_columns),
            score_Q=fired.score_Q, start_N1=fired.key_start_N1, log_gate_Q=fired.log_gate_Q, gate_Q=fired.gate_Q,
        )  # fmt: skip
        return PeerRouting(fired.cell_P, fired.start_N1, fired.gate_P.to(x_ND.dtype), keys)

    def _packed(self, x_ND: Tensor, library: CpuLibrary) -> Packed:
        router = self.ready.of(self, library, lambda: self._made_ready(library))
        if router.reads_states:
            return router.route(x_ND.contiguous())
        return router.route_read(self._score_SN(x_ND))

    def _made_ready(self, library: CpuLibrary) -> tuple[Router, tuple[Tensor, ...]]:
        spec, weight_XD = self.spec, self._reads()
        reads = spec.num_heads * (spec.num_keys + spec.num_columns) if weight_XD is None else len(weight_XD)
        rows = self.compact_rows() if spec.score_terms else None
        router = Router(library, weight_XD, reads, rows, self._statistics(), self.rule)
        return router, (*router.copied, *((self.query.weight, self.query.bias) if spec.score_terms else ()))

    def _reads(self) -> Tensor | None:
        """(S, D) or (R, D): what makes scores of a state, or features of which few make a score; None where there is
        more to it than one product."""
        if self.spec.score_terms:
            return self.features.weight
        plain = self.spec.sub_keys == "identity" and not self.spec.query_norm and not self.spec.score_features
        return self.query.weight if plain else None

    def compact_rows(self) -> SparseRows:
        """The non-zeros of the query's rows, found again whenever its weight or bias holds other numbers."""
        weight, bias = self.query.weight.detach(), self.query.bias.detach()

        def make() -> tuple[SparseRows, tuple[Tensor, Tensor]]:
            return compact(at_least_float32(weight), at_least_float32(bias).clone()), (weight, bias)

        return self._compact.of(self.query, None, make)

    def _score_SN(self, x_ND: Tensor) -> Tensor:
        return torch.cat([score_NHX.flatten(1) for score_NHX in self.scores(x_ND)], dim=1).T.contiguous()

    def _statistics(self) -> AxisStatistics:
        row, column = self.norm1, self.norm2
        numbers = (row.running_mean, row.running_var, column.running_mean, column.running_var)
        return AxisStatistics(*numbers, self.threshold_H)  # type: ignore[arg-type]


def threshold_for(row_NHI: Tensor, column_NHJ: Tensor, pairs_per_head: float) -> Tensor:
    """(H) thresholds at which heads fire `pairs_per_head` pairs a token on average over these log gates."""
    limits = []
    for h in range(row_NHI.shape[1]):
        score_C = (row_NHI[:, h, :, None] + column_NHJ[:, h, None, :]).flatten()
        score_C = score_C[torch.isfinite(score_C)]
        rank = min(len(score_C), round(pairs_per_head * len(row_NHI)) + 1)
        limits.append(score_C.topk(rank).values[-1])
    return torch.stack(limits).detach()
