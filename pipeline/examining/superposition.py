"""One block of a record under all tests, beside their nulls, and the same of all blocks together."""

# T tokens, K experts kept a token

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.examining.battery import Examination, Pair, examine
from pipeline.examining.classes import JOINT_CODE
from pipeline.examining.contribution_drift import ContributionDrift
from pipeline.examining.geometry import Rows
from pipeline.examining.headlines import Headline
from pipeline.examining.labels import classes_of_tokens
from pipeline.examining.rankings import Correlation
from pipeline.examining.record import Record, record_of, with_shuffled_labels
from pipeline.examining.second_difference import SecondDifferences
from pipeline.records.exports import layer_tensors
from pipeline.records.record import ActivationRecord

SHUFFLED, IN_TOKEN, CLASS, DOMAIN = "shuffled_labels", "shuffled_in_token", "token_class", "domain"
"""Other labels beside the next token: it in random order, it among the places where the same token stands, what the
token is as text, and the domain, which strata then are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """How many pairs go through the test of joint codes."""

    surveyed: int
    """Significant ones, those that are co-active most."""
    drawn: int
    """Drawn with every co-active pair as likely: they stand for all others, and alone for other labels."""
    by_mass: int
    """Drawn by what the two contribute, whatever their lift."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What was found in one block."""

    number: int
    examination: Examination
    untrained: Examination | None = None
    differences: SecondDifferences | None = None
    drift: ContributionDrift | None = None
    correlations: Mapping[tuple[str, str], Correlation] = field(default_factory=dict)
    """By ranking and effect."""

    def metrics(self) -> dict[str, float]:
        """By the names in artifacts/meanings.py; what could not be tested is not there."""
        found = self.examination
        numbers = {
            "co_active_experts_per_token": found.bookkeeping.active_mean,
            "pairs_counted": float(found.pairs_counted),
            "pairs_significant": float(found.pairs_significant),
            "pairs_significant_by_frequency": float(found.pairs_by_frequency),
            **_headline("jcs", found.jcs),
            **_headline("jcs_not_testable", found.not_testable_share),
            **_headline("jcs_by_mass", found.jcs_by_mass),
            **_headline("blind_spot_codes", found.blind_spot),
        }
        for of in found.siblings:
            numbers |= {
                f"pairs_significant_{of.relation}": float(of.pairs_significant),
                f"pairs_tested_{of.relation}": float(of.pairs_tested),
                f"joint_codes_{of.relation}": float(of.joint_codes),
            }
        for name, headline in found.jcs_of.items():
            numbers |= _headline(f"jcs_{name}", headline)
        if found.second_screen.agreement is not None:
            numbers["second_screen_agreement"] = found.second_screen.agreement
        numbers["largest_code_component"] = float(max(found.communities["joint_code"].component_sizes, default=0))
        if found.triples:
            numbers["triples_needed_share"] = sum(of.needed == 3 for of in found.triples) / len(found.triples)
        if self.untrained is not None:
            numbers |= _headline("jcs_untrained", self.untrained.jcs)
            numbers |= _headline("jcs_untrained_not_testable", self.untrained.not_testable_share)
            numbers["co_active_experts_per_token_untrained"] = self.untrained.bookkeeping.active_mean
            for name, headline in self.untrained.jcs_of.items():
                numbers |= _headline(f"jcs_untrained_{name}", headline)
        if (differences := self.differences) is not None:
            for name, headline in differences.headlines.items():
                numbers |= _headline(name, headline)
            if differences.null.threshold is not None:
                numbers["iota_null"] = differences.null.threshold
            iotas = [pair.iota for pair in differences.pairs if pair.iota is not None]
            hidden = [pair.hidden for pair in differences.pairs if pair.hidden is not None]
            numbers |= {"iota_mean": float(np.mean(iotas))} if iotas else {}
            numbers |= {"hidden_pairs_share": float(np.mean(hidden))} if hidden else {}
        if (drift := self.drift) is not None:
            numbers |= {
                "contribution_correlation": drift.mean,
                "contribution_correlation_low": drift.mean_low,
                "contribution_correlation_high": drift.mean_high,
                "contribution_correlation_null": drift.null_mean,
                "contributions_survive": drift.survive,
                "contributions_survive_low": drift.survive_low,
                "contributions_survive_high": drift.survive_high,
            }
        for (ranking, effect), of in self.correlations.items():
            name = f"rank_correlation_{ranking}_{effect}"
            numbers |= {name: of.rho, f"{name}_low": of.low, f"{name}_high": of.high, f"{name}_null": of.null}
        return numbers


def record_of_block(record: ActivationRecord, block: int, most: int | None = None) -> Record:
    """As the tests take it, labelled by the next token; with `most`, of each token the experts that contribute most."""
    try:
        whole = record_of(layer_tensors(record, block))
    except Mistake as error:
        raise Mistake(f"in block {block} of the record, {error}") from None
    return whole if most is None else strongest(whole, most)


def strongest(record: Record, most: int) -> Record:
    """The same with the `most` experts of each token that contribute most."""
    if record.expert_TK.shape[1] <= most:
        return record
    order_TK = np.argsort(-np.abs(record.contribution_TK), axis=1, kind="stable")[:, :most]
    return replace(
        record,
        expert_TK=np.take_along_axis(record.expert_TK, order_TK, axis=1),
        contribution_TK=np.take_along_axis(record.contribution_TK, order_TK, axis=1),
    )


