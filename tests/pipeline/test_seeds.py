"""The tables of README.md: means and deviations over seeds, and paired differences, from manifests alone."""

import math

import pytest
import torch

from artifacts import Circumstance, Recipe, Store
from pipeline.seeds import main, newest_by_seed, pairs_of, spread


def _publish(store, stage, seed, *, inputs=None, config=None, **metrics):
    return store.publish(
        recipe=Recipe(stage=stage, stage_version=1, config=config or {}, seed=seed, inputs=inputs or {}),
        kind="corpus" if stage == "prepare-corpus" else stage.removeprefix("train-"),
        spec={},
        tensors={"w": torch.full((3,), float(seed))},
        metrics=metrics,
        files={},
        circumstance=Circumstance.now(device="cpu", seconds=1.0),
    )


@pytest.fixture
def seeded(tmp_path):
    store = Store(tmp_path / "store")
    for seed, loss in ((0, 2.0), (1, 3.0), (2, 4.0)):
        _publish(store, "train-dense", seed, held_out_loss_nats=loss)
    return store


def test_the_spread_is_mean_and_sample_deviation():
    assert spread([2.0, 3.0, 4.0], "{:.2f}") == "3.00 ± 1.00"
    assert spread([2.0], "{:+.1f}") == "+2.0"
    assert spread([], "{:.1f}") == ""


def test_a_stage_is_one_row_over_its_seeds(seeded, capsys):
    assert set(newest_by_seed(seeded.manifests())["train-dense"]) == {0, 1, 2}
    assert main(["--store", str(seeded.root)]) == 0
    assert "| `train-dense` | 3 |  | 3.0000 ± 1.0000 |" in capsys.readouterr().out


def test_a_stage_that_is_not_there_is_told(seeded, capsys):
    assert main(["--store", str(seeded.root), "--stage", "train-monet"]) == 2
    assert "train-dense" in capsys.readouterr().err


def _published_pairs(store, losses):
    """A corpus a seed, and dense and Monet of these losses on it."""
    for seed, (dense, monet) in enumerate(losses):
        inputs = {"corpus": _publish(store, "prepare-corpus", seed)}
        for stage, loss, size in (("train-dense", dense, 1_000_100), ("train-monet", monet, 1_000_000)):
            _publish(store, stage, seed, inputs=inputs, held_out_loss_nats=loss, num_parameters=size)


