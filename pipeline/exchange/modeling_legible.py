"""Legible Experts under transformers: dense, Monet, PEER (float, int8, int4) and symbolic models, in this one file.

An export copies it beside its weights; it needs torch and transformers 5 and nothing else. Names of tensors, and what
is computed of them, are those of the program that trained the model. Every expert layer has hook points, which are
modules that change nothing:

    router.hook_gate1, router.hook_gate2  (B, T, H, n) gates of Monet's two axes
    moe.hook_index                        (B, T, K) experts that a token reaches, -1 where it reaches fewer than K
    moe.hook_gate                         (B, T, K) their gates
    moe.hook_pre                          (B, T, K) u . x + b of each; of Monet and dense layers, of all hidden units
    moe.hook_contribution                 (B, T, K) gate * act(pre), by which a row of v is multiplied; of Monet and
                                          dense layers (B, T, D), what the layer adds to the residual stream

An expert is ablated by writing -1 over its number in `hook_index`, or 0 over its gate.
"""

# B sequences, T tokens of them, N = B * T, S tokens with those in the cache, D model width, H router heads, I and J
# sub-keys of the axes (Monet's n sub-experts), K places for experts a token, P pairs of a token and an expert,
# E experts, R rows that are asked for, L literals, G logic gates, W splines, V vocabulary, M hidden units

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils import ModelOutput

PIECE = 2**22
"""Numbers of rows of u or v that lie in memory at a time."""
CELLS_A_BLOCK = 5
"""2**5 cells of a key grid are counted from one start."""
SPLINE, KNOTS = 255, 9


class LegibleConfig(PreTrainedConfig):
    """`experts` is the spec of the expert layers, and `transformer` that of the rest, as the program has them."""

    model_type = "legible"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 256
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 128
    transformer: dict | None = None
    experts: dict | None = None
    index_dtypes: list | None = None
    output_routed_experts: bool = False
    routed_experts_kept: int = 32
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


@dataclass
class LegibleOutput(ModelOutput):
    """`routed_experts` (B, T, layers, K): the experts of greatest gate, -1 for none; `routed_gates` their gates."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None
    routed_experts: torch.Tensor | None = None
    routed_gates: torch.Tensor | None = None


# What every part needs


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


def relu2(x):
    positive = torch.relu(x)
    return positive * positive


ACTIVATIONS = {"relu2": relu2, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}


class Statistics(nn.Module):
    """A batch norm in evaluation, whose numbers are float32 in a model of any type."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(features, dtype=torch.float32))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x):
        mean, var = self.running_mean.type_as(x), self.running_var.type_as(x)
        return F.batch_norm(x, mean, var, None, None, False, 0.0, 1e-5)


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


# Attention


