"""Monet to PEER, exactly: the same function, written as single neurons behind product keys.

Monet's composed gate g1_i * g2_j is the product-key softmax of PEER without its second top-k, so every hidden unit of
every composed expert (i, j) is one PEER neuron in cell (i, j). Nothing is lost until pairs or neurons are dropped.
"""

# n sub-experts an axis, M hidden units of an expert, E = n * n * M neurons

import torch
from torch import Tensor

from kernels.pairs import starts
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.monet import MonetExperts, MonetRouter, MonetSpec, Neurons
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec


@torch.no_grad()
def peer_from_monet(monet: LanguageModel, *, pairs_per_head: int) -> LanguageModel:
    """The PEER that computes what this Monet computes in evaluation, all n * n * m neurons and all pairs kept.

    `pairs_per_head` is only what its threshold will aim at once it is set; until then every pair that Monet uses
    fires. In the Monet's dtype, on its device.
    """
    if monet.kind != "monet":
        raise ValueError(f"peer_from_monet takes a 'monet', got a {monet.kind!r}")
    spec = monet.spec.experts_as(MonetSpec)
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
    peer.load_state_dict(monet.backbone_state(), strict=False)
    old_routers = monet.routers_of(MonetRouter)
    for layer, router in peer.routers_of(PeerRouter).items():
        router.query.weight.copy_(torch.cat([old_routers[layer].w1.weight, old_routers[layer].w2.weight]))
        router.norm1.load_state_dict(old_routers[layer].norm1.state_dict())
        router.norm2.load_state_dict(old_routers[layer].norm2.state_dict())
    layers = monet.expert_layers_of(MonetExperts)
    for ours, theirs in zip(peer.expert_layers_of(PeerExperts), layers, strict=True):
        _copy_neurons(ours, theirs.neurons())
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
    spec = peer.spec.experts_as(PeerSpec)
    sizes = {len(index_K) for index_K in kept}
    if len(sizes) != 1 or len(kept) != len(peer.blocks()):
        raise ValueError(f"keep_experts got {sorted(sizes)} experts in {len(kept)} blocks; keep as many in every block")
    smaller_spec = spec.model_copy(update={"num_experts": sizes.pop()})
    smaller = LanguageModel(ModelSpec(transformer=peer.spec.transformer, experts=smaller_spec))
    smaller = smaller.to(peer.lm_head.weight).eval()
    smaller.take_state(peer)
    layers = zip(smaller.expert_layers_of(PeerExperts), peer.expert_layers_of(PeerExperts), kept, strict=True)
    for ours, theirs, index_K in layers:
        for mine, all_of in ((ours.u, theirs.u), (ours.bias, theirs.bias), (ours.v, theirs.v)):
            mine.copy_(all_of[index_K])
        cell_K = theirs.index.cell_of_experts()[index_K]
        ours.index.place(starts(torch.bincount(cell_K, minlength=spec.num_cells)))
    return smaller
