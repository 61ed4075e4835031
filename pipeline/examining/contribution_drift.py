"""Drift as the literature states it: does an expert contribute on the same tokens, as strongly, in another model?

Pearson's r of its contributions in two records of one pool on identical tokens (after arXiv 2606.03002, which encodes
a quantized model's states by a frozen SAE; here the experts are their own dictionary).
"""

# T tokens, E experts, X those that are looked at, D documents, B resamplings of documents

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse, stats

from kernels.errors import Mistake
from pipeline.records.record import ActivationRecord

SURVIVES = 0.9
"""From this r on an expert is taken for what it was."""
LEAST_TOKENS = 10
"""On which an expert fires in the record that is compared with; of fewer r says nothing."""
RESAMPLINGS = 200
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContributionDrift:
    """Of one block; intervals of 95 % by resampling documents."""

    experts: int
    """That are looked at."""
    mean: float
    mean_low: float
    mean_high: float
    survive: float
    """Share of them whose r is SURVIVES or more."""
    survive_low: float
    survive_high: float
    null_mean: float
    """r of an expert with another that fires about as often."""


def same_pool(ours: ActivationRecord, theirs: ActivationRecord) -> bool:
    """Whether expert e is expert e in both, as far as sizes and places in the key grid say."""
    if ours.spec.experts != theirs.spec.experts:
        return False
    for block in range(ours.blocks):
        own_E2, their_E2 = ours.cells_of(block), theirs.cells_of(block)
        if own_E2 is None or their_E2 is None or not torch.equal(own_E2, their_E2):
            return False
    return True


def check_same_tokens(ours: ActivationRecord, theirs: ActivationRecord) -> None:
    """Mistake where two records are of other text, or of as much in other windows."""
    for name in ("token", "document", "position"):
        if not torch.equal(ours.tensors[name], theirs.tensors[name]):
            raise Mistake(
                f"one record is of {_text_of(ours)}, the other of {_text_of(theirs)}, and not of the same; record both "
                "models alike"
            )


def _text_of(record: ActivationRecord) -> str:
    spec = record.spec
    return f"{spec.tokens:,} tokens of {spec.split.replace('_', '-')} text in windows of {spec.context_length}"


def contribution_drift(
    ours: ActivationRecord, theirs: ActivationRecord, block: int, rng: np.random.Generator
) -> ContributionDrift | None:
    """Of the experts that fire in the second record; None where hardly any does."""
    ours_ET, theirs_ET = (_by_expert(record, block) for record in (ours, theirs))
    fired_E = np.diff(theirs_ET.indptr)
    expert_X = np.flatnonzero(fired_E >= LEAST_TOKENS)
    if len(expert_X) < 2:
        return None
    document_T = np.unique(ours.tensors["document"].numpy(), return_inverse=True)[1]
    documents = int(document_T.max()) + 1
    # Column 0 counts every document once, the others as often as a resampling drew it.
    weight_DB = np.concatenate(
        [np.ones((1, documents)), rng.multinomial(documents, np.full(documents, 1 / documents), RESAMPLINGS)]
    ).T.astype(np.float64)
    sums = _Sums(document_T, weight_DB)
    r_XB = sums.correlations(ours_ET[expert_X], theirs_ET[expert_X])
    neighbour_X = np.argsort(fired_E[expert_X], kind="stable")
    partner_X = np.empty_like(neighbour_X)
    partner_X[neighbour_X] = np.roll(neighbour_X, 1)
    null_XB = _Sums(document_T, weight_DB[:, :1]).correlations(ours_ET[expert_X[partner_X]], theirs_ET[expert_X])
    # An expert that a resampling left no documents of says nothing in it.
    known_XB = np.isfinite(r_XB)
    counts_B = known_XB.sum(0)
    mean_B = np.where(known_XB, r_XB, 0).sum(0) / counts_B
    survive_B = (np.where(known_XB, r_XB, 0) >= SURVIVES).sum(0) / counts_B
    half, survive_half = (float(stats.norm.ppf(0.975) * of_B[1:].std(ddof=1)) for of_B in (mean_B, survive_B))
    return ContributionDrift(
        experts=len(expert_X),
        mean=float(mean_B[0]),
        mean_low=max(-1.0, float(mean_B[0]) - half),
        mean_high=min(1.0, float(mean_B[0]) + half),
        survive=float(survive_B[0]),
        survive_low=max(0.0, float(survive_B[0]) - survive_half),
        survive_high=min(1.0, float(survive_B[0]) + survive_half),
        null_mean=float(np.nanmean(null_XB[:, 0])),
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over tokens, for each weighting of the documents."""

    document_T: NDArray[np.int64]
    weight_DB: Floats

    def correlations(self, one_XT: sparse.csr_array, other_XT: sparse.csr_array) -> Floats:
        """(X, B); 0 where the first does not vary, NaN where the other does not."""
        tokens_B = np.bincount(self.document_T, minlength=len(self.weight_DB)) @ self.weight_DB
        one_XB, other_XB, product_XB = (self._of(of) for of in (one_XT, other_XT, one_XT.multiply(other_XT)))
        varies = [
            self._of(of.multiply(of)) - sum_XB**2 / tokens_B for of, sum_XB in ((one_XT, one_XB), (other_XT, other_XB))
        ]
        spread_XB = np.sqrt(np.maximum(varies[0], 0) * np.maximum(varies[1], 0))
        covers_XB = product_XB - one_XB * other_XB / tokens_B
        unknown_XB = np.where(varies[1] > 1e-12, 0.0, np.nan)
        return np.divide(covers_XB, spread_XB, out=unknown_XB, where=spread_XB > 1e-12)

    def _of(self, values_XT: sparse.csr_array) -> Floats:
        found = values_XT.tocoo()
        shape = len(values_XT.indptr) - 1, len(self.weight_DB)
        by_document = sparse.coo_array((found.data, (found.row, self.document_T[found.col])), shape=shape)
        return by_document.tocsr() @ self.weight_DB


def _by_expert(record: ActivationRecord, block: int) -> sparse.csr_array:
    """(E, T) contributions."""
    expert_TK = record.of_block(block, "expert").numpy()
    contribution_TK = record.of_block(block, "contribution").float().numpy()
    token_N, place_N = np.nonzero((expert_TK >= 0) & (contribution_TK != 0))
    expert_N, contribution_N = expert_TK[token_N, place_N], contribution_TK[token_N, place_N].astype(np.float64)
    shape = record.spec.experts[block], record.spec.tokens
    return sparse.coo_array((contribution_N, (expert_N, token_N)), shape=shape).tocsr()
