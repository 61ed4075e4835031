"""Rules as circuits: made smaller they say the same, tables hold what was put in, bits count what is there."""

import itertools
import math

import pytest
import sympy
import torch

from pipeline.symbolic.rules.circuits import (
    Circuit,
    Wiring,
    bits,
    expression,
    laid_out,
    minimised,
    of_tables,
    outputs,
    simplified,
    single,
)
from tests.logic_gates import gate

# X all inputs


def random_gates(generator, inputs, gates):
    def below(limit):
        return int(torch.randint(limit, (), generator=generator))

    return [(below(16), below(inputs + g), below(inputs + g)) for g in range(gates)]


def every_value(inputs):
    """(inputs, 2 ** inputs) bool"""
    return (torch.arange(2**inputs) >> torch.arange(inputs)[:, None] & 1).bool()


def by_gates(gates, value_IX):
    wires = list(value_IX)
    for kind, a, b in gates:
        wires.append(gate(kind, wires[a], wires[b]))
    return wires[-1]


@pytest.mark.parametrize("seed", range(40))
def test_a_minimised_circuit_says_the_same_with_no_more_gates_constants_or_duplicates(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, count = 3 + seed % 4, 1 + seed % 11
    gates, literals = random_gates(generator, inputs, count), torch.randperm(50, generator=generator)[:inputs].tolist()
    value_IX = every_value(inputs)
    circuit = minimised(literals, gates)
    assert torch.equal(
        outputs(circuit, dict(zip(literals, value_IX, strict=True))) & torch.ones(2**inputs, dtype=torch.bool),
        by_gates(gates, value_IX),
    )
    assert len(circuit.gates) <= count
    assert len(set(circuit.gates)) == len(circuit.gates)
    assert len(set(circuit.inputs)) == len(circuit.inputs)
    if len(circuit.gates) > 1:
        assert not {kind for kind, _, _ in circuit.gates} & {0, 3, 5, 10, 12, 15}
    read = {wire for _, a, b in circuit.gates for wire in (a, b)}
    assert read >= set(range(len(circuit.inputs)))
    assert read >= set(range(len(circuit.inputs), len(circuit.inputs) + len(circuit.gates) - 1))


@pytest.mark.parametrize("kind", range(16))
def test_words_of_bits_are_booleans_side_by_side(kind):
    circuit = single(kind, 7, 4)
    words = {7: torch.tensor([0b1100]), 4: torch.tensor([0b1010])}
    word = int(outputs(circuit, words))
    assert [word >> (2 * a + b) & 1 for a in (0, 1) for b in (0, 1)] == [kind >> (3 - x) & 1 for x in range(4)]


def test_a_literal_twice_is_one_input_and_a_rule_of_one_literal_is_one_gate():
    assert single(1, 9, 9) == Circuit((9,), ((3, 0, 0),))
    assert single(2, 9, 9).gates[0][0] == 0
    assert single(12, 5, 6) == Circuit((5,), ((12, 0, 0),))
    assert single(6, 6, 5) == Circuit((5, 6), ((6, 0, 1),))


@pytest.mark.parametrize("seed", range(12))
def test_a_simplified_circuit_says_the_same_and_is_no_longer(seed):
    generator, inputs = torch.Generator().manual_seed(100 + seed), 3 + seed % 4
    circuit = minimised(range(inputs), random_gates(generator, inputs, 12))
    shorter = simplified(circuit)
    assert len(shorter.gates) <= len(circuit.gates)
    values = list(every_value(inputs))
    assert torch.equal(outputs(shorter, values) | ~values[0] & values[0], outputs(circuit, values))


def test_what_sympy_shortens_becomes_shorter():
    # (a & b) | (a & ~b) | (a & c), gate by gate, is a.
    circuit = Circuit((3, 5, 8), ((1, 0, 1), (2, 0, 1), (7, 3, 4), (1, 0, 2), (7, 5, 6)))
    assert simplified(circuit) == Circuit((3,), ((3, 0, 0),))


@pytest.mark.parametrize("seed", range(8))
def test_the_expression_is_true_where_the_circuit_is(seed):
    generator, inputs = torch.Generator().manual_seed(200 + seed), 2 + seed % 3
    circuit = minimised(range(inputs), random_gates(generator, inputs, 5))
    symbols = sympy.symbols(f"s:{len(circuit.inputs)}")
    rule = expression(circuit, symbols)
    for at in itertools.product((False, True), repeat=len(symbols)):
        values = dict(zip(circuit.inputs, map(torch.tensor, at), strict=True))
        assert bool(rule.subs(dict(zip(symbols, at, strict=True)))) == bool(outputs(circuit, values))


def test_laid_out_circuits_come_back_and_share_their_gates():
    both = Circuit((2, 7), ((1, 0, 1),))
    more = Circuit((2, 7, 9), ((1, 0, 1), (7, 2, 3)))
    alone = Circuit((9,), ((12, 0, 0),))
    rules = {3: both, 0: more, 4: alone}
    laid = laid_out(rules, 6)
    assert laid.literal_L.tolist() == [2, 7, 9]
    assert len(laid.gate_G) == 3
    assert bool((laid.wire_a_G < 3 + torch.arange(3)).all() and (laid.wire_b_G < 3 + torch.arange(3)).all())
    for expert, rule in rules.items():
        found = of_tables(int(laid.rule_E[expert]), laid.gate_G, laid.wire_a_G, laid.wire_b_G, 3)
        assert found.over(laid.literal_L.tolist()) == rule
    empty = laid_out({}, 6)
    assert (len(empty.literal_L), len(empty.gate_G), empty.rule_E.tolist()) == (0, 0, [0] * 6)


def test_bits_are_of_literals_gates_and_what_a_wire_may_point_to():
    cost = [10.0, 20.0, 5.0]
    assert bits(single(3, 1, 1), cost) == 20 + 4
    assert bits(single(1, 0, 2), cost) == 15 + 4 + 2 * 1
    chain = Circuit((0, 1, 2), ((1, 0, 1), (7, 2, 3)))
    assert bits(chain, cost) == pytest.approx(35 + 8 + 2 * math.log2(3) + 2 * math.log2(4))


@pytest.mark.parametrize("wrong", [(16, 0, 1), (1, 2, 0), (1, 0, 5), (-1, 0, 0), (1, -1, 0)])
def test_a_gate_that_reads_itself_or_is_of_no_type_cannot_be_written(wrong):
    with pytest.raises(ValueError, match="reads wires below"):
        Circuit((4, 5), (wrong,))


def test_constants_pass_through_a_wiring():
    wiring = Wiring(2)
    assert wiring.gate(1, 0, wiring.true) == 0
    assert wiring.gate(1, 0, wiring.false) == wiring.false
    assert wiring.gate(7, wiring.true, 2) == wiring.true
    assert wiring.gate(6, 2, wiring.true) == 3
    assert wiring.gate(8, wiring.false, wiring.false) == wiring.true
    assert wiring.gates == []
    assert wiring.circuit(wiring.true, [8, 9]) == Circuit((8,), ((15, 0, 0),))
