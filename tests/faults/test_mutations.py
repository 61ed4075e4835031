"""A spread of the mutations that `make faults` makes, and proof that the drill finds what it looks for."""

import os
import time
from functools import partial

import pytest
import torch

from tests.faults import mutated
from tests.faults.specimens import SPECIMENS

OF_EACH = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Children find no pool of threads that stayed with this process."""
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="module")
def bench(best_library, tmp_path_factory):
    """bench(kind): that specimen, tried once."""
    folder, made = tmp_path_factory.mktemp("mutated"), {}

    def bench(name):
        if name not in made:
            made[name] = mutated.bench_of(name, folder, best_library)
        return made[name]

    return bench


@pytest.mark.parametrize("name", SPECIMENS)
def test_a_mutated_artifact_is_refused_or_gives_the_same_numbers_on_both_paths(name, bench, tmp_path):
    one = bench(name)
    seeds = [(2 * i + 1) * len(one.targets) // (2 * OF_EACH) for i in range(OF_EACH)]
    outcome = mutated.run_batch(one, seeds, tmp_path)
    assert (outcome.injected, outcome.said) == (OF_EACH, ())


def test_every_tensor_and_every_field_of_every_kind_is_mutated_once_at_least(bench):
    drill = mutated.drill_of([bench(name) for name in SPECIMENS], mutated.MUTATIONS)
    seeds = {name: set() for name in SPECIMENS}
    for case in drill.cases:
        assert isinstance(case.run, partial)
        one, batch = case.run.args
        seeds[one.name] |= {*batch}
    assert all(seeds[name] >= {*range(len(bench(name).targets))} for name in SPECIMENS)
    assert sum(map(len, seeds.values())) == mutated.MUTATIONS


def test_a_mutation_is_the_same_each_time(bench, tmp_path):
    one = bench("int8")
    said = [one.try_one(7, tmp_path / str(time)) for time in range(2)]
    assert said[0] == said[1]


# Broken on purpose: the drill must find out.


def of_tensors(one, name, count):
    """Seeds of this bench that mutate a tensor of this name."""
    places = [at for at, target in enumerate(one.targets) if target.what == "tensor" and name in str(target)]
    return [at + turn * len(one.targets) for turn in range(count) for at in places]


def test_a_model_that_is_not_checked_is_found_out(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.models.language_model.check_sound", lambda model: None)
    one = bench("peer-jumprelu")
    outcome = mutated.run_batch(one, of_tensors(one, "index.offset_C1", 10), tmp_path)
    assert outcome.failures > 0


def test_a_store_that_checks_no_digest_is_found_out(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.store.check_files", lambda manifest, folder: None)
    one = bench("dense")
    outcome = mutated.run_batch(one, of_tensors(one, "embed_tokens", 12), tmp_path)
    assert any("it is not sealed, and was opened" in said for said in outcome.said)


def test_text_that_reaches_the_terminal_raw_is_found_out(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.terminal.printable", lambda text: text)
    monkeypatch.setattr("tests.faults.mutations._VALUES", ("\x1b[31m",))
    one = bench("report")
    commit = next(at for at, target in enumerate(one.targets) if target.path == ("lineage", "commit"))
    outcome = mutated.run_batch(one, [commit + turn * len(one.targets) for turn in range(40)], tmp_path)
    assert any("printed ['\\x1b'" in said for said in outcome.said)


ENDS = {
    "a signal": (os.abort, "died: died of signal 6"),
    "a hang": (lambda: time.sleep(60), "hung for 1 s"),
    "memory without end": (lambda: torch.zeros(2**32), "RuntimeError"),
    "a traceback": (lambda: {}["missing"], "KeyError"),
}


@pytest.mark.parametrize("what", ENDS)
def test_what_ends_otherwise_is_found_out_and_the_others_go_on(what, bench, tmp_path, monkeypatch):
    end, message = ENDS[what]
    use = mutated.Bench.try_one
    monkeypatch.setattr(mutated, "_SECONDS", 1)
    monkeypatch.setattr(
        mutated.Bench, "try_one", lambda self, seed, work: end() if seed == 3 else use(self, seed, work)
    )
    outcome = mutated.run_batch(bench("report"), [1, 3, 5], tmp_path)
    assert outcome.injected == 3
    assert [said.split(":")[0] for said in outcome.said] == ["report 3"]
    assert message in outcome.said[0]
    assert (outcome.hangs, outcome.failures) == ((1, 0) if what == "a hang" else (0, 1))
