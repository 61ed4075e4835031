"""Names of scores and coordinates: planted meanings are found, noise gets none, counting equals going over it all."""

from dataclasses import replace

import pytest
import torch

from kernels.pairs import starts
from kernels.symbol_table.tables import context_of
from pipeline.models.literals import Literals
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.symbolic.names.high import TAIL
from pipeline.symbolic.names.names import Name, Names, TopToken, gate_words
from pipeline.symbolic.names.naming import (
    Words,
    context_before,
    high_scores,
    name_coordinates,
    name_scores,
    search,
)
from pipeline.symbolic.recording import Events, LayerRecord
from pipeline.symbolic.rules.literals import build_literals
from pipeline.symbolic.rules.token_logic import (
    CANDIDATES,
    OR,
    WORTH_A_SECOND_F1,
    TokenStatements,
    best_statements,
    candidates,
    with_own_sets,
)
from tests.logic_gates import gate

# N tokens, E events, D model width, V vocabulary

VOCABULARY = [" a", "from", "7", "\n", "(", "B", "\ufffd", "the", " it"]
V = len(VOCABULARY)
FROM, DIGIT, BROKEN = 1, 2, 6
KEYS, NOISE = 5, V
"""The last coordinate is noise of no token."""


def events(on_NE, context_ON):
    event_P, token_P = torch.nonzero(on_NE.T, as_tuple=True)
    start_E1 = starts(torch.bincount(event_P, minlength=on_NE.shape[1]))
    return Events(token_P=token_P, start_E1=start_E1, context_ON=context_ON)


def words(context_ON):
    counts_V = torch.bincount(context_ON[0], minlength=V)
    literals, names = build_literals(VOCABULARY, counts_V, places=2, identities=4)
    return Words(
        literals=literals,
        literal_names=names,
        vocabulary=VOCABULARY,
        decode=lambda tokens: "".join(VOCABULARY[token] for token in tokens),
    )


