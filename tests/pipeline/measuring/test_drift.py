"""Drift: none of a model from itself, that of a table of tokens and experts from another, and what is refused."""

import csv
import io
import math

import pytest
import torch

from artifacts.meanings import MODEL
from pipeline.corpus.windows import held_out_windows
from pipeline.measuring import held_out
from pipeline.measuring.drift import DRIFTED_ABOVE, Firings, drift_csv, drift_metrics, measure_firings
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.transforms.precision import to_int4, to_int8
from tests.tiny import DENSE, JUMP, SHAPE, SOFTMAX, tiny_model

CONFIG = MeasureConfig(tokens=256, batch_size=5)
LENGTH = 19
E = JUMP.num_experts
CROWDED = JUMP.model_copy(update={"num_experts": 83})
"""Some three experts a cell."""


def model_of(spec, seed=0):
    return tiny_model(spec, vocab_size=256, seed=seed)


def written_out(model, corpus):
    """Of every block, (T, E) whether and by how much each expert fires on each held-out token."""
    inputs_WT, _ = held_out_windows(corpus.held_out, num_tokens=CONFIG.tokens, length=LENGTH)
    with torch.no_grad():
        routings = model.trace(inputs_WT).routings
    tables = []
    for block, routing in zip(model.blocks(), routings, strict=True):
        expert_P, start_N1, gate_P = block.moe.index(routing)
        gate_TE = torch.zeros(inputs_WT.numel(), block.moe.spec.num_experts, dtype=torch.float64)
        fires_TE = torch.zeros_like(gate_TE, dtype=torch.bool)
        for token in range(inputs_WT.numel()):
            for pair in range(start_N1[token], start_N1[token + 1]):
                gate_TE[token, expert_P[pair]] += gate_P[pair]
                fires_TE[token, expert_P[pair]] = True
        tables.append((fires_TE, gate_TE))
    return tables


@pytest.mark.parametrize("spec", [JUMP, SOFTMAX, CROWDED], ids=["jumprelu", "softmax", "crowded"])
def test_firings_are_those_of_the_table_of_all_tokens_and_experts(corpus, spec):
    teacher = model_of(spec)
    student = to_int4(teacher, clips=1)
    repeated = False
    found = measure_firings(student, teacher, HeldOut(corpus, CONFIG, LENGTH))
    tables = zip(found, written_out(student, corpus), written_out(teacher, corpus), strict=True)
    for firings, (student_TE, student_gate_TE), (teacher_TE, teacher_gate_TE) in tables:
        assert firings.tokens == len(student_TE)
        assert torch.equal(firings.student_E, student_TE.sum(0))
        assert torch.equal(firings.teacher_E, teacher_TE.sum(0))
        assert torch.equal(firings.both_E, (student_TE & teacher_TE).sum(0))
        assert torch.equal(firings.either_E, (student_TE | teacher_TE).sum(0))
        torch.testing.assert_close(firings.student_gate_E, student_gate_TE.sum(0))
        torch.testing.assert_close(firings.teacher_gate_E, teacher_gate_TE.sum(0))
        repeated = repeated or bool((teacher_gate_TE.sum(0) > teacher_gate_TE.amax(0)).any())
    assert repeated
    assert found[0].drift_E.max() == 0  # what the first router reads has passed no table
    assert max(firings.drift_E.max() for firings in found[1:]) > 0


@pytest.mark.parametrize("spec", [JUMP, SOFTMAX], ids=["jumprelu", "softmax"])
def test_a_model_has_not_drifted_from_itself(corpus, spec):
    model = model_of(spec)
    firings = measure_firings(model, model, HeldOut(corpus, CONFIG, LENGTH))
    metrics = drift_metrics(firings)
    null = metrics.pop("firing_drift_same_rate_null_mean")
    assert 0.3 < null < 1
    assert metrics == dict.fromkeys(metrics, 0)
    assert all(f.drift_E.eq(0).all() for f in firings)


def test_more_bits_drift_less_and_another_models_tables_most(corpus):
    teacher = model_of(JUMP)
    stranger = model_of(JUMP, seed=1)
    students = to_int8(teacher), to_int4(teacher, clips=21), stranger
    metrics = [
        drift_metrics(measure_firings(student, teacher, HeldOut(corpus, CONFIG, LENGTH))) for student in students
    ]
    for name in ("firing_drift_mean", "firing_drift_gate_weighted", "experts_drifted_share", "gate_shift_mean"):
        int8, int4, other = (m[name] for m in metrics)
        assert 0 <= int8 < int4 < other
    # The routers of two seeds know nothing of each other: their experts drift as far as unrelated sets do.
    assert metrics[2]["firing_drift_mean"] == pytest.approx(metrics[2]["firing_drift_same_rate_null_mean"], abs=0.15)


def test_drift_is_symmetric(corpus):
    a, b = model_of(JUMP), to_int4(model_of(JUMP), clips=1)
    there, back = (measure_firings(*pair, HeldOut(corpus, CONFIG, LENGTH)) for pair in ((a, b), (b, a)))
    for one, other in zip(there, back, strict=True):
        assert torch.equal(one.drift_E, other.drift_E)
        assert torch.equal(one.teacher_E, other.student_E)


