"""The contract of a corpus that is restored from a file: its splits as `make_split` writes them, or one sentence.

What reads a corpus afterwards looks nothing up twice: a start or a domain out of range would be an index out of range
hours later, or another document's domain without a word.
"""

# N tokens of a split, D documents, V vocabulary

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from artifacts import ArtifactError

REMEDY = "copy its file again, or make the artifact again"
PARTS = {"tokens": torch.uint16, "document_start": torch.int64, "document_domain": torch.uint8}
"""Of a split, each a row, with its dtype."""


def check_corpus(tensors: Mapping[str, Tensor], splits: Sequence[str], text_bytes: Sequence[int], domains: int) -> None:
    """ArtifactError names the first tensor that is outside the contract. `text_bytes` are those of each token."""
    wanted = {"token_bytes": torch.int32, **{f"{split}.{part}": PARTS[part] for split in splits for part in PARTS}}
    for name in sorted(wanted.keys() | tensors.keys()):
        _check_row(name, tensors.get(name), wanted.get(name))
    if tensors["token_bytes"].tolist() != list(text_bytes):
        raise ArtifactError(
            f"tensor 'token_bytes' does not say how many bytes its tokenizer's {len(text_bytes)} tokens have; {REMEDY}"
        )
    for split in splits:
        _check_split(tensors, split, len(text_bytes), domains)


def _check_row(name: str, got: Tensor | None, wanted: torch.dtype | None) -> None:
    ours = "none" if wanted is None else f"a row of {wanted}"
    theirs = "none" if got is None else f"a row of {got.dtype}" if got.ndim == 1 else f"{tuple(got.shape)}"
    if ours != theirs:
        raise ArtifactError(f"tensor {name!r} is {theirs}, where a corpus of this version has {ours}; {REMEDY}")


def _check_split(tensors: Mapping[str, Tensor], split: str, vocab_size: int, domains: int) -> None:
    tokens_N, start_D, domain_D = (tensors[f"{split}.{part}"] for part in PARTS)
    if len(start_D) != len(domain_D):
        raise ArtifactError(f"split {split!r} has {len(start_D)} documents, but {len(domain_D)} domains; {REMEDY}")
    if bool(len(start_D)) < bool(len(tokens_N)):
        raise ArtifactError(f"split {split!r} has {len(tokens_N)} tokens in no document; {REMEDY}")
    # numpy compares uint16, which torch does not.
    _refuse_where(torch.from_numpy(tokens_N.numpy() >= vocab_size), tokens_N, f"{split}.tokens", f"below {vocab_size}")
    _refuse_where(domain_D >= domains, domain_D, f"{split}.document_domain", f"below {domains}")
    # A document without text begins where the next one does. Compared as they are: differences could wrap around.
    wrong_D = (start_D < 0) | (start_D > len(tokens_N))
    wrong_D[:1] |= start_D[:1] != 0
    wrong_D[1:] |= start_D[1:] < start_D[:-1]
    _refuse_where(wrong_D, start_D, f"{split}.document_start", f"that rise from 0 to at most {len(tokens_N)}")


def _refuse_where(wrong_N: Tensor, tensor_N: Tensor, name: str, takes: str) -> None:
    if bool(wrong_N.any()):
        at = int(wrong_N.nonzero()[0])
        raise ArtifactError(f"tensor {name!r} holds {tensor_N[at].item()} at {at}; it takes numbers {takes}; {REMEDY}")
