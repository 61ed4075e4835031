"""Experts to show, chosen by rule: those with most output in readable tiers, and those that tokens say best."""

# P pairs (an expert and a token it fired on), E experts, V vocabulary, N tokens

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor

from kernels.activations import activation
from pipeline.corpus.visible import bytes_of, parted, token_texts
from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.names.names import Name, Names, symbol
from pipeline.symbolic.names.naming import Words, expert_statement, token_weights
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.rules.choice import winners
from pipeline.symbolic.rules.circuits import expression
from pipeline.symbolic.rules.token_logic import LARGEST_SET
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.contexts import spread
from pipeline.symbolic.showing.expert_data import score_firing
from pipeline.symbolic.showing.firing_text import score_words
from pipeline.symbolic.showing.magnitudes import arguments, coordinates_by_size, function_values
from pipeline.symbolic.showing.reading import Reading, read_expert
from pipeline.symbolic.showing.scores import heaviest_features, score_keys, score_sums
from pipeline.symbolic.showing.svg_graph import graph
from pipeline.symbolic.tiers import READABLE, Tier
from pipeline.symbolic.writing.assembly import BlockSymbols

MOST_BY_ENERGY, BY_ENERGY, BY_LOGIC = 48, 6, 4
"""Experts that are shown for their output, of all blocks and of one; those that are shown for what tokens say."""
LEAST_FIRINGS = 30
"""Of an expert that is shown for its token statement, on the reported sample: an F1 of few firings says little."""
CONTEXTS = 6
FEATURES = 6
CONTEXT_TOKENS = 16
POINTS, CURVE = 60, 80
"""Of a graph: data, and places of the curve."""


