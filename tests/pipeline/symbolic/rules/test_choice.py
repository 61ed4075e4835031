"""Who wins: longer rules must be better by their length, shorter ones no worse; figures are over those that tried."""

from dataclasses import replace

import pytest
import torch

from pipeline.models.literals import Literals
from pipeline.symbolic.rules.choice import rule_metrics, winners
from pipeline.symbolic.rules.circuits import Circuit
from pipeline.symbolic.rules.statements import LEARNERS, Rules, Statements
from pipeline.symbolic.rules.token_logic import TokenStatements

# E experts

E = 6
LENGTH = {"gate": 1, "chain": 2, "threshold": 4, "tree": 3, "net": 2}
F1 = {
    #         one gate  better   too little  shorter  equal     not searched
    "gate": [0.5, 0.5, 0.5, 0.5, 0.5, None],
    "chain": [None, 0.6, 0.502, None, None, None],
    "threshold": [None, None, None, 0.8, None, None],
    "tree": [0.4, 0.603, 0.504, 0.8, 0.5, None],
    "net": [0.4, 0.6, 0.5025, 0.8, 0.5, None],
}


def rules(name) -> Rules:
    has = [f1 is not None for f1 in F1[name]]
    gates = tuple((1, 0, 1 + i) for i in range(LENGTH[name]))
    infinite_E = torch.where(torch.tensor(has), 1.0, torch.inf)
    zeros_E = torch.zeros(E)
    return Rules(
        learner=name,
        circuits={expert: Circuit((0, 1), gates) for expert in range(E) if has[expert]},
        f1_E=torch.tensor([f1 or 0.0 for f1 in F1[name]]),
        constant_E=zeros_E, constant_error_E=infinite_E, function_scale_E=zeros_E, function_error_E=infinite_E,
        bits_E=zeros_E,
    )  # fmt: skip


def statements() -> Statements:
    none_E = torch.zeros(E, dtype=torch.int64)
    return Statements(
        literals=Literals(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.uint8)),
        names=["a", "b"],
        rules=tuple(rules(name) for name in LEARNERS),
        tried_deeply_E=torch.tensor([True, True, True, True, False, False]),
        token_logic=TokenStatements(none_E, none_E, none_E, torch.zeros(E)),
        rate_E=torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.9]),
    )


def test_a_longer_rule_wins_by_what_its_gates_are_worth_and_a_shorter_one_if_no_worse():
    won = [LEARNERS[number] if number >= 0 else None for number in winners(statements()).tolist()]
    assert won == ["gate", "chain", "gate", "net", "gate", None]


def test_figures_are_over_the_experts_that_each_tried():
    both = [statements(), statements()]
    figures = rule_metrics(both, both)
    assert figures["rule_searched_share"] == pytest.approx(5 / 6)
    assert figures["deep_rule_share"] == pytest.approx(4 / 6)
    assert figures["rule_f1_single_gate_mean"] == pytest.approx(0.5)
    assert figures["rule_f1_mean"] == pytest.approx((0.5 + 0.6 + 0.5 + 0.8 + 0.5) / 5)
    assert figures["rule_f1_same_rate_null_mean"] == pytest.approx(0.18)
    assert figures["deep_rule_f1_tree_mean"] == pytest.approx((0.4 + 0.603 + 0.504 + 0.8) / 4)
    shares = [figures[f"deep_rule_won_{name}_share"] for name in LEARNERS]
    assert shares == pytest.approx([0.5, 0.25, 0, 0, 0.25])


def test_who_wins_is_of_one_sample_and_what_it_is_worth_of_another():
    chosen = statements()
    held = replace(
        chosen,
        rules=tuple(replace(of, f1_E=torch.full((E,), 0.1 * place)) for place, of in enumerate(chosen.rules)),
        rate_E=torch.tensor([0.0, 0.1, 0.2, 0.2, 0.3, 0.9]),
    )
    figures = rule_metrics([chosen], [held])
    # chain, gate, net and gate, as above, of the four that fire
    assert figures["rule_f1_mean"] == pytest.approx((0.1 + 0.0 + 0.4 + 0.0) / 4)
    assert figures["rule_f1_same_rate_null_mean"] == pytest.approx(0.2)
    assert figures["rule_searched_share"] == pytest.approx(5 / 6)
