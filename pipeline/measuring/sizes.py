"""Bytes and parameters of a model."""

import resource

from torch import nn

from pipeline.models.language_model import LanguageModel


def measure_tables(model: LanguageModel) -> dict[str, float]:
    """Sizes of a block's experts, with biases and the index of cells, in bytes; a parameter is an entry of a table."""
    experts = model.expert_layers()[0]
    stored_bytes, tables = experts.state_bytes(), experts.tables().values()
    entries = sum(table.num_rows for table in tables) * model.shape.d_model
    return {
        "num_experts": float(experts.num_experts),
        "expert_bytes": stored_bytes / experts.num_experts,
        **({"table_bytes_per_parameter": stored_bytes / entries} if entries else {}),
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
