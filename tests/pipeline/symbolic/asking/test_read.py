"""read: the experts of a token are those that a hook finds, contributions are computed apart, pages are safe."""

import json
from html.parser import HTMLParser

import pytest
import torch

from pipeline.opening import Opened, open_model
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.asking.read import read
from pipeline.symbolic.asking.read_page import read_page
from pipeline.symbolic.asking.words import KnownWords, known_words, written_by
from pipeline.symbolic.names.names import Said
from pipeline.symbolic.showing.fired import firings
from tests.tiny import EVERY_KIND, tiny_corpus, tiny_model
from tests.tiny_symbols import TEXT, symbols_model

NO_WORDS = KnownWords(names_of=None, experts={}, quantities={})
SCRIPT = "</script><script>alert('it & \"this\"')</script>"
SENTENCE = "the cat sat on a mat"


def of_kind(kind):
    model = tiny_model(EVERY_KIND[kind], vocab_size=256)
    return Opened(id="tiny", model=model, corpus=tiny_corpus(), context=40)


def given_to_experts(model, tokens_BT):
    """(x_ND, routing) of each block and the logits, by plain forward hooks."""
    given = []
    hooks = [block.moe.register_forward_hook(lambda *call: given.append(call[1])) for block in model.blocks()]
    with torch.no_grad():
        logits_BTV = model(tokens_BT)
    for hook in hooks:
        hook.remove()
    return given, logits_BTV


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_experts_and_contributions_are_those_of_the_layers_own_pairs(kind):
    opened = of_kind(kind)
    found = read(opened, NO_WORDS, SENTENCE, most=10**4)
    given, logits_BTV = given_to_experts(opened.model, torch.tensor([list(SENTENCE.encode())]))
    chance_NV = logits_BTV[0].softmax(-1)
    assert len(found.tokens) == found.tokens_given == len(SENTENCE)
    for place, token in enumerate(found.tokens):
        assert token.token == SENTENCE.encode()[place]
        wanted = None if place == 0 else float(chance_NV[place - 1, token.token])
        assert token.probability == (None if wanted is None else pytest.approx(wanted, rel=1e-5))
        assert [of_layer.layer for of_layer in token.layers] == [0, 1, 2]
        for of_layer, (x_ND, routing) in zip(token.layers, given, strict=True):
            pairs, adds = opened.model.blocks()[of_layer.layer].moe.pairs(x_ND, routing), {}
            parts = (part.tolist() for part in (pairs.token_P, pairs.expert_P, pairs.norm_P))
            for at, expert, norm in zip(*parts, strict=True):
                if at == place and norm > 0:
                    adds[expert] = adds.get(expert, 0.0) + norm
            assert {one.expert: one.contribution for one in of_layer.experts} == pytest.approx(adds, rel=1e-5)
            assert of_layer.fired == len(adds)
            assert of_layer.contribution == pytest.approx(sum(adds.values()), rel=1e-5)
            contributions = [one.contribution for one in of_layer.experts]
            assert contributions == sorted(contributions, reverse=True)
            assert not adds or sum(one.share for one in of_layer.experts) == pytest.approx(1)


def test_contributions_of_symbols_are_gate_times_magnitude_times_the_length_of_v():
    model = symbols_model()
    opened = Opened(id="tiny", model=model, corpus=tiny_corpus(), context=40)
    found = read(opened, NO_WORDS, SENTENCE, most=4)
    given, _ = given_to_experts(model, torch.tensor([list(SENTENCE.encode())]))
    for layer, (x_ND, routing) in enumerate(given):
        experts = model.blocks()[layer].moe
        fired = firings(experts, x_ND, routing)
        length_P = fired.strength_P.abs() * experts.v.rows(fired.expert_P).norm(dim=1)
        for place, token in enumerate(found.tokens):
            on_P = fired.token_P == place
            best = length_P[on_P].topk(min(4, int((length_P[on_P] > 0).sum())))
            shown = token.layers[layer].experts
            assert [one.contribution for one in shown] == pytest.approx(best.values.tolist(), rel=1e-4)
            assert [one.expert for one in shown] == fired.expert_P[on_P][best.indices].tolist()