def test_dense_stands_against_monet_paired_by_seed_with_students_interval(tmp_path, capsys):
    """By hand: differences .1, .2, .3 have mean .2, deviation .1, and t of two degrees of freedom is 4.30265."""
    store = Store(tmp_path / "store")
    _published_pairs(store, [(2.1, 2.0), (3.2, 3.0), (4.3, 4.0)])
    assert main(["--store", str(store.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = lines.index("| 3 seeds | dense | Monet | dense - Monet, 95 % |")
    half_width = 4.30265 * 0.1 / math.sqrt(3)
    assert lines[head + 2] == f"| loss, nats | 3.2000 ± 1.1000 | 3.0000 ± 1.0000 | +0.2000 ± {half_width:.4f} |"
    assert lines[head + 3] == "| parameters | 1,000,100 ± 0 | 1,000,000 ± 0 | +100 ± 0 |"
    assert len(lines) == head + 4  # no row for what was not measured


def test_one_seed_has_a_difference_and_no_interval(tmp_path, capsys):
    store = Store(tmp_path / "store")
    _published_pairs(store, [(2.1, 2.0)])
    assert main(["--store", str(store.root)]) == 0
    assert "| loss, nats | 2.1000 | 2.0000 | +0.1000 |" in capsys.readouterr().out


def test_models_of_different_corpora_are_no_pair(tmp_path, capsys):
    store = Store(tmp_path / "store")
    corpora = [_publish(store, "prepare-corpus", seed) for seed in (0, 1)]
    for stage, corpus in zip(("train-dense", "train-monet"), corpora, strict=True):
        _publish(store, stage, 0, inputs={"corpus": corpus}, held_out_loss_nats=2.0)
    assert pairs_of(newest_by_seed(store.manifests())) == []
    assert main(["--store", str(store.root)]) == 0
    out = capsys.readouterr().out
    assert "dense - Monet" not in out
    assert f"**Not compared: seed 0: corpus of dense {corpora[0]}, Monet {corpora[1]}.**" in out


def _trained(store, stage, seed, corpus, *, loss, context=128, tokens=1_536_000.0):
    config = {"training": {"context_length": context, "steps": tokens // context}}
    return _publish(
        store, stage, seed, inputs={"corpus": corpus}, config=config, held_out_loss_nats=loss, train_tokens=tokens
    )


def _two_seeds(store) -> list:
    """Corpora of two seeds, with dense and Monet trained alike on each."""
    corpora = [_publish(store, "prepare-corpus", seed, config={"sources": ["a"]}) for seed in (0, 1)]
    for seed, corpus in enumerate(corpora):
        _trained(store, "train-dense", seed, corpus, loss=3.0 + seed)
        _trained(store, "train-monet", seed, corpus, loss=2.5 + seed)
    return corpora


def test_seeds_that_trained_alike_have_columns_that_show_it_and_no_warning(tmp_path, capsys):
    store = Store(tmp_path / "store")
    _two_seeds(store)
    assert main(["--store", str(store.root)]) == 0
    out = capsys.readouterr().out
    assert "Not" not in out
    head, dense = (out.splitlines()[row].split(" | ") for row in (0, 2))
    assert [dense[head.index(column)] for column in ("loss, nats", "train tokens", "context")] == [
        "3.5000 ± 0.7071", "1,536,000 ± 0", "128 ± 0"
    ]  # fmt: skip
    assert "| 2 seeds | dense | Monet | dense - Monet, 95 % |" in out


@pytest.mark.parametrize(
    ("changes", "unlike", "no_pair"),
    [
        (
            {"tokens": 410_624.0},
            "train tokens of seed 0 1,536,000, seed 1 410,624",
            "train tokens of dense 410,624, Monet 1,536,000",
        ),
        ({"context": 64}, "context of seed 0 128, seed 1 64", "context of dense 64, Monet 128"),
    ],
)
def test_a_dense_arm_made_otherwise_is_flagged_and_set_against_no_monet(tmp_path, capsys, changes, unlike, no_pair):
    store = Store(tmp_path / "store")
    corpora = _two_seeds(store)
    _trained(store, "train-dense", 1, corpora[1], loss=9.0, **changes)
    assert main(["--store", str(store.root)]) == 0
    out = capsys.readouterr().out
    assert f"**Not alike: train-dense: {unlike}.**" in out
    assert f"**Not compared: seed 1: {no_pair}.**" in out
    assert "| 1 seeds | dense | Monet | dense - Monet, 95 % |" in out
    assert "| loss, nats | 3.0000 | 2.5000 | +0.5000 |" in out


def test_seeds_of_other_text_are_flagged_and_another_seed_of_the_same_text_is_not(tmp_path, capsys):
    store = Store(tmp_path / "store")
    _two_seeds(store)
    other = _publish(store, "prepare-corpus", 1, config={"sources": ["b"]})
    _trained(store, "train-dense", 1, other, loss=4.0)
    assert main(["--store", str(store.root)]) == 0
    out = capsys.readouterr().out
    texts = out.split("**Not alike: train-dense: text of seed 0 ")[1].split(".**")[0].split(", seed 1 ")
    assert len(set(texts)) == 2
    assert "Not alike: train-monet" not in out
    assert "**Not compared: seed 1: corpus of dense" in out


@pytest.mark.parametrize("columns", [None, 80, 300])
def test_in_a_narrow_terminal_a_wide_table_is_lines_and_in_a_file_it_is_markdown(
    columns, tmp_path, capsys, monkeypatch
):
    store = Store(tmp_path / "store")
    _two_seeds(store)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["--store", str(store.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    if columns == 80:
        assert max(map(len, lines)) <= 80
        assert "`train-monet`" in lines
        assert any(line.startswith("  seeds 2   ") for line in lines)
        assert any("   loss, nats " in line for line in lines)
    else:
        assert max(map(len, lines)) > 80
        assert lines[0].startswith("| stage | seeds | bits/byte | loss, nats |")


def test_a_metric_of_another_writer_breaks_no_table_and_moves_no_cursor(tmp_path, capsys):
    store = Store(tmp_path / "store")
    _publish(store, "train-x", 0, **{"\x1b[31m|`a`\n": 1.5})
    assert main(["--store", str(store.root), "--stage", "train-x"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1] == "| <code>\\u001b&#91;31m&#124;&#96;a&#96;&#10;</code> | 1.5 |"
    assert len(rows) == 3


def test_the_largest_metrics_have_a_mean_a_deviation_and_a_difference(tmp_path, capsys):
    store = Store(tmp_path / "store")
    for stage in ("train-dense", "train-monet"):
        for seed in (0, 1):
            _publish(store, stage, seed, held_out_loss_nats=1e100 * (-1) ** seed, bits_per_byte=-1e100)
    assert main(["--store", str(store.root)]) == 0
    assert "inf" not in capsys.readouterr().out