def rotary(position_BT, width, theta):
    """(B, 1, T, K) cosines and sines; the two halves of a head turn together."""
    frequency = theta ** (-torch.arange(0, width, 2, device=position_BT.device, dtype=torch.float32) / width)
    angle = position_BT[:, None, :, None].float() * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, turn):
    first, second = x.chunk(2, dim=-1)
    cos, sin = (part.to(x.dtype) for part in turn)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        d, heads, shared = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.layer, self.grouped = d // heads, layer, heads != shared
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, self.head_dim * shared, bias=False)
        self.v_proj = nn.Linear(d, self.head_dim * shared, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, hidden_states, turn=None, mask=None, past=None, ids=None):
        """What it adds, and the (B, S) ids of all tokens so far where those of this pass were given.

        Ids go through the cache as one more head of keys, in base 256, so that whatever reorders, crops or pads the
        cache does the same to them.
        """
        q, k, v = (
            proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            if ids is not None:
                k, v = torch.cat([k, self._written(ids, k)], dim=1), F.pad(v, (0, 0, 0, 0, 0, 1))
            k, v = past.update(k, v, self.layer)
            if ids is not None:
                k, v, ids = k[:, :-1], v[:, :-1], 256 * k[:, -1, :, 0].long() + k[:, -1, :, 1].long()
        causal = mask is None and q.shape[2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), ids

    def _written(self, ids_BT, k):
        digits = torch.stack([ids_BT // 256, ids_BT % 256], dim=-1)  # below 256 is exact in bfloat16 too
        return F.pad(digits, (0, self.head_dim - 2))[:, None].to(k.dtype)


# Dense


class DenseMLP(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.act = ACTIVATIONS[config.experts["activation"]]
        self.up = nn.Linear(config.hidden_size, config.experts["d_hidden"])
        self.down = nn.Linear(config.experts["d_hidden"], config.hidden_size)
        self.hook_pre, self.hook_contribution = nn.Identity(), nn.Identity()

    def forward(self, x_BTD, routing=None):
        return self.hook_contribution(self.down(self.act(self.hook_pre(self.up(x_BTD))))), None


# Monet


def passing(logits_NHI, norm, deviations, margin=0.0):
    """Logits, those below the axis threshold at minus infinity; the best of a head always passes."""
    logits_NHI = wide(logits_NHI)
    normal = norm(logits_NHI)
    limit = (normal.amax(-1, keepdim=True) - margin).clamp(max=deviations)
    return logits_NHI.masked_fill(normal < limit, -torch.inf)


def deviations(active, number):
    quantile = torch.tensor(1 - active / number, dtype=torch.float64, device="cpu")
    return float(torch.special.ndtri(quantile))


class MonetRouter(nn.Module):
    def __init__(self, config):
        super().__init__()
        spec = config.experts
        self.heads = spec["num_heads"]
        self.spec = spec
        width = self.heads * spec["num_sub_experts"]
        self.w1 = nn.Linear(config.hidden_size, width, bias=False)
        self.w2 = nn.Linear(config.hidden_size, width, bias=False)
        self.norm1, self.norm2 = Statistics(self.heads), Statistics(self.heads)
        self.hook_gate1, self.hook_gate2 = nn.Identity(), nn.Identity()

    def forward(self, x_BTD, ids=None, real=None):
        cut = deviations(self.spec["active_sub_experts"], self.spec["num_sub_experts"])
        gates = []
        for linear, norm, hook in ((self.w1, self.norm1, self.hook_gate1), (self.w2, self.norm2, self.hook_gate2)):
            logits = linear(x_BTD).flatten(0, 1).unflatten(-1, (self.heads, -1))
            gate = torch.softmax(passing(logits, norm, cut), dim=-1)
            gates.append(hook(gate.unflatten(0, x_BTD.shape[:2])))
        return {"gate1": gates[0], "gate2": gates[1]}


def mix(hidden_NIM, from_NHI, to_NHJ):
    return torch.einsum("nhm,nhj->njm", torch.einsum("nim,nhi->nhm", hidden_NIM, from_NHI), to_NHJ)


class MonetExperts(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        spec, d = config.experts, config.hidden_size
        self.n = spec["num_sub_experts"]
        self.vertical = spec["decomposition"] == "vertical"
        if self.vertical:
            width, half = self.n * spec["d_expert"] // 2, d // 2
            self.u1, self.u2 = nn.Linear(d, width), nn.Linear(d, width)
            for name in ("v11", "v12", "v21", "v22"):
                setattr(self, name, nn.Linear(width, half, bias=False))
            self.b1, self.b2 = nn.Parameter(torch.zeros(self.n, half)), nn.Parameter(torch.zeros(self.n, half))
        else:
            width = self.n * spec["d_expert"]
            self.u, self.v = nn.Linear(d, width), nn.Linear(width, d, bias=False)
            self.b = nn.Parameter(torch.zeros(self.n, d))
        self.hook_pre, self.hook_contribution = nn.Identity(), nn.Identity()

    def forward(self, x_BTD, routing):
        g1, g2 = (routing[name].flatten(0, 1).type_as(x_BTD) for name in ("gate1", "gate2"))
        y_ND = (self._vertical if self.vertical else self._horizontal)(x_BTD, g1, g2)
        return self.hook_contribution(y_ND.unflatten(0, x_BTD.shape[:2])), None

    def _hidden(self, *pre_BTX):
        """(N, n, M) of each axis; `hook_pre` has them side by side."""
        pre = self.hook_pre(torch.cat(pre_BTX, dim=-1) if len(pre_BTX) > 1 else pre_BTX[0])
        parts = relu2(pre.flatten(0, 1)).chunk(len(pre_BTX), dim=-1)
        return [part.unflatten(-1, (self.n, -1)) for part in parts]

    def _horizontal(self, x_BTD, g1, g2):
        (hidden,) = self._hidden(self.u(x_BTD))
        return self.v(mix(hidden, g1, g2).flatten(1)) + g2.sum(1) @ self.b

    def _vertical(self, x_BTD, g1, g2):
        a, b = self._hidden(self.u1(x_BTD), self.u2(x_BTD))
        one, two = g1.sum(1)[..., None], g2.sum(1)[..., None]
        top = self.v11((a * one).flatten(1)) + self.v12(mix(b, g2, g1).flatten(1)) + g1.sum(1) @ self.b1
        bottom = self.v21(mix(a, g1, g2).flatten(1)) + self.v22((b * two).flatten(1)) + g2.sum(1) @ self.b2
        return torch.cat([top, bottom], dim=-1)


def composed(routing, kept):
    """(B, T, K) composed experts i * n + j of greatest gate, and their gates, from sparse gates of the axes."""
    g1, g2 = (routing[name].flatten(0, 1) for name in ("gate1", "gate2"))
    n = g1.shape[-1]
    rows, columns = int((g1 > 0).sum(-1).max()), int((g2 > 0).sum(-1).max())
    (a, i), (b, j) = g1.topk(rows, dim=-1), g2.topk(columns, dim=-1)
    gate = (a[..., :, None] * b[..., None, :]).flatten(1)
    expert = (i[..., :, None] * n + j[..., None, :]).flatten(1)
    found = strongest(expert.masked_fill(gate == 0, -1), gate, kept)
    return tuple(part.unflatten(0, routing["gate1"].shape[:2]) for part in found)


def strongest(expert_NX, gate_NX, kept):
    """(N, kept) experts of greatest gate, -1 for none: those of several heads are one, their gates added up."""
    expert_NX, order = expert_NX.sort(dim=-1)
    gate_NX = gate_NX.gather(-1, order).masked_fill(expert_NX < 0, 0)
    new = F.pad(expert_NX[:, 1:] != expert_NX[:, :-1], (1, 0), value=True)
    place = new.cumsum(-1) - 1
    total = torch.zeros_like(gate_NX).scatter_add_(-1, place, gate_NX)
    name = torch.full_like(expert_NX, -1).scatter_(-1, place, expert_NX)
    some = min(kept, total.shape[-1])
    best, at = total.masked_fill(name < 0, -torch.inf).topk(some, dim=-1)
    name, best = name.gather(-1, at), best.masked_fill(best == -torch.inf, 0)
    return F.pad(name, (0, kept - some), value=-1), F.pad(best, (0, kept - some))


# PEER: router


class PeerRouter(nn.Module):
    def __init__(self, config, spec=None):
        super().__init__()
        self.spec = spec = spec or config.experts
        self.columns = spec["num_keys"] * spec["aspect"]
        same = spec["sub_keys"] == "identity"
        self.widths = spec["num_heads"] * spec["d_key"], spec["num_heads"] * (self.columns if same else spec["d_key"])
        if spec["score_features"]:
            self.features = nn.Linear(config.hidden_size, spec["score_features"], bias=False)
        self.query = nn.Linear(
            spec["score_features"] or config.hidden_size, sum(self.widths), bias=spec["score_features"] > 0
        )
        self.query_norm = Statistics(sum(self.widths)) if spec["query_norm"] else nn.Identity()
        if not same:
            heads = spec["num_heads"] if spec["sub_keys"] == "per-head" else 1
            self.row_keys = nn.Parameter(torch.zeros(heads, spec["num_keys"], spec["d_key"]))
            self.column_keys = nn.Parameter(torch.zeros(heads, self.columns, spec["d_key"]))
        if spec["gate"] == "jumprelu":
            self.norm1, self.norm2 = Statistics(spec["num_heads"]), Statistics(spec["num_heads"])
            self.register_buffer("threshold_H", torch.full((spec["num_heads"],), -torch.inf, dtype=torch.float32))

    def scores(self, x_ND):
        heads = self.spec["num_heads"]
        read = self.features(x_ND) if self.spec["score_features"] else x_ND
        row, column = (
            query.unflatten(-1, (heads, -1)) for query in self.query_norm(self.query(read)).split(self.widths, dim=-1)
        )
        if self.spec["sub_keys"] == "identity":
            return row, column
        return (
            torch.einsum("nhq,hiq->nhi", row, self.row_keys.expand(heads, -1, -1)),
            torch.einsum("nhq,hjq->nhj", column, self.column_keys.expand(heads, -1, -1)),
        )

    def forward(self, x_BTD, ids=None, real=None):
        """Cells (P) and their gates in order of tokens; gates of the axes, where sub-keys have some."""
        x_ND = x_BTD.flatten(0, 1)
        if self.spec["gate"] == "jumprelu":
            return self._thresholded(x_ND, x_BTD)
        row, column = self.scores(x_ND)
        k = self.spec["pairs_per_head"]
        (a, i), (b, j) = row.topk(k, dim=-1), column.topk(k, dim=-1)
        score, at = (a[..., :, None] + b[..., None, :]).flatten(-2).topk(k, dim=-1)
        cell = (i[..., :, None] * self.columns + j[..., None, :]).flatten(-2).gather(-1, at)
        gate = torch.softmax(score, dim=-1) if self.spec["gate"] == "softmax" else torch.relu(score)
        if self.spec.get("pools", "shared") == "per-head":
            cell = cell + self.spec["num_keys"] * self.columns * torch.arange(len(cell[0]), device=cell.device)[:, None]
        token = torch.arange(len(cell), device=cell.device).repeat_interleave(cell[0].numel() if len(cell) else 0)
        return {"token": token, "cell": cell.flatten(), "gate": gate.flatten()}

    def _thresholded(self, x_ND, x_BTD):
        spec, (row, column) = self.spec, self.scores(x_ND)
        cut = deviations(spec["active_keys"], spec["num_keys"])
        row = torch.log_softmax(passing(row, self.norm1, cut, spec["tie_margin"]), dim=-1)
        column = torch.log_softmax(passing(column, self.norm2, cut, spec["tie_margin"]), dim=-1)
        (a, i), (b, j) = (log.topk(int((log > -torch.inf).sum(-1).max()), dim=-1) for log in (row, column))
        sums = (a[..., :, None] + b[..., None, :]).flatten(1)
        limit = self.threshold_H.type_as(sums)[None, :, None, None].expand(*a.shape, b.shape[-1]).flatten(1)
        token, at = torch.nonzero(sums > limit, as_tuple=True)
        cell = (i[..., :, None] * self.columns + j[..., None, :]).flatten(1)[token, at]
        marginals = (log.exp().sum(1).type_as(x_BTD) for log in (row, column))
        names = dict(zip(("rows", "columns"), marginals, strict=True))
        return {"token": token, "cell": cell, "gate": sums[token, at].exp().type_as(x_BTD), **names}


# PEER: tables and experts


def unpack_int4(packed):
    signed = packed.view(torch.int8)
    return torch.cat([(signed << 4) >> 4, signed >> 4], dim=-1)


class Table(nn.Module):
    """Rows of int8 or int4 and their scales, stored as they are."""

    def __init__(self, spec, width, precision=None):
        super().__init__()
        rows, self.packed = spec["num_experts"], (precision or spec["precision"]) == "int4"
        self.groups = spec["scale_groups"] if self.packed else 1
        if self.packed:
            self.register_buffer("weight_EB", torch.zeros(rows, width // 2, dtype=torch.uint8))
        else:
            self.register_buffer("value_ED", torch.zeros(rows, width, dtype=torch.int8))
        name, shape = ("scale_E", (rows,)) if self.groups == 1 else ("scale_EG", (rows, self.groups))
        self.register_buffer(name, torch.ones(shape, dtype=torch.float16))

    def rows(self, row_R):
        value = self.weight_EB[row_R].unflatten(1, (self.groups, -1)) if self.packed else self.value_ED[row_R, None]
        value = unpack_int4(value) if self.packed else value
        scale = self.scale_E[row_R][:, None] if self.groups == 1 else self.scale_EG[row_R]
        return (value.float() * scale.float()[:, :, None]).flatten(1)


class CellIndex(nn.Module):
    """Where the experts of each cell start: they lie in order of their cells."""

    def __init__(self, spec, dtype):
        super().__init__()
        pools = spec["num_heads"] if spec.get("pools", "shared") == "per-head" else 1
        cells = spec["num_keys"] ** 2 * spec["aspect"] * pools
        self.register_buffer("offset_C1", torch.zeros(cells + 1, dtype=getattr(torch, dtype)))
        self.register_buffer("block_start_K", torch.zeros((cells >> CELLS_A_BLOCK) + 1, dtype=torch.int32))

    def at(self, cell):
        return self.block_start_K[cell >> CELLS_A_BLOCK].long() + self.offset_C1[cell]

    def forward(self, token_P, cell_P, gate_P):
        """Pairs of a token and a cell to those of a token and an expert, in the same order."""
        first = self.at(cell_P)
        count = self.at(cell_P + 1) - first
        pair = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        rank = torch.arange(len(pair), device=count.device) - (count.cumsum(0) - count)[pair]
        return token_P[pair], first[pair] + rank, gate_P[pair]


class AxisBias(nn.Module):
    def __init__(self, spec, width):
        super().__init__()
        self.row = nn.Parameter(torch.zeros(spec["num_keys"], width))
        self.column = nn.Parameter(torch.zeros(spec["num_keys"] * spec["aspect"], width))

    def forward(self, routing):
        return routing["rows"].to(self.row) @ self.row + routing["columns"].to(self.row) @ self.column


def places(token_P, tokens):
    """(P) the place of each pair among its token's, and the most that a token has. Pairs are in order of tokens."""
    count = torch.bincount(token_P, minlength=tokens)
    start = count.cumsum(0) - count
    return torch.arange(len(token_P), device=token_P.device) - start[token_P], int(count.max()) if len(token_P) else 0


class SparseExperts(nn.Module):
    """Experts of a pool, of which a token reaches few: what PEER and symbols share."""

    def __init__(self):
        super().__init__()
        self.hook_index, self.hook_gate = nn.Identity(), nn.Identity()
        self.hook_pre, self.hook_contribution = nn.Identity(), nn.Identity()

    def reached(self, routing):
        """(P) tokens, experts and gates."""
        return self.index(routing["token"], routing["cell"], routing["gate"])

    def forward(self, x_BTD, routing):
        shape, x_ND = x_BTD.shape[:2], wide(x_BTD.flatten(0, 1))
        token_P, expert_P, gate_P = self.reached(routing)
        place_P, most = places(token_P, len(x_ND))

        def padded(value_P, nothing):
            out = value_P.new_full((len(x_ND), most), nothing)
            out[token_P, place_P] = value_P
            return out.unflatten(0, shape)

        index, gate = self.hook_index(padded(expert_P, -1)), self.hook_gate(padded(gate_P, 0))
        token_P, place_P = torch.nonzero(index.flatten(0, 1) >= 0, as_tuple=True)
        expert_P = index.flatten(0, 1)[token_P, place_P]
        pre = self.hook_pre(padded(self.pre(x_ND, token_P, expert_P), 0))
        hidden_P = self.magnitude(pre.flatten(0, 1)[token_P, place_P], expert_P)
        strength = self.hook_contribution(padded(wide(gate).flatten(0, 1)[token_P, place_P] * hidden_P, 0))
        strength_P = strength.flatten(0, 1)[token_P, place_P]
        y_ND = torch.zeros_like(x_ND)
        for at in self._pieces(len(token_P), x_ND.shape[1]):
            y_ND.index_add_(0, token_P[at], strength_P[at, None] * self.table_rows("v", expert_P[at]).to(x_ND.dtype))
        y_BTD = y_ND.to(x_BTD.dtype).unflatten(0, shape)
        if self.axis_bias is not None:
            y_BTD = y_BTD + self.axis_bias(routing).to(x_BTD.dtype).unflatten(0, shape)
        return y_BTD, (index, gate)

    def table_rows(self, name, row_R):
        table = getattr(self, name)
        return table.rows(row_R) if isinstance(table, Table) else wide(table[row_R])

    @staticmethod
    def _pieces(pairs, width):
        step = max(1, PIECE // width)
        return [slice(at, at + step) for at in range(0, pairs, step)]


class PeerExperts(SparseExperts):
    def __init__(self, config, layer):
        super().__init__()
        spec, d = config.experts, config.hidden_size
        self.index = CellIndex(spec, config.index_dtypes[layer])
        if spec["precision"] == "float":
            self.u = nn.Parameter(torch.zeros(spec["num_experts"], d))
            self.v = nn.Parameter(torch.zeros(spec["num_experts"], d))
        else:
            self.u, self.v = Table(spec, d), Table(spec, d)
        self.bias = nn.Parameter(torch.zeros(spec["num_experts"]))
        self.axis_bias = AxisBias(spec, d) if spec["axis_bias"] else None
        self.act = ACTIVATIONS[spec["activation"]]

    def pre(self, x_ND, token_P, expert_P):
        parts = [
            (x_ND[token_P[at]] * self.table_rows("u", expert_P[at]).to(x_ND.dtype)).sum(-1)
            for at in self._pieces(len(token_P), x_ND.shape[1])
        ]
        return torch.cat(parts or [x_ND.new_zeros(0)]) + self.bias[expert_P].to(x_ND.dtype)

    def magnitude(self, pre_P, expert_P):
        return self.act(pre_P)


# Symbols

FUNCTIONS = (
    torch.ones_like, lambda z: z, torch.square, torch.relu, lambda z: torch.relu(z).square(), F.gelu, F.silu,
    torch.sigmoid, torch.tanh, F.softplus, torch.abs, lambda z: torch.exp(-z.square()), lambda z: z * z * z,
    lambda z: z.square().square(), lambda z: z.square().square() * z,
    lambda z: torch.sign(z) * torch.sqrt(torch.abs(z)),
    lambda z: torch.abs(z) * torch.sqrt(torch.abs(z)), lambda z: torch.exp(z.clamp(max=10.0)),
    lambda z: torch.sign(z) * torch.log1p(torch.abs(z)), torch.sin, torch.cos, torch.arctan,
)  # fmt: skip
"""By code. Tiers: 0 of a dense u, 1 of few coordinates, 2 and 3 fired by token logic, 4 dropped."""


class SymbolRouter(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.scores = PeerRouter(config, config.experts["peer"])
        self.places = config.experts["places"]

    def forward(self, x_BTD, ids=None, real=None):
        """With the tokens that literals look at: `ids` of all so far, `real` where they are no padding."""
        seen = ids if real is None else ids.masked_fill(~real, -1)
        length = x_BTD.shape[1]
        before = F.pad(seen, (self.places - 1, 0), value=-1)[:, -(length + self.places - 1) :]
        context = before.unfold(1, length, 1).transpose(0, 1).flip(0).flatten(1)
        return {**self.scores(x_BTD), "context": context}


class SymbolExperts(SparseExperts):
    def __init__(self, config, layer):
        super().__init__()
        spec, d = config.experts, config.hidden_size
        peer, splines = spec["peer"], spec["num_splines"][layer]
        experts, gates, literals = peer["num_experts"], spec["num_gates"][layer], spec["num_literals"][layer]
        self.index = CellIndex(peer, config.index_dtypes[layer])
        self.v = Table(peer, d, "int4")
        self.axis_bias = AxisBias(peer, d) if peer["axis_bias"] else None
        buffers = {
            "tier_E": ((experts,), torch.uint8), "code_E": ((experts,), torch.uint8),
            "scale_E": ((experts,), torch.float32), "offset_E": ((experts,), torch.float32),
            "index_EK": ((experts, spec["coordinates"]), torch.int16),
            "coefficient_EK": ((experts, spec["coordinates"]), torch.float32),
            "intercept_E": ((experts,), torch.float32), "dense_row_E": ((experts,), torch.int32),
            "dense_u_FD": ((spec["num_dense"][layer], d), torch.float32), "rule_E": ((experts,), torch.int32),
            "gate_G": ((gates,), torch.uint8), "wire_a_G": ((gates,), torch.int32), "wire_b_G": ((gates,), torch.int32),
            "member_LV": ((literals, spec["vocab_size"]), torch.bool), "literal_offset_L": ((literals,), torch.uint8),
            "spline_row_E": ((experts,), torch.int32), "spline_low_W": ((splines,), torch.float32),
            "spline_high_W": ((splines,), torch.float32),
            "spline_coefficient_WK": ((splines, KNOTS + 2), torch.float32),
        }  # fmt: skip
        for name, (shape, dtype) in buffers.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def reached(self, routing):
        """Statements that are true: exact ones with the gate of their cell, those by logic with gate 1."""
        token_P, expert_P, gate_P = super().reached(routing)
        exact = self.tier_E[expert_P] <= 1
        logical = torch.nonzero((self.tier_E == 2) | (self.tier_E == 3))[:, 0]
        wires = self._wires(routing["context"])
        at, token_X = torch.nonzero(wires[len(self.member_LV) + self.rule_E[logical].long()], as_tuple=True)
        token_P = torch.cat([token_P[exact], token_X])
        order = torch.argsort(token_P, stable=True)
        expert_P = torch.cat([expert_P[exact], logical[at]])
        gate_P = torch.cat([gate_P[exact], gate_P.new_ones(len(token_X))])
        return token_P[order], expert_P[order], gate_P[order]

    def _wires(self, context_ON):
        token = context_ON[self.literal_offset_L.long()]
        literals = self.member_LV.gather(1, token.clamp(min=0)) & (token >= 0)
        a, b = self.wire_a_G.long(), self.wire_b_G.long()
        value = torch.cat([literals, literals.new_zeros(len(a), literals.shape[1])]).to(torch.uint8)
        known = torch.arange(len(value), device=value.device) < len(literals)
        while not bool(known.all()):
            ready = torch.nonzero(~known[len(literals) :] & known[a] & known[b])[:, 0]
            if len(ready) == 0:
                raise ValueError("the logic of a layer has a cycle; download its weights again")
            bit = 3 - (2 * value[a[ready]] + value[b[ready]])
            value[len(literals) + ready] = (self.gate_G[ready, None] >> bit) & 1
            known[len(literals) + ready] = True
        return value

    def pre(self, x_ND, token_P, expert_P):
        z = torch.empty(len(token_P), dtype=x_ND.dtype, device=x_ND.device)
        dense = self.tier_E[expert_P] == 0
        u = self.dense_u_FD[self.dense_row_E[expert_P[dense]].long()].to(x_ND.dtype)
        z[dense] = (u * x_ND[token_P[dense]]).sum(-1)
        index = self.index_EK[expert_P[~dense]].long()
        read = x_ND.flatten()[token_P[~dense][:, None] * x_ND.shape[1] + index]
        z[~dense] = (self.coefficient_EK[expert_P[~dense]].to(x_ND.dtype) * read).sum(-1)
        return z + self.intercept_E[expert_P]

    def magnitude(self, pre_P, expert_P):
        code, value = self.code_E[expert_P], torch.empty_like(pre_P)
        for number in torch.unique(code).tolist():
            chosen = code == number
            own = FUNCTIONS[number] if number != SPLINE else self._splines(expert_P[chosen])
            value[chosen] = own(pre_P[chosen])
        return self.scale_E[expert_P] * value + self.offset_E[expert_P]

    def _splines(self, expert_P):
        row = self.spline_row_E[expert_P].long()

        def spline(z):
            low, high = self.spline_low_W[row], self.spline_high_W[row]
            position = ((z - low) / (high - low)).clamp(0.0, 1.0) * (KNOTS - 1)
            cell = position.floor().clamp(max=KNOTS - 2)
            t = position - cell
            weights = (
                (1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6,
            )  # fmt: skip
            first = cell.nan_to_num().long()
            return torch.stack([w * self.spline_coefficient_WK[row, first + i] for i, w in enumerate(weights)]).sum(0)

        return spline


# The model

ROUTERS = {"dense": None, "monet": MonetRouter, "peer": PeerRouter, "symbols": SymbolRouter}
EXPERTS = {"dense": DenseMLP, "monet": MonetExperts, "peer": PeerExperts, "symbols": SymbolExperts}


class LegibleBlock(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        eps, spec = config.transformer["norm_eps"], config.experts
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)
        group = spec.get("peer", spec).get("router_group", 1)
        router = ROUTERS[spec["layer"]]
        self.router = None if router is None or layer % group else router(config)
        self.moe = EXPERTS[spec["layer"]](config, layer)

    def forward(self, hidden_states, routing=None, turn=None, mask=None, past=None, ids=None, seen=None, real=None):
        """`ids` of this pass go into the cache with the first block's keys; `seen` are all so far, for the others."""
        mixed, written = self.self_attn(self.input_layernorm(hidden_states), turn=turn, mask=mask, past=past, ids=ids)
        hidden_states = hidden_states + mixed
        x_BTD = self.post_attention_layernorm(hidden_states)
        seen = written if ids is not None else seen
        if self.router is not None:
            routing = self.router(x_BTD, seen, real)
        y_BTD, reached = self.moe(x_BTD, routing)
        return hidden_states + y_BTD, routing, reached, seen


class LegiblePreTrainedModel(PreTrainedModel):
    config_class = LegibleConfig
    base_model_prefix = "model"
    _no_split_modules = ["LegibleBlock"]
    _skip_keys_device_placement = ["past"]
    _supports_sdpa = True

    def _init_weights(self, module):
        """What a file lacks is as it was built; models are made by training, not here."""


class LegibleModel(LegiblePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LegibleBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.transformer["norm_eps"])
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        use_cache=None, output_hidden_states=False, output_routed_experts=False,
    ):  # fmt: skip
        stream = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = stream.shape[:2]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        here = torch.arange(seen, seen + length, device=stream.device)[None].expand(batch, -1)
        position_ids = here if position_ids is None else position_ids
        width = self.config.hidden_size // self.config.num_attention_heads
        turn = rotary(position_ids, width, self.config.transformer["rope_theta"])
        mask, real = self._mask(attention_mask, seen, length, past_key_values, stream.device)
        symbolic = self.config.experts["layer"] == "symbols"
        if symbolic and input_ids is None:
            raise ValueError("rules of symbols read tokens; give input_ids, not inputs_embeds")
        states, routed, routing, ids = [stream], [], None, None
        for layer, block in enumerate(self.layers):
            stream, routing, reached, ids = block(
                stream, routing=routing, turn=turn, mask=mask, past=past_key_values,
                ids=input_ids if symbolic and layer == 0 else None, seen=ids, real=real,
            )  # fmt: skip
            ids = ids if ids is None else ids[:, : seen + length]  # a cache of fixed size has room behind them
            states.append(stream)
            if output_routed_experts:
                routed.append(self._routed(routing, reached))
        return self.norm(stream), past_key_values, tuple(states) if output_hidden_states else None, routed

    def _mask(self, attention_mask, seen, length, past, device):
        """Which keys a query may read, None where causality says it all; and which tokens so far are no padding."""
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask, None
        padded = attention_mask is not None and not bool(attention_mask.all())
        keys = seen + length if past is None else past.get_mask_sizes(length, 0)[0]
        if not padded and keys == seen + length and (length == 1 or seen == 0):
            return None, None
        query = torch.arange(seen, seen + length, device=device)[:, None]
        key = torch.arange(keys, device=device)
        mask, real = (key <= query)[None, None], None
        if padded:
            real = attention_mask.bool()
            may = F.pad(real, (0, keys - real.shape[1]))[:, None, None]
            mask = mask & may | (key == query)  # padding reads itself, since nothing at all would be no number
        return mask, real

    def _routed(self, routing, reached):
        """(B, T, K) experts of greatest gate and their gates, of one block."""
        kept = self.config.routed_experts_kept
        if self.config.experts["layer"] == "monet":
            return composed(routing, kept)
        index, gate = reached
        found = strongest(index.flatten(0, 1), wide(gate.flatten(0, 1)), kept)
        return tuple(part.unflatten(0, index.shape[:2]) for part in found)


class LegibleForCausalLM(LegiblePreTrainedModel, GenerationMixin):
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.model = LegibleModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, output_hidden_states=None, output_routed_experts=None, logits_to_keep=0,
        return_dict=None, **kwargs,
    ):  # fmt: skip
        config = self.config
        asked = config.output_routed_experts if output_routed_experts is None else output_routed_experts
        stream, past, states, routed = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds,
            use_cache=config.use_cache if use_cache is None else use_cache,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_routed_experts=asked and config.experts["layer"] != "dense",
        )  # fmt: skip
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(stream[:, last])
        loss = None
        if labels is not None:
            targets = labels[:, 1:].to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100)
        experts, gates = (torch.stack(part, dim=2) for part in zip(*routed, strict=True)) if routed else (None, None)
        output = LegibleOutput(
            loss=loss, logits=logits, past_key_values=past, hidden_states=states, routed_experts=experts,
            routed_gates=gates,
        )  # fmt: skip
        return output if return_dict is None or return_dict else output.to_tuple()
