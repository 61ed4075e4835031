"""The rate of each arm, chosen by seeds that are not reported."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artifacts.markdown import table
from kernels.errors import Mistake


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The rate of one arm, of several that were tried by seeds which are not reported."""

    losses: Mapping[float, float]
    """Of each rate, the mean validation loss over those seeds, nats a token."""

    @property
    def rate(self) -> float:
        """That of least loss. One at which training came to nothing is never chosen."""
        finite = [rate for rate, loss in self.losses.items() if math.isfinite(loss)]
        if not finite:
            raise Mistake(f"no rate of {list(self.losses)} has a finite validation loss; try smaller ones")
        return min(finite, key=lambda rate: self.losses[rate])

    @property
    def at_an_end(self) -> bool:
        """Whether a rate beyond those tried might be better still."""
        return self.rate in (min(self.losses), max(self.losses))


def choose_rates(tried: Sequence[tuple[str, float]], numbers: Sequence[Mapping[str, float]]) -> dict[str, Choice]:
    """The choice of each arm, of trials that each are of an arm and a rate and gave these numbers."""
    losses: dict[str, dict[float, list[float]]] = {}
    for (arm, rate), found in zip(tried, numbers, strict=True):
        losses.setdefault(arm, {}).setdefault(rate, []).append(found["validation_loss_nats"])
    return {
        arm: Choice(losses={rate: statistics.fmean(values) for rate, values in by_rate.items()})
        for arm, by_rate in losses.items()
    }


def page_of_choices(choices: Mapping[str, Choice], seeds: Sequence[int]) -> str:
    """What was tried, what was chosen, on what and by which seeds, and which choices a wider range might change."""
    rates = sorted({rate for choice in choices.values() for rate in choice.losses})
    head = ("validation loss, nats", *(f"{rate:g}" for rate in rates))
    rows = [(arm, *(_cell(choice, rate) for rate in rates)) for arm, choice in choices.items()]
    by = f"seeds {seeds[0]} to {seeds[-1]}, which are" if len(seeds) > 1 else f"seed {seeds[0]}, which is"
    return (
        f"{table(head, rows, numbers_from=1)}\n\nEach takes its rate of least validation loss (bold), mean over {by} "
        f"not reported. {_ends(choices)}\n"
    )


def _cell(choice: Choice, rate: float) -> str:
    if rate not in choice.losses:
        return ""
    mark = "**" if rate == choice.rate else ""
    return f"{mark}{choice.losses[rate]:.4f}{mark}"


def _ends(choices: Mapping[str, Choice]) -> str:
    at_an_end = [f"{arm} ({choice.rate:g})" for arm, choice in choices.items() if choice.at_an_end]
    if not at_an_end:
        return "No rate chosen is the least or the largest of those tried."
    return (
        "The least or the largest rate tried was chosen by "
        f"{', '.join(at_an_end)}: beyond it there may be a better one, so theirs is not known to be the best."
    )
