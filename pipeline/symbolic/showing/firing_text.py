"""How an expert fires, as lines of text that are true as they stand: cut, normaliser, and whose state is read."""

from collections.abc import Sequence

from pipeline.corpus.visible import quoted_text
from pipeline.models.peer.gates import GATES
from pipeline.symbolic.names.names import symbol
from pipeline.symbolic.showing.expert_form import Head, LogicFiring, ScoreFiring, Sum, Terms
from pipeline.symbolic.showing.magnitudes import DIGITS

TERMS = 16
"""Of a sum that are shown, the largest; of what is left out the share is said."""
TOKENS = 8
"""Of a literal that are shown."""


def number(value: float, *, whole: bool) -> str:
    """A number whole, so that it reads back as it was, or its first digits."""
    return repr(value) if whole else f"{value:.{DIGITS}g}"


def written_sum(name: str, quantity: str, terms: Terms, intercept: float, *, whole: bool) -> str:
    """name = its terms, the largest first, and how much is left out where not all are shown."""
    ordered = sorted(terms, key=lambda term: -abs(term[1]))
    shown = ordered if whole else ordered[:TERMS]
    parts = [f"{_signed(value, whole=whole)} {symbol(quantity, None, index)}" for index, value in shown]
    if intercept or not parts:
        parts.append(_signed(intercept, whole=whole))
    return f"{name} = {' '.join(parts)}{left_out([value for _, value in ordered], len(shown))}"


def left_out(ordered: Sequence[float], shown: int) -> str:
    """What to say of coefficients after the first `shown`, which are the largest."""
    left = [abs(value) for value in ordered[shown:]]
    if not left:
        return ""
    share = sum(left) / sum(map(abs, ordered))
    return f" ... {len(left)} smaller term{'s' if len(left) > 1 else ''} ({share:.1%} of all coefficients; --all)"


def state_symbol(fires: ScoreFiring, layer: int) -> str:
    """x where scores read the state that the experts of this layer read, else y."""
    return "x" if fires.reads.block == layer else "y"


def score_words(fires: ScoreFiring, layer: int, *, whole: bool) -> list[str]:
    """What A and B are, by which cuts, and of which states everything is."""
    read, sums = state_symbol(fires, layer), "features f" if fires.scores_of == "features" else "coordinates"
    of_features = f", f_i = sum over d of F_id {read}_d" if fires.scores_of == "features" else ""
    made_of = f"a and b are sums of the {sums} of {read}{of_features}"
    own = f"x is the state that block {layer} normalises for its experts"
    if read == "y":
        own += f"; y is that of block {fires.reads.block}, whose router this block obeys"
    cuts = [_cuts(index, head, whole=whole) for index, head in enumerate(fires.heads)]
    return [*GATES[fires.gate].words, made_of, own, *filter(None, cuts)]


def _cuts(index: int, head: Head, *, whole: bool) -> str:
    """Nothing where every row and column passes."""
    axes = (("rows", head.rows.cut), ("columns", head.columns.cut))
    said = [
        f"{name} cut {number(cut.limit, whole=whole)} margin {number(cut.margin, whole=whole)}"
        for name, cut in axes
        if cut is not None
    ]
    return f"head {index}: {'; '.join(said)}" if said else ""


def score_lines(fires: ScoreFiring, layer: int, *, whole: bool) -> list[str]:
    """The sums: those that the expert compares, or the whole router's with every feature."""
    quantity = "f" if fires.scores_of == "features" else state_symbol(fires, layer)
    lines = []
    for index, head in enumerate(fires.heads):
        for axis, part, own in (("a", head.rows, fires.row), ("b", head.columns, fires.column)):
            chosen = range(len(part.scores)) if whole else (own,)
            lines += [_score(symbol(axis, index, key), quantity, part.scores[key], whole=whole) for key in chosen]
    if whole:
        vectors = (tuple(enumerate(vector)) for vector in fires.features)
        read = state_symbol(fires, layer)
        return lines + [written_sum(f"f_{i}", read, vector, 0.0, whole=True) for i, vector in enumerate(vectors)]
    others = sum(len(head.rows.scores) + len(head.columns.scores) for head in fires.heads) - len(lines)
    features = f" and {len(fires.features)} features" if fires.features else ""
    return [*lines, f"{others} other scores{features}: --all, --json"]


def _score(name: str, quantity: str, score: Sum, *, whole: bool) -> str:
    return written_sum(name, quantity, score.terms, score.intercept, whole=whole)


def literal_lines(fires: LogicFiring, vocabulary: Sequence[str], *, whole: bool) -> list[str]:
    """Of which tokens each literal of a rule is true, by their numbers if whole."""
    lines = []
    for literal in fires.literals:
        shown = literal.tokens if whole else literal.tokens[:TOKENS]
        tokens = ", ".join(str(token) if whole else quoted_text(vocabulary[token]) for token in shown)
        left = len(literal.tokens) - len(shown)
        more = f" ... and {left} more (--all)" if left else ""
        lines.append(f"{literal.name} = token[{-literal.back}] in {{{tokens}}}{more}")
    return lines


def _signed(value: float, *, whole: bool) -> str:
    return f"{'-' if value < 0 else '+'}{number(abs(value), whole=whole)}"
