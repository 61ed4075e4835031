"""Monet -> PEER: start from the exact mapping, drop pairs and neurons, distil what was lost back in."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kernels.activations import activation
from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.figures.training import Panel, training_curve
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure_against, validation_loss
from pipeline.measuring.routing import effective, measure_routing
from pipeline.measuring.sizes import measure_size, measure_tables
from pipeline.models import LanguageModel, MonetModel
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.records.recording import check_speaks_as
from pipeline.run import current_run, steps
from pipeline.stage import Output, StageConfig, stage
from pipeline.training.config import TrainingConfig
from pipeline.training.distillation import calibration_batches
from pipeline.training.loop import Batch, Fitted, Losses, Rate, fit
from pipeline.training.losses import layer_match, logit_kl
from pipeline.training.training_curve import Curve, to_csv
from pipeline.transforms.from_monet import keep_experts, peer_from_monet
from pipeline.transforms.sparsity import Sparsity, hold_zeros, sparsified

# N tokens, D model width, E experts, P pairs


class DistillPeerConfig(StageConfig):
    """How far the converted model is cut down, and how it is distilled."""

    pairs_per_head: int = Field(default=4, ge=1, le=1024, description="Cells a head reaches for a token, on average.")
    num_experts: int = Field(
        default=4096, ge=1, le=2**30, description="Experts a block that are kept, by contribution energy."
    )
    calibration_tokens: int = Field(
        default=20_480, ge=256, description="Train tokens (forward only) that set thresholds and rank the experts."
    )
    match_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of the steps that match layer outputs; the rest match logits."
    )
    router_rate: float = Field(
        default=1.0, gt=0, le=100, description="Learning rate of routers, as a multiple of the others'."
    )
    sparsity: Sparsity = Field(
        default=Sparsity(score_features=64, score_terms=8, u_terms=16),
        description="How few features a score and how few coordinates a row of u may name.",
    )
    training: TrainingConfig = Field(
        # Of rates, shares of matching, router rates and batches the least validation loss, or as good to .0003 nats
        # (docs/benchmarks/2026-11-29-rates.md).
        default=TrainingConfig(steps=128, learning_rate=3e-3, warmup_steps=6, weight_decay=0.0, final_rate_share=0.0),
        description="How it is distilled.",
    )
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How it is measured.")


@stage(name="distill-peer", version=4)
def distill_peer(
    config: DistillPeerConfig, *, corpus: Annotated[Corpus, "corpus"], monet: MonetModel
) -> Output[LanguageModel]:
    """Monet -> PEER: the exact conversion, cut down to few pairs and experts and made sparse, then distilled."""
    check_speaks_as(monet, corpus)
    peer = peer_from_monet(monet, pairs_per_head=config.pairs_per_head)
    num_all = peer.spec.experts_as(PeerSpec).num_experts
    if config.num_experts > num_all:
        raise Mistake(f"num_experts={config.num_experts} is more than the {num_all} neurons a block of this Monet")
    held_out = HeldOut(corpus, config.measure, config.training.context_length)
    error = _conversion_error(monet, peer, held_out)
    batches = calibration_batches(corpus, config.training, config.calibration_tokens)
    _set_thresholds(peer, batches)
    energies = contribution_energies(peer, batches)
    kept = [energy_E.topk(config.num_experts).indices.sort().values for energy_E in energies]
    peer = keep_experts(peer, kept)
    if not config.sparsity.dense:
        peer = sparsified(peer, batches, config.sparsity)
    undistilled = measure_against(peer, monet, held_out.few)
    fitted = _distil(peer, monet, corpus, config)
    metrics = {
        **measure_against(peer, monet, held_out),
        "validation_loss_nats": validation_loss(peer, held_out),
        **measure_routing(peer, held_out),
        **measure_tables(peer),
        **measure_size(peer),
        **fitted.losses,
        "conversion_logit_error": error,
        "num_experts_before": float(num_all),
        "kept_energy_share": _mean([e[k].sum().item() / e.sum().item() for e, k in zip(energies, kept, strict=True)]),
        "effective_experts_before": _mean([effective(energy_E) for energy_E in energies]),
        "undistilled_loss_increase_nats": undistilled["loss_increase_nats"],
        "undistilled_kl_to_teacher_nats": undistilled["kl_to_teacher_nats"],
        "train_tokens": float(config.training.train_tokens + sum(b.numel() for b in batches)),
        "tokens_per_second": fitted.tokens_per_second,
    }
    title = f"PEER, {config.num_experts:,} of {num_all:,} experts a block: distilled from Monet"
    files = {"plot.png": _picture(title, fitted.curve, metrics), "training.csv": to_csv(fitted.curve)}
    return Output(value=peer, metrics=metrics, files=files)


def _distil(peer: LanguageModel, monet: LanguageModel, corpus: Corpus, config: DistillPeerConfig) -> Fitted:
    """Trains the experts and routers of `peer`, in place, against its teacher."""
    peer.requires_grad_(False)
    for parameter in [*peer.parameters_of("experts"), *peer.parameters_of("routers")]:
        parameter.requires_grad_(True)
    hold_zeros(peer)
    peer.train()
    for router in peer.routers_of(PeerRouter).values():
        # The teacher's axis thresholds stay: batch statistics would make the student another function at once.
        router.gate.hold_statistics(router)
    fitted = fit(
        peer, split=corpus.train, config=config.training, loss=_distillation(peer, monet, config), what="distill",
        rates=[Rate(parameters=peer.parameters_of("routers"), multiplier=config.router_rate)],
    )  # fmt: skip
    peer.requires_grad_(True)
    return fitted


def _picture(title: str, curve: Curve, metrics: Mapping[str, float]) -> bytes:
    """Layers first, then logits, as they are matched."""
    panels = [
        Panel(number="layer_error_share", label="error of the layers' outputs,\nshare of the teacher's square"),
        Panel(
            number="train_kl_to_teacher_nats",
            label="KL from Monet, nats a token",
            held_out=metrics["kl_to_teacher_nats"],
            baseline=("held out, before distilling", metrics["undistilled_kl_to_teacher_nats"]),
        ),
    ]
    return training_curve(title, curve, panels)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@torch.no_grad()
def _conversion_error(monet: LanguageModel, peer: LanguageModel, held_out: HeldOut) -> float:
    """Largest difference of a logit between the Monet and the PEER that nothing was dropped from."""
    device = current_run().device
    return max(
        (monet(inputs.to(device)) - peer(inputs.to(device))).abs().max().item()
        for inputs, _ in held_out.of_tokens(4 * held_out.context_length).batches("check the conversion")
    )


@torch.no_grad()
def _set_thresholds(peer: LanguageModel, batches: list[Tensor]) -> None:
    """Each head's threshold at the quantile that lets its target of pairs fire, on the untruncated model."""
    traces = [peer.trace(tokens_BT).routings for tokens_BT in batches]
    for layer, router in peer.routers_of(PeerRouter).items():
        router.gate.aim(router, [routings[layer] for routings in traces])


