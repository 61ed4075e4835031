"""PEER: single-neuron experts reached by product keys (arXiv 2407.04153), gated by softmax or by a jump threshold.

A cell (r, c) of the key grid, I rows of J columns, may hold any number of experts; they lie in order of their cells,
so that where those of each cell start is the whole index. PEER as published has one expert a cell.
"""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, Q width of a sub-key, E experts,
# P pairs (a token and a cell, or a token and an expert), in order of their tokens

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kernels.activations import activation
from kernels.backends import CpuLibrary, cpu_library_for
from kernels.cells import CellStarts, experts_of_cells, starts
from kernels.expert_sum import expert_sum
from kernels.expert_sum.bags import row_dots
from kernels.expert_sum.reference import tokens_of_pairs
from kernels.fired_sum import ExpertLayer, ExpertTable
from kernels.jump_router import axis_bias, jump_router
from kernels.jump_router.native import Router
from kernels.jump_router.packed import Packed
from kernels.jump_router.tables import AxisStatistics, Rule, SparseRows, compact
from kernels.packing import LAYOUT
from kernels.product_key_topk import product_key_threshold, product_key_topk
from pipeline.models.kept import Kept
from pipeline.models.monet import axis_deviations, passing_logits
from pipeline.models.number_types import FullStatistics, at_least_float32, outside_autocast
from pipeline.models.peer_routing import PassingKeys, PeerRouting

THRESHOLD_GAIN = 0.03
"""How far a head's threshold moves a training step for each pair that fires beside the target (research prototype)."""


