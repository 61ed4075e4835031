"""A record in the forms that others read: one block in a file, and the experts of a sequence as vLLM returns them."""

# T tokens of the record, L tokens of a sequence, K experts kept a token

import json
from pathlib import Path

import torch
from torch import Tensor

from artifacts.tensors_file import write_tensors
from kernels.errors import Mistake
from pipeline.records.record import OF_TOKENS, ActivationRecord


def layer_tensors(record: ActivationRecord, block: int) -> dict[str, Tensor]:
    """One block by the documented names; nothing is read yet. Domains are its strata."""
    cell_E2 = record.cells_of(block)
    return {
        "expert": record.of_block(block, "expert"),
        "contribution": record.of_block(block, "contribution"),
        "omitted_share": record.of_block(block, "omitted_share"),
        **{name: record.tensors[name] for name in OF_TOKENS},
        "stratum": record.tensors["domain"],
        "experts": torch.tensor([record.spec.experts[block]]),
        **({} if cell_E2 is None else {"cell": cell_E2}),
    }


def layer_file(record: ActivationRecord, block: int, path: Path) -> None:
    """Writes one block as a file of its own, with the record's spec as the only metadata."""
    spec = json.dumps({**record.spec.model_dump(mode="json"), "block": block}, sort_keys=True)
    write_tensors(path, layer_tensors(record, block), recipe=spec)


def routed_experts(record: ActivationRecord, window: int) -> Tensor:
    """(L, blocks, K) int32 experts of the window's tokens, ascending, -1 for none."""
    length = record.spec.context_length
    windows = record.spec.tokens // length
    if not 0 <= window < windows:
        raise Mistake(f"the record is of windows 0 to {windows - 1}, and window {window} was asked for")
    rows = slice(window * length, (window + 1) * length)
    return torch.stack([record.of_block(block, "expert")[rows] for block in range(record.blocks)], dim=1)
