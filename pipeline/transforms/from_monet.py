"""Monet to PEER, exactly: the same function, written as single neurons behind product keys.

Monet's composed gate g1_i * g2_j is the product-key softmax of PEER without its second top-k, so every hidden unit of
every composed expert (i, j) is one PEER neuron in cell (i, j). Nothing is lost until pairs or neurons are dropped.
"""

# n sub-experts an axis, I and J the two axes, M hidden units of an expert, D model width, E = n * n * M neurons

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cells import CellStarts
from kernels.pairs import starts
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.monet import MoHDE, MonetRouter, MonetSpec, MoVDE
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec


@dataclass(frozen=True, slots=True)
class Neurons:
    """A Monet layer written out: neuron (i, j, m) reads u, adds v; the axes' output biases stay apart."""

    u_IJMD: Tensor
    bias_IJM: Tensor
    v_IJMD: Tensor
    row_ID: Tensor
    column_JD: Tensor


def neurons_of(layer: MoHDE | MoVDE) -> Neurons:
    """All neurons of a Monet layer, repeated where they are shared (Monet eq. 6 and 13)."""
    n = layer.num_sub_experts
    if isinstance(layer, MoHDE):
        u_IMD, bias_IM, v_JMD = _rows(layer.u.weight, n), _rows(layer.u.bias, n), _columns(layer.v.weight, n)
        m, d = u_IMD.shape[1:]
        return Neurons(
            u_IJMD=u_IMD[:, None].expand(n, n, m, d),
            bias_IJM=bias_IM[:, None].expand(n, n, m),
            v_IJMD=v_JMD[None].expand(n, n, m, d),
            row_ID=torch.zeros_like(layer.b),
            column_JD=layer.b,
        )
    u1, u2 = (_rows(u.weight, n) for u in (layer.u1, layer.u2))
    bias1, bias2 = (_rows(u.bias, n) for u in (layer.u1, layer.u2))
    v11, v12, v21, v22 = (_columns(v.weight, n) for v in (layer.v11, layer.v12, layer.v21, layer.v22))
    half, d = u1.shape[1:]
    nothing = torch.zeros_like(layer.b1)

    def pair(i_IX: Tensor, j_JX: Tensor) -> Tensor:
        """(I, J, ...) top half of the output from axis 1, bottom half from axis 2."""
        shape = (n, n, *i_IX.shape[1:])
        return torch.cat([i_IX[:, None].expand(shape), j_JX[None].expand(shape)], dim=-1)

    return Neurons(
        u_IJMD=torch.cat([u1[:, None].expand(n, n, half, d), u2[None].expand(n, n, half, d)], dim=2),
        bias_IJM=torch.cat([bias1[:, None].expand(n, n, half), bias2[None].expand(n, n, half)], dim=2),
        v_IJMD=torch.cat([pair(v11, v21), pair(v12, v22)], dim=2),
        row_ID=torch.cat([layer.b1, nothing], dim=-1),
        column_JD=torch.cat([nothing, layer.b2], dim=-1),
    )


def _rows(parameter: Tensor, n: int) -> Tensor:
    """(n * M, ...) to (n, M, ...)."""
    return parameter.unflatten(0, (n, -1))


def _columns(weight_OX: Tensor, n: int) -> Tensor:
    """A linear map's (O, n * M) weight to (n, M, O): each hidden unit's output vector."""
    return weight_OX.T.unflatten(0, (n, -1))


@torch.no_grad()
def peer_from_monet(monet: LanguageModel, *, pairs_per_head: int) -> LanguageModel:
    """The PEER that computes what this Monet computes in evaluation, all n * n * m neurons and all pairs kept.

    `pairs_per_head` is only what its threshold will aim at once it is set; until then every pair that Monet uses
    fires. In the Monet's dtype, on its device.
    """
    spec = monet.spec.experts
    if not isinstance(spec, MonetSpec):
        raise ValueError(f"peer_from_monet takes a 'monet', got a {monet.kind!r}")
    peer_spec = PeerSpec(
        num_keys=spec.num_sub_experts,
        num_experts=spec.num_sub_experts**2 * spec.d_expert,
        num_heads=spec.num_heads,
        sub_keys="identity",
        d_key=spec.num_sub_experts,
        query_norm=False,
        gate="jumprelu",
        pairs_per_head=pairs_per_head,
        active_keys=spec.active_sub_experts,
        activation="relu2",
        axis_bias=True,
        router_group=spec.router_group,
    )
    peer = LanguageModel(ModelSpec(transformer=monet.spec.transformer, experts=peer_spec))
    peer = peer.to(monet.lm_head.weight).eval()
    peer.load_state_dict(
        {k: t for k, t in monet.state_dict().items() if ".moe." not in k and ".router." not in k},
        strict=False,
    )
    for ours, theirs in zip(peer.blocks(), monet.blocks(), strict=True):
        if isinstance(ours.router, PeerRouter) and isinstance(theirs.router, MonetRouter):
            ours.router.query.weight.copy_(torch.cat([theirs.router.w1.weight, theirs.router.w2.weight]))
            ours.router.norm1.load_state_dict(theirs.router.norm1.state_dict())
            ours.router.norm2.load_state_dict(theirs.router.norm2.state_dict())
        if isinstance(ours.moe, PeerExperts) and isinstance(theirs.moe, MoHDE | MoVDE):
            _copy_neurons(ours.moe, neurons_of(theirs.moe))
    return peer


def _copy_neurons(experts: PeerExperts, neurons: Neurons) -> None:
    experts.u.copy_(neurons.u_IJMD.flatten(0, 2))
    experts.bias.copy_(neurons.bias_IJM.flatten())
    experts.v.copy_(neurons.v_IJMD.flatten(0, 2))
    assert experts.axis_bias is not None
    experts.axis_bias.row.copy_(neurons.row_ID)
    experts.axis_bias.column.copy_(neurons.column_JD)


@torch.no_grad()
def keep_experts(peer: LanguageModel, kept: list[Tensor]) -> LanguageModel:
    """A smaller pool: in block l only the experts kept[l] (ascending indices, as many in every block)."""
    spec = peer.spec.experts
    assert isinstance(spec, PeerSpec)
    sizes = {len(index_K) for index_K in kept}
    if len(sizes) != 1 or len(kept) != len(peer.blocks()):
        raise ValueError(f"keep_experts got {sorted(sizes)} experts in {len(kept)} blocks; keep as many in every block")
    smaller_spec = spec.model_copy(update={"num_experts": sizes.pop()})
    smaller = LanguageModel(ModelSpec(transformer=peer.spec.transformer, experts=smaller_spec))
    smaller = smaller.to(peer.lm_head.weight).eval()
    state = peer.state_dict()
    for layer, (block, index_K) in enumerate(zip(peer.blocks(), kept, strict=True)):
        assert isinstance(block.moe, PeerExperts)
        prefix = f"model.layers.{layer}.moe."
        for name in ("u", "bias", "v"):
            state[prefix + name] = state[prefix + name][index_K]
        cell_K = block.moe.index.cell_of_experts()[index_K]
        count_C = torch.bincount(cell_K, minlength=spec.num_cells)
        offset_C1, block_start_K = CellStarts.of(starts(count_C))
        state |= {prefix + "index.offset_C1": offset_C1, prefix + "index.block_start_K": block_start_K}
    smaller.load_state_dict(state)
    return smaller
