"""The record: which experts fired on which tokens, read from safetensors and checked; errors are one sentence each.

docs/methods/superposition.md documents the layout, which others may write.
"""

# T tokens, K the most experts that one token reaches, E experts of the pool

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts.tensors_file import read_tensors, write_tensors
from kernels.errors import Mistake

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]

REQUIRED = ("expert", "contribution", "token", "label", "document", "stratum")
A_TOKEN = {"token": True, "label": True, "document": True, "stratum": True, "position": False, "domain": False}
"""Integer tensors with one value a token, and whether a record must have them."""
A_TOKEN_FLOAT = ("loss_nats", "omitted_share")
CELL_AXES = ("cell_row", "cell_column")
"""What a record may have in place of `cell`."""
MOST_EXPERTS = 2**27
"""Of a pool that the record does not state: an index beyond is taken for damage."""
NOTES = {
    "document": "which document each token is of",
    "stratum": "which topic, domain or cluster each token is of, within which chance is counted",
    "token": "which token of the vocabulary stands there",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What fired on T tokens. Every expert stands at most once on a token, at any place of its row."""

    expert_TK: Ints
    """int32; -1 where fewer than K fired."""
    contribution_TK: Floats
    """float32; 0 where no expert stands."""
    token_T: Ints
    label_T: Ints
    """Below 0 where a token has no label."""
    document_T: Ints
    stratum_T: Ints
    position_T: Ints | None = None
    domain_T: Ints | None = None
    loss_nats_T: Floats | None = None
    omitted_share_T: Floats | None = None
    experts: int
    """Of the whole pool, those that never fired among them."""
    cell_E2: Ints | None = None
    """Row and column of each expert in the key grid, where the pool has one."""
    input_ED: Floats | None = None
    output_ED: Floats | None = None
    """What each expert reads and writes, a vector of one neuron."""

    @property
    def tokens(self) -> int:
        return len(self.expert_TK)


def read_record(path: Path) -> Record:
    """The record of a file. Mistake for one that cannot be examined, ArtifactError for a damaged file."""
    return record_of(read_tensors(path))


def with_shuffled_labels(record: Record, seed: int) -> Record:
    """The same with its labels in random order: what a test of codes finds in it, chance gives."""
    return replace(record, label_T=np.random.default_rng(seed).permutation(record.label_T))


def write_record(path: Path, tensors: Mapping[str, Tensor], *, recipe: str = "{}") -> None:
    """Writes tensors of the layout, after the same checks that reading makes."""
    record_of(tensors)
    write_tensors(path, tensors, recipe=recipe)


def record_of(tensors: Mapping[str, Tensor]) -> Record:
    """The record that tensors of the documented layout are."""
    missing = [name for name in REQUIRED if name not in tensors]
    if missing:
        notes = "".join(f" ({NOTES[name]})" for name in missing[:1] if name in NOTES)
        raise Mistake(
            f"the record has no tensor {missing[0]!r}{notes}; it has {', '.join(sorted(tensors)) or 'none'}, and needs "
            f"{', '.join(REQUIRED)}"
        )
    expert_TK = _experts(tensors["expert"])
    contribution_TK = _contributions(tensors["contribution"], expert_TK)
    ints = {name: _of_tokens(tensors[name], name, len(expert_TK)) for name in A_TOKEN if name in tensors}
    floats = {name: _floats(tensors[name], name, len(expert_TK)) for name in A_TOKEN_FLOAT if name in tensors}
    _check_groups(ints)
    cell_E2 = _cells(tensors)
    experts = _pool(expert_TK, tensors.get("experts"), cell_E2)
    expert_TK, contribution_TK = _each_once(expert_TK, contribution_TK)
    return Record(
        expert_TK=expert_TK,
        contribution_TK=contribution_TK,
        token_T=ints["token"],
        label_T=ints["label"],
        document_T=ints["document"],
        stratum_T=ints["stratum"],
        position_T=ints.get("position"),
        domain_T=ints.get("domain"),
        loss_nats_T=floats.get("loss_nats"),
        omitted_share_T=floats.get("omitted_share"),
        experts=experts,
        cell_E2=cell_E2,
        input_ED=_vectors(tensors, "input_vector", experts),
        output_ED=_vectors(tensors, "output_vector", experts),
    )


def _experts(expert: Tensor) -> Ints:
    if expert.is_floating_point() or expert.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise Mistake(f"'expert' is {_name(expert.dtype)}, not int32; write the indices of experts as int32")
    if expert.dim() != 2:
        raise Mistake(
            f"'expert' has the shape {list(expert.shape)}, not [tokens, K]; write a row a token, with -1 for none"
        )
    if not expert.numel():
        raise Mistake(f"'expert' has the shape {list(expert.shape)}: nothing is recorded; record some tokens")
    expert_TK = expert.numpy()
    if expert_TK.min() < -1:
        raise _at(expert_TK, expert_TK < -1, "below -1, which stands for none")
    if expert_TK.max() >= MOST_EXPERTS:
        raise _at(expert_TK, expert_TK >= MOST_EXPERTS, f"not below {MOST_EXPERTS:,}, the largest pool that is read")
    return expert_TK.astype(np.int32, copy=False)


def _at(expert_TK: Ints, wrong_TK: NDArray[np.bool_], why: str) -> Mistake:
    token, column = (int(one[0]) for one in np.nonzero(wrong_TK))
    count = int(wrong_TK.sum())
    return Mistake(
        f"'expert' holds an index out of range: {int(expert_TK[token, column])} at token {token} is {why} "
        f"({count:,} such {'index' if count == 1 else 'indices'}); record again"
    )


def _contributions(contribution: Tensor, expert_TK: Ints) -> Floats:
    if not contribution.is_floating_point():
        raise Mistake(f"'contribution' is {_name(contribution.dtype)}, not float16 or float32; write it as one")
    if contribution.shape != expert_TK.shape:
        raise Mistake(
            f"'contribution' has the shape {list(contribution.shape)}, 'expert' {list(expert_TK.shape)}; write one "
            "contribution for each expert"
        )
    contribution_TK = np.where(expert_TK >= 0, contribution.float().numpy(), np.float32(0))
    wrong_TK = ~np.isfinite(contribution_TK)
    if wrong_TK.any():
        token, column = (int(one[0]) for one in np.nonzero(wrong_TK))
        raise Mistake(
            f"'contribution' holds {contribution_TK[token, column]} (NaN or infinite) at token {token}, expert "
            f"{int(expert_TK[token, column])}, and {int(wrong_TK.sum()):,} in all; record again, in float32 if float16 "
            "overflowed"
        )
    return contribution_TK


def _of_tokens(values: Tensor, name: str, tokens: int) -> Ints:
    if values.is_floating_point() or values.dtype == torch.bool:
        raise Mistake(f"{name!r} is {_name(values.dtype)}, not an integer a token; write it as int64 or int32")
    _check_length(values, name, tokens)
    return values.numpy().astype(np.int64, copy=False)


def _floats(values: Tensor, name: str, tokens: int) -> Floats:
    if not values.is_floating_point():
        raise Mistake(f"{name!r} is {_name(values.dtype)}, not a float a token; write it as float32")
    _check_length(values, name, tokens)
    return values.float().numpy()


def _check_length(values: Tensor, name: str, tokens: int) -> None:
    if values.shape != (tokens,):
        raise Mistake(f"{name!r} has the shape {list(values.shape)}, not [{tokens}]; write one value a token")


def _check_groups(ints: Mapping[str, Ints]) -> None:
    for name, of in (("stratum", "strata"), ("document", "documents"), ("domain", "domains"), ("position", "")):
        values = ints.get(name)
        if values is not None and values.min() < 0:
            wrong = values < 0
            unlabelled = f" ({of} are unlabelled)" if of else ""
            raise Mistake(
                f"{name!r} is {int(values[wrong][0])} at token {int(np.argmax(wrong))}, and below 0 at "
                f"{int(wrong.sum()):,} of {len(values):,} tokens{unlabelled}; give every token its {name}, from 0"
            )
    domain = ints.get("domain")
    if domain is not None:
        with_text = np.unique(domain)
        if len(with_text) <= with_text[-1]:
            empty = int(np.argmax(with_text != np.arange(len(with_text))))
            raise Mistake(
                f"domain {empty} is without text: no token is of it, though domains go to {int(with_text[-1])}; number "
                "the domains from 0 without a gap, or record text of it"
            )


def _cells(tensors: Mapping[str, Tensor]) -> Ints | None:
    """Row and column of each expert, from one tensor or from two; None where they are not given."""
    if "cell" in tensors:
        cell = tensors["cell"]
        if cell.is_floating_point() or cell.dim() != 2 or cell.shape[1] != 2:
            raise Mistake(
                f"'cell' is {_name(cell.dtype)} of the shape {list(cell.shape)}, not integers [experts, 2]; write row "
                "and column of each expert's cell"
            )
    elif any(name in tensors for name in CELL_AXES):
        row, column = (_axis(tensors, name) for name in CELL_AXES)
        if len(row) != len(column):
            raise Mistake(f"'cell_row' has {len(row):,} experts and 'cell_column' {len(column):,}; make them agree")
        cell = torch.stack([row, column], dim=1)
    else:
        return None
    if cell.numel() and int(cell.min()) < 0:
        raise Mistake("a cell's row or column is below 0; number the sub-keys from 0")
    return cell.numpy().astype(np.int64, copy=False)


def _axis(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    axis = tensors.get(name)
    if axis is None:
        raise Mistake(f"the record has no {name!r} beside the other axis of cells; write {' and '.join(CELL_AXES)}")
    if axis.is_floating_point() or axis.dim() != 1:
        raise Mistake(f"{name!r} is {_name(axis.dtype)} of the shape {list(axis.shape)}, not one integer an expert")
    return axis.long()


def _vectors(tensors: Mapping[str, Tensor], name: str, experts: int) -> Floats | None:
    vector = tensors.get(name)
    if vector is None:
        return None
    if not vector.is_floating_point() or vector.dim() != 2 or len(vector) < experts:
        raise Mistake(
            f"{name!r} is {_name(vector.dtype)} of the shape {list(vector.shape)}, not floats [{experts}, width]; "
            "write a vector for each expert of the pool"
        )
    if not bool(torch.isfinite(vector).all()):
        raise Mistake(f"{name!r} holds numbers that are NaN or infinite; write the experts' vectors again")
    return vector.float().numpy()


def _pool(expert_TK: Ints, stated: Tensor | None, cell_E2: Ints | None) -> int:
    """How many experts there are: as stated, as many as have cells, or up to the last that fired."""
    if stated is not None and (stated.numel() != 1 or stated.is_floating_point()):
        raise Mistake(f"'experts' has the shape {list(stated.shape)}; write one integer, the size of the pool")
    experts = int(stated.item()) if stated is not None else None
    if cell_E2 is not None:
        if experts not in (None, len(cell_E2)):
            raise Mistake(f"'experts' says {experts:,} and 'cell' has {len(cell_E2):,} experts; make them agree")
        experts = len(cell_E2)
    if experts is None:
        return int(expert_TK.max()) + 1
    if expert_TK.max() >= experts:
        raise _at(expert_TK, expert_TK >= experts, f"not below {experts:,}, the size of the pool")
    return experts


def _each_once(expert_TK: Ints, contribution_TK: Floats) -> tuple[Ints, Floats]:
    """An expert that two heads reach on one token fired once, with the sum of its contributions."""
    order_TK = np.argsort(expert_TK, axis=1, kind="stable")
    expert_TK = np.take_along_axis(expert_TK, order_TK, axis=1)
    contribution_TK = np.take_along_axis(contribution_TK, order_TK, axis=1)
    twice_TK = (expert_TK[:, 1:] == expert_TK[:, :-1]) & (expert_TK[:, 1:] >= 0)
    for column in reversed(range(twice_TK.shape[1])):
        rows = np.flatnonzero(twice_TK[:, column])
        contribution_TK[rows, column] += contribution_TK[rows, column + 1]
        expert_TK[rows, column + 1], contribution_TK[rows, column + 1] = -1, 0
    return expert_TK, contribution_TK


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
