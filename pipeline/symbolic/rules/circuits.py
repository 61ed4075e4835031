"""Rules as circuits: a few two-input gates over literals, made small, counted in bits, laid out in tables."""

# E experts, L literals, G gates

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor

from kernels.errors import Mistake
from pipeline.symbolic.rules.logic import gate_symbol
from pipeline.symbolic.tiers import GATE_BITS

FALSE, IS_A, NOT_A, TRUE = 0, 3, 12, 15
"""Gates by their numbers."""
PASSING = (IS_A, 5, 10, NOT_A)
"""Those that depend on one of their wires alone."""
SIMPLIFIED_INPUTS = 6
"""Most literals of a rule that is written as the shortest sum of products, or product of sums, that sympy finds."""

Gate = tuple[int, int, int]
"""Type and two wires."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """Wire w is input w, or from the number of inputs on the output of gate w - len(inputs). The last gate is the rule.

    A gate reads inputs and the gates before it.
    """

    inputs: tuple[int, ...]
    """Literals, each once."""
    gates: tuple[Gate, ...]

    def __post_init__(self) -> None:
        for own, (kind, a, b) in enumerate(self.gates, start=len(self.inputs)):
            if not 0 <= kind <= 15 or not 0 <= min(a, b) <= max(a, b) < own:
                raise Mistake(f"gate {(kind, a, b)} on wire {own}: its type is 0 to 15, and it reads wires below")

    def over(self, literals: Sequence[int]) -> "Circuit":
        """The same circuit, its inputs being places in this list."""
        return Circuit(tuple(literals[place] for place in self.inputs), self.gates)


def single(kind: int, a: int, b: int) -> Circuit:
    """One gate of two literals."""
    return minimised([a, b], [(kind, 0, 1)])


def outputs(circuit: Circuit, values: Mapping[int, Tensor] | Sequence[Tensor]) -> Tensor:
    """The rule where `values` gives each literal, as booleans or as bits of integers."""
    wires = [values[literal] for literal in circuit.inputs]
    for kind, a, b in circuit.gates:
        wires.append(_gate(kind, wires[a], wires[b]))
    return wires[-1]


def _gate(kind: int, a: Tensor, b: Tensor) -> Tensor:
    if kind & 8:  # true of 00: the negation of a gate that is not
        return ~_gate(15 - kind, a, b)
    match kind:
        case 0:
            return a & ~a
        case 1:
            return a & b
        case 2:
            return a & ~b
        case 3:
            return a
        case 4:
            return b & ~a
        case 5:
            return b
        case 6:
            return a ^ b
        case _:
            return a | b


def passing_gates(circuit: Circuit) -> int:
    """How many of its gates only pass one of their wires on, or its negation."""
    return sum(kind in PASSING for kind, _, _ in circuit.gates)


class Wiring:
    """Gates that are added one by one and come out with no constant, no negation alone and no gate twice.

    A signal is 2 * wire + 1 where it is negated; `Wiring.false` and `Wiring.true` are signals too.
    """

    false, true = -2, -1

    def __init__(self, num_inputs: int) -> None:
        self.num_inputs = num_inputs
        self.gates: list[Gate] = []
        self._known: dict[Gate, int] = {}

    def gate(self, kind: int, a: int, b: int) -> int:
        """The signal of this gate of two signals."""
        truth = [[kind >> (3 - (2 * x + y)) & 1 for y in (0, 1)] for x in (0, 1)]
        if a & 1:
            truth.reverse()
        if b & 1:
            truth = [row[::-1] for row in truth]
        a, b = a & ~1, b & ~1  # the constant false, where it was one
        if a == self.false:
            truth[1] = truth[0]
        if b == self.false:
            truth = [[row[0]] * 2 for row in truth]
        if a == b:
            truth = [[truth[0][0]] * 2, [truth[1][1]] * 2]
        (f00, f01), (f10, f11) = truth
        if f00 == f10 and f01 == f11:  # a does not matter
            return self._unary(b, f00, f01)
        if f00 == f01 and f10 == f11:
            return self._unary(a, f00, f10)
        if a > b:
            a, b, f01, f10 = b, a, f10, f01
        # What is true of 00 is kept as the negation of what is not, so that both are one gate.
        inverted = f00
        found = 8 * f00 + 4 * f01 + 2 * f10 + f11
        key = (15 - found if inverted else found, a // 2, b // 2)
        if key not in self._known:
            self._known[key] = self.num_inputs + len(self.gates)
            self.gates.append(key)
        return 2 * self._known[key] + inverted

    def _unary(self, signal: int, at_0: int, at_1: int) -> int:
        if at_0 == at_1:
            return self.true if at_0 else self.false
        return signal + at_0

    def circuit(self, output: int, literals: Sequence[int]) -> Circuit:
        """With the gates that `output` needs, and the literals that those name."""
        gates, wire = list(self.gates), output >> 1
        if output < 0:  # a constant
            return Circuit((literals[0],), ((TRUE if output == self.true else FALSE, 0, 0),))
        if wire < self.num_inputs:
            return Circuit((literals[wire],), ((NOT_A if output & 1 else IS_A, 0, 0),))
        own = wire - self.num_inputs
        if output & 1:
            gates[own] = (15 - gates[own][0], *gates[own][1:])
        needed = {wire}
        for at in range(own, -1, -1):
            if self.num_inputs + at in needed:
                needed |= set(gates[at][1:])
        kept = sorted(needed)
        place = {old: new for new, old in enumerate(kept)}
        return Circuit(
            tuple(literals[old] for old in kept if old < self.num_inputs),
            tuple(
                (kind, place[a], place[b])
                for kind, a, b in (gates[old - self.num_inputs] for old in kept if old >= self.num_inputs)
            ),
        )


def minimised(literals: Sequence[int], gates: Sequence[Gate]) -> Circuit:
    """The circuit of these gates over these literals, one of which may stand twice, without what it does not need."""
    named = sorted(set(literals))
    wiring = Wiring(len(named))
    signals = [2 * named.index(literal) for literal in literals]
    for kind, a, b in gates:
        signals.append(wiring.gate(kind, signals[a], signals[b]))
    return wiring.circuit(signals[-1], named)


def simplified(circuit: Circuit) -> Circuit:
    """The circuit, or the one of sympy's shortest form where that has fewer gates; few literals alone are tried."""
    if len(circuit.inputs) > SIMPLIFIED_INPUTS or len(circuit.gates) < 3:
        return circuit
    shorter = _of_truth(len(circuit.inputs), _truth(circuit)).over(circuit.inputs)
    return shorter if len(shorter.gates) < len(circuit.gates) else circuit