def examined(record: Record, corpus: Corpus, extent: Extent, seed: int, *, rows: Rows | None = None) -> Examination:
    """A block's record under all tests that ablate nothing, with shuffled labels beside them and other families.

    `rows` are the experts' vectors.
    """
    relabelled = {
        SHUFFLED: with_shuffled_labels(record, seed),
        IN_TOKEN: shuffled_in_token(record, seed),
        CLASS: replace(record, label_T=classes_of_tokens(corpus.tokenizer)[record.token_T]),
        # Within a domain there is one label only: chance is that of all tokens.
        DOMAIN: replace(record, label_T=record.stratum_T, stratum_T=np.zeros_like(record.stratum_T)),
    }
    return examine(
        record,
        seed=seed,
        random_pairs=extent.drawn,
        most_pairs=extent.surveyed,
        mass_pairs=extent.by_mass,
        relabelled=relabelled,
        rows=rows,
    )


def shuffled_in_token(record: Record, seed: int) -> Record:
    """The same, each next token moved to another place where the same token stands: the codes that are left tell which
    token it is, and nothing more."""
    rng, label_T = np.random.default_rng(seed), np.empty_like(record.label_T)
    place_T, drawn_T = np.arange(record.tokens), rng.random(record.tokens)
    label_T[np.lexsort((place_T, record.token_T))] = record.label_T[np.lexsort((drawn_T, record.token_T))]
    return replace(record, label_T=label_T)


def interacting(found: Examination, most: int) -> list[tuple[int, int]]:
    """Pairs for second differences: half of them the strongest joint codes, then other ones that are co-active most."""
    codes = sorted((pair for pair in found.pairs if pair.evidence.joint_code), key=lambda pair: -_weight(pair))
    others = sorted(
        (pair for pair in found.pairs if pair.significant and not pair.evidence.joint_code),
        key=lambda pair: -pair.count,
    )
    chosen = [*codes[: (most + 1) // 2], *others][:most]
    return [(pair.i, pair.j) for pair in chosen]


def knowing_differences(found: Examination, differences: SecondDifferences) -> Examination:
    """The same with the pairs classed anew whose second differences are known."""
    known = {(of.i, of.j): of for of in differences.pairs if of.hidden is not None}

    def classed(pair: Pair) -> Pair:
        of = known.get((pair.i, pair.j))
        return pair if of is None else pair.knowing(of.hidden, of.curvature)

    return replace(found, pairs=[classed(pair) for pair in found.pairs])


def _weight(pair: Pair) -> float:
    """Bits of a joint code over all tokens on which both fire."""
    return (pair.joint_code_bits or 0) * pair.count


def mean_metrics(blocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the blocks that have a figure. Ends of intervals too: as if all blocks erred together, since they are
    of the same documents, so that the interval is rather too wide."""
    names = dict.fromkeys(name for block in blocks for name in block)
    return {name: float(np.mean([block[name] for block in blocks if name in block])) for name in names}


def classes_of(found: Examination) -> dict[tuple[str, bool], int]:
    """How many tested pairs are of each class, by whether they are co-active beyond chance."""
    return dict(Counter((pair.kind, pair.significant) for pair in found.pairs))


def examples_of(block: Block, record: Record, corpus: Corpus, listed: int) -> list[dict[str, object]]:
    """The strongest codes, then other significant pairs, with the tokens on which i, j and both fire."""
    found, differences = block.examination, block.differences
    second = {} if differences is None else {(of.i, of.j): of.row() for of in differences.pairs}
    codes = [pair for pair in found.pairs if pair.kind.startswith(JOINT_CODE)]
    others = [pair for pair in found.pairs if pair.significant and not pair.kind.startswith(JOINT_CODE)]
    codes.sort(key=lambda pair: (-_weight(pair), pair.i, pair.j))
    fires = {
        expert: (record.expert_TK == expert).any(1)
        for pair in [*codes[:listed], *others[:listed]]
        for expert in (pair.i, pair.j)
    }

    def words(fires_T: NDArray[np.bool_]) -> dict[str, object]:
        return {
            "tokens": int(fires_T.sum()),
            "on": _commonest(record.token_T[fires_T], corpus),
            "next": _commonest(record.label_T[fires_T], corpus),
        }

    return [
        {
            **pair.row(),
            "second_difference": second.get((pair.i, pair.j)),
            "i_alone": words(fires[pair.i] & ~fires[pair.j]),
            "j_alone": words(fires[pair.j] & ~fires[pair.i]),
            "both": words(fires[pair.i] & fires[pair.j]),
        }
        for pair in [*codes[:listed], *others[:listed]]
    ]


def _commonest(token_N: NDArray[np.integer], corpus: Corpus, shown: int = 6) -> list[list[object]]:
    """Text and share of the commonest tokens."""
    counts = Counter(token_N.tolist())
    return [
        [corpus.tokenizer.decode([token]), round(count / len(token_N), 3)] for token, count in counts.most_common(shown)
    ]


def text_of(metrics: Mapping[str, float], name: str) -> str:
    """A figure with its interval, or nothing."""
    if name not in metrics:
        return ""
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.3f}"
    return f"{metrics[name]:.3f} ({metrics[f'{name}_low']:.3f} to {metrics[f'{name}_high']:.3f})"


def share_of(metrics: Mapping[str, float], name: str) -> tuple[float, ...]:
    """A figure and the ends of its interval, as a picture takes them; NaN for what is not there."""
    return tuple(metrics.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high"))


def _headline(name: str, of: Headline) -> dict[str, float]:
    numbers = {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
    return {key: value for key, value in numbers.items() if value is not None}