def record(seed):
    """Tokens, and states that are their one-hot vectors with noise in the last coordinate."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(V, (40, 50), generator=generator)
    x_ND = torch.cat([torch.eye(V)[tokens_BT.flatten()], torch.rand(2000, 1, generator=generator)], dim=1)
    nothing = torch.zeros(0)
    start_E1, context_ON = torch.zeros(2, dtype=torch.int64), context_of(tokens_BT, 2)
    events = Events(token_P=nothing.long(), start_E1=start_E1, context_ON=context_ON)
    return LayerRecord(x_ND=x_ND, events=events, gate_P=nothing, pre_PM=nothing[:, None])


def router(**changes):
    spec = {
        "num_keys": KEYS, "num_experts": KEYS**2, "num_heads": 2, "sub_keys": "identity", "d_key": KEYS,
        "query_norm": False, "gate": "jumprelu", "pairs_per_head": 2, "active_keys": 2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PeerRouter(PeerSpec(**{**spec, **changes}), V + 1).eval()


@pytest.fixture(scope="module")
def planted():
    """Row 1 of head 0 is high on `from`, row 2 on digits or the broken token, row 3 where noise is; row 0 otherwise."""
    made = router()
    weight_XD = torch.zeros_like(made.query.weight)
    weight_XD[0::KEYS, :V] = 5.0
    weight_XD[0, [FROM, DIGIT, BROKEN]] = 0.0
    weight_XD[1, FROM] = weight_XD[2, DIGIT] = weight_XD[2, BROKEN] = 50.0
    weight_XD[3, NOISE] = 1.0
    with torch.no_grad():
        made.query.weight.copy_(weight_XD)
        # Noise passes on its upper fifth or so.
        made.deviations = 0.8
        made.threshold_H.copy_(torch.tensor([-100.0, -0.5]))
    fit, check = record(1), record(2)
    found = name_scores(made, 3, fit, check, words(fit.events.context_ON), torch.Generator().manual_seed(0))
    return {name.symbol: name for name in found}


def test_a_score_that_is_high_on_one_token_is_named_by_it(planted):
    name = planted["A^0_1"]
    assert (name.kind, name.block, name.axis, name.head, name.index) == ("score", 3, "A", 0, 1)
    assert name.statement == "cur='from'"
    assert name.f1 == 1
    assert name.null_f1 == name.rate == pytest.approx(1 / V, abs=0.03)
    assert name.permuted_f1 < 0.35
    assert [token.text for token in name.top_tokens] == ["from"]
    assert name.top_tokens[0].lift == pytest.approx(V, rel=0.1)
    assert all(context.endswith("from") for context in name.contexts)


def test_a_token_that_is_no_text_by_itself_is_named_by_its_number(planted):
    assert planted["A^0_2"].f1 == 1
    assert set(planted["A^0_2"].statement.removeprefix("cur in {").removesuffix("}").split(", ")) == {"'7'", "token 6"}


def test_a_score_of_noise_is_told_by_its_f1_beside_the_control(planted):
    name = planted["A^0_3"]
    assert 0.1 < name.rate < 0.4
    # To say "always" has an F1 of 2 p / (1 + p), which is all that can be had.
    assert name.f1 < 2 * name.rate / (1 + name.rate) + 0.03
    assert abs(name.f1 - name.permuted_f1) < 0.05


def test_every_score_has_one_name_in_its_place(planted):
    assert list(planted) == [f"{axis}^{head}_{key}" for axis in "AB" for head in range(2) for key in range(KEYS)]


def test_a_score_that_is_never_high_is_named_without_an_error(planted):
    assert (planted["A^0_4"].rate, planted["A^0_4"].f1) == (0, 0)


def test_a_coordinate_is_named_by_its_upper_tail_and_noise_is_not():
    fit, check = record(1), record(2)
    fit, check = (
        replace(r, x_ND=r.x_ND + 0.001 * torch.rand(r.x_ND.shape, generator=torch.Generator().manual_seed(9)))
        for r in (fit, check)
    )
    found = name_coordinates(1, fit, check, words(fit.events.context_ON), torch.Generator().manual_seed(0))
    assert [name.symbol for name in found] == [f"x_{index}" for index in range(V + 1)]
    assert found[FROM].statement == "cur='from'"
    assert found[FROM].rate == pytest.approx(TAIL, abs=0.03)
    # Half of the tokens are as high as that: the tail is a part of them.
    assert found[FROM].f1 > 0.5
    assert found[NOISE].f1 < 0.15


@pytest.mark.parametrize("seed", range(3))
def test_counting_finds_what_going_over_all_statements_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    contexts = [context_of(torch.randint(V, (9, 40), generator=generator), 2) for _ in range(2)]
    shared = words(contexts[0]).literals
    chance_EVV = torch.rand(6, V + 1, V + 1, generator=generator) ** 3
    fit, check = (
        events(torch.rand(360, 6, generator=generator) < chance_EVV[:, c[0], c[1]].T, c) for c in contexts
    )  # fmt: skip
    literals = with_own_sets(fit, shared)
    candidate_EC, single_E = candidates(fit, shared, literals)
    found = best_statements(fit, check, literals, candidate_EC)
    assert candidate_EC.shape[1] == min(CANDIDATES, 2 + len(shared.offset_L))

    def f1(sample, event, kind, a, b):
        value_LN = literals.values(sample.context_ON)
        true_N = gate(kind, value_LN[a], value_LN[b])
        on_N = torch.zeros(sample.num_tokens, dtype=torch.bool)
        on_N[sample.token_P[sample.expert_P == event]] = True
        return float(2 * (true_N & on_N).sum() / max(1, int(true_N.sum() + on_N.sum())))

    for event in range(6):
        chosen = int(found.gate_E[event]), int(found.a_E[event]), int(found.b_E[event])
        own = candidate_EC[event].tolist()
        singles = max(f1(fit, event, 3, a, a) for a in own)
        assert singles == pytest.approx(float(single_E[event]), abs=1e-6)
        most = max(f1(fit, event, kind, a, b) for kind in range(1, 15) for a in own[:6] for b in own[:6])
        here = f1(fit, event, *chosen)
        assert here >= most - WORTH_A_SECOND_F1 - 1e-6
        assert chosen[1] == chosen[2] or here >= singles + WORTH_A_SECOND_F1 - 1e-6
        assert float(found.f1_E[event]) == pytest.approx(f1(check, event, *chosen), abs=1e-6)


def test_events_that_never_happen_have_an_f1_of_0():
    context_ON = record(0).events.context_ON
    never = events(torch.zeros(context_ON.shape[1], 3, dtype=torch.bool), context_ON)
    _, found = search(never, never, words(context_ON).literals)
    assert found.f1_E.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kept", [{"gate": "softmax", "pairs_per_head": 3}, {}], ids=["softmax", "jumprelu"])
def test_no_pair_fires_whose_scores_are_not_both_high(kept):
    made, sample = router(**kept), record(4)
    if made.spec.gate == "jumprelu":
        made.threshold_H.fill_(-1.5)
    with torch.no_grad():
        routing = made(sample.x_ND, torch.zeros(0))
    high = high_scores(made, sample)
    on_NE = torch.zeros(2000, 4 * KEYS, dtype=torch.bool)
    on_NE[high.events.token_P, high.events.expert_P] = True
    token_P = torch.repeat_interleave(torch.arange(2000), routing.start_N1.diff())
    assert len(token_P) > 1000
    rows_NI, columns_NJ = (part.any(1) for part in on_NE.unflatten(1, (2, 2, KEYS)).unbind(1))
    assert bool(rows_NI[token_P, routing.cell_P // KEYS].all())
    assert bool(columns_NJ[token_P, routing.cell_P % KEYS].all())
    assert 0.1 < float(on_NE.float().mean()) < 0.9
    raw_NHI, _ = made.scores(sample.x_ND)
    value_NE = raw_NHI.flatten(1)
    best_E = value_NE.gather(0, high.highest_EK[: 2 * KEYS].T)[0]
    torch.testing.assert_close(best_E, value_NE.amax(0))


def test_a_context_ends_with_the_token_and_stays_within_its_sequence():
    context_ON = context_of(torch.arange(12).view(2, 6), 2)
    assert context_before(context_ON, 4, 3) == [2, 3, 4]
    assert context_before(context_ON, 7, 5) == [6, 7]
    assert context_before(context_ON, 6, 5) == [6]


def test_a_brief_statement_names_the_weightiest_tokens_of_a_set_and_counts_the_others():
    context_ON = record(0).events.context_ON
    on_NE = (context_ON[0] != 6)[:, None] & (context_ON[0] != 3)[:, None]
    literals, found = search(events(on_NE, context_ON), events(on_NE, context_ON), words(context_ON).literals)
    weight_2V = torch.arange(V).expand(2, V)
    whole, brief = (words(context_ON).statement(literals, found, 0, weight_2V, most) for most in (12, 2))
    assert whole == "cur in {' it', 'the', 'B', '(', '7', 'from', ' a'}"
    assert brief == "cur in {' it', 'the' and 5 more}"


def test_either_of_two_sets_of_one_place_is_one_set_in_words():
    literals = Literals(torch.eye(V, dtype=torch.bool), torch.zeros(V, dtype=torch.uint8))
    bare = Words(literals=literals, literal_names=[], vocabulary=VOCABULARY, decode=str)
    weight_2V, (a, b) = torch.ones(2, V), torch.tensor([[FROM], [DIGIT]])
    said = {
        kind: bare.statement(literals, TokenStatements(torch.tensor([kind]), a, b, torch.zeros(1)), 0, weight_2V)
        for kind in (OR, 2)
    }
    assert said == {OR: "cur in {'from', '7'}", 2: "cur='from' and not cur='7'"}


@pytest.mark.parametrize("kind", range(16))
def test_gates_in_words_say_what_the_gates_compute(kind):
    text = gate_words(kind, "a", "b")
    python = {
        "never": "False", "always": "True", "either a or b": "a != b", "neither a nor b": "not (a or b)",
        "a exactly if b": "a == b", "not both a and b": "not (a and b)",
    }.get(text, text)  # fmt: skip
    for a in (False, True):
        for b in (False, True):
            value = bool(gate(kind, torch.tensor([a]), torch.tensor([b])))
            assert bool(eval(python, {"a": a, "b": b})) == value
        same = gate_words(kind, "a", "a").replace("never", "False").replace("always", "True")
        assert bool(eval(same, {"a": a})) == bool(gate(kind, torch.tensor([a]), torch.tensor([a])))


def name(**changes):
    fields = {
        "kind": "score", "block": 0, "axis": "A", "head": 1, "index": 2, "statement": "cur='x'", "brief": "cur='x'",
        "f1": 0.5, "null_f1": 0.1, "permuted_f1": 0.2, "rate": 0.1,
        "top_tokens": (TopToken(text="x", count=3, lift=4.5),), "contexts": ("a x",),
    }  # fmt: skip
    return Name(**{**fields, **changes})


def test_names_come_back_from_their_file_and_are_found_by_block_and_symbol():
    names = Names(
        names=(name(), name(block=1, f1=0.9), name(kind="coordinate", axis="x", head=None), name(index=3, f1=0.7))
    )
    again = Names.model_validate_json(names.model_dump_json())
    assert again == names
    assert [n.symbol for n in again.of(0, ["x_2", "A^1_2", "B^0_0"])] == ["x_2", "A^1_2"]
    assert [n.index for n in again.best_scores(0, 5)] == [3, 2]
    assert again.mean("score", "f1") == pytest.approx((0.5 + 0.9 + 0.7) / 3)
    assert name().words == "cur='x'  (F1 0.50; null 0.10, permuted 0.20)"
