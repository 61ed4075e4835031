"""A gate from outside: each head reaches the pair of its best row and its best column, gated by a sigmoid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.peer.gates import Axes, Gate
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec


class BestPair(Gate):
    rule = "The expert fires by a head iff its row and its column are the best of that head."
    words = ("best are the row and the column of largest a and b", "gate = sigmoid(a^h_r + b^h_c)")
    axis_gates = False
    thresholds = ()
    runtime_code = None

    def check(self, spec: PeerSpec) -> None: ...

    def check_doubling(self, spec: PeerSpec) -> None:
        raise ValueError("a head has one pair, whose twin it would not reach")

    def prepare(self, router: PeerRouter) -> None: ...

    def select(self, router: PeerRouter, x_ND: Tensor) -> PeerRouting:
        (row_NH, r_NH), (column_NH, c_NH) = (score_NHX.max(-1) for score_NHX in router.scores(x_ND))
        cell_P = (r_NH * router.spec.num_columns + c_NH).flatten()
        start_N1 = torch.arange(len(x_ND) + 1) * router.spec.num_heads
        return PeerRouting(cell_P, start_N1, torch.sigmoid(row_NH + column_NH).flatten(), None)

    def log_gates(self, router: PeerRouter, scores: Axes) -> None: ...

    def high(self, router: PeerRouter, scores: Axes) -> Axes:
        rows, columns = (score_NHX == score_NHX.amax(-1, keepdim=True) for score_NHX in scores)
        return rows, columns

    def cuts(self, router: PeerRouter) -> None: ...

    def limits(self, router: PeerRouter) -> None: ...

    def aim(self, router: PeerRouter, routings: Sequence[PeerRouting]) -> None: ...

    def fit(self, router: PeerRouter, x_ND: Tensor, share: float = 1.0) -> None: ...

    def hold_statistics(self, router: PeerRouter) -> None: ...

    def copy_doubled(self, new: PeerRouter, old: PeerRouter) -> None: ...
