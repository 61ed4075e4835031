"""The page of symbols: texts of model and corpus stay text, and graphs keep the data within their frame."""

import re
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import sympy

from artifacts.columns import SYMBOLS, columns
from artifacts.meanings import meaning
from pipeline.symbolic.names.names import Name, TopToken
from pipeline.symbolic.showing.index import LayerMap, Row
from pipeline.symbolic.showing.page import page
from pipeline.symbolic.showing.plain_words import PLAIN
from pipeline.symbolic.showing.reading import Reading
from pipeline.symbolic.showing.showcase import Context, LongerRule, Showcase
from pipeline.symbolic.showing.svg_graph import HEIGHT, WIDTH, graph
from pipeline.symbolic.tiers import Tier

SCRIPT = "<script>alert('it & \"this\"')</script>"
METRICS = {f"{kind}_share_t{number}": 0.2 for kind in ("expert", "energy") for number in range(5)}
LAYERS = [
    LayerMap(layer=layer, num_experts=9, expert_shares=(0.2,) * 5, energy_shares=(0.2,) * 5, firings_per_token=2.5)
    for layer in range(2)
]


class Elements(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.last = Counter(), [], "", None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        self.last = tag

    def handle_data(self, data):
        self.scripts += data if self.last == "script" else ""

    def handle_endtag(self, tag):
        self.last = None


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
    row = Row(
        layer=0, expert=7, tier=Tier.T2, energy_share=0.5, rate=0.1, statement=SCRIPT, f1=0.5, raises=repr(SCRIPT)
    )  # fmt: skip
    html = page({**METRICS, SCRIPT: 1.0}, LAYERS, [row], [shown])
    found = Elements(html)
    assert found.tags["script"] == 1
    assert "alert(" not in found.scripts
    assert {name for name, _ in found.attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "id", "class", "style", "title", "href", "type",
        "placeholder", "value", "data-energy", "data-f1", "data-rate", "data-layer", "data-expert", "xmlns", "viewbox",
        "width", "height", "role", "d", "fill", "stroke", "stroke-width", "points", "cx", "cy", "r", "x", "y",
        "font-size", "text-anchor",
    }  # fmt: skip
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    assert html.count("&lt;script&gt;") >= 10
    assert "<mark>&lt;script&gt;" in html
    assert "(tree, 3 gates,\nF1 0.75; best gate of two 0.50;" in html
    assert r"\wedge" in html


def test_a_model_of_no_readable_expert_has_a_page():
    html = page({**METRICS, "loss_recovered": 0.987654, "loss_recovered_biases_alone": 0.25}, LAYERS, [], [])
    assert "0 experts can be read" in html
    assert "0.9877" in html
    assert "<b>0.25</b> loss_recovered_biases_alone: control:" in html


def test_every_metric_of_the_page_has_plain_words():
    shown = [column.metric for column in columns(SYMBOLS)]
    assert sorted(PLAIN) == sorted(shown)
    html = page({**METRICS, **dict.fromkeys(shown, 0.5)}, LAYERS, [], [])
    for metric in shown:
        assert PLAIN[metric] in unescape(html)
        assert meaning(metric, "symbols") in unescape(html)


def test_a_page_runs_its_own_script_alone():
    html = page(METRICS, LAYERS, [], [])
    policy = next(value for name, value in Elements(html).attributes if name == "content" and "script-src" in value)
    digest = b64encode(sha256(Elements(html).scripts.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert policy.startswith("default-src 'none';")


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
