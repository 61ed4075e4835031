"""The training curve: every step in one interval, means of what was reported, plain data in between, and a csv."""

import csv
import io
import math

import pytest

from pipeline.training.training_curve import MOST_POINTS, Record, to_csv


def recorded(steps, numbers=lambda step: {"nats": float(step)}):
    record = Record(steps=steps, tokens_a_step=7)
    for step in range(steps):
        record.add(step, numbers(step))
    return record


@pytest.mark.parametrize("steps", [1, 2, 7, 199, 200, 201, 399, 1500, 2000, 4001])
def test_every_step_counts_once_and_the_last_is_the_end(steps):
    curve = recorded(steps).curve()
    ends = [0, *(point.step for point in curve)]
    assert ends[-1] == steps
    assert len(curve) <= MOST_POINTS
    assert len(curve) >= min(steps, MOST_POINTS // 2)
    for point, first in zip(curve, ends, strict=False):
        inside = range(first, point.step)
        assert point.numbers["nats"] == pytest.approx(sum(inside) / len(inside))
        assert point.tokens == 7 * point.step


def test_a_number_is_the_mean_of_the_steps_that_report_it():
    """As in a distillation that matches layers first and logits after."""
    record = recorded(900, lambda step: {"error": 4.0} if step < 448 else {"kl": float(step % 2)})
    curve = record.curve()
    assert curve[88].numbers == {"error": 4.0}
    assert curve[89].numbers == {"error": 4.0, "kl": pytest.approx(0.5)}
    assert curve[90].numbers == {"kl": pytest.approx(2 / 5)}


def test_the_last_tenth_is_the_mean_of_its_steps_even_if_another_number_begins_within():
    assert recorded(50).last_tenth() == {"nats": 47.0}
    record = recorded(50, lambda step: {"error": 4.0} if step < 47 else {"kl": float(step)})
    assert record.last_tenth() == {"error": 4.0, "kl": 48.0}


@pytest.mark.parametrize("kill", [1, 5, 6, 299])
def test_a_record_that_goes_on_from_its_state_ends_as_one_that_did_not_stop(kill):
    def numbers(step):
        return {"nats": math.sin(step), **({"more": 1 / (step + 1)} if step % 3 else {})}

    first, second = Record(steps=300, tokens_a_step=7), Record(steps=300, tokens_a_step=7)
    for step in range(kill):
        first.add(step, numbers(step))
    second.load_state_dict(first.state_dict())
    for step in range(kill, 300):
        second.add(step, numbers(step))
    whole = recorded(300, numbers)
    assert to_csv(second.curve()) == to_csv(whole.curve())
    assert second.last_tenth() == whole.last_tenth()
    assert second.totals() == pytest.approx(whole.totals())


def test_totals_are_sums_over_all_steps():
    totals = recorded(900, lambda step: {"refused": 2.0} if step % 3 else {"nats": float(step)}).totals()
    assert totals == {"refused": 1200.0, "nats": sum(range(0, 900, 3))}


def test_a_skipped_step_has_no_numbers_and_is_counted_also_after_a_resumption():
    first, second = Record(steps=10, tokens_a_step=7), Record(steps=10, tokens_a_step=7)
    for step in range(4):
        first.skip(step) if step == 2 else first.add(step, {"nats": 1.0})
    second.load_state_dict(first.state_dict())
    for step in range(4, 10):
        second.skip(step) if step == 7 else second.add(step, {"nats": 1.0})
    assert second.skipped_steps == 2
    assert [point.step for point in second.curve() if not point.numbers] == [3, 8]


def test_the_csv_has_a_line_a_point_every_bit_of_each_number_and_blanks_for_what_was_not_reported():
    curve = recorded(3, lambda step: {"nats": 1 / 3} if step < 2 else {"kl": 1e-17}).curve()
    rows = list(csv.DictReader(io.StringIO(to_csv(curve).decode())))
    assert [(row["step"], row["tokens"]) for row in rows] == [("1", "7"), ("2", "14"), ("3", "21")]
    assert [row["nats"] for row in rows] == [repr(1 / 3), repr(1 / 3), ""]
    assert float(rows[2]["kl"]) == 1e-17