@torch.no_grad()
def contribution_energies(peer: LanguageModel, batches: list[Tensor]) -> list[Tensor]:
    """(E) a block: the sum over tokens of (gate * activation)^2 * |v|^2, by which experts are kept."""
    layers = peer.expert_layers_of(PeerExperts)
    energies = [torch.zeros(experts.num_experts, device=current_run().device) for experts in layers]
    for step in steps("rank experts", len(batches)):
        for energy_E, experts, visit in zip(energies, layers, peer.walk(batches[step]), strict=True):
            pairs = visit.pairs()
            hidden_P = activation(experts.spec.activation).f(pairs.pre_PM[:, 0])
            energy_E.index_add_(0, pairs.expert_P, (pairs.gate_P * hidden_P).square())
    return [energy_E * experts.v.square().sum(1) for energy_E, experts in zip(energies, layers, strict=True)]


def _distillation(peer: LanguageModel, monet: LanguageModel, config: DistillPeerConfig):  # noqa: ANN202 - fit's loss
    """Layer outputs on the teacher's inputs first, then logits on the student's own."""
    match_steps = round(config.match_share * config.training.steps)

    def loss(batch: Batch, step: int) -> Losses:
        tokens_BT, _ = batch
        with torch.no_grad():
            teacher = monet.trace(tokens_BT)
        if step < match_steps:
            outputs = peer.expert_outputs(teacher.expert_inputs, tokens_BT)
            matched = layer_match(outputs, teacher.expert_outputs)
            return matched, {"layer_error_share": matched.item()}
        divergence = logit_kl(peer(tokens_BT), teacher.logits_BTV)
        return divergence, {"train_kl_to_teacher_nats": divergence.item()}

    return loss
