"""The scores that exact firing compares: which they are, and what they are sums of."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.models.language_model import LanguageModel
from pipeline.symbolic.names.names import symbol
from pipeline.symbolic.showing.blocks import router_block, router_scores, symbol_experts
from pipeline.symbolic.showing.magnitudes import DIGITS


def score_keys(model: LanguageModel, layer: int, expert: int) -> tuple[int, list[tuple[str, int, int]]]:
    """The scores that an exact comparison adds up: the block of their router, and (axis, head, sub-key) of each."""
    experts = symbol_experts(model, layer)
    spec = experts.spec.peer
    row, column = divmod(int(experts.index.cell_of_experts()[expert]), spec.num_columns)
    keys = [(axis, head, key) for head in range(spec.num_heads) for axis, key in (("A", row), ("B", column))]
    return router_block(model, layer), keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSum:
    """A score as the router makes it out of features. What is compared is its log gate, A or B."""

    symbol: str
    """a^h_r or b^h_c"""
    terms: dict[int, float]
    """What multiplies each feature, the largest first."""
    intercept: float

    def __str__(self) -> str:
        total = " ".join(f"{value:+.{DIGITS}g} {symbol('f', None, feature)}" for feature, value in self.terms.items())
        return f"{self.symbol} = {total} {self.intercept:+.{DIGITS}g}"


def score_sums(model: LanguageModel, layer: int, keys: Sequence[tuple[str, int, int]]) -> list[ScoreSum]:
    """These scores of the router that this block obeys; none where scores are made of no features."""
    router = router_scores(model, layer)
    if not router.spec.score_features:
        return []
    found = []
    for axis, head, index in keys:
        before, widths = (0, router.widths[0]) if axis == "A" else router.widths
        row = before + head * widths // router.spec.num_heads + index
        terms = sorted(enumerate(router.query.weight[row].tolist()), key=lambda term: -abs(term[1]))
        named = {feature: weight for feature, weight in terms if weight}
        intercept = router.query.bias[row].item()
        found.append(ScoreSum(symbol=symbol(axis.lower(), head, index), terms=named, intercept=intercept))
    return found


def heaviest_features(sums: Sequence[ScoreSum], count: int) -> list[str]:
    """The features that weigh most in any of these scores, by their symbols."""
    weight: dict[int, float] = {}
    for score in sums:
        for feature, value in score.terms.items():
            weight[feature] = max(weight.get(feature, 0.0), abs(value))
    return [symbol("f", None, feature) for feature in sorted(weight, key=lambda f: -weight[f])[:count]]
