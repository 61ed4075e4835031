"""Sums as text: all terms, or the largest with the share of those that are left out."""

from types import SimpleNamespace

import sympy

from pipeline.symbolic.showing.firing_text import TERMS, written_sum
from pipeline.symbolic.showing.printed import shortened
from pipeline.symbolic.tiers import Tier

SEVENTEEN = tuple((index, 1.0 if index else -0.5) for index in range(TERMS + 1))


def test_a_sum_that_is_cut_says_how_many_terms_and_what_share_it_leaves_out():
    text = written_sum("a^0_3", "f", SEVENTEEN, 0.25, whole=False)
    assert text.startswith("a^0_3 = +1 f_1 +1 f_2 ")
    assert "f_0" not in text
    assert text.endswith(f"+0.25 ... 1 smaller term ({0.5 / 16.5:.1%} of all coefficients; --all)")
    assert written_sum("f_2", "y", SEVENTEEN, 0.0, whole=True).endswith("+1.0 y_16 -0.5 y_0")
    assert written_sum("f_2", "y", (), 0.0, whole=False) == "f_2 = +0"


def reading(tier, count):
    terms = [sympy.Float(f"{1 + index / 100:.3g}", 3) * sympy.Symbol(f"x_{index}") for index in range(count)]
    return SimpleNamespace(tier=tier, argument=sympy.Add(*terms, sympy.Float("0.001", 3)))


def test_a_formula_of_sixteen_coordinates_keeps_its_intercept_and_a_dense_one_says_what_it_leaves_out():
    shown = shortened(reading(Tier.T1, 16))
    assert {f"x_{index}" for index in range(16)} <= set(shown.replace("*", " ").split())
    assert "0.001" in shown
    assert "..." not in shown
    dense = shortened(reading(Tier.T0, 18))
    assert dense.endswith(f" + 0.00100 ... 2 smaller terms ({2.01 / 19.53:.1%} of all coefficients; --all)")
    assert "x_17" in dense
    assert "x_1 " not in dense