def _truth(circuit: Circuit) -> int:
    """Bit x is the output where input i is bit i of x."""
    count = len(circuit.inputs)
    every_X = torch.arange(2**count)
    values = {literal: (every_X >> i & 1).bool() for i, literal in enumerate(circuit.inputs)}
    return sum(1 << x for x in torch.nonzero(outputs(circuit, values))[:, 0].tolist())


@cache
def _of_truth(count: int, truth: int) -> Circuit:
    symbols = sympy.symbols(f"i:{count}")
    minterms = [[x >> i & 1 for i in range(count)] for x in range(2**count) if truth >> x & 1]
    forms = [sympy.SOPform(symbols, minterms), sympy.POSform(symbols, minterms)]
    made = []
    for form in forms:
        wiring = Wiring(count)
        made.append(wiring.circuit(_of_expression(wiring, form, symbols), range(count)))
    return min(made, key=lambda circuit: len(circuit.gates))


def _of_expression(wiring: Wiring, form: Boolean, symbols: Sequence[sympy.Symbol]) -> int:
    if form in (sympy.true, sympy.false):
        return wiring.true if form == sympy.true else wiring.false
    if isinstance(form, sympy.Symbol):
        return 2 * symbols.index(form)
    signals = [_of_expression(wiring, part, symbols) for part in sorted(form.args, key=str)]  # type: ignore[arg-type]
    if isinstance(form, sympy.Not):
        return signals[0] ^ 1
    found = signals[0]
    for signal in signals[1:]:
        found = wiring.gate(1 if isinstance(form, sympy.And) else 7, found, signal)
    return found


