"""Artifacts side by side: settings that differ and no others, metrics, curves; 80 columns."""

import pytest

from artifacts import Recipe, Store
from kernels.errors import Failure
from pipeline.compare import curves_of, main, shared_numbers
from pipeline.training.training_curve import Point, from_csv, to_csv
from tests.circumstance import CIRCUMSTANCE
from tests.pictures import assert_picture

CURVE = (
    Point(step=2, tokens=16, numbers={"train_loss_nats": 3.25, "uniformity_loss": 0.5}),
    Point(step=4, tokens=32, numbers={"train_loss_nats": 2.0}),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("compare") / "store")


@pytest.fixture(scope="module")
def ids(store):
    """A corpus without a curve, two Monets and a dense model."""

    def publish(stage, kind, config, metrics, files, seed=0, **inputs):
        recipe = Recipe(stage=stage, stage_version=1, config=config, seed=seed, inputs=inputs)
        return store.publish(
            recipe=recipe, kind=kind, spec={}, tensors={}, metrics=metrics, files=files, circumstance=CIRCUMSTANCE
        )  # fmt: skip

    corpus = publish("prepare-corpus", "corpus", {"vocab_size": 300}, {"train_tokens": 9_000}, {})
    curve = {"training.csv": to_csv(CURVE)}
    training = {"steps": 4, "learning_rate": 0.003}
    return [
        corpus,
        publish("train-monet", "monet", {"training": training, "monet": {"k": 3}},
                {"held_out_loss_nats": 2.5, "num_parameters": 1_100_928, "uniformity_loss": 0.5}, curve, corpus=corpus),
        publish("train-monet", "monet", {"training": {**training, "steps": 9}, "monet": {"k": 3}},
                {"held_out_loss_nats": 2.25, "num_parameters": 1_100_928}, curve, seed=1, corpus=corpus),
        publish("train-dense", "dense", {"training": training, "mlp": {"d_hidden": 7}},
                {"held_out_loss_nats": 2.75, "num_parameters": 1_100_604}, curve, corpus=corpus),
    ]  # fmt: skip


@pytest.fixture
def compare(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def compare(*words):
        code = main([*map(str, words), "--store", str(store.root)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return compare


def cells(text):
    return [line.split() for line in text.splitlines()]


def test_two_of_a_stage_show_the_settings_that_differ_and_all_metrics_of_both(compare, ids):
    code, out, err = compare(ids[1], ids[2])
    assert (code, err) == (0, "")
    who, settings, metrics = out.rstrip("\n").split("\n\n")
    assert who == f"a  {ids[1]}\nb  {ids[2]}"
    assert cells(settings) == [
        ["settings", "that", "differ", "a", "b"],
        ["seed", "0", "1"],
        ["training.steps", "4", "9"],
    ]
    assert cells(metrics) == [
        ["metrics", "a", "b"],
        ["held_out_loss_nats", "2.5", "2.25"],
        ["num_parameters", "1,100,928", "1,100,928"],
    ]


def test_of_other_stages_what_two_of_them_have(compare, ids):
    _, settings, metrics = compare(ids[1], ids[3], ids[2])[1].rstrip("\n").split("\n\n")
    assert cells(settings)[1:] == [
        ["stage", "train-monet", "train-dense", "train-monet"],
        ["seed", "0", "0", "1"],
        ["training.steps", "4", "4", "9"],
    ]
    assert cells(metrics)[1] == ["held_out_loss_nats", "2.5", "2.75", "2.25"]


def test_kinds_that_share_nothing_are_compared_all_the_same(compare, ids):
    code, out, _ = compare(ids[0], ids[3])
    assert code == 0
    assert "stage" in out
    assert out.endswith("no metric that two of them have\n")
    assert "no setting differs" in compare(ids[3], ids[3])[1]


def test_five_artifacts_fit_80_columns(compare, ids):
    out = compare(*ids, ids[1])[1]
    assert max(map(len, out.splitlines())) <= 80
    assert cells(out.split("\n\n")[1])[0][-5:] == list("abcde")


def test_curves_are_drawn_over_each_other(compare, ids, store, tmp_path):
    picture = tmp_path / "curves.png"
    out = compare(*ids, "--to", picture)[1]
    said = "train_loss_nats, uniformity_loss of 3 artifacts, 1 have no curve"
    assert out.rstrip("\n").split("\n\n")[-1] == f"{picture}: {said}"
    assert_picture(picture.read_bytes())
    curves = curves_of(store, [store.manifest(id) for id in ids])
    assert list(curves.values()) == [CURVE] * 3
    assert next(iter(curves)) == f"b  {ids[1]}"


def test_numbers_that_no_two_curves_share_are_drawn_all_the_same():
    one = (Point(step=1, tokens=8, numbers={"a": 1.0, "b": 2.0}),)
    other = (Point(step=1, tokens=8, numbers={"b": 1.0, "c": 2.0}),)
    assert shared_numbers({"one": one, "other": other}) == ["b"]
    assert shared_numbers({"one": one}) == ["a", "b"]


def test_a_curve_comes_back_from_its_file():
    assert from_csv(to_csv(CURVE)) == CURVE
    with pytest.raises(Failure, match="no curve of a training"):
        from_csv(b"step,tokens,loss\n1,2,x\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latest"], "got 1 artifacts, wanted 2 to 26"),
        (["latest", "nope"], "no artifact 'nope'"),
        (["prepare", "prepare", "--to", "x.png"], "--to: none of them has a training curve (training.csv)"),
        (["latest", "latest", "--to", "/proc/no/x.png"], "--to: /proc/no/x.png cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_sentence(compare, ids, words, said):
    code, out, err = compare(*words)
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert err.count("\n") == 1