@dataclass(frozen=True, slots=True)
class Context:
    """A text up to a token on which the expert fires, both as `pipeline.corpus.visible` shows them."""

    before: str
    token: str
    strength: float
    """gate * magnitude of the neuron that was distilled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongerRule:
    """The best rule of all learners, which need not be the one that the expert fires by."""

    learner: str
    rule: Boolean
    num_gates: int
    f1: float
    """Against firing, on the checking sample, which chose it among the learners."""
    gate_f1: float
    """Of the best gate of two literals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Showcase:
    """An expert with all that helps to read it."""

    reading: Reading
    why: str
    """The rule it was chosen by."""
    energy_share: float
    """Of its block's output."""
    token_statement: str
    token_f1: float
    longer_rule: LongerRule | None
    """Where longer rules were tried and one is better than a gate of two literals."""
    rate: float
    """Share of tokens it fires on: the F1 of a random statement of the same rate."""
    sums: tuple[str, ...]
    """Its scores as sums of features, if they are; and what makes log gates of them."""
    scores: tuple[Name, ...]
    features: tuple[Name, ...]
    """Those that weigh most in the sums."""
    coordinates: tuple[Name, ...]
    graph: str
    """SVG."""
    contexts: tuple[Context, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleText:
    """The text of a sample."""

    token_bytes: Sequence[bytes]
    document_N: Tensor
    """That each of its tokens is of."""


def showcases(
    model: LanguageModel,
    blocks: Sequence[BlockSymbols],
    check: Sequence[LayerRecord],
    names: Names,
    words: Words,
    text: SampleText,
) -> list[Showcase]:
    """Of every block the experts of tiers T1 to T3 with most output energy, then BY_LOGIC of the best statements.

    No two of the latter have one statement. `check` is the sample of the model that was distilled.
    """
    shown = {place: "one of those with most output of its layer in T1 to T3" for place in _by_energy(blocks)}
    said: set[str] = set()
    for layer, expert in _by_logic(blocks):
        statement = expert_statement(blocks[layer].statements, check[layer], expert, words)
        if len(said) < BY_LOGIC and (layer, expert) not in shown and statement not in said:
            shown[layer, expert] = f"one of the {BY_LOGIC} best said by tokens, firing {LEAST_FIRINGS} times or more"
            said.add(statement)
    return [
        _showcase(model, blocks, check, names, words, text, layer, expert, why)
        for (layer, expert), why in shown.items()
    ]


def _by_energy(blocks: Sequence[BlockSymbols]) -> list[tuple[int, int]]:
    """As many of each block, at least one."""
    most = max(1, min(BY_ENERGY, MOST_BY_ENERGY // len(blocks)))
    ranked = [_ranked([block.energy_E * _readable(block)])[:most] for block in blocks]
    return [(layer, expert) for layer, of_block in enumerate(ranked) for _, expert in of_block]


def _by_logic(blocks: Sequence[BlockSymbols]) -> list[tuple[int, int]]:
    """More than are shown, for those that say the same."""
    f1 = [block.statements.token_logic.f1_E * _readable(block) * (block.firings_E >= LEAST_FIRINGS) for block in blocks]
    return _ranked(f1)[: 100 * BY_LOGIC]


def _readable(block: BlockSymbols) -> Tensor:
    return torch.isin(block.tier_E, torch.tensor(READABLE, dtype=torch.uint8))


def _ranked(value_by_block: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(block, expert) of all values above 0, the largest first."""
    places = [(layer, expert) for layer, value_E in enumerate(value_by_block) for expert in range(len(value_E))]
    order = torch.argsort(torch.cat(list(value_by_block)), descending=True, stable=True)
    positive = int((torch.cat(list(value_by_block)) > 0).sum())
    return [places[index] for index in order[:positive].tolist()]


def _showcase(
    model: LanguageModel,
    blocks: Sequence[BlockSymbols],
    check: Sequence[LayerRecord],
    names: Names,
    words: Words,
    text: SampleText,
    layer: int,
    expert: int,
    why: str,
) -> Showcase:
    block, record, experts = blocks[layer], check[layer], symbol_experts(model, layer)
    reading = read_expert(model, layer, expert, block.literal_names, token_texts(text.token_bytes))
    router, keys = score_keys(model, layer, expert)
    uses_z = bool(reading.function.free_symbols)
    coordinates = [symbol("x", None, index) for index in coordinates_by_size(experts, expert)] if uses_z else []
    keys = keys if reading.tier <= Tier.T1 else []
    sums = score_sums(model, layer, keys)
    return Showcase(
        reading=reading,
        why=why,
        energy_share=float(block.energy_E[expert] / block.energy_E.sum()),
        token_statement=expert_statement(block.statements, record, expert, words),
        token_f1=float(block.statements.token_logic.f1_E[expert]),
        longer_rule=_longer_rule(block, record, expert, words),
        rate=float(block.rate_E[expert]),
        sums=(*map(str, sums), *_where(model, layer, expert, reading)),
        scores=tuple(names.of(router, [symbol(*key) for key in keys])),
        features=tuple(names.of(router, heaviest_features(sums, FEATURES))),
        coordinates=tuple(names.of(layer, coordinates)),
        graph=_graph(experts, record, expert, reading),
        contexts=_contexts(experts, record, expert, text),
    )


def _where(model: LanguageModel, layer: int, expert: int, reading: Reading) -> list[str]:
    if reading.tier > Tier.T1:
        return []
    return score_words(score_firing(model, layer, expert, reading.firing), layer, whole=False)


def _longer_rule(block: BlockSymbols, record: LayerRecord, expert: int, words: Words) -> LongerRule | None:
    statements = block.statements
    won = int(winners(statements)[expert])
    if won <= 0:
        return None
    rules = statements.rules[won]
    circuit = rules.circuits[expert]
    weight_2V = token_weights(record, expert, words)
    said = [words.literal(statements.literals, literal, weight_2V, 2 * LARGEST_SET) for literal in circuit.inputs]
    return LongerRule(
        learner=rules.learner,
        rule=expression(circuit, [sympy.Symbol(name) for name in said]),
        num_gates=len(circuit.gates),
        f1=float(rules.f1_E[expert]),
        gate_f1=float(statements.rules[0].f1_E[expert]),
    )


def _pairs(record: LayerRecord, expert: int) -> slice:
    first, end = record.events.start_E1[expert : expert + 2].tolist()
    return slice(first, end)


def _strengths(experts: SymbolExperts, record: LayerRecord, expert: int) -> Tensor:
    pairs = _pairs(record, expert)
    return record.gate_P[pairs] * activation(experts.spec.peer.activation).f(record.pre_P[pairs])


def _graph(experts: SymbolExperts, record: LayerRecord, expert: int, reading: Reading) -> str:
    """The expert's function with what the neuron did: its activation (T1), times the gate where logic fires (T2, T3).

    A constant has no argument: its firings stand in order of their size.
    """
    pairs = _pairs(record, expert)
    spread = torch.linspace(0, max(0, pairs.stop - pairs.start - 1), min(POINTS, pairs.stop - pairs.start)).long()
    by_gate_P = _strengths(experts, record, expert)
    if not reading.function.free_symbols:
        constant = float(experts.scale_E[expert] + experts.offset_E[expert])
        points = list(enumerate(by_gate_P.sort().values[spread].tolist()))
        return graph([(0, constant), (max(1, len(points) - 1), constant)], points, "firings, by size", "value")
    true_P = activation(experts.spec.peer.activation).f(record.pre_P[pairs])
    true_P = true_P if reading.tier <= Tier.T1 else by_gate_P
    z_P = arguments(experts, expert, record.x_ND[record.events.token_P[pairs]])
    z_N = torch.linspace(float(z_P.min()), float(z_P.max()), CURVE)
    curve = zip(z_N.tolist(), function_values(experts, expert, z_N).tolist(), strict=True)
    points = zip(z_P[spread].tolist(), true_P[spread].tolist(), strict=True)
    return graph(list(curve), list(points), "z", "value")


def _contexts(experts: SymbolExperts, record: LayerRecord, expert: int, text: SampleText) -> tuple[Context, ...]:
    strength_P, token_P = _strengths(experts, record, expert), record.events.token_P[_pairs(record, expert)]

    def parts(place: int) -> tuple[str, str]:
        *before, last = _tokens_before(record, text, int(token_P[place]))
        return parted(bytes_of(text.token_bytes, before), text.token_bytes[last])

    chosen = spread(strength_P, text.document_N[token_P], lambda place: "".join(parts(place)), CONTEXTS)
    return tuple(Context(*parts(place), strength=float(strength_P[place])) for place in chosen)


def _tokens_before(record: LayerRecord, text: SampleText, token: int) -> list[int]:
    """Those up to and with this one of the sample, at most CONTEXT_TOKENS, of its window and its document."""
    previous_N, first = record.events.context_ON[1], token
    while token - first + 1 < CONTEXT_TOKENS and int(previous_N[first]) >= 0:
        if int(text.document_N[first - 1]) != int(text.document_N[token]):
            break
        first -= 1
    return record.events.context_ON[0, first : token + 1].tolist()
