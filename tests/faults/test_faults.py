"""A spread of the faults that `make faults` injects, and proof that the harness finds what it looks for."""

import io
import os
import shutil

import pytest
import torch

from artifacts import Store
from tests.faults.cases import Case, Drill
from tests.faults.chain import Library
from tests.faults.children import ending_of
from tests.faults.damage import flips
from tests.faults.drills import of_stages, of_the_store
from tests.faults.operations import Operations
from tests.faults.publishing import SCENARIOS, open_all
from tests.faults.sweep import rehearsed

STAGES = ("train-monet", "checkpoints", "runs", "clocks")


def spread(drill: Drill, count: int) -> list[Case]:
    """So many cases, as far apart as may be."""
    return [drill.cases[(2 * i + 1) * len(drill.cases) // (2 * count)] for i in range(count)]


def said(cases: list[Case], folder) -> list[str]:
    """What is wrong, of all the cases; every one of them must have injected its fault."""
    wrong = []
    for number, case in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        outcome = case.run(place)
        assert outcome.injected == 1, outcome.said
        wrong += [f"{case.name}: {one}" for one in outcome.said]
    return wrong


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return Library.made_in(tmp_path_factory.mktemp("library"), ("prepare-corpus", "train-monet"))


# test_mutations.py has the mutations, many to a case.
@pytest.mark.parametrize("name", [name for name in of_the_store() if name != "mutations"])
def test_a_fault_loses_nothing_and_leaves_nothing_half_written(name, tmp_path):
    assert said(spread(of_the_store()[name](tmp_path), 2), tmp_path) == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_was_killed_goes_on_to_the_same_bits(name, library, tmp_path):
    assert said(spread(of_stages(library)[name](tmp_path), 2), tmp_path) == []


def test_a_store_that_cannot_be_written_to_can_be_read_and_reused(library, tmp_path):
    def read() -> list[str]:
        operations = Operations(library.store.root)
        operations.install()
        library.run("train-monet", library.store)
        for look in (open_all, Store.verify, Store.listing, Store.latest, Store.collect_garbage):
            look(library.store)
        return [str(point) for point in operations.seen] + operations.missed

    assert ending_of(read).value == []


def test_an_operation_that_the_injector_does_not_know_is_named(tmp_path):
    def write_past_it() -> list[str]:
        mkdir = os.mkdir
        operations = Operations(tmp_path)
        operations.install()
        mkdir(tmp_path / "unseen")
        return operations.missed

    assert ending_of(write_past_it).value == [f"os.mkdir {tmp_path / 'unseen'}"]


# Broken on purpose: the harness must find out.


def test_publishing_in_place_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.store.move_into_place", shutil.copytree)
    drill = rehearsed(SCENARIOS[0], tmp_path)
    copying = [case for case in drill.cases if "killed before" in case.name and "open to write prepare" in case.name]
    assert any("half an artifact is visible" in one for one in said(copying, tmp_path))


def test_an_open_that_checks_no_digest_is_found_out(tmp_path, monkeypatch):
    drill = flips(tmp_path)
    monkeypatch.setattr("artifacts.store.check_files", lambda manifest, folder: None)
    assert any("bytes that nobody published" in one for one in said([drill.cases[-1]], tmp_path))


def test_a_checkpoint_that_is_not_checked_is_found_out(library, tmp_path, monkeypatch):
    drill = of_stages(library)["checkpoints"](tmp_path)
    unchecked = lambda path: torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)  # noqa: E731
    monkeypatch.setattr("pipeline.training.checkpoint.load_sealed", unchecked)
    wrong = said(spread(drill, 3)[:2], tmp_path)
    assert any("a damaged checkpoint was loaded" in one for one in wrong)


def test_a_folder_that_is_not_held_is_found_out(library, tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.scratch._take", lambda descriptor: True)
    drill = of_stages(library)["clocks"](tmp_path)
    assert any("of a living run was removed" in one for one in said(drill.cases[:1], tmp_path))
