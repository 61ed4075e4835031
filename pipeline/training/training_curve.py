"""What a training loop reports, as means over equal intervals of its steps and over the last tenth of them.

Intervals are of steps and never of seconds, so a run has the same curve on every machine, killed in between or not.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.csv_file import csv_file
from kernels.errors import Failure

MOST_POINTS = 200

Sums = dict[str, tuple[float, int]]
"""The sum of each number, and of how many steps it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """The end of one interval of a curve."""

    step: int
    """Steps done."""
    tokens: int
    """Tokens seen."""
    numbers: Mapping[str, float]
    """The mean of each number over those steps of the interval that reported it."""


Curve = Sequence[Point]


class Record:
    """The sums behind a curve, added to step by step. Its state is plain data, which checkpoints hold."""

    def __init__(self, *, steps: int, tokens_a_step: int) -> None:
        self.steps, self._tokens_a_step = steps, tokens_a_step
        self._stride = math.ceil(steps / MOST_POINTS)
        self._intervals: list[Sums] = []
        self._last_tenth: Sums = {}
        self._whole: Sums = {}
        self.skipped_steps = 0

    def skip(self, step: int) -> None:
        """A step that moved nothing: it has no numbers, and is counted."""
        self.add(step, {})
        self.skipped_steps += 1

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Steps come in their order, from 0."""
        if step % self._stride == 0:
            self._intervals.append({})
        _add(self._intervals[-1], numbers)
        _add(self._whole, numbers)
        if step >= 0.9 * self.steps:
            _add(self._last_tenth, numbers)

    def curve(self) -> Curve:
        ends = [min((i + 1) * self._stride, self.steps) for i in range(len(self._intervals))]
        return tuple(
            Point(step=end, tokens=end * self._tokens_a_step, numbers=_means(sums))
            for end, sums in zip(ends, self._intervals, strict=True)
        )

    def last_tenth(self) -> dict[str, float]:
        """The mean of each number over the last tenth of the steps."""
        return _means(self._last_tenth)

    def totals(self) -> dict[str, float]:
        """The sum of each number over all steps."""
        return {name: total for name, (total, _) in self._whole.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "intervals": self._intervals,
            "last_tenth": self._last_tenth,
            "whole": self._whole,
            "skipped_steps": self.skipped_steps,
        }

    def takes(self, state: Any, step: int) -> bool:
        """Whether this is the state of a record like this one after so many steps."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            return False
        intervals, skipped = state["intervals"], state["skipped_steps"]
        return (
            isinstance(intervals, list)
            and len(intervals) == math.ceil(step / self._stride)
            and all(_are_sums(sums) for sums in (*intervals, state["last_tenth"], state["whole"]))
            and type(skipped) is int
            and 0 <= skipped <= step
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._intervals, self._last_tenth = state["intervals"], state["last_tenth"]
        self._whole, self.skipped_steps = state["whole"], state["skipped_steps"]


def to_csv(curve: Curve) -> bytes:
    """A line a point; a number that no step of its interval reported is left empty."""
    names = list(dict.fromkeys(name for point in curve for name in point.numbers))
    rows = ((point.step, point.tokens, *(point.numbers.get(name, "") for name in names)) for point in curve)
    return csv_file(("step", "tokens", *names), rows)


def from_csv(data: bytes) -> Curve:
    """The curve that `to_csv` wrote. Failure for what it did not write."""
    head, *rows = csv.reader(io.StringIO(data.decode("utf-8", "replace")))
    try:
        return tuple(
            Point(
                step=int(step),
                tokens=int(tokens),
                numbers={name: float(text) for name, text in zip(head[2:], numbers, strict=True) if text},
            )
            for step, tokens, *numbers in rows
        )
    except ValueError as error:
        raise Failure(f"no curve of a training: {error}; make the artifact again") from None


def _are_sums(sums: Any) -> bool:
    return isinstance(sums, dict) and all(
        isinstance(name, str)
        and isinstance(sum_of, tuple)
        and [type(part) for part in sum_of] == [float, int]
        and sum_of[1] > 0
        for name, sum_of in sums.items()
    )


def _add(sums: Sums, numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + value, count + 1


def _means(sums: Sums) -> dict[str, float]:
    return {name: total / count for name, (total, count) in sums.items()}