class PeerSpec(BaseModel):
    """Shape of PEER's router and experts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["peer"] = "peer"
    precision: Literal["float", "float32", "bfloat16", "int8", "int4"] = Field(
        default="float",
        description="How the tables u and v are stored: as float32 parameters for torch's optimizers (float), or as "
        "rows of the other precisions.",
    )
    accumulator: bool = Field(
        default=False, description="Whether int4 tables carry their second, accumulating nibble plane."
    )
    num_keys: int = Field(default=64, ge=2, le=2**15, description="n, sub-keys of the rows; n * n * aspect cells.")
    aspect: int = Field(
        default=1, ge=1, le=64, description="Columns of the key grid a row: it is n rows of n * aspect columns."
    )
    nibble_layout: Literal["half-split"] = LAYOUT
    scale_groups: int = Field(
        default=1,
        ge=1,
        le=2**10,
        description="Scales a row of an int4 table, a divisor of d_model / 2; more than 1 is for inference alone.",
    )
    num_experts: int = Field(default=4096, ge=1, le=2**30, description="Experts a block, each one neuron in one cell.")
    num_heads: int = Field(default=4, ge=1, le=64, description="H, retrieval heads.")
    sub_keys: Literal["identity", "shared", "per-head"] = Field(
        default="per-head",
        description="Sub-keys: none (the query is the scores), one set that all heads share, as in the paper's layer "
        "(arXiv 2407.04153), or a set for each head, as in lucidrains' code.",
    )
    d_key: int = Field(default=32, ge=1, le=2**15, description="Width of a sub-key; with identity keys num_keys.")
    query_norm: bool = Field(default=True, description="Whether the query passes a batch norm.")
    gate: Literal["softmax", "jumprelu"] = Field(
        default="softmax",
        description="Softmax over the best pairs, or every pair whose log gates sum to more than a threshold.",
    )
    pairs_per_head: int = Field(
        default=8, ge=1, le=2**30, description="Pairs a head keeps (softmax) or fires on average (jumprelu)."
    )
    active_keys: int = Field(
        default=4,
        ge=1,
        le=2**15,
        description="Sub-keys of a head's rows that pass on average, and as large a share of its columns; only the "
        "jumprelu gate uses it.",
    )
    tie_margin: float = Field(
        default=0.0,
        ge=0,
        le=0.1,
        description="Deviations by which a sub-key may miss its head's best and pass like it: in a pool that has "
        "grown, the best has twins that differ by rounding.",
    )
    activation: Literal["relu2", "gelu", "silu", "relu"] = Field(default="gelu", description="Activation of an expert.")
    score_features: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="r, linear features of the state that all scores of a router are sums of; 0: of the state itself.",
    )
    score_terms: int = Field(
        default=0, ge=0, le=4096, description="k, most features that one score is a sum of; 0: as many as there are."
    )
    u_terms: int = Field(
        default=0, ge=0, le=2**15, description="Most coordinates of the state that a row of u reads; 0: all of them."
    )
    axis_bias: bool = Field(default=False, description="Whether each sub-key adds an output bias of its own (Monet's).")
    router_group: int = Field(
        default=1, ge=1, le=256, description="Blocks that share one router, the lowest of them owning it."
    )

    @model_validator(mode="after")
    def _fits(self) -> "PeerSpec":
        if self.sub_keys == "identity" and self.d_key != self.num_keys:
            raise ValueError(f"identity keys have d_key = num_keys = {self.num_keys}, not {self.d_key}")
        if self.gate == "softmax" and self.pairs_per_head > self.num_keys:
            raise ValueError(f"pairs_per_head={self.pairs_per_head} is more than num_keys={self.num_keys}")
        if self.gate == "jumprelu" and self.active_keys >= self.num_keys:
            raise ValueError(f"active_keys={self.active_keys} must be below num_keys={self.num_keys}")
        if self.accumulator and self.precision != "int4":
            raise ValueError(f"only int4 tables have an accumulator; precision is {self.precision}")
        if self.scale_groups > 1 and (self.precision != "int4" or self.accumulator):
            what = "int4 tables that train" if self.accumulator else f"tables of precision {self.precision}"
            raise ValueError(f"{what} have one scale a row, not scale_groups={self.scale_groups}; quantize with 1")
        if self.score_features and (self.sub_keys != "identity" or self.query_norm):
            raise ValueError(
                f"score_features={self.score_features} needs scores that are linear in the state: sub_keys identity, "
                f"not {self.sub_keys}, and no query_norm"
            )
        if self.score_terms > self.score_features:
            raise ValueError(f"score_terms={self.score_terms} is more than score_features={self.score_features}")
        if self.axis_bias and self.gate != "jumprelu":
            raise ValueError("axis_bias needs the jumprelu gate: the biases are weighted by its gates of one axis")
        return self

    def doubled_grid(self) -> tuple[int, "PeerSpec"]:
        """The axis that doubles next, rows (0) where there is an even number of columns a row, and the spec with it.

        Twice the experts, in the same proportion of cells. ValueError where that is out of bounds.
        """
        axis = 0 if self.aspect % 2 == 0 else 1
        update = {"num_experts": 2 * self.num_experts}
        if axis == 1:
            update["aspect"] = 2 * self.aspect
        else:
            update |= {"num_keys": 2 * self.num_keys, "aspect": self.aspect // 2, "active_keys": 2 * self.active_keys}
            if self.sub_keys == "identity":
                update["d_key"] = 2 * self.d_key
        return axis, PeerSpec.model_validate({**self.model_dump(), **update})

    @property
    def num_columns(self) -> int:
        """Sub-keys of the columns."""
        return self.num_keys * self.aspect

    @property
    def num_cells(self) -> int:
        return self.num_keys * self.num_columns

    @property
    def kind(self) -> str:
        return "peer" if self.precision == "float" else f"peer-{self.precision}"


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


class CellIndex(nn.Module):
    """Experts in order of their cells, found by where each cell's experts start (kernels/cells/layout.py)."""

    offset_C1: Tensor
    block_start_K: Tensor

    def __init__(self, spec: PeerSpec) -> None:
        super().__init__()
        self.num_experts = spec.num_experts
        start = torch.arange(spec.num_cells + 1, dtype=torch.float64) * spec.num_experts / spec.num_cells
        offset_C1, block_start_K = CellStarts.of(start.round().to(torch.int32))
        self.register_buffer("offset_C1", offset_C1)
        self.register_buffer("block_start_K", block_start_K)
        self.register_load_state_dict_pre_hook(CellIndex.take_form)

    @property
    def stored(self) -> CellStarts:
        """What kernels/cells and kernels/fired_sum read."""
        return CellStarts(self.offset_C1, self.block_start_K)

    def place(self, start_C1: Tensor) -> None:
        """Cell c holds the experts start_C1[c] to start_C1[c + 1] from now on."""
        self.offset_C1, self.block_start_K = CellStarts.of(start_C1)

    def state_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.stored)

    def forward(self, routing: PeerRouting) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of a token and a cell to those of a token and an expert: (expert_P, start_N1, gate_P)."""
        return experts_of_cells(self.stored, routing.cell_P, routing.start_N1, routing.gate_P)

    def cell_of_experts(self) -> Tensor:
        """(E) the cell, row * J + column, that holds each expert."""
        count_C = self.stored.row().diff().long()
        return torch.repeat_interleave(torch.arange(len(count_C), device=count_C.device), count_C)

    def take_form(self, state: dict[str, Tensor], prefix: str, *_of_the_hook: object) -> None:
        """Makes a state's int32 row of starts, as artifacts held them before, into the tensors of now, and stores
        offsets as wide as the state's, which can then be loaded."""
        start_C1 = state.get(prefix + "cell_start_C1")
        if start_C1 is not None and start_C1.dtype == torch.int32 and start_C1.ndim == 1:
            del state[prefix + "cell_start_C1"]
            state[prefix + "offset_C1"], state[prefix + "block_start_K"] = CellStarts.of(start_C1)
        offset_C1 = state.get(prefix + "offset_C1")
        if offset_C1 is not None and offset_C1.dtype in (torch.uint8, torch.int32):
            self.offset_C1 = self.offset_C1.to(offset_C1.dtype)


