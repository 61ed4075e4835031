"""PEER's router: product keys (arXiv 2407.04153), whose scores its gate turns into the pairs that a token reaches."""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, Q width of a sub-key, S scores of all
# heads, R features

import torch
from torch import Tensor, nn

from kernels.jump_router.native import Router
from kernels.jump_router.tables import Rule, SparseRows, compact
from pipeline.models.derived import Derived
from pipeline.models.number_types import FullStatistics, at_least_float32, outside_autocast
from pipeline.models.peer.gates import GATES, Axes
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.soundness import THRESHOLD, takes


@takes(lambda router: dict.fromkeys(router.gate.thresholds, THRESHOLD))
class PeerRouter(FullStatistics):
    """Query and sub-keys, and what the gate keeps."""

    norm1: nn.BatchNorm1d
    norm2: nn.BatchNorm1d
    threshold_H: Tensor
    deviations: float
    rule: Rule
    ready: Derived[Router]

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.gate = GATES[spec.gate]
        column_width = spec.num_columns if spec.sub_keys == "identity" else spec.d_key
        self.widths = spec.num_heads * spec.d_key, spec.num_heads * column_width
        if spec.score_features:
            self.features = nn.Linear(d_model, spec.score_features, bias=False)
            nn.init.normal_(self.features.weight, std=d_model**-0.5)
            self._compact: Derived[SparseRows] = Derived()
        read = spec.score_features or d_model
        self.query = nn.Linear(read, sum(self.widths), bias=spec.score_features > 0)
        nn.init.normal_(self.query.weight, std=read**-0.5)
        self.query_norm = nn.BatchNorm1d(sum(self.widths), affine=False) if spec.query_norm else nn.Identity()
        if spec.sub_keys != "identity":
            heads = spec.num_heads if spec.sub_keys == "per-head" else 1
            self.row_keys = nn.Parameter(torch.randn(heads, spec.num_keys, spec.d_key) * spec.d_key**-0.5)
            self.column_keys = nn.Parameter(torch.randn(heads, spec.num_columns, spec.d_key) * spec.d_key**-0.5)
        self.gate.prepare(self)

    @outside_autocast
    def forward(self, x_ND: Tensor, tokens_BT: Tensor) -> PeerRouting:
        return self.gate.select(self, x_ND)

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

    def log_gates(self, x_ND: Tensor) -> Axes:
        """(N, H, I) and (N, H, J) log gates, minus infinity for sub-keys that do not pass."""
        axes = self.gate.log_gates(self, self.scores(x_ND))
        if axes is None:
            raise AssertionError(f"the {self.spec.gate} gate has no gates of one axis")
        return axes

    def reads(self) -> Tensor | None:
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

    def score_SN(self, x_ND: Tensor) -> Tensor:
        """(S, N) all scores, rows of all heads before columns."""
        return torch.cat([score_NHX.flatten(1) for score_NHX in self.scores(x_ND)], dim=1).T.contiguous()