def by_hand():
    """Two blocks of three experts on 10 tokens. Expert (0, 2) and (1, 0) never fire; (1, 2) fires in the student."""
    return [
        Firings(
            tokens=10,
            teacher_E=torch.tensor([4, 10, 0]),
            student_E=torch.tensor([5, 10, 0]),
            both_E=torch.tensor([3, 10, 0]),
            teacher_gate_E=torch.tensor([2.0, 5.0, 0.0], dtype=torch.float64),
            student_gate_E=torch.tensor([3.0, 5.0, 0.0], dtype=torch.float64),
        ),
        Firings(
            tokens=10,
            teacher_E=torch.tensor([0, 2, 0]),
            student_E=torch.tensor([0, 2, 1]),
            both_E=torch.tensor([0, 2, 0]),
            teacher_gate_E=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
            student_gate_E=torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64),
        ),
    ]


def test_metrics_are_those_counted_by_hand():
    assert DRIFTED_ABOVE == 0.1
    assert drift_metrics(by_hand()) == pytest.approx(
        {
            "firing_drift_mean": (3 / 6 + 0 + 0 + 1) / 4,
            "firing_drift_gate_weighted": 2 * 3 / 6 / 8,
            "firing_drift_same_rate_null_mean": (1 - 0.4 / 1.6 + 0 + 1 - 0.2 / 1.8 + 1) / 4,
            "experts_drifted_share": 2 / 4,
            "gate_shift_mean": (1 + 0 + 0.5 + 0.5) / 8,
        }
    )


def test_the_same_rate_null_is_what_unrelated_sets_drift():
    generator = torch.Generator().manual_seed(0)
    tokens, rates = 40_000, torch.tensor([0.02, 0.1, 0.4, 0.8])
    a_TE, b_TE = (torch.rand(tokens, 4, generator=generator) < rates for _ in range(2))
    zeros = torch.zeros(4, dtype=torch.float64)
    firings = Firings(
        tokens=tokens, teacher_E=a_TE.sum(0), student_E=b_TE.sum(0), both_E=(a_TE & b_TE).sum(0),
        teacher_gate_E=zeros, student_gate_E=zeros,
    )  # fmt: skip
    torch.testing.assert_close(firings.drift_E, firings.same_rate_drift_E, rtol=0, atol=0.01)


def test_the_csv_has_a_line_an_expert_that_fires():
    rows = list(csv.DictReader(io.StringIO(drift_csv(by_hand()).decode())))
    assert [tuple(row.values()) for row in rows] == [
        ("0", "0", "4", "5", "3", "0.5", "2", "3"),
        ("0", "1", "10", "10", "10", "0", "5", "5"),
        ("1", "1", "2", "2", "2", "0", "1", "0.5"),
        ("1", "2", "0", "1", "0", "1", "0", "0.5"),
    ]
    names = "block", "expert", "fired_teacher", "fired_student", "fired_both", "drift", "gate_teacher", "gate_student"
    assert tuple(rows[0]) == names


def test_models_that_fire_nothing_have_finite_metrics_and_an_empty_table(corpus):
    silent = model_of(JUMP)
    for block in silent.blocks():
        if block.router is not None:
            block.router.threshold_H.fill_(1.0)
    firings = measure_firings(silent, silent, HeldOut(corpus, CONFIG, LENGTH))
    assert drift_metrics(firings) == dict.fromkeys(drift_metrics(by_hand()), 0)
    assert drift_csv(firings).count(b"\n") == 1


def test_it_is_over_few_tokens_whatever_the_measure_has(corpus, monkeypatch):
    monkeypatch.setattr(held_out, "FEW_TOKENS", 2 * LENGTH)
    model = model_of(JUMP)
    many = CONFIG.model_copy(update={"tokens": 4096})
    assert measure_firings(model, model, HeldOut(corpus, many, LENGTH))[0].tokens == 2 * LENGTH


def test_every_metric_is_described_and_finite(corpus):
    teacher = model_of(JUMP)
    metrics = drift_metrics(measure_firings(to_int8(teacher), teacher, HeldOut(corpus, CONFIG, LENGTH)))
    assert set(metrics) <= set(MODEL)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": 36}, r"in block 0, 37 experts in a grid of \(5, 5\) and a teacher's 36 in \(5, 5\)"),
        ({"num_keys": 6}, r"37 experts in a grid of \(5, 5\) and a teacher's 37 in \(6, 6\)"),
    ],
)
def test_models_of_two_pools_are_refused(corpus, changes, said):
    with pytest.raises(ValueError, match=said + ".* it takes models of one pool"):
        measure_firings(model_of(JUMP), model_of(JUMP.model_copy(update=changes)), HeldOut(corpus, CONFIG, LENGTH))


def test_models_of_two_depths_are_refused(corpus):
    deeper = tiny_model(JUMP, vocab_size=256, shape=SHAPE.model_copy(update={"num_layers": 4}))
    with pytest.raises(ValueError, match="a student of 3 blocks and a teacher of 4; it takes models of one pool"):
        measure_firings(model_of(JUMP), deeper, HeldOut(corpus, CONFIG, LENGTH))


def test_the_hidden_units_of_a_dense_model_fire_where_they_are_not_0(corpus):
    model = model_of(DENSE)
    held_out = HeldOut(corpus, CONFIG, LENGTH)
    found = measure_firings(model, model, held_out)
    with torch.no_grad():
        states = model.trace(held_out.windows[0]).expert_inputs
        fires = [(block.moe.up(x_ND) > 0).sum(0) for block, x_ND in zip(model.blocks(), states, strict=True)]
    assert [f.both_E.tolist() for f in found] == [fires_E.tolist() for fires_E in fires]


def test_models_of_two_kinds_have_no_experts_in_common(corpus):
    with pytest.raises(ValueError, match="in block 0, a teacher's expert layer is DenseMLP, and PeerLayer was needed"):
        measure_firings(model_of(JUMP), model_of(DENSE), HeldOut(corpus, CONFIG, LENGTH))