class AxisBias(nn.Module):
    """Output biases of the sub-keys, weighted by each axis's gates summed over heads (Monet's b terms)."""

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(spec.num_keys, d_model))
        self.column = nn.Parameter(torch.zeros(spec.num_columns, d_model))

    def forward(self, routing: PeerRouting) -> Tensor:
        axes = routing.axes
        if axes is None:
            raise AssertionError("axis biases need the log gates of a jumprelu router")
        if isinstance(axes, PassingKeys):
            if not torch.is_grad_enabled():
                wide = at_least_float32(self.row), at_least_float32(self.column)
                made_ND = axis_bias(axes.score_Q, axes.gate_Q, axes.start_N1, axes.sizes[0], *wide)
                return made_ND.type_as(self.row)
            axes = axes.log_gates()
        gate1_NI, gate2_NJ = (log_gate_NHX.exp().sum(1) for log_gate_NHX in axes)
        return gate1_NI.type_as(self.row) @ self.row + gate2_NJ.type_as(self.row) @ self.column


def expert_layer(
    library: CpuLibrary,
    spec: PeerSpec,
    index: CellIndex,
    u: ExpertTable,
    bias_E: Tensor,
    v: ExpertTable,
    axis_bias: AxisBias | None,
) -> tuple[ExpertLayer, tuple[Tensor, ...]]:
    """A layer of experts as C++ runs it on what a router in C++ left, and the tensors it has copied."""
    biases = None if axis_bias is None else (axis_bias.row, axis_bias.column)
    sizes = spec.num_heads, spec.num_keys, spec.num_columns
    layer = ExpertLayer(library, index.stored, u, bias_E, v, spec.activation, biases, sizes)
    return layer, layer.copied


class PeerExperts(nn.Module):
    """Float experts: y = sum over a token's experts of gate * act(u . x + b) * v, plus the axis biases."""

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec)
        self.u = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        self.v = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.axis_bias = AxisBias(spec, d_model) if spec.axis_bias else None
        self.ready: Kept[ExpertLayer] = Kept()

    @outside_autocast
    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        if routing.packed is not None and (library := cpu_library_for(x_ND)) is not None:
            u, v = (self.u, None), (self.v, None)
            layer = self.ready.of(
                self, library, lambda: expert_layer(library, self.spec, self.index, u, self.bias, v, self.axis_bias)
            )
            return layer(x_ND.contiguous(), routing.packed)
        expert_P, start_N1, gate_P = self.index(routing)
        y_ND = expert_sum(x_ND, self.u, self.bias, self.v, expert_P, start_N1, gate_P, self.spec.activation)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing)

    def activations(self, x_ND: Tensor, routing: PeerRouting) -> tuple[Tensor, Tensor, Tensor]:
        """(P) expert, gate and act(u . x + b) of every pair of a token and an expert, in order of tokens."""
        expert_P, start_N1, gate_P = self.index(routing)
        pre_P = row_dots(x_ND, self.u, expert_P, start_N1, tokens_of_pairs(start_N1)) + self.bias[expert_P]
        return expert_P, gate_P, activation(self.spec.activation).f(pre_P)
