"""Who hangs together, and whether three say more than two of them, against planted cliques and a planted triple."""

import numpy as np
import pytest
import torch

from pipeline.examining.battery import examine
from pipeline.examining.communities import communities, npmi
from pipeline.examining.counting import count_pairs
from pipeline.examining.firings import firings_of
from pipeline.examining.record import record_of


def fired(fires_TE, label_T):
    token, expert = np.nonzero(fires_TE)
    expert_TK = np.full((len(fires_TE), fires_TE.sum(1).max()), -1)
    expert_TK[token, np.arange(len(token)) - np.searchsorted(token, token)] = expert
    column = torch.from_numpy(label_T)
    return record_of(
        {
            "expert": torch.from_numpy(expert_TK.astype(np.int32)),
            "contribution": torch.ones(expert_TK.shape),
            "token": column,
            "label": column,
            "document": torch.arange(len(fires_TE)) // 100,
            "stratum": torch.zeros(len(fires_TE), dtype=torch.int64),
        }
    )


def test_npmi_is_one_for_two_that_never_part_and_near_nothing_by_chance():
    rng = np.random.default_rng(0)
    fires_TE = rng.random((50_000, 3)) < 0.1
    fires_TE[:, 1] = fires_TE[:, 0]
    firings = firings_of(fired(fires_TE, rng.integers(0, 3, 50_000)))
    assert npmi(firings, count_pairs(firings, 1)) == pytest.approx([1.0, 0.0, 0.0], abs=0.02)


def test_planted_cliques_are_the_components_and_a_thin_bridge_parts_communities():
    rng = np.random.default_rng(1)
    fires_TE = rng.random((40_000, 40)) < 0.02
    cliques = [range(6), range(6, 11), range(11, 14)]
    for members in cliques:
        on_T = rng.random(40_000) < 0.02
        for member in members:
            fires_TE[:, member] |= on_T & (rng.random(40_000) < 0.8)
    fires_TE[rng.random(40_000) < 0.01, 5:7] = True
    found = examine(fired(fires_TE, rng.integers(0, 3, 40_000)), random_pairs=0).communities["significant"]
    assert found.component_sizes == {3: 1, 11: 1}
    assert found.community_sizes == {3: 1, 5: 1, 6: 1}
    assert found.modularity > 0.4
    assert found.pairs == 15 + 10 + 3 + 1


def test_without_pairs_nobody_hangs_together():
    rng = np.random.default_rng(2)
    firings = firings_of(fired(rng.random((500, 3)) < 0.1, rng.integers(0, 3, 500)))
    pairs = count_pairs(firings, 1)
    found = communities(firings, pairs.chosen(np.zeros(0, np.int64)), 0)
    assert found.component_sizes == found.community_sizes == {}
    assert found.modularity is None


@pytest.mark.parametrize(("coded", "needed"), [("three", 3), ("two", 2), ("none", 0)])
def test_a_label_of_three_needs_all_of_them_and_a_label_of_two_not_the_third(coded, needed):
    rng = np.random.default_rng(3)
    fires_TE = rng.random((60_000, 30)) < 0.01
    fires_TE[rng.random(60_000) < 0.02, :3] = True
    for two in ([0, 1], [0, 2], [1, 2]):
        fires_TE[np.ix_(rng.random(60_000) < 0.01, two)] = True
    label_T = rng.integers(0, 6, 60_000)
    says = {"three": (0, 1, 2), "two": (0, 1), "none": ()}[coded]
    speaks_T = (fires_TE[:, list(says)].all(1) if says else np.zeros(60_000, bool)) & (rng.random(60_000) < 0.9)
    label_T[speaks_T] = 7
    (triple,) = examine(fired(fires_TE, label_T), random_pairs=0).triples
    assert triple.experts == (0, 1, 2)
    assert triple.count == fires_TE[:, :3].all(1).sum()
    assert triple.needed == needed
    for expert, bits in enumerate(triple.dropping_bits):
        assert (bits >= 0.5) == (expert in says)
