"""The table of README.md: means and deviations over seeds, from manifests alone."""

import pytest
import torch

from artifacts import Circumstance, Recipe, Store
from pipeline.seeds import main, newest_by_seed, spread


@pytest.fixture
def seeded(tmp_path):
    store = Store(tmp_path / "store")
    for seed, loss in ((0, 2.0), (1, 3.0), (2, 4.0)):
        store.publish(
            recipe=Recipe(stage="train-dense", stage_version=1, config={}, seed=seed, inputs={}),
            kind="dense",
            spec={},
            tensors={"w": torch.full((3,), loss)},
            metrics={"held_out_loss_nats": loss},
            files={},
            circumstance=Circumstance.now(device="cpu", seconds=1.0),
        )
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
