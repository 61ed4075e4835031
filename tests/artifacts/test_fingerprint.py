"""Canonical JSON has one text a value, on every run, and refuses what has none."""

import json
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from artifacts import Recipe, canonical_json, fingerprint, sha256_of_bytes, sha256_of_file

ROOT = Path(__file__).parents[2]

quick = settings(max_examples=50, deadline=None)

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


class Config(BaseModel):
    model_config = ConfigDict(frozen=True)

    rate: float = 1e-3
    sizes: tuple[int, ...] = (3, 5)
    names: frozenset[str] | None = None
    where: Path | None = None


@quick
@given(values)
def test_canonical_json_reads_back_as_the_value(value):
    assert json.loads(canonical_json(value)) == value


@quick
@given(st.dictionaries(st.text(max_size=5), values, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_change_the_text(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@quick
@given(values, values)
def test_values_of_different_text_differ_in_json(a, b):
    assert (canonical_json(a) == canonical_json(b)) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


@quick
@given(values)
def test_canonical_json_is_compact_ascii_and_a_fixed_point(value):
    text = canonical_json(value)
    assert text.isascii()
    assert canonical_json(json.loads(text)) == text


def test_a_fingerprint_is_twelve_hex_digits_of_the_sha256():
    assert fingerprint({"b": 1, "a": [True, None]}) == sha256_of_bytes(b'{"a":[true,null],"b":1}')[:12]


def test_a_pydantic_model_counts_as_its_json():
    assert canonical_json(Config()) == '{"names":null,"rate":0.001,"sizes":[3,5],"where":null}'
    assert fingerprint({"config": Config()}) == fingerprint({"config": Config().model_dump(mode="json")})


def test_an_enum_counts_as_its_value():
    class Gate(Enum):
        SOFT = "soft"

    class Size(int, Enum):
        BIG = 3

    assert canonical_json([Gate.SOFT, Size.BIG]) == '["soft",3]'


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset(), b"x", object(), Path("a"), {1: "a"}, {None: 1}, [{"a": {3}}], "\ud800", 1j]
)
def test_what_has_no_stable_bytes_is_a_type_error(value):
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_set_inside_a_model_is_refused_though_pydantic_would_write_it():
    with pytest.raises(TypeError, match=r"\['names'\] is a set, whose order differs between runs"):
        canonical_json(Config(names=frozenset({"a", "b"})))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named_with_its_place(number):
    with pytest.raises(ValueError, match=r"the value\['lr'\]\[1\] is"):
        canonical_json({"lr": [0.5, number]})
    with pytest.raises(ValueError, match=r"\['rate'\] is"):
        canonical_json(Config(rate=number))


def test_the_same_recipe_has_the_same_id_in_two_processes():
    config = {name: {"rate": 1e-3, "name": name} for name in ("zeta", "alpha", "Ω")}
    here = Recipe(stage="train-monet", stage_version=3, config=config, seed=7, inputs={})
    program = f"from artifacts import Recipe; print(Recipe.model_validate_json({here.model_dump_json()!r}).id)"
    there = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here.id


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"legible")
    assert sha256_of_file(tmp_path / "x") == sha256_of_bytes(b"legible")
