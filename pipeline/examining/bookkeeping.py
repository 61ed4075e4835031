"""T0: how often experts fire, and how unequally."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.examining.record import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Bookkeeping:
    """Of one record."""

    tokens: int
    documents: int
    strata: int
    labelled_tokens: int
    experts: int
    experts_fired: int
    dead_share: float
    """Of the pool: experts that never fired."""
    firing_gini: float
    """Of the firings of all experts of the pool: 0 if all fire as often, near 1 if few fire alone."""
    active_mean: float
    """Experts on a token."""
    active_least: int
    active_most: int
    contribution_gini: float
    """Of the sums of absolute contributions."""
    omitted_share_mean: float | None
    """Of the output, left out by the record."""


def bookkeeping(record: Record) -> Bookkeeping:
    """Counts alone: nothing here is a test."""
    fires_TK = record.expert_TK >= 0
    active_T = fires_TK.sum(1)
    expert_N = record.expert_TK[fires_TK]
    fired = np.bincount(expert_N, minlength=1).astype(np.float64)
    mass = np.bincount(expert_N, np.abs(record.contribution_TK[fires_TK]), minlength=1).astype(np.float64)
    alive = int((fired > 0).sum())
    omitted_T = record.omitted_share_T
    return Bookkeeping(
        tokens=record.tokens,
        documents=len(np.unique(record.document_T)),
        strata=len(np.unique(record.stratum_T)),
        labelled_tokens=int((record.label_T >= 0).sum()),
        experts=record.experts,
        experts_fired=alive,
        dead_share=1 - alive / max(record.experts, 1),
        firing_gini=gini(fired[fired > 0], record.experts),
        active_mean=float(active_T.mean()),
        active_least=int(active_T.min()),
        active_most=int(active_T.max()),
        contribution_gini=gini(mass[fired > 0], record.experts),
        omitted_share_mean=None if omitted_T is None else float(omitted_T.mean()),
    )


def gini(positive: NDArray[np.float64], count: int) -> float:
    """Of `count` values, those that are not given being 0."""
    total = positive.sum()
    if not total:
        return 0.0
    rank = np.arange(count - len(positive) + 1, count + 1)
    return float(2 * (rank * np.sort(positive)).sum() / (count * total) - (count + 1) / count)