def test_names_are_the_models_own_or_those_of_symbols_made_of_it(symbols_store):
    opened = open_model(symbols_store, "latest", "symbols")
    words = known_words(symbols_store, opened.id)
    assert words.names_of == opened.id
    older = min(symbols_store.manifests(), key=lambda m: (m.kind != "symbols", m.lineage.stage_version)).id
    assert known_words(symbols_store, older).names_of is None
    # The corpus stands for a model that symbols were made of: the latest of them speak.
    parent = symbols_store.manifest("prepare-corpus").id
    assert known_words(symbols_store, parent).names_of == opened.id
    assert words.experts[1, 11].statement == "cur='e'"


@pytest.mark.parametrize("kind", ["peer-jumprelu", "int4", "dense"])
def test_what_an_expert_writes_is_what_its_row_of_v_does_to_the_logits(kind):
    model = of_kind(kind).model
    (found,) = written_by(model, 1, [7])
    if kind == "dense":
        assert found is None
        return
    v_D = model.blocks()[1].moe.tables()["v"].rows(torch.tensor([7]))[0]
    by_token = {
        token: sum(a * b * c for a, b, c in zip(row, v_D.tolist(), model.model.norm.weight.tolist(), strict=True))
        for token, row in enumerate(model.lm_head.weight.tolist())
    }
    ordered = sorted(by_token, key=lambda token: -by_token[token])
    assert found.raises == tuple(ordered[:5])
    assert found.lowers == tuple(ordered[::-1][:5])


def test_a_long_text_is_cut_to_what_the_model_was_trained_on_with_a_word(symbols_store, tmp_path, capsys):
    file = tmp_path / "long.txt"
    file.write_text(TEXT * 9)
    code = main(["read", "latest", "--file", str(file), "--json", "--layer", "1", "--store", str(symbols_store.root)])
    out, err = capsys.readouterr()
    assert code == 0
    found = json.loads(out)
    assert (len(found["tokens"]), found["tokens_given"]) == (128, len(TEXT) * 9)
    assert "was trained on 128 tokens of context: the first 128 of 486 tokens are read" in err
    assert all([of_layer["layer"] for of_layer in token["layers"]] == [1] for token in found["tokens"])


def test_the_lines_are_of_80_columns_and_move_no_cursor(symbols_store, capsys):
    text = f"e\x1b[2J\u202e{SCRIPT}é\t€"
    code = main(["read", "latest", "--text", text, "--most", "9", "--store", str(symbols_store.root)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert all(line.isprintable() for line in out.splitlines())
    assert r"'\u001b'" in out
    assert r"'\xe2'" in out
    lines = [line for line in out.splitlines() if "cur='e'" in line]
    assert all(line.split()[:2] == ["1", "11"] and line.endswith("F1 0.62 (0.031)") for line in lines)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        (self.scripts if self.tags[-1:] == ["script"] else self.text).append(data)


def test_no_text_becomes_an_element_of_the_page_and_nothing_is_fetched(symbols_store):
    opened = open_model(symbols_store, "latest", "symbols")
    said = Said(block=1, expert=0, statement=SCRIPT, f1=0.5, null_f1=0.1)
    experts = {(layer, expert): said for layer in range(2) for expert in range(40)}
    words = KnownWords(names_of=SCRIPT, experts=experts, quantities={})
    found = read(opened, words, f'{SCRIPT}<img src=x onerror="alert(1)">\x00\x1b\u202e', most=3)
    html = read_page(found.model_copy(update={"model": SCRIPT}))
    page = Elements()
    page.feed(html)
    assert page.tags.count("script") == 1
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "button", "div", "span", "section", "code",
        "table", "tr", "th", "td", "script",
    }  # fmt: skip
    assert not {name for name, _ in page.attributes} & {"src", "href", "onerror", "onload"}
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    assert "alert(" not in "".join(page.scripts)
    assert sum(SCRIPT in text for text in page.text) > 10
    assert not {"\x00", "\x1b", "\u202e"} & {*html}


def test_a_page_is_written_where_it_is_asked_for(symbols_store, tmp_path, capsys):
    to = tmp_path / "read.html"
    code = main(["read", "latest", "--text", "a cat", "--to", str(to), "--store", str(symbols_store.root)])
    assert (code, capsys.readouterr().out) == (0, f"{to}: 5 tokens; open it in a browser\n")
    assert to.read_text().count('class="token"') == 5
    code = main(["read", "latest", "--text", "a", "--to", "/nothing/x.html", "--store", str(symbols_store.root)])
    assert (code, capsys.readouterr().err.startswith("--to: /nothing/x.html cannot be written (")) == (2, True)
