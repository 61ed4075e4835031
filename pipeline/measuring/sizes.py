"""Bytes and parameters of a model."""

import resource

from torch import nn

from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.tables.experts import QuantizedExperts


def measure_tables(model: LanguageModel) -> dict[str, float]:
    """Sizes of the expert tables of a PEER model, with biases and the index of cells, in bytes."""
    experts = next(block.moe for block in model.blocks())
    if not isinstance(experts, PeerExperts | QuantizedExperts):
        raise AssertionError("only PEER models have expert tables")
    entries = 2 * experts.spec.num_experts * model.shape.d_model
    beside_bytes = experts.bias.numel() * experts.bias.element_size() + experts.index.state_bytes()
    if isinstance(experts, PeerExperts):
        table_bytes = (experts.u.numel() + experts.v.numel()) * experts.u.element_size()
    else:
        table_bytes = experts.u.state_bytes() + experts.v.state_bytes()  # type: ignore[operator]
    return {
        "num_experts": float(experts.spec.num_experts),
        "expert_bytes": (table_bytes + beside_bytes) / experts.spec.num_experts,
        "table_bytes_per_parameter": (table_bytes + beside_bytes) / entries,
    }


def measure_training_tables(model: LanguageModel) -> dict[str, float]:
    """The same while they train: beside what is stored, AdamW holds two float32 moments of every expert's bias."""
    sizes = measure_tables(model)
    moments = 8 / (2 * model.shape.d_model)
    return {**sizes, "table_bytes_per_parameter": sizes["table_bytes_per_parameter"] + moments}


def measure_size(model: nn.Module) -> dict[str, float]:
    """Parameters of the model and the process's largest resident size so far."""
    return {
        "num_parameters": float(sum(p.numel() for p in model.parameters())),
        "peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    }
