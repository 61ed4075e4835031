"""What the symbols of a block are worth on a sample that had no say in them: the same measures, counted anew.

Formulas, rules and the choice among them come from train tokens; what is reported of them comes from here.
"""

# N tokens, E experts, P pairs (an expert and a token it fires on), S pairs that the symbols state, W words of bits,
# Q experts of a piece, L learners

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.activations import activation
from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.models.tables.experts import TableExperts
from pipeline.run import steps
from pipeline.symbolic.recording import Events, LayerRecord
from pipeline.symbolic.rules.bit_sets import LiteralWords, count, everything, packed
from pipeline.symbolic.rules.circuits import outputs
from pipeline.symbolic.rules.search import gate_words
from pipeline.symbolic.rules.statements import Statements
from pipeline.symbolic.tiers import Tier
from pipeline.symbolic.writing.assembly import BlockSymbols, energies, v_squares

EXPERTS_A_PIECE = 256
PAIRS_A_PIECE = 65_536


@dataclass(frozen=True, slots=True)
class _Stated:
    """Where the symbols say that an expert fires, and with what gate * magnitude."""

    expert_S: Tensor
    token_S: Tensor
    strength_S: Tensor


@torch.no_grad()
def worth_on(block: BlockSymbols, executed: SymbolExperts, experts: TableExperts, record: LayerRecord) -> BlockSymbols:
    """The block with energies, errors and F1 of this sample. `executed` are its tables, `experts` what they stand for.

    The symbols read the states of the record, so that each expert is judged by itself.
    """
    energy_E, variance_E = energies(experts, record)
    if not float(variance_E.sum()) > 0:
        raise ValueError("no expert of a block does anything on the held-out sample; take more report_tokens")
    fired, stated = record.events, _stated(executed, record)
    magnitude_P = record.gate_P * activation(experts.spec.activation).f(record.pre_P)
    at_S, hit_S = _found(_keys(fired.expert_P, fired.token_P, fired), _keys(stated.expert_S, stated.token_S, fired))
    true_S = torch.where(hit_S, magnitude_P[at_S], 0.0).double()
    # All that is not stated is lost; what is stated is off by a difference.
    error_E = torch.zeros(len(energy_E), dtype=torch.float64).index_add(
        0, fired.expert_P, magnitude_P.double().square()
    )
    error_E.index_add_(0, stated.expert_S, (stated.strength_S.double() - true_S).square() - true_S.square())
    stated_E, both_E = (
        torch.bincount(expert_S, minlength=len(energy_E)) for expert_S in (stated.expert_S, stated.expert_S[hit_S])
    )
    return replace(
        block,
        energy_E=energy_E,
        variance_E=variance_E,
        error_E=(error_E.clamp(min=0) * v_squares(experts)).float(),
        f1_E=2 * both_E / (stated_E + fired.count_E).clamp(min=1),
        rate_E=fired.rate_E,
        firings_E=fired.count_E,
    )


def blocks_on(
    blocks: Sequence[BlockSymbols], executed: LanguageModel, model: LanguageModel, records: Sequence[LayerRecord]
) -> list[BlockSymbols]:
    """All blocks, worth what they are on these records of `model`; `executed` is the model of their tables."""
    ours, theirs = executed.expert_layers_of(SymbolExperts), model.expert_layers_of(TableExperts)
    return [worth_on(*of_block) for of_block in zip(blocks, ours, theirs, records, strict=True)]


def _stated(executed: SymbolExperts, record: LayerRecord) -> _Stated:
    """Exact tiers compare what the model compares, with its gate; logic tiers fire where their rule is true."""
    fired, tier_E = record.events, executed.tier_E
    exact_P = tier_E[fired.expert_P] <= Tier.T1
    by_logic_X = torch.nonzero((tier_E == Tier.T2) | (tier_E == Tier.T3))[:, 0]
    token_T, expert_T = executed.logic_firings(by_logic_X, fired.context_ON)
    expert_S = torch.cat([fired.expert_P[exact_P], expert_T])
    token_S = torch.cat([fired.token_P[exact_P], token_T])
    gate_S = torch.cat([record.gate_P[exact_P], torch.ones(len(token_T))])
    magnitudes = [
        executed.magnitudes(record.x_ND, *piece)
        for piece in zip(token_S.split(PAIRS_A_PIECE), expert_S.split(PAIRS_A_PIECE), strict=True)
    ]
    return _Stated(expert_S, token_S, gate_S * torch.cat(magnitudes))


