"""Gates, token literals, and the searches over them against brute force."""

import itertools

import pytest
import sympy
import torch

from kernels.symbol_table.tables import context_of
from pipeline.models.literals import Literals
from pipeline.symbolic.recording import Events
from pipeline.symbolic.rules.literals import build_literals
from pipeline.symbolic.rules.logic import GATE_OUTPUT_G4, best_gates, gate_symbol
from pipeline.symbolic.rules.token_logic import own_sets
from tests.logic_gates import GATE_NAMES, gate

# N tokens, L literals, V vocabulary, E experts, C candidates

INPUTS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        (0, lambda a, b: False),
        (1, lambda a, b: a and b),
        (2, lambda a, b: a and not b),
        (3, lambda a, b: a),
        (4, lambda a, b: not a and b),
        (5, lambda a, b: b),
        (6, lambda a, b: a != b),
        (7, lambda a, b: a or b),
    ],
)
def test_gates_are_numbered_as_difflogic_numbers_them_and_15_minus_one_is_its_negation(kind, truth):
    a_X, b_X = (torch.tensor(column) for column in zip(*INPUTS, strict=True))
    for number, wanted in ((kind, [truth(a, b) for a, b in INPUTS]), (15 - kind, [not truth(a, b) for a, b in INPUTS])):
        assert GATE_OUTPUT_G4[number].tolist() == gate(number, a_X, b_X).tolist() == wanted


@pytest.mark.parametrize("kind", range(16))
def test_a_gate_its_symbol_and_its_name_agree_on_all_inputs(kind):
    a, b = sympy.symbols("a b")
    symbol = gate_symbol(kind, a, b)
    for x, (at_a, at_b) in enumerate(INPUTS):
        output = bool(GATE_OUTPUT_G4[kind, x])
        assert bool(symbol.subs({a: at_a, b: at_b})) == output
        named = GATE_NAMES[kind].replace("~", " not ").replace("&", "and").replace("|", "or").replace("^", "!=")
        assert bool(eval(named, {"a": at_a, "b": at_b})) == output


def test_the_context_is_the_tokens_back_within_each_sequence():
    tokens_BT = torch.tensor([[5, 6, 7], [1, 2, 3]])
    assert context_of(tokens_BT, 4).tolist() == [
        [5, 6, 7, 1, 2, 3],
        [-1, 5, 6, -1, 1, 2],
        [-1, -1, 5, -1, -1, 1],
        [-1, -1, -1, -1, -1, -1],
    ]


def test_a_literal_is_true_of_the_tokens_in_its_set_that_many_places_back_and_never_before_the_beginning():
    member_LV = torch.tensor([[True, False, True], [True, True, True], [False, True, False]])
    literals = Literals(member_LV, torch.tensor([0, 1, 2], dtype=torch.uint8))
    context_ON = context_of(torch.tensor([[0, 1, 2, 1, 0]]), 3)
    assert literals.values(context_ON).int().tolist() == [[1, 0, 1, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
    assert literals.values(context_ON, torch.tensor([2, 0])).int().tolist() == [[0, 0, 0, 1, 0], [1, 0, 1, 0, 1]]


def test_the_shared_literals_are_classes_at_every_place_and_frequent_tokens_at_two():
    vocabulary = [" a", "7", "\n", "Hm", "", "\ufffd"]
    literals, names = build_literals(vocabulary, torch.tensor([9, 1, 8, 0, 0, 0]), places=3, identities=2)
    assert len(names) == len(set(names)) == len(literals.offset_L) == 3 * 9 + 2 * 2
    by_name = {
        name: set(torch.nonzero(row)[:, 0].tolist()) for name, row in zip(names, literals.member_LV, strict=True)
    }
    assert by_name["digit"] == {1}
    assert by_name["newline[-2]"] == by_name["space[-1]"] == {2}
    assert by_name["word start"] == {0}
    assert by_name["letters"] == {3}
    assert by_name["token[-1] is ' a'"] == {0}
    offsets = dict(zip(names, literals.offset_L.tolist(), strict=True))
    assert (offsets["digit"], offsets["digit[-2]"], offsets["token[0] is '\\n'"]) == (0, 2, 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_gate_is_that_of_brute_force_over_all_gates_and_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    experts, candidates, tokens = 5, 4, 61
    literal_NL = torch.rand(tokens, 9, generator=generator) < torch.rand(9, generator=generator)
    literal_EC = torch.stack([torch.randperm(9, generator=generator)[:candidates] for _ in range(experts)])
    mass_EN = (torch.rand(experts, tokens, generator=generator) < 0.3).float()
    value_ENC = literal_NL.T[literal_EC].transpose(1, 2).float()
    both_ECC = (value_ENC * mass_EN[..., None]).transpose(1, 2) @ value_ENC
    count_ECC = value_ENC.transpose(1, 2) @ value_ENC
    best = best_gates(both_ECC, mass_EN.sum(1), count_ECC, literal_EC, tokens)

    def score(kind, a, b, mass_N):
        true_N = gate(kind, literal_NL[:, a], literal_NL[:, b])
        mass = float(mass_N[true_N].sum())
        return 2 * mass / max(1.0, int(true_N.sum()) + float(mass_N.sum()))

    for expert, mass_N in enumerate(mass_EN):
        own = literal_EC[expert].tolist()
        most = max(score(k, a, b, mass_N) for k in range(1, 15) for a in own for b in own)
        a, b, kind = int(best.a_E[expert]), int(best.b_E[expert]), int(best.kind_E[expert])
        assert a in own
        assert b in own
        assert float(best.score_E[expert]) == pytest.approx(most, rel=1e-5)
        assert score(kind, a, b, mass_N) == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("back", [0, 1])
def test_an_experts_own_set_of_tokens_is_that_of_brute_force(back):
    generator = torch.Generator().manual_seed(7)
    vocabulary, experts = 6, 4
    tokens_BT = torch.randint(vocabulary, (9, 200), generator=generator)
    context_ON = context_of(tokens_BT, 2)
    chance_EV = torch.rand(experts, vocabulary, generator=generator).square()
    token_N = context_ON[back]
    fires_EN = torch.rand(experts, len(token_N), generator=generator) < chance_EV[:, token_N.clamp(min=0)]
    expert_P, token_P = torch.nonzero(fires_EN, as_tuple=True)
    events = Events(
        token_P=token_P,
        start_E1=torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(expert_P).cumsum(0)]),
        context_ON=context_ON,
    )
    found_EV = own_sets(events, back, vocabulary)

    def f1(members, fires_N):
        true_N = torch.isin(token_N, torch.tensor(members))
        return float(2 * (true_N & fires_N).sum() / (true_N.sum() + fires_N.sum()))

    sets = [list(s) for size in range(1, vocabulary + 1) for s in itertools.combinations(range(vocabulary), size)]
    for expert in range(experts):
        most = max(f1(members, fires_EN[expert]) for members in sets)
        assert f1(torch.nonzero(found_EV[expert])[:, 0].tolist(), fires_EN[expert]) == pytest.approx(most)
