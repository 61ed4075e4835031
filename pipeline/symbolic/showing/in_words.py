"""A few of the shown experts in words, for the card of the artifact (artifacts/shown_experts.py)."""

from collections.abc import Sequence

from artifacts.shown_experts import MOST_CONTEXTS, MOST_EXPERTS, ShownContext, ShownExpert, to_json
from pipeline.symbolic.showing.showcase import Showcase


def in_words(shown: Sequence[Showcase]) -> bytes:
    """Those whose firing tokens say best, the best first."""
    best = sorted(shown, key=lambda one: -one.token_f1)[:MOST_EXPERTS]
    return to_json([_in_words(one) for one in best])


def _in_words(one: Showcase) -> ShownExpert:
    contexts = (ShownContext(before=context.before, token=context.token) for context in one.contexts)
    return ShownExpert(
        layer=one.reading.layer,
        expert=one.reading.expert,
        statement=one.token_statement[:10_000],
        f1=one.token_f1,
        null_f1=one.rate,
        writes=one.reading.direction.partition("by the unembedding alone it ")[2],
        contexts=tuple(contexts)[:MOST_CONTEXTS],
    )
