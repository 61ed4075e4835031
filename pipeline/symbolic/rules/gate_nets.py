"""Small networks of gates for some experts, learned together by gradient from the rules that they begin as.

A network is a few levels of gates, which read their expert's candidate literals and gates of earlier levels. Some hold
the rule that the network begins as; the others, wired at random, reach the output through its second wire, which it
begins by ignoring. What comes out is made small, and is a rule like any other.
"""

# M networks, K patterns of literals, C candidates, G gates of a network's level, I inputs of a level

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.symbolic.rules._difflogic import gate_layer, run
from pipeline.symbolic.rules.circuits import IS_A, Circuit, Gate, minimised, simplified
from pipeline.symbolic.rules.logic_layer import GateLayer
from pipeline.symbolic.rules.trees import Patterns

RULE_GATES, SPARE_GATES = (3, 3, 3, 3, 3), (4, 2, 1, 0, 0)
"""Of each level: room for the rule that the network begins as, and gates wired at random. The output is one more."""
PATTERNS = 96
"""Most combinations of literals that a network learns from: those with most firings, then those with most tokens."""
STEPS, RATE = 60, 0.15
SURE = 5.0
"""Weight of the type that a gate begins as; the others' are 0."""
RESTARTS = 2
"""Networks an expert, each with other random wires."""


@dataclass(frozen=True, slots=True)
class Task:
    """An expert to learn: what its literals and firing are on the fitting sample, and the rule to begin with."""

    given: Patterns
    literals: Sequence[int]
    start: Circuit
    """Over these literals."""


@dataclass(slots=True)
class _Net:
    """Types and wires of one network, level by level; wires are places among its candidates and earlier gates."""

    levels: list[list[Gate]]


