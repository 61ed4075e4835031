"""A corpus: token ids in three splits, where each document begins, its domain, and the tokenizer.

Shape suffixes: N tokens of a split, D documents, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from artifacts import ArtifactError
from kernels.errors import Mistake
from pipeline.codec import artifact_kinds
from pipeline.corpus.imported_tokenizer import ImportedTokenizer
from pipeline.corpus.soundness import REMEDY, check_corpus
from pipeline.corpus.tokenizer import TOKENIZER, BpeTokenizer, ByteTokenizer, TextTokenizer

SPLITS = ("train", "validation", "held_out")


class CorpusSpec(BaseModel):
    """What a corpus artifact says of itself beside its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: Literal["bpe", "bytes", "imported"]
    vocab_size: int = Field(ge=1, le=65_536)
    domains: tuple[str, ...] = Field(max_length=256)
    separator: int | None = Field(default=None, ge=0, lt=65_536, exclude_if=lambda separator: separator is None)
    """Of an imported tokenizer alone, whose file does not say which of its tokens ends a document."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Documents one after the other. Each ends with the separator token, where the tokenizer has one."""

    tokens_N: Tensor  # uint16; memory-mapped when it comes from the store
    document_start_D: Tensor  # int64, ascending, the first is 0
    document_domain_D: Tensor  # uint8, an index into CorpusSpec.domains

    @property
    def num_tokens(self) -> int:
        return self.tokens_N.numel()

    def document_of(self, positions: Tensor) -> Tensor:
        """The index of the document that holds each position; int64, shaped as `positions`."""
        return torch.searchsorted(self.document_start_D, positions.contiguous(), right=True) - 1

    def domain_of(self, positions: Tensor) -> Tensor:
        """The index of each position's domain; int64, shaped as `positions`."""
        return self.document_domain_D[self.document_of(positions)].long()

    def tokens_at(self, positions: Tensor) -> Tensor:
        """Token ids as int64, shaped as `positions`. Reads no other part of a memory-mapped split."""
        # CPU kernels for uint16 are few; the same bits as int16, masked, are the same ids.
        return self.tokens_N.view(torch.int16)[positions].long() & 0xFFFF


@artifact_kinds("corpus")
class Corpus:
    """Tokens to train on, to choose by and to report on, and what is needed to turn them back into text."""

    def __init__(
        self, spec: CorpusSpec, *, train: Split, validation: Split, held_out: Split, tokenizer: TextTokenizer
    ) -> None:
        self.spec = spec
        self.train = train
        self.validation = validation
        self.held_out = held_out
        self.tokenizer = tokenizer
        self.token_bytes_V = torch.tensor([len(text) for text in tokenizer.token_bytes], dtype=torch.int32)

    @property
    def kind(self) -> str:
        return "corpus"

    def to_tensors(self) -> dict[str, Tensor]:
        return {"token_bytes": self.token_bytes_V} | {
            f"{name}.{part}": getattr(split, f"{part}_{axis}")
            for name, split in (("train", self.train), ("validation", self.validation), ("held_out", self.held_out))
            for part, axis in (("tokens", "N"), ("document_start", "D"), ("document_domain", "D"))
        }

    def to_files(self) -> dict[str, bytes]:
        return self.tokenizer.to_files()

    @classmethod
    def restore(cls, kind: str, spec: Mapping[str, Any], tensors: dict[str, Tensor], files: Mapping[str, Path]) -> Self:
        opened = CorpusSpec.model_validate(dict(spec))
        tokenizer = _tokenizer_of(opened, files)
        # Corpora of prepare-corpus version 2 and older have no validation split.
        splits = [name for name in SPLITS if name != "validation" or any(key.startswith(name) for key in tensors)]
        check_corpus(tensors, splits, [len(text) for text in tokenizer.token_bytes], len(opened.domains))
        train, validation, held_out = (
            Split(
                tokens_N=tensors[f"{name}.tokens"],
                document_start_D=tensors[f"{name}.document_start"],
                document_domain_D=tensors[f"{name}.document_domain"],
            )
            if name in splits
            else make_split([], tokenizer)
            for name in SPLITS
        )
        return cls(opened, train=train, validation=validation, held_out=held_out, tokenizer=tokenizer)


def _tokenizer_of(spec: CorpusSpec, files: Mapping[str, Path]) -> TextTokenizer:
    if spec.tokenizer == "bytes":
        tokenizer = ByteTokenizer()
    elif TOKENIZER in files and spec.tokenizer == "imported":
        tokenizer = _imported(spec, files[TOKENIZER].read_bytes())
    elif TOKENIZER in files:
        tokenizer = BpeTokenizer.from_json(files[TOKENIZER].read_bytes())
    else:
        raise ArtifactError(
            f"it has no {TOKENIZER}, and its spec is that of a corpus in {spec.tokenizer} tokens; {REMEDY}"
        )
    if len(tokenizer.token_bytes) != spec.vocab_size:
        raise ArtifactError(
            f"its spec has vocab_size={spec.vocab_size}, its tokenizer {len(tokenizer.token_bytes)} tokens; {REMEDY}"
        )
    return tokenizer


def _imported(spec: CorpusSpec, raw: bytes) -> ImportedTokenizer:
    try:
        return ImportedTokenizer(raw, separator=spec.separator, num_tokens=spec.vocab_size)
    except Mistake as error:
        raise ArtifactError(f"{error}; {REMEDY}") from None


def make_split(documents: Iterable[tuple[int, str]], tokenizer: TextTokenizer) -> Split:
    """Encode (domain index, text) pairs in their order."""
    domains: list[int] = []

    def texts() -> Iterable[str]:
        for domain, text in documents:
            domains.append(domain)
            yield text

    end = np.array([] if tokenizer.separator is None else [tokenizer.separator], dtype=np.uint16)
    encoded = [np.concatenate((ids, end)) for ids in tokenizer.encode_many(texts())]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    return Split(
        tokens_N=torch.from_numpy(np.concatenate(encoded) if encoded else end[:0]),
        document_start_D=torch.from_numpy(np.cumsum(lengths) - lengths),
        document_domain_D=torch.tensor(domains, dtype=torch.uint8),
    )