def _keys(expert_P: Tensor, token_P: Tensor, events: Events) -> Tensor:
    """One number a pair, rising in the order of a record."""
    return expert_P * events.num_tokens + token_P


def _found(key_P: Tensor, key_S: Tensor) -> tuple[Tensor, Tensor]:
    """(S) where each key is among the sorted ones, and whether it is."""
    at_S = torch.searchsorted(key_P, key_S).clamp(max=len(key_P) - 1)
    return at_S, key_P[at_S] == key_S


def statements_on(statements: Statements, events: Events) -> Statements:
    """The same rules and token statements, with their F1 against these events; their errors stay those of before."""
    num_experts = len(statements.rate_E)
    num_shared = len(statements.literals.offset_L) - 2 * num_experts
    words = LiteralWords(statements.literals, num_shared, events.context_ON)
    token_f1_E, rule_f1_LE = torch.zeros(num_experts), torch.zeros(len(statements.rules), num_experts)
    for expert_Q in torch.arange(num_experts).split(EXPERTS_A_PIECE):
        fire_QW = packed(events.of(expert_Q).on_tokens())
        said = statements.token_logic
        a_QW, b_QW = words.of(said.a_E[expert_Q]), words.of(said.b_E[expert_Q])
        token_f1_E[expert_Q] = _f1(gate_words(said.gate_E[expert_Q], a_QW, b_QW, events.num_tokens), fire_QW)
        for number, rules in enumerate(statements.rules):
            own = [(q, rules.circuits[e]) for q, e in enumerate(expert_Q.tolist()) if e in rules.circuits]
            if not own:
                continue
            q_R = torch.tensor([q for q, _ in own])
            true_RW = torch.stack([outputs(circuit, _values(circuit.inputs, words)) for _, circuit in own])
            rule_f1_LE[number, expert_Q[q_R]] = _f1(true_RW & everything(events.num_tokens), fire_QW[q_R])
    return replace(
        statements,
        rules=tuple(replace(rules, f1_E=f1_E) for rules, f1_E in zip(statements.rules, rule_f1_LE, strict=True)),
        token_logic=replace(statements.token_logic, f1_E=token_f1_E),
        rate_E=events.rate_E,
    )


def _values(literals: Sequence[int], words: LiteralWords) -> dict[int, Tensor]:
    return dict(zip(literals, words.of(torch.tensor(literals)), strict=True))


def _f1(true_XW: Tensor, fire_XW: Tensor) -> Tensor:
    return 2 * count(true_XW & fire_XW) / (count(true_XW) + count(fire_XW)).clamp(min=1)


@dataclass(frozen=True, slots=True)
class Firing:
    """(E) on how many tokens each expert of a block fires: as symbols, in the model they were made from, in both."""

    executed_E: Tensor
    distilled_E: Tensor
    both_E: Tensor

    @property
    def f1_E(self) -> Tensor:
        """0 where either never fires."""
        return 2 * self.both_E / (self.executed_E + self.distilled_E).clamp(min=1)


@torch.no_grad()
def executed_firing(
    model: LanguageModel, records: Sequence[LayerRecord], batches: Sequence[Tensor], what: str
) -> list[Firing]:
    """Of every block of the symbols, each model on its own states: `records` are the other's, on the same batches."""
    key_by_layer = [_keys(r.events.expert_P, r.events.token_P, r.events) for r in records]
    found: list[list[Tensor]] = [[] for _ in records]
    seen = 0
    for step in steps(what, len(batches)):
        for layer, visit in enumerate(model.walk(batches[step])):
            pairs = visit.pairs()
            # Heads that reach one expert for one token are one firing.
            found[layer].append(torch.unique(_keys(pairs.expert_P, pairs.token_P + seen, records[layer].events)))
        seen += batches[step].numel()
    return [
        _firing(torch.cat(keys), key_P, record.events)
        for keys, key_P, record in zip(found, key_by_layer, records, strict=True)
    ]


def _firing(key_S: Tensor, key_P: Tensor, events: Events) -> Firing:
    _, hit_S = _found(key_P, key_S)
    expert_S, num_experts = key_S // events.num_tokens, len(events.count_E)
    executed_E, both_E = (torch.bincount(of, minlength=num_experts) for of in (expert_S, expert_S[hit_S]))
    return Firing(executed_E, events.count_E, both_E)
