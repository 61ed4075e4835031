"""python -m pipeline.symbolic show: every expert, old and damaged artifacts, and mistakes."""

import json
import re
import shutil

import pytest
import torch

from artifacts import Circumstance, Recipe, Store
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.magnitudes import coordinates_by_size
from pipeline.symbolic.showing.scores import score_keys
from pipeline.symbolic.tiers import Tier
from tests.catalogue import BY_NAME
from tests.foreign import reseal
from tests.tiny_symbols import DROPPED, LOGIC, SPLINE, D, E


def show(store, capsys, *arguments):
    code = main(["show", *arguments, "--store", str(store.root)])
    return code, *capsys.readouterr()


def test_show_prints_rule_formula_and_contexts_of_a_logic_expert(symbols_store, capsys):
    code, out, err = show(symbols_store, capsys, "latest", "--layer", "0", "--expert", str(LOGIC), "--latex")
    assert (code, err) == (0, "")
    for piece in ("T2, logic and formula", "letters & ~token[-1] in {'\\n', 't'}", "tanh(z)", "where z is", "LaTeX"):
        assert piece in out
    lines = out.split("on the last token of\n")[1].splitlines()
    strengths, contexts = zip(*(line.split(None, 1) for line in lines), strict=True)
    assert len(contexts) == 8
    assert len(set(contexts)) == 8
    assert all(eval(context)[-1].isalpha() for context in contexts)
    assert [*strengths] == sorted(strengths, key=lambda strength: -abs(float(strength)))


@pytest.mark.parametrize("expert", range(DROPPED + 1))
def test_show_shows_every_expert(symbols_store, capsys, expert):
    code, out, err = show(symbols_store, capsys, "latest", "--layer", "1", "--expert", str(expert))
    assert (code, err) == (0, "")
    assert ("never" in out) == (expert == DROPPED)


def test_show_of_a_dense_expert_names_its_largest_terms(symbols_store, capsys):
    _, out, _ = show(symbols_store, capsys, "latest", "--layer", "0", "--expert", "0")
    assert "T0, exact, dense u" in out
    assert f"coordinates  {D}" in out
    assert "A^0_0 + B^0_0 > -2.5 or A^1_0 + B^1_0 > -3.25" in out


def test_show_without_an_expert_counts_tiers_and_ranks_experts(symbols_store, capsys):
    code, out, err = show(symbols_store, capsys, "latest")
    assert (code, err) == (0, "")
    assert "layer 0" in out
    assert "layer 1" in out
    lines = [line.split() for line in out.splitlines()]
    counts = {line[0]: int(line[1]) for line in lines if line and line[0] in Tier.__members__}
    assert counts == {"T0": 1, "T1": SPLINE, "T2": 1, "T3": 1, "T4": 4}
    code, one, _ = show(symbols_store, capsys, "latest", "--layer", "1")
    assert code == 0
    assert "layer 0" not in one


def test_show_names_the_scores_and_coordinates_that_an_expert_reads(symbols_store, symbols, capsys):
    code, out, err = show(symbols_store, capsys, "latest", "--layer", "1", "--expert", "11")
    assert (code, err) == (0, "")
    named = [line.split(None, 1) for line in out.splitlines() if "says" in line]
    _, keys = score_keys(symbols, 1, 11)
    scores = [(f"{axis}^{head}_{key}", f"says {axis} {head} {key} of block 0") for axis, head, key in keys]
    indices = coordinates_by_size(symbol_experts(symbols, 1), 11)
    coordinates = [(f"x_{index}", f"says x None {index} of block 1") for index in indices]
    assert [(symbol, text.split("  ")[0]) for symbol, text in named] == scores + coordinates
    assert "(F1 0.75; null 0.12, permuted 0.25)" in named[-1][1]
    assert "by tokens    cur='e'  (F1 0.62; null 0.031), F1 in the model that was distilled, on held-out text" in out
    assert "by tokens" not in show(symbols_store, capsys, "latest", "--layer", "1", "--expert", "12")[1]


