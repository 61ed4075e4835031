"""The page of symbols: texts of model and corpus stay text, and graphs keep the data within their frame."""

import re
from xml.etree import ElementTree

import sympy

from pipeline.symbolic.names.names import Name, TopToken
from pipeline.symbolic.showing.page import page
from pipeline.symbolic.showing.reading import Reading
from pipeline.symbolic.showing.showcase import Context, LongerRule, Showcase
from pipeline.symbolic.showing.svg_graph import HEIGHT, WIDTH, graph
from pipeline.symbolic.tiers import Tier

SCRIPT = "<script>alert('it & \"this\"')</script>"
METRICS = {f"{kind}_share_t{number}": 0.2 for kind in ("expert", "energy") for number in range(5)}


def test_no_text_of_a_model_becomes_an_element():
    literal = sympy.Symbol(f"token[0] is {SCRIPT!r}")
    name = Name(
        kind="score", block=0, axis="A", head=0, index=1, statement=SCRIPT, brief=SCRIPT, f1=0.5, null_f1=0.1,
        permuted_f1=0.2, rate=0.1, top_tokens=(TopToken(text=SCRIPT, count=2, lift=3.0),), contexts=(SCRIPT,),
    )  # fmt: skip
    reading = Reading(
        layer=0, expert=7, tier=Tier.T2, firing=str(literal), rule=literal, function=sympy.Float(1.5),
        argument=sympy.Float(0), magnitude=sympy.Float(1.5), num_coordinates=0, direction=f"raises {SCRIPT!r}",
    )  # fmt: skip
    rule = sympy.Or(sympy.And(literal, sympy.Symbol("b")), sympy.Not(sympy.Symbol("c")))
    longer = LongerRule(learner="tree", rule=rule, num_gates=3, f1=0.75, gate_f1=0.5)
    shown = Showcase(
        reading=reading, why=SCRIPT, energy_share=0.5, token_statement=SCRIPT, token_f1=0.5, rate=0.1,
        sums=(SCRIPT,), scores=(name,), features=(name,), coordinates=(name,),
        graph=graph([(0, 0), (1, 1)], [], SCRIPT, SCRIPT), longer_rule=longer,
        contexts=(Context(before=SCRIPT, token=SCRIPT, strength=1.0),),
    )  # fmt: skip
    html = page(METRICS, [shown])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 10
    assert "<mark>&lt;script&gt;" in html
    assert "(tree, 3 gates, F1 0.75; best gate of two 0.50)" in html
    assert r"\wedge" in html


def test_a_model_of_no_readable_expert_has_a_page():
    html = page({**METRICS, "loss_recovered": 0.987654}, [])
    assert "0 experts, chosen by rule" in html
    assert "0.9877" in html


def test_a_graph_is_well_formed_and_within_its_frame():
    curve, points = [(float(x), x**3 - 40.0) for x in range(-5, 6)], [(-9.0, 3.0), (2.0, 1e4)]
    root = ElementTree.fromstring(graph(curve, points, "z", "value"))
    ends = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"-9", "5", "-165", "1e+04", "z", "value"} == ends
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    places += [tuple(map(float, place.split(","))) for place in line.get("points").split()]
    assert len(places) == 13
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_a_graph_of_one_value_has_a_frame_all_the_same():
    svg = graph([(0.0, 2.0), (1.0, 2.0)], [(0.0, 2.0)], "z", "value")
    assert not re.search("nan|inf", svg)