def learned(tasks: Sequence[Task], *, generator: torch.Generator) -> list[Circuit]:
    """For each task the best rule by F1 on its patterns and length: one that its networks came to, or the first."""
    if not tasks:
        return []
    nets = [_begin(task, generator) for task in tasks for _ in range(RESTARTS)]
    levels = [_level(nets, level, tasks, generator) for level in range(len(RULE_GATES) + 1)]
    _fit(levels, [task for task in tasks for _ in range(RESTARTS)])
    kinds = [layer.weights.detach().argmax(-1).view(len(nets), -1) for layer in levels]
    rules = [
        _rule(net, [kind_MG[at].tolist() for kind_MG in kinds], tasks[at // RESTARTS]) for at, net in enumerate(nets)
    ]
    return [
        max(
            [task.start, *rules[at * RESTARTS : (at + 1) * RESTARTS]],
            key=lambda rule: task.given.worth(rule, task.literals),
        )
        for at, task in enumerate(tasks)
    ]


def _begin(task: Task, generator: torch.Generator) -> _Net:
    """The rule level by level, gates of random candidates and of each other, then the output, which is the rule."""
    candidates = len(task.literals)
    sizes = [rule + spare for rule, spare in zip(RULE_GATES, SPARE_GATES, strict=True)]
    first = [candidates + sum(sizes[:level]) for level in range(len(sizes))]
    levels: list[list[Gate]] = [[(IS_A, 0, 0)] * rule for rule in RULE_GATES]
    used = [0] * len(sizes)
    wires = [list(task.literals).index(literal) for literal in task.start.inputs]
    depth = [0] * len(wires)
    for kind, a, b in task.start.gates:
        level = max(depth[a], depth[b])
        while used[level] == RULE_GATES[level]:
            level += 1
        levels[level][used[level]] = (kind, wires[a], wires[b])
        wires.append(first[level] + used[level])
        depth.append(level + 1)
        used[level] += 1
    spare: list[int] = []
    for level, count in enumerate(SPARE_GATES):
        below = spare if spare else torch.randperm(candidates, generator=generator).tolist() * 2
        own = [(int(torch.randint(1, 15, (), generator=generator)), *below[2 * i : 2 * i + 2]) for i in range(count)]
        spare = [first[level] + RULE_GATES[level] + i for i in range(count)] or spare
        levels[level] += [(kind, a, b) for kind, a, b in own]
    return _Net([*levels, [(IS_A, wires[-1], spare[0])]])


def fits(circuit: Circuit) -> bool:
    """Whether a network has room for the rule."""
    depth, used = [0] * len(circuit.inputs), [0] * len(RULE_GATES)
    for _, a, b in circuit.gates:
        level = max(depth[a], depth[b])
        while level < len(used) and used[level] == RULE_GATES[level]:
            level += 1
        if level == len(used):
            return False
        used[level] += 1
        depth.append(level + 1)
    return True


def _level(nets: Sequence[_Net], level: int, tasks: Sequence[Task], generator: torch.Generator) -> GateLayer:
    """One layer for all networks. Its inputs are a network's candidates and earlier gates, network by network."""
    inputs = len(tasks[0].literals) + sum(len(gates) for gates in nets[0].levels[:level])
    gate_MG3 = torch.tensor([net.levels[level] for net in nets])
    wire_MG2 = gate_MG3[..., 1:] + inputs * torch.arange(len(nets))[:, None, None]
    made = gate_layer(inputs * len(nets), *wire_MG2.flatten(0, 1).unbind(1), generator=generator)
    with torch.no_grad():
        kind_O = gate_MG3[..., 0].flatten()
        made.weights.copy_(SURE * nn.functional.one_hot(kind_O, 16).float())
        is_spare_G = torch.arange(gate_MG3.shape[1]) >= (RULE_GATES[level] if level < len(RULE_GATES) else 1)
        unsure_O = is_spare_G.repeat(len(nets))
        made.weights[unsure_O] = torch.randn(int(unsure_O.sum()), 16, generator=generator)
    return made


def _fit(levels: Sequence[GateLayer], tasks: Sequence[Task]) -> None:
    """Adam on 1 - F1, of soft outputs, summed over the networks."""
    true_KMC, count_KM, fired_KM, total_M = _batch(tasks)
    optimizer = torch.optim.Adam([layer.weights for layer in levels], lr=RATE)
    for _ in range(STEPS):
        wires_KMI = true_KMC
        for layer in levels:
            out_KMG = run(layer, wires_KMI.flatten(1)).view(*wires_KMI.shape[:2], -1)
            wires_KMI = torch.cat([wires_KMI, out_KMG], dim=2)
        said_KM = wires_KMI[..., -1]
        f1_M = 2 * (fired_KM * said_KM).sum(0) / ((count_KM * said_KM).sum(0) + total_M)
        optimizer.zero_grad()
        (1 - f1_M).sum().backward()
        optimizer.step()


def _batch(tasks: Sequence[Task]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(K, M, C) literals, (K, M) tokens and firings of the patterns that count most, (M) firings in all."""
    true, tokens, fired = [], [], []
    for task in tasks:
        given = task.given
        weight_K = given.fired_K * given.count_K.sum() + given.count_K
        top_K = weight_K.topk(min(PATTERNS, len(weight_K))).indices
        room = (0, PATTERNS - len(top_K))
        true.append(nn.functional.pad(given.true_KC[top_K].float(), (0, 0, *room)))
        tokens.append(nn.functional.pad(given.count_K[top_K], room))
        fired.append(nn.functional.pad(given.fired_K[top_K], room))
    total_M = torch.stack([task.given.fired_K.sum() for task in tasks])
    return torch.stack(true, 1), torch.stack(tokens, 1), torch.stack(fired, 1), total_M


def _rule(net: _Net, kinds: Sequence[Sequence[int]], task: Task) -> Circuit:
    """What the network says once each gate is of its likeliest type."""
    gates = [
        (kind, a, b)
        for level, of_level in zip(net.levels, kinds, strict=True)
        for (_, a, b), kind in zip(level, of_level, strict=True)
    ]
    return simplified(minimised(task.literals, gates))
