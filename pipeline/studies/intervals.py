"""Means over seeds, and their confidence intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over seeds and the half width of its 95 % confidence interval, by Student's t."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.half_width:.4f}"


def interval(values: Sequence[float]) -> Interval:
    """Of two values at least, independent and about normal, one a seed."""
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    half_width = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=statistics.fmean(values), half_width=half_width)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The interval of the difference to a baseline of the same seeds."""
    return interval([value - base for value, base in zip(values, baseline, strict=True)])