def expression(circuit: Circuit, symbols: Sequence[Boolean]) -> Boolean:
    """The rule in sympy, `symbols` being the inputs: as sums of products, or gate within gate, whichever is shorter."""
    wires = list(symbols)
    for kind, a, b in circuit.gates:
        wires.append(gate_symbol(kind, wires[a], wires[b]))
    if len(circuit.inputs) > SIMPLIFIED_INPUTS:
        return wires[-1]
    return min((sympy.simplify_logic(wires[-1]), wires[-1]), key=lambda form: form.count_ops())


def bits(circuit: Circuit, literal_bits_L: Sequence[float]) -> float:
    """To write it down: its literals, then for each gate its type and which of the wires before it the two are."""
    found = sum(literal_bits_L[literal] for literal in circuit.inputs)
    for before in range(len(circuit.inputs), len(circuit.inputs) + len(circuit.gates)):
        found += GATE_BITS + 2 * math.log2(before)
    return found


@dataclass(frozen=True, slots=True)
class Laid:
    """The circuits of many experts as one list of gates (kernels/symbol_table/tables.py)."""

    literal_L: Tensor
    """Which literals are named, in order: literal l of the tables is this one."""
    rule_E: Tensor
    gate_G: Tensor
    wire_a_G: Tensor
    wire_b_G: Tensor


def laid_out(circuits: Mapping[int, Circuit], num_experts: int) -> Laid:
    """Gates that experts have in common stand once; experts without a circuit get rule 0."""
    used = sorted({literal for circuit in circuits.values() for literal in circuit.inputs})
    place = {literal: at for at, literal in enumerate(used)}
    known: dict[Gate, int] = {}
    rule_E = torch.zeros(num_experts, dtype=torch.int32)
    for expert, circuit in circuits.items():
        wires = [place[literal] for literal in circuit.inputs]
        for kind, a, b in circuit.gates:
            wires.append(known.setdefault((kind, wires[a], wires[b]), len(used) + len(known)))
        rule_E[expert] = wires[-1] - len(used)
    gate_G3 = torch.tensor([*known], dtype=torch.int32).reshape(len(known), 3)
    return Laid(
        literal_L=torch.tensor(used, dtype=torch.int64),
        rule_E=rule_E,
        gate_G=gate_G3[:, 0].to(torch.uint8),
        wire_a_G=gate_G3[:, 1].contiguous(),
        wire_b_G=gate_G3[:, 2].contiguous(),
    )


def of_tables(output: int, gate_G: Tensor, wire_a_G: Tensor, wire_b_G: Tensor, num_literals: int) -> Circuit:
    """The circuit that ends in gate `output` of a list, over the list's literals. Such a gate is kept as it is."""
    needed = sorted(_needed(output, wire_a_G, wire_b_G, num_literals))
    place = {old: new for new, old in enumerate(needed)}
    gates = [old - num_literals for old in needed if old >= num_literals]
    return Circuit(
        tuple(old for old in needed if old < num_literals),
        tuple((int(gate_G[g]), place[int(wire_a_G[g])], place[int(wire_b_G[g])]) for g in gates),
    )


def _needed(output: int, wire_a_G: Tensor, wire_b_G: Tensor, num_literals: int) -> set[int]:
    found, open_wires = set(), [num_literals + output]
    while open_wires:
        wire = open_wires.pop()
        if wire in found:
            continue
        found.add(wire)
        if wire >= num_literals:
            open_wires += [int(wires[wire - num_literals]) for wires in (wire_a_G, wire_b_G)]
    return found
