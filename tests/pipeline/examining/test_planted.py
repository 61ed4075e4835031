"""Planted truth is found, and what is harmless is not taken for it; `make science` does so at full size."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.examining.__main__ import main
from pipeline.examining.battery import examine
from pipeline.examining.classes import Evidence, class_of
from pipeline.examining.record import record_of, write_record
from tests.planted_records import Planting, plant
from tests.trained_toys import trained_toy

SMALL = Planting(experts=500, tokens=40_000, pairs=8, solo=40, background=200, topics=4)


def kinds(found):
    return {(pair.i, pair.j): pair.kind for pair in found.pairs}


@pytest.mark.parametrize("of", [SMALL, replace(SMALL, seed=1, noise=0.3, active=3, topics=7, document=97)])
def test_planted_pairs_are_found_and_told_apart(of):
    planted = plant(of)
    found = examine(record_of(planted.tensors), random_pairs=200)
    significant = {(pair.i, pair.j) for pair in found.pairs if pair.significant}
    assert len(significant & planted.all) >= 23
    assert len(significant - planted.all) <= 1
    flagged = {pair for pair, kind in kinds(found).items() if kind.startswith("joint code")}
    assert flagged <= planted.code
    assert len(flagged) >= 7
    assert found.jcs.value is not None
    assert found.jcs.low is not None
    events = sum(pair.count for pair in found.pairs if (pair.i, pair.j) in flagged)
    expert_TK = planted.tensors["expert"]
    fired_T = torch.tensor([len({*row} - {-1}) for row in expert_TK.tolist()])
    assert found.jcs.value == pytest.approx(events / int((fired_T * (fired_T - 1) // 2).sum()), abs=1e-6)


def test_shuffled_labels_flag_nothing():
    planted = plant(SMALL)
    shuffled = planted.tensors["label"][torch.randperm(SMALL.tokens, generator=torch.Generator().manual_seed(0))]
    found = examine(record_of(planted.tensors | {"label": shuffled}), random_pairs=300)
    assert {pair.kind for pair in found.pairs} <= {"compositional", "independent", "redundant"}
    assert max(pair.joint_code_bits or 0 for pair in found.pairs) < 0.1


def test_the_command_prints_pairs_and_headlines(tmp_path, capsys):
    planted = plant(replace(SMALL, tokens=20_000))
    write_record(tmp_path / "record.safetensors", planted.tensors)
    arguments = [str(tmp_path / "record.safetensors"), "--random", "50"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"i", "j", "count", "lift", "significant", "joint_code_bits", "class"} <= found["pairs"][0].keys()
    assert found["headlines"]["jcs"]["low"] <= found["headlines"]["jcs"]["value"] <= found["headlines"]["jcs"]["high"]
    assert found["headlines"]["hs"]["value"] is None
    assert main([*arguments, "--listed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert found["headlines"]["jcs"]["value"] > 0
    assert main([*arguments, "--shuffle-labels", "--json"]) == 0
    chance = json.loads(capsys.readouterr().out)
    assert chance["headlines"]["jcs"]["value"] == 0
    assert sorted((pair["i"], pair["j"], pair["count"]) for pair in chance["pairs"]) == sorted(
        (pair["i"], pair["j"], pair["count"]) for pair in found["pairs"]
    )


def test_the_share_of_codes_is_that_of_concepts_whose_experts_are_all_shared():
    """96 concepts, each the pair of experts that fires for it: fewer experts, more concepts that only a pair tells."""
    rng = np.random.default_rng(0)
    shares = []
    for experts in (192, 96, 24):
        pairs = rng.permutation(192).reshape(96, 2)
        if experts < 192:
            pairs = np.array([rng.choice(experts, 2, replace=False) for _ in range(96)])
        shared = (np.bincount(pairs.ravel())[pairs] > 1).all(1).mean()
        concept_T = rng.integers(0, 96, 20_000)
        label_T = torch.from_numpy(concept_T)
        tensors = {
            "expert": torch.from_numpy(pairs[concept_T].astype(np.int32)),
            "contribution": torch.ones(20_000, 2),
            "token": label_T,
            "label": label_T,
            "document": torch.arange(20_000) // 100,
            "stratum": torch.zeros(20_000, dtype=torch.int64),
        }
        share = examine(record_of(tensors), random_pairs=200).jcs.value
        assert share == pytest.approx(shared, abs=0.05)
        shares.append(share)
    assert shares[0] < 0.2 < shares[1] < shares[2]


def test_a_trained_layer_speaks_in_codes_where_it_has_fewer_experts_than_concepts():
    many, few = (trained_toy(experts=experts, active=2, seed=0, steps=250, tokens=30_000) for experts in (192, 48))
    assert many.accuracy > 0.95
    assert few.accuracy > 0.95
    assert many.joint_codes < 0.1 < 0.5 < few.joint_codes
    shares = [examine(toy.record, random_pairs=200).jcs.value for toy in (many, few)]
    assert shares[0] < 0.2
    assert shares[1] > 0.75


def test_every_class_follows_from_its_row_of_the_table():
    yes, no = {"significant": True}, {"significant": False}
    assert class_of(Evidence(**no, joint_code=False)) == "independent"
    assert class_of(Evidence(**no)) == "independent"
    assert class_of(Evidence(**yes, joint_code=False)) == "compositional"
    assert class_of(Evidence(**yes, joint_code=False, alike=True)) == "redundant"
    assert class_of(Evidence(**yes, never_part=True)) == "redundant"
    assert class_of(Evidence(**yes)) == "not testable"
    for known, (hidden, words) in itertools.product((yes, no), [(None, ""), (False, ", readable"), (True, ", hidden")]):
        assert class_of(Evidence(**known, joint_code=True, hidden=hidden)) == f"joint code{words}"
    for known, code in itertools.product((yes, no), (None, False)):
        assert class_of(Evidence(**known, joint_code=code, hidden=True, opposed=True)) == "antagonist"
        assert class_of(Evidence(**known, joint_code=code, hidden=True)) == "hidden function"
        assert (
            class_of(Evidence(**known, joint_code=code, hidden=True, alike=True, never_part=True)) == "hidden function"
        )
    for curvature, parallel in itertools.product((True, False), repeat=2):
        of = Evidence(**yes, joint_code=False, hidden=False, curvature=curvature, parallel=parallel)
        assert class_of(of) == ("redundant" if curvature and parallel else "compositional")
        assert class_of(replace(of, significant=False)) == "independent"
