"""State dicts of lucidrains' PEER layers, and a host -> PEER."""

from typing import Literal

from pydantic import Field

from pipeline.exchange.peer import Settings, in_host, layers_in
from pipeline.exchange.release import digest_of_weights, weights_in
from pipeline.figures.parameters import parameters_by_block
from pipeline.measuring.sizes import measure_size, measure_tables
from pipeline.models import AnyModel, LanguageModel
from pipeline.stage import Output, StageConfig, stage


class ImportPeerConfig(StageConfig):
    """Which layers are read, and what their constructor was told; the defaults are its own."""

    source: str = Field(
        default="",
        exclude=True,  # the recipe holds the digest of its files instead
        max_length=4096,
        description="File of safetensors, or folder of them, with the state dicts of as many layers as the host has "
        "blocks, in the order of the numbers in their names.",
    )
    num_experts_per_head: int = Field(
        default=16,
        ge=1,
        le=2**15,
        description="Pairs a head keeps; 1, whatever it says, of scores that do not compete.",
    )
    product_key_topk: int = Field(
        default=0,
        ge=0,
        le=2**15,
        description="Sub-keys of an axis that a head makes pairs of; 0: num_experts_per_head.",
    )
    non_competing_scores: bool = Field(
        default=True, description="Whether the gate is the positive part of a pair's score, instead of a softmax."
    )
    activation: Literal["relu2", "gelu", "silu", "relu"] = Field(default="gelu", description="Activation of an expert.")


def layers_digest(config: ImportPeerConfig) -> str:
    """sha256 over those of the files."""
    return digest_of_weights(config.source)


@stage(name="import-peer", version=1, sources=layers_digest)
def import_peer(config: ImportPeerConfig, *, host: AnyModel) -> Output[LanguageModel]:
    """PEER layers of lucidrains' code, in the place of a host's expert layers -> PEER. Nothing is trained."""
    settings = Settings(
        num_experts_per_head=config.num_experts_per_head,
        product_key_topk=config.product_key_topk or config.num_experts_per_head,
        non_competing_scores=config.non_competing_scores,
        activation=config.activation,
    )
    model = in_host(host, layers_in(weights_in(config.source)), settings)
    sizes = measure_size(model)
    metrics = {**measure_tables(model), "num_parameters": sizes["num_parameters"]}
    title = f"PEER, imported: {metrics['num_experts']:,.0f} experts a block, in a host of kind {host.kind}"
    return Output(value=model, metrics=metrics, files={"plot.png": parameters_by_block(title, model)})
