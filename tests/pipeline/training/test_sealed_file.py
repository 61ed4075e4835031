"""A sealed file gives back what was saved, or is refused: damaged anywhere, cut, or of another run."""

import errno
import os

import pytest
import torch

from artifacts import ArtifactError
from pipeline.training.sealed_file import load_sealed, save_sealed


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "train-monet-0123456789ab"
    folder.mkdir()
    return folder / "train.pt"


def state(fill):
    return {"model": {"weight": torch.full((7, 12), fill)}, "step": 3, "rows": [{"train_loss_nats": 2.5}]}


def test_what_was_saved_last_is_loaded(path):
    for fill in (1.0, 2.0):
        save_sealed(state(fill), path)
    loaded = load_sealed(path)
    assert torch.equal(loaded["model"]["weight"], torch.full((7, 12), 2.0))
    assert (loaded["step"], loaded["rows"]) == (3, [{"train_loss_nats": 2.5}])
    assert [file.name for file in path.parent.iterdir()] == ["train.pt"]


def test_a_flipped_bit_anywhere_is_refused_where_torch_would_load_it(path):
    save_sealed(state(1.0), path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"train.pt is damaged, .*; remove it, or use --force, to begin anew"):
            load_sealed(path)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, -1])
def test_a_file_that_was_cut_is_refused(path, length):
    save_sealed(state(1.0), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="is damaged"):
        load_sealed(path)


def test_the_file_of_another_run_is_refused(path):
    save_sealed(state(1.0), path)
    path.parent.rename(path.parent.with_name("train-monet-ffffffffffff"))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_sealed(path.parent.with_name("train-monet-ffffffffffff") / path.name)


def test_a_folder_in_its_place_is_told(path):
    path.mkdir()
    with pytest.raises(ArtifactError, match=r"cannot be read \(Is a directory\)"):
        load_sealed(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_the_file_before_it_stays(path, monkeypatch, step):
    save_sealed(state(1.0), path)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(ArtifactError, match=r"could not save the checkpoint .*: No space left on device; see that"):
            save_sealed(state(2.0), path)
    assert torch.equal(load_sealed(path)["model"]["weight"], torch.full((7, 12), 1.0))
    assert [file.name for file in path.parent.iterdir()] == ["train.pt"]


def test_a_disk_that_fills_up_within_a_write_is_told_as_that(path):
    """torch's own writer hides the system's error behind one that says `unexpected pos`."""
    with pytest.raises(ArtifactError, match="No space left on device"):
        save_sealed({"weight": torch.zeros(100_000)}, _full(path))


def _full(path):
    """A path whose scratch file is the device that is always full."""
    path.with_suffix(".partial").symlink_to("/dev/full")
    return path
