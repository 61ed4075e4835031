"""A record: for every token of a stretch of text, the experts of each block that fired and what they contributed."""

# T tokens, K experts kept a token, E experts of a block

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from artifacts import ArtifactError
from kernels.errors import Mistake
from pipeline.codec import artifact_kinds
from pipeline.corpus.splits import Corpus
from pipeline.models.language_model import LanguageModel
from pipeline.records.appended import Column

Contributions = Literal["float16", "float32"]
SPLITS = Literal["held_out", "validation", "train"]
REMEDY = "make the record again"
_ROUNDING = 1e-3
"""Of losses and shares."""

OF_TOKENS = ("token", "label", "document", "position", "domain", "loss_nats")
"""Tensors that all blocks share, one value a token; all but the loss are int32."""
OF_A_BLOCK = ("expert", "contribution", "fired", "omitted_share")
"""Tensors that each block has, `layers.N.expert` and so on."""


class RecordSpec(BaseModel):
    """What a record is of. Its rows are the tokens of windows of the split, one window after the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SPLITS
    tokens: int = Field(ge=1)
    context_length: int = Field(ge=1)
    """Tokens a window."""
    most: int = Field(ge=1)
    """K, the experts kept a token: those that contribute most."""
    contributions: Contributions
    experts: tuple[int, ...] = Field(min_length=1)
    """In the pool of each block."""
    domains: tuple[str, ...] = Field(min_length=1)
    """Those that some token is of: what the tensor `domain` counts through."""
    vocab_size: int = Field(ge=1)
    tokenizer_sha256: str
    model_kind: str
    model_sha256: str


def columns_of_blocks(blocks: int, most: int, contributions: Contributions) -> dict[str, Column]:
    """What is written while the model runs."""
    wide = Column(getattr(torch, contributions), most)
    kinds = {
        "expert": Column(torch.int32, most),
        "contribution": wide,
        "fired": Column(torch.int32),
        "omitted_share": Column(torch.float32),
    }
    return {f"layers.{block}.{name}": column for block in range(blocks) for name, column in kinds.items()}


@artifact_kinds("record")
class ActivationRecord:
    """The tensors of a record, mapped from the disk until they are read, and what they are of."""

    def __init__(self, spec: RecordSpec, tensors: Mapping[str, Tensor]) -> None:
        self._spec = spec
        self.tensors = dict(tensors)

    @property
    def kind(self) -> str:
        return "record"

    @property
    def spec(self) -> RecordSpec:
        return self._spec

    @property
    def blocks(self) -> int:
        return len(self._spec.experts)

    def of_block(self, block: int, name: str) -> Tensor:
        """One of OF_A_BLOCK. ValueError for a block that the model has not."""
        if not 0 <= block < self.blocks:
            raise Mistake(f"the record is of blocks 0 to {self.blocks - 1}, and block {block} was asked for")
        return self.tensors[f"layers.{block}.{name}"]

    def cells_of(self, block: int) -> Tensor | None:
        """(E, 2) row and column of each expert in the key grid; None where the experts are in none."""
        return self.tensors.get(f"layers.{block}.cell")

    def check_is_of(self, model: LanguageModel) -> None:
        """ValueError unless this model made it."""
        if model.kind != self._spec.model_kind or digest_of_model(model) != self._spec.model_sha256:
            raise Mistake(
                f"the record is of another model, a {self._spec.model_kind!r} with the digest "
                f"{self._spec.model_sha256[:12]}..., and not of this {model.kind!r}; record this model"
            )

    def check_speaks_as(self, corpus: Corpus) -> None:
        """ValueError unless its tokens are those of this corpus's tokenizer."""
        if digest_of_tokenizer(corpus) != self._spec.tokenizer_sha256:
            raise Mistake(
                f"the record is of another tokenizer, of {self._spec.vocab_size:,} tokens, and the corpus has one of "
                f"{corpus.spec.vocab_size:,}; name the corpus that was recorded, or record this one"
            )

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def to_files(self) -> dict[str, bytes]:
        return {}

    @classmethod
    def restore(cls, kind: str, spec: Mapping[str, Any], tensors: dict[str, Tensor], files: Mapping[str, Path]) -> Self:
        opened = RecordSpec.model_validate(dict(spec))
        _check_forms(opened, tensors)
        _check_values(opened, tensors)
        return cls(opened, tensors)


def digest_of_model(model: LanguageModel) -> str:
    """Of its spec and all its numbers, wherever they are."""
    digest = hashlib.sha256(json.dumps(model.spec.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(model.to_tensors().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_tokenizer(corpus: Corpus) -> str:
    """Of the text that each token stands for, and of which one ends a document."""
    digest = hashlib.sha256(f"{corpus.tokenizer.separator}\n".encode())
    for text in corpus.tokenizer.token_bytes:
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _check_forms(spec: RecordSpec, tensors: Mapping[str, Tensor]) -> None:
    """ArtifactError names the first tensor that is not of the form that the spec gives it."""
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {name: ((spec.tokens,), torch.int32) for name in OF_TOKENS}
    wanted["loss_nats"] = (spec.tokens,), torch.float32
    for name, column in columns_of_blocks(len(spec.experts), spec.most, spec.contributions).items():
        wanted[name] = (spec.tokens, *(() if column.width is None else (column.width,))), column.dtype
    for block, experts in enumerate(spec.experts):
        if (name := f"layers.{block}.cell") in tensors:
            wanted[name] = (experts, 2), torch.int32
    for name in sorted(wanted.keys() | tensors.keys()):
        theirs = f"{tuple(tensors[name].shape)} of {tensors[name].dtype}" if name in tensors else "none"
        ours = "{} of {}".format(*wanted[name]) if name in wanted else "none"
        if theirs != ours:
            raise ArtifactError(f"tensor {name!r} is {theirs}, where its spec wants {ours}; {REMEDY}")


def _check_values(spec: RecordSpec, tensors: Mapping[str, Tensor]) -> None:
    """ArtifactError names the first tensor that holds what no model has done."""
    bounds: dict[str, tuple[float, float]] = {
        "token": (0, spec.vocab_size - 1),
        "label": (0, spec.vocab_size - 1),
        "document": (0, math.inf),
        "position": (0, math.inf),
        "domain": (0, len(spec.domains) - 1),
        "loss_nats": (-_ROUNDING, math.inf),
    }
    for block, experts in enumerate(spec.experts):
        of_block = {
            "expert": (-1, experts - 1),
            "fired": (0, experts),
            "contribution": (0, math.inf),
            "omitted_share": (-_ROUNDING, 1 + _ROUNDING),
            "cell": (0, math.inf),
        }
        bounds |= {f"layers.{block}.{name}": held for name, held in of_block.items()}
    for name, (least, most) in bounds.items():
        if name not in tensors:  # experts that are in no grid have no cells
            continue
        found_least, found_most = (float(value) for value in tensors[name].aminmax())
        if not (least <= found_least <= found_most <= most and math.isfinite(found_most)):  # of NaN both are NaN
            raise ArtifactError(
                f"tensor {name!r} holds {found_least:g} to {found_most:g}, where {least:g} to {most:g} can be; {REMEDY}"
            )
