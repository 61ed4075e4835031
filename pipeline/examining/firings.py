"""A record turned for counting: the tokens of each expert, in the order of documents and strata."""

# T tokens, K experts a token, F experts that fired, N firings

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.examining.record import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Firings:
    """Who fired where. Experts are numbered 0 to F, `name_F` has their indices in the pool, ascending.

    Tokens are numbered anew, so that those of one document and stratum are neighbours in the order of the text.
    """

    expert_TK: NDArray[np.int32]
    """Numbers of experts, -1 for none."""
    contribution_TK: NDArray[np.floating]
    row_T: NDArray[np.int64]
    """Where each token is in the record."""
    name_F: NDArray[np.int64]
    start_F1: NDArray[np.int64]
    """Where each expert's tokens begin in `token_N`; the last entry is N."""
    token_N: NDArray[np.int32]
    label_T: NDArray[np.int64]
    """Numbered 0 to `labels`; -1 for none."""
    labels: int
    document_T: NDArray[np.int64]
    """Numbered from 0, without gaps."""
    documents: int
    stratum_T: NDArray[np.int64]
    """Numbered from 0, without gaps."""
    stratum_tokens_S: NDArray[np.int64]
    experts: int
    """Of the whole pool."""
    cell_F2: NDArray[np.integer] | None

    @property
    def tokens(self) -> int:
        return len(self.expert_TK)

    @property
    def fired_F(self) -> NDArray[np.int64]:
        """On how many tokens each expert fired."""
        return np.diff(self.start_F1)

    @property
    def events_T(self) -> NDArray[np.int64]:
        """How many pairs of experts are co-active on each token."""
        fired_T = (self.expert_TK >= 0).sum(1)
        return fired_T * (fired_T - 1) // 2

    def tokens_of(self, expert: int) -> NDArray[np.int32]:
        return self.token_N[self.start_F1[expert] : self.start_F1[expert + 1]]

    def both(self, first: int, second: int) -> NDArray[np.int32]:
        """The tokens on which two experts fire."""
        seldom, often = sorted((self.tokens_of(first), self.tokens_of(second)), key=len)
        place = np.searchsorted(often, seldom)
        return seldom[often[np.minimum(place, len(often) - 1)] == seldom]

    def rows_of_both(self, i: int, j: int) -> NDArray[np.int64]:
        """The rows of the record, ascending, on which two experts of the pool fire."""
        place = np.searchsorted(self.name_F, (i, j))
        known = [at < len(self.name_F) and self.name_F[at] == name for at, name in zip(place, (i, j), strict=True)]
        return np.sort(self.row_T[self.both(*place.tolist())]) if all(known) else np.zeros(0, np.int64)


def firings_of(record: Record) -> Firings:
    """The same firings, sorted by expert."""
    place_T = np.arange(record.tokens) if record.position_T is None else record.position_T
    order_T = np.lexsort((place_T, record.stratum_T, record.document_T))
    expert_TK = record.expert_TK[order_T]
    fires_TK = expert_TK >= 0
    fired = np.bincount(expert_TK[fires_TK], minlength=1)
    name_F = np.flatnonzero(fired)
    number = np.full(len(fired) + 1, -1, np.int32)  # its last entry, at index -1, stays: none
    number[name_F] = np.arange(len(name_F), dtype=np.int32)
    expert_TK = number[expert_TK]
    start_T1 = np.concatenate([[0], np.cumsum(fires_TK.sum(1))])
    by_token = sparse.csr_array(
        (np.ones(start_T1[-1], np.bool_), expert_TK[fires_TK], start_T1), shape=(record.tokens, len(name_F))
    )
    by_expert = by_token.tocsc()
    has_label_T = record.label_T >= 0
    label_T = np.full(record.tokens, -1)
    known, label_T[has_label_T] = np.unique(record.label_T[has_label_T], return_inverse=True)
    documents, document_T = np.unique(record.document_T, return_inverse=True)
    _, stratum_T = np.unique(record.stratum_T, return_inverse=True)
    return Firings(
        expert_TK=expert_TK,
        contribution_TK=record.contribution_TK[order_T],
        row_T=order_T,
        name_F=name_F,
        start_F1=by_expert.indptr.astype(np.int64),
        token_N=by_expert.indices.astype(np.int32),
        label_T=label_T[order_T],
        labels=len(known),
        document_T=document_T[order_T],
        documents=len(documents),
        stratum_T=stratum_T[order_T],
        stratum_tokens_S=np.bincount(stratum_T),
        experts=record.experts,
        cell_F2=None if record.cell_E2 is None else record.cell_E2[name_F],
    )
