"""The card of a running stage: short lines, the loss of the current loop, and a size that days do not grow."""

import base64
import re
from itertools import pairwise

import pytest

from pipeline.run import Progress
from pipeline.running.live_card import MOST_POINTS, LiveCurve, tile


def at(step: int, loss: float | None = None, what: str = "train monet", total: int = 1500) -> Progress:
    numbers = {} if loss is None else {"train_loss_nats": loss, "tokens_per_second": 11_000.4}
    return Progress(what=what, step=step, total=total, seconds=step / 10, numbers=numbers)


def points(card: str) -> list[tuple[float, float]]:
    (picture,) = re.findall(r"base64,([\w+/=]+)\)", card)
    (line,) = re.findall(r'points="(.*?)"', base64.b64decode(picture).decode())
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_a_tile_is_lines_that_fit_it():
    assert tile(at(100), at(600, 3.21987)).split("\n\n") == [
        "**train monet**",
        "600 of 1,500",
        "90.0 s left",
        "train_loss_nats 3.22",
        "11,000 tokens/s",
    ]
    assert tile(at(1500), at(1500)) == "**train monet**\n\n1,500 of 1,500"
    waiting = Progress(what="wait for another process that makes it", step=0, total=1, seconds=0.0)
    assert max(map(len, tile(waiting, waiting).split("\n\n"))) <= 42


def test_the_curve_runs_over_the_steps_from_the_highest_loss_to_the_lowest():
    curve = LiveCurve("train-monet")
    assert curve.card() is None
    for step, loss in ((150, 6.0), (750, 4.5), (1500, 3.0)):
        curve.add(at(step, loss))
    card = curve.card()
    assert card is not None
    assert card.startswith("# train-monet\n\n**train monet** · 1,500 of 1,500 · train_loss_nats 3 · 11,000 tokens/s\n")
    (left, top), (middle, half), (right, bottom) = points(card)
    assert half == pytest.approx((top + bottom) / 2)
    assert bottom > top  # pixels count down
    assert (middle - left) / (right - middle) == pytest.approx(600 / 750, abs=0.01)


def test_another_loop_has_a_curve_of_its_own_and_one_without_numbers_none():
    curve = LiveCurve("train-monet")
    curve.add(at(1, 6.0))
    curve.add(at(2, 5.0))
    curve.add(at(1, what="measure"))
    assert curve.card() is None
    assert curve.points == []


def test_a_card_of_a_hundred_thousand_reports_stays_small():
    curve = LiveCurve("train-monet")
    for step in range(1, 100_001):
        curve.add(at(step, 1 / step, total=100_000))
    card = curve.card()
    assert card is not None
    assert MOST_POINTS <= len(points(card)) <= 2 * MOST_POINTS
    assert len(card) < 12_000
    assert curve.points[-1] == (100_000, 1e-5)
    steps = [step for step, _ in curve.points]
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) < 1.01 * 100_000 / MOST_POINTS, "the beginning is drawn as finely as the end"


def test_a_curve_that_goes_on_has_the_latest_report_as_its_last_point():
    curve = LiveCurve("train-monet")
    for step in range(1, 100):
        curve.add(at(step, 1 / step))
        assert curve.points[-1] == (step, 1 / step)