def test_show_of_a_layer_names_the_scores_that_tokens_say_best(symbols_store, capsys):
    _, out, _ = show(symbols_store, capsys, "latest", "--layer", "1")
    named = [line.split()[0] for line in out.splitlines() if "says" in line]
    assert named[:4] == ["A^0_2", "A^1_2", "B^0_2", "B^1_2"]


def test_an_artifact_of_before_scores_had_names_is_shown_without_them(symbols_store, capsys):
    older = min(symbols_store.manifests(), key=lambda m: (m.kind != "symbols", m.lineage.stage_version)).id
    for asked in (("--layer", "1", "--expert", "11"), ("--layer", "0", "--expert", str(LOGIC)), ("--layer", "0")):
        code, out, err = show(symbols_store, capsys, older, *asked)
        assert (code, err) == (0, "")
        assert "says" not in out
        _, newer, _ = show(symbols_store, capsys, "latest", *asked)
        kept = [line for line in newer.splitlines() if "says" not in line and "tokens" not in line]
        assert set(kept[1:]) <= set(out.splitlines()) | {""}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("latest", "--layer", "2"), "layer 2 is not in this model, which has the layers 0 to 1"),
        (
            ("latest", "--layer", "0", "--expert", f"{E}"),
            f"expert {E} is not in layer 0, which has the experts 0 to {E - 1}",
        ),
        (
            ("latest", "--layer", "0", "--expert", "-1"),
            f"expert -1 is not in layer 0, which has the experts 0 to {E - 1}",
        ),
        (("latest", "--expert", "3"), "give --layer too"),
        (("latest", "--json"), "--json is of one expert; give --layer and --expert too"),
        (("latest", "--layer", "0", "--all"), "--all is of one expert; give --layer and --expert too"),
        (("prepare-corpus", "--layer", "0"), "a 'symbols' was needed here"),
        (("nothing-like-it", "--layer", "0"), "nothing-like-it"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(symbols_store, capsys, arguments, sentence):
    code, out, err = show(symbols_store, capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_store_that_is_not_there_is_told(tmp_path, capsys):
    code, out, err = show(Store(tmp_path / "none"), capsys, "latest")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_an_artifact_whose_rules_are_one_gate_an_expert_is_refused_with_what_to_do(symbols, tmp_path, capsys):
    """Tables of before stage version 4: gate_E, literal_a_E and literal_b_E instead of a circuit."""
    spec = symbols.spec.model_dump(mode="json")
    del spec["experts"]["num_gates"]
    new = ("gate_G", "wire_a_G", "wire_b_G", "rule_E")
    tensors = {name: tensor for name, tensor in symbols.to_tensors().items() if not name.endswith(new)}
    tensors |= {f"model.layers.{layer}.moe.gate_E": torch.zeros(E, dtype=torch.uint8) for layer in range(2)}
    older = Store(tmp_path / "store")
    older.publish(
        recipe=Recipe(stage="distill-symbols", stage_version=3, config={}, seed=0, inputs={}),
        kind="symbols", spec=spec, tensors=tensors, metrics={}, files={},
        circumstance=Circumstance.now(device="cpu", seconds=0.0),
    )  # fmt: skip
    code, out, err = show(older, capsys, "latest")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "(experts.symbols.num_gates: Field required)" in err
    assert "has a spec that this version does not read" in err
    assert "make it again" in err


LIES = [
    ("gate_G", 1, 16, "gate_G holds 16 at 1, which is outside 0 to 15"),
    ("wire_b_G", 2, 7, "wire_b_G holds 7 at 2, which is outside 0 to 6"),
    ("wire_a_G", 0, 5, "wire_a_G holds 5 at 0, which is a cycle"),
    ("wire_b_G", 1, 5, "wire_b_G holds 5 at 1, which is a cycle"),
    ("rule_E", 4, 3, "rule_E holds 3 at 4, which is outside 0 to 2"),
    ("code_E", 3, len(BY_NAME), f"code_E holds {len(BY_NAME)} at 3, which is no function"),
    ("coefficient_EK", 9, float("nan"), "coefficient_EK holds nan at 9, which is not finite"),
    ("scale_E", 2, float("inf"), "scale_E holds inf at 2, which is not finite"),
]


@pytest.mark.parametrize(("table", "at", "value", "message"), LIES)
def test_an_artifact_with_a_wrong_entry_is_refused_with_its_place(symbols, tmp_path, capsys, table, at, value, message):
    tensors = {name: tensor.clone() for name, tensor in symbols.to_tensors().items()}
    tensors[f"model.layers.1.moe.{table}"].view(-1)[at] = value
    damaged = Store(tmp_path / "store")
    damaged.publish(
        recipe=Recipe(stage="distill-symbols", stage_version=4, config={}, seed=0, inputs={}),
        kind="symbols", spec=symbols.spec.model_dump(mode="json"), tensors=tensors, metrics={}, files={},
        circumstance=Circumstance.now(device="cpu", seconds=0.0),
    )  # fmt: skip
    code, out, err = show(damaged, capsys, "latest")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"model.layers.1.moe, symbolic experts: {message}" in err
    assert "make the artifact again" in err


EVIL = "\x1b[31m\u202e\n| `x`"


def _in_json(folder, name, change):
    value = json.loads((folder / name).read_bytes())
    (folder / name).write_text(json.dumps(change(value)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("literals.json", b"", "EOF while parsing"),
        ("literals.json", b"[" * 100_000, "recursion limit exceeded"),
        ("literals.json", b"null", "valid array"),
        ("literals.json", b"{}", "valid array"),
        ("literals.json", b'["abcd", "abcd"]', r"literals.json.0 is unusable \(Input should be a valid array"),
        ("literals.json", b"[[1, 2, 3, 4], []]", r"literals.json.0.0 is unusable \(Input should be a valid string"),
        ("literals.json", b'[["\\ud800", "b", "c", "d"]]', "hex escape"),
        ("literals.json", b"[]", r"names \[\] literals by block, and the model has \[4, 4\]"),
        ("literals.json", b'[["a", "b", "c", "d"]]', r"names \[4\] literals by block"),
        ("literals.json", b'[["a", "b", "c", "d"], ["a"]]', r"names \[4, 1\] literals by block"),
        ("literals.json", b'\xef\xbb\xbf[["a"]]', "Invalid JSON"),
        ("names.json", b"", "EOF while parsing"),
        ("names.json", b'{"names": [], "foo": 1}', "names.json.foo is unusable"),
        ("names.json", lambda names: names["experts"][0].update(f1=float("nan")), r"experts.0.f1 .*finite number"),
    ],
)
def test_words_of_another_writer_that_are_none_are_told(symbols_store, tmp_path, capsys, name, content, said):
    store = Store(tmp_path / "store")
    shutil.copytree(symbols_store.root, store.root)
    folder = store.root / store.latest(kind="symbols")
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        _in_json(folder, name, lambda value: (content(value), value)[1])
    reseal(folder)
    for words in (("latest",), ("latest", "--layer", "0", "--expert", str(LOGIC))):
        code, out, err = show(store, capsys, *words)
        assert (code, out) == (2, "")
        assert re.search(said, err)
        assert err.count("\n") == 1


def test_no_control_character_of_foreign_words_reaches_the_terminal(symbols_store, tmp_path, capsys):
    store = Store(tmp_path / "store")
    shutil.copytree(symbols_store.root, store.root)
    folder = store.root / store.latest(kind="symbols")
    _in_json(folder, "literals.json", lambda names: [[EVIL] * len(block) for block in names])

    def change(names):
        for name in names["names"]:
            name.update(statement=EVIL, brief=EVIL, contexts=[EVIL])
        for said in names["experts"]:
            said.update(statement=EVIL)
        return names

    _in_json(folder, "names.json", change)
    reseal(folder)
    for words in ((), ("--layer", "0", "--expert", str(LOGIC)), ("--layer", "1", "--expert", "11")):
        for form in ((), ("--latex",), ("--json",), ("--all",)):
            if words or not form:
                code, out, err = show(store, capsys, "latest", *words, *form)
                assert (code, err) == (0, "")
                assert [one for one in out if not one.isprintable() and one != "\n"] == []
    assert "\\u202e" in out
