"""PEER as a kind of expert layer: which router and experts its spec asks for, and what measures ask of it."""

# P pairs of a token and a cell, H heads, I sub-keys of the rows, J of the columns

import torch
from torch import Tensor, nn

from kernels.errors import Mistake
from kernels.pairs import tokens_of_pairs
from kernels.product_key_topk import reference as product_keys
from pipeline.models.axis_threshold import fit_norm
from pipeline.models.contract import ExpertLayer, wanted
from pipeline.models.peer.experts import PeerExperts, PeerLayer
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.registry import LayerKind, Use
from pipeline.models.tables.experts import TableExperts
from pipeline.models.transformer import Block, Visit


def _router(spec: PeerSpec, d_model: int, layer: int) -> PeerRouter | None:
    return None if layer % spec.router_group else PeerRouter(spec, d_model)


def _experts(spec: PeerSpec, d_model: int, layer: int) -> PeerLayer:
    return (PeerExperts if spec.precision == "float" else TableExperts)(spec, d_model)


def _sparse(block: Block) -> list[Tensor]:
    experts, found = wanted(block.experts, PeerLayer, "an expert layer"), list[Tensor]()
    if block.router is not None and experts.spec.score_features:
        found.append(wanted(block.router, PeerRouter, "a router").query.weight)
    if experts.spec.u_terms:
        found += experts.tables()["u"].parameters()
    return found


def _use(visit: Visit) -> Use:
    """As by pairs, but nothing is read of the tables."""
    experts, routing = wanted(visit.experts, PeerLayer, "an expert layer"), visit.routing
    expert_P, _, gate_P = experts.index(routing)
    sums_E = torch.zeros(experts.num_experts).index_add(0, expert_P.cpu(), gate_P.float().cpu())
    router = visit.block.router
    mismatches = None if router is None else firing_mismatches(wanted(router, PeerRouter, "a router"), routing)
    return Use(gate_sums=(sums_E,), pairs=len(expert_P), mismatches=mismatches)


def _settle(spec: PeerSpec, router: nn.Module, x_ND: Tensor, share: float) -> None:
    peer = wanted(router, PeerRouter, "a router")
    if spec.query_norm:
        fit_norm(wanted(peer.query_norm, nn.BatchNorm1d, "a query norm"), peer.query(x_ND)[:, :, None])
    peer.gate.fit(peer, x_ND, share)


def firing_mismatches(router: PeerRouter, routing: PeerRouting) -> int | None:
    """Pairs on which retrieval and the rule, applied to every cell of the grid, do not agree.

    None where the gate compares pairs with each other, which is no rule for one.
    """
    row_NHI, column_NHJ, limit_H = routing.log_gate1_NHI, routing.log_gate2_NHJ, router.gate.limits(router)
    if row_NHI is None or column_NHJ is None or limit_H is None:
        return None
    token_P, _, r_P, c_P = product_keys.product_key_threshold(row_NHI, column_NHJ, limit_H)
    cells = router.spec.num_cells
    by_rule = torch.bincount(
        token_P * cells + r_P * router.spec.num_columns + c_P, minlength=len(routing.start_N1) * cells
    )
    retrieved_P = tokens_of_pairs(routing.start_N1)
    found = torch.bincount(retrieved_P * cells + routing.cell_P, minlength=len(routing.start_N1) * cells)
    return int((by_rule - found).abs().sum())


def _cells(experts: PeerLayer) -> Tensor:
    """Heads with pools of their own share no sub-keys: rows and columns are numbered on from head to head."""
    spec, cell_E2 = experts.spec, experts.index.row_and_column_of_experts(experts.spec.num_columns)
    cell_E2[:, 1] += cell_E2[:, 0] // spec.num_keys * spec.num_columns
    return cell_E2


def _check_same_pool(ours: PeerLayer, theirs: ExpertLayer) -> None:
    """ValueError unless as many experts are in the same cells of the same grid."""
    teacher = wanted(theirs, PeerLayer, "a teacher's expert layer")
    a, b = ((layer.spec.num_keys, layer.spec.num_columns) for layer in (ours, teacher))
    if a != b or not torch.equal(ours.index.stored.row().cpu(), teacher.index.stored.row().cpu()):
        raise Mistake(
            f"{ours.num_experts} experts in a grid of {a} and a teacher's {teacher.num_experts} in {b}, not in the "
            "same cells"
        )


PEER = LayerKind(
    spec=PeerSpec,
    artifact_kinds=("peer", "peer-int8", "peer-int4"),
    router=_router,
    experts=_experts,
    sparse=_sparse,
    use=_use,
    settle=_settle,
    cells=_cells,
    check_same_pool=_check_same_pool,
)
