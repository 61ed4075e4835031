"""Draws by contribution, cutting to the strongest, the plain null and labels, against counting by hand."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.examining.battery import examine
from pipeline.examining.chance import by_frequency_alone
from pipeline.examining.counting import count_pairs
from pipeline.examining.firings import firings_of
from pipeline.examining.headlines import draw_by_mass, drawn_share
from pipeline.examining.labels import CLASSES, classes_of_tokens
from pipeline.examining.record import record_of
from pipeline.examining.superposition import mean_metrics, strongest

EXPERT_TK = np.array([[3, 8, 5], [8, -1, -1], [5, 3, -1], [2, 8, 3], [-1, -1, -1]])
CONTRIBUTION_TK = np.array([[1.0, 2.0, 4.0], [9.0, 9.0, 9.0], [0.5, 3.0, 7.0], [1.0, 1.0, 0.25], [5.0, 5.0, 5.0]])


def record(expert=EXPERT_TK, contribution=CONTRIBUTION_TK, **columns):
    tokens = torch.zeros(len(expert), dtype=torch.int64)
    shared = {name: tokens for name in ("token", "label", "document", "stratum")}
    given = {name: torch.as_tensor(of) for name, of in columns.items()}
    return record_of(
        {
            "expert": torch.as_tensor(expert, dtype=torch.int32),
            "contribution": torch.as_tensor(contribution, dtype=torch.float32),
            **shared,
            **given,
        }
    )


def test_pairs_are_drawn_by_the_product_of_what_the_two_contribute():
    firings = firings_of(record())
    draws = draw_by_mass(firings, np.random.default_rng(0), 40_000)
    named = firings.name_F[np.stack([draws.first_R, draws.second_R])]
    found = Counter(zip(draws.token_R.tolist(), *named.tolist(), strict=True))
    mass = {}
    for token, (experts, weights) in enumerate(zip(EXPERT_TK, CONTRIBUTION_TK, strict=True)):
        fired = sorted((e, w) for e, w in zip(experts.tolist(), weights, strict=True) if e >= 0)
        mass |= {(token, i, j): a * b for (i, a), (j, b) in itertools.combinations(fired, 2)}
    assert found.keys() == mass.keys()
    for pair, of in mass.items():
        assert found[pair] / 40_000 == pytest.approx(of / sum(mass.values()), abs=0.01)


def test_nothing_is_drawn_where_nothing_is_co_active():
    alone = firings_of(record(EXPERT_TK[:, :1], CONTRIBUTION_TK[:, :1]))
    assert len(draw_by_mass(alone, np.random.default_rng(0), 10).token_R) == 0
    assert len(draw_by_mass(firings_of(record()), np.random.default_rng(0), 0).token_R) == 0
    assert drawn_share(alone, draw_by_mass(alone, np.random.default_rng(0), 5), np.zeros(0, np.bool_)).value is None


def test_a_drawn_share_is_the_mean_with_an_interval_over_documents():
    rng = np.random.default_rng(1)
    document_T = np.repeat(np.arange(40), 25)
    firings = firings_of(record(np.tile([0, 1], (1000, 1)), np.ones((1000, 2)), document=document_T))
    draws = draw_by_mass(firings, rng, 4000)
    found_R = rng.random(4000) < np.linspace(0.1, 0.5, 40)[document_T[draws.token_R]]
    share = drawn_share(firings, draws, found_R)
    assert share.value == pytest.approx(found_R.mean())
    assert share.low is not None
    assert share.high is not None
    # Rates that differ between documents: wider than of 4,000 independent draws, about that of 40 documents.
    half = (share.high - share.low) / 2
    of_documents = np.array([found_R[document_T[draws.token_R] == document].mean() for document in range(40)])
    assert half == pytest.approx(stats.t.ppf(0.975, 39) * of_documents.std(ddof=1) / np.sqrt(40), rel=0.15)


def test_the_strongest_of_each_token_are_kept():
    cut = strongest(record(), 2)
    kept = [
        {(e, w) for e, w in zip(experts, weights, strict=True) if e >= 0}
        for experts, weights in zip(cut.expert_TK.tolist(), cut.contribution_TK.tolist(), strict=True)
    ]
    assert kept == [{(8, 2.0), (5, 4.0)}, {(8, 9.0)}, {(5, 0.5), (3, 3.0)}, {(2, 1.0), (8, 1.0)}, set()]
    assert strongest(record(), 3).expert_TK.shape == (5, 3)


def test_frequency_alone_takes_topics_for_pairs_and_is_the_hypergeometric_test():
    rng = np.random.default_rng(2)
    topic_T = np.repeat(rng.integers(0, 4, 200), 50)
    expert_TK = topic_T[:, None] * 10 + rng.integers(0, 10, (10_000, 4))
    firings = firings_of(record(expert_TK, np.ones(expert_TK.shape), stratum=topic_T))
    pairs = count_pairs(firings, 6)
    chosen = by_frequency_alone(firings, pairs)
    assert chosen.sum() > 100
    often = firings.fired_F
    exact = stats.hypergeom.sf(pairs.count_C - 1, 10_000, often[pairs.first_C], often[pairs.second_C])
    ascending = np.sort(exact)
    passing = ascending <= 0.01 * np.arange(1, len(exact) + 1) / (40 * 39 / 2)
    assert chosen.sum() == pytest.approx(np.flatnonzero(passing)[-1] + 1, abs=2)
    found = examine(record(expert_TK, np.ones(expert_TK.shape), stratum=topic_T), random_pairs=20, most_pairs=20)
    assert found.pairs_by_frequency == chosen.sum()
    assert found.pairs_significant == 0


def test_other_labels_are_tested_on_the_drawn_pairs_alone():
    """A pair that says together what neither says alone, by the one labels and not by the others."""
    rng = np.random.default_rng(3)
    state_T = rng.integers(0, 4, 8_000)
    expert_TK = np.array([[-1, -1, 2], [0, -1, 2], [1, -1, 2], [0, 1, 2]])[state_T]
    plain = record(expert_TK, np.ones(expert_TK.shape), document=np.arange(8_000) // 40)
    labelled = record(expert_TK, np.ones(expert_TK.shape), document=np.arange(8_000) // 40, label=state_T)
    found = examine(plain, random_pairs=300, relabelled={"state": labelled, "plain": plain})
    events = {(0, 1): (state_T == 3).sum(), (0, 2): (state_T % 2 == 1).sum(), (1, 2): (state_T > 1).sum()}
    share = events[0, 1] / sum(events.values())
    assert found.jcs.value == 0
    assert found.jcs_of["plain"].value == 0
    assert found.jcs_of["state"].value == pytest.approx(share, abs=0.06)


def test_a_token_is_of_the_first_class_that_holds():
    kinds = [*CLASSES, "other"]
    of_byte = dict(enumerate(classes_of_tokens(ByteTokenizer())))
    found = {text: kinds[of_byte[ord(text)]] for text in "\n 7([)}\"'.a+Z_\x01"}
    assert found == {
        "\n": "newline", " ": "space", "7": "digits", "(": "opening", "[": "opening", ")": "closing", "}": "closing",
        '"': "quote", "'": "quote", ".": "punctuation", "a": "letters", "+": "punctuation", "Z": "capital",
        "_": "punctuation", "\x01": "other",
    }  # fmt: skip


def test_means_over_blocks_are_of_those_that_have_a_figure():
    assert mean_metrics([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
