"""Trials: numbers in their order, of one thread and seed each, remembered by a study that is killed; and intervals.

And rates: chosen by mean validation loss alone, and told with what was tried.
"""

import math
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

from pipeline.run import Run, current_run, running
from pipeline.studies.intervals import interval, paired
from pipeline.studies.rates import Choice, choose_rates, page_of_choices
from pipeline.studies.trials import Trial, run_trials


def circumstances(number, seconds):
    """What a trial sees, after a while."""
    time.sleep(seconds)
    run = current_run()
    return {
        "number": number,
        "seed": float(run.seed),
        "drawn": torch.rand(()).item(),
        "threads": float(torch.get_num_threads()),
        "has_checkpoints": float(run.checkpoints is not None),
    }


def fails(sentence):
    raise ValueError(sentence)


def leaves(path):
    Path(path).touch()
    return {"a": 1.0}


def trial(number, *, seed, seconds=0.0):
    return Trial(name=f"arm {number:g}", seed=seed, compute=circumstances, arguments=(number, seconds))


TRIALS = [trial(0.0, seed=7, seconds=1.0), trial(1.0, seed=3), trial(2.0, seed=7), trial(3.0, seed=3)]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The numbers of all trials, where they are remembered, and what was told of them."""
    checkpoints, told = tmp_path_factory.mktemp("checkpoints"), []
    with running(Run(seed=99, checkpoints=checkpoints, report=told.append)):
        return run_trials(TRIALS, "try it"), checkpoints, told


def test_numbers_come_in_the_order_of_the_trials_whichever_ends_first(first):
    assert [numbers["number"] for numbers in first[0]] == [0, 1, 2, 3]


def test_a_trial_runs_with_its_own_seed_in_one_thread_and_without_checkpoints(first):
    for wanted, numbers in zip(TRIALS, first[0], strict=True):
        with running(Run(seed=wanted.seed)):
            drawn = torch.rand(()).item()
        assert numbers["seed"] == wanted.seed
        assert numbers["drawn"] == drawn  # torch's global generator is pinned to it, whatever ran before in the worker
        assert (numbers["threads"], numbers["has_checkpoints"]) == (1, 0)
    assert first[0][0]["drawn"] == first[0][2]["drawn"] != first[0][1]["drawn"]


def test_progress_counts_the_trials_that_have_ended(first):
    told = first[2]
    assert [(progress.what, progress.step, progress.total) for progress in told] == [
        ("try it", ended, 4) for ended in (1, 2, 3, 4)
    ]
    assert [progress.seconds for progress in told] == sorted(progress.seconds for progress in told)


def test_a_study_that_is_run_again_computes_nothing(first):
    """Were any computed, it would fail."""
    spoilt = [Trial(name=t.name, seed=t.seed, compute=fails, arguments=("computed",)) for t in TRIALS]
    with running(Run(seed=99, checkpoints=first[1])):
        assert run_trials(spoilt, "try it") == first[0]
        assert run_trials(spoilt[::-1], "try it") == first[0][::-1]


def test_a_study_that_was_killed_computes_the_trials_that_are_left(first, monkeypatch):
    """Of a name or a seed that is new; `dict` shows that what is computed is not what is remembered."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    others = [
        Trial(name=name, seed=seed, compute=dict, arguments=([("number", value)],))
        for name, seed, value in (("arm 1", 3, -1.0), ("arm 1", 4, -2.0), ("arm 4", 3, -3.0))
    ]
    told = []
    with running(Run(checkpoints=first[1], report=told.append)):
        numbers = run_trials(others, "go on")
    assert numbers == [first[0][1], {"number": -2.0}, {"number": -3.0}]
    assert [(progress.step, progress.total) for progress in told] == [(2, 3), (3, 3)]


def test_no_trials_give_no_numbers():
    assert run_trials([], "nothing") == []


def test_a_trial_that_fails_ends_the_study_with_its_error():
    bad = Trial(name="bad", seed=0, compute=fails, arguments=("the loss is not finite",))
    with pytest.raises(ValueError, match="the loss is not finite"):
        run_trials([bad], "fail")


def test_a_trial_that_ran_to_its_end_is_remembered_though_another_failed(tmp_path, monkeypatch):
    """Or it is not run any more: hours of other arms must not be waited for and thrown away."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    bad = Trial(name="bad", seed=0, compute=fails, arguments=("no",))
    good = [Trial(name=f"good {i}", seed=0, compute=leaves, arguments=(str(tmp_path / f"{i}"),)) for i in range(6)]
    with running(Run(checkpoints=checkpoints)), pytest.raises(ValueError, match="no"):
        run_trials([good[0], bad, *good[1:]], "fail")
    ran = [i for i in range(6) if (tmp_path / f"{i}").exists()]
    remembered = [i for i in range(6) if (checkpoints / good[i].file_name).exists()]
    assert 0 in remembered
    assert remembered == ran


def test_trials_that_differ_in_name_or_seed_are_remembered_apart():
    names = [
        Trial(name=name, seed=seed, compute=dict, arguments=()).file_name
        for name in ("int4_1n", "int4_11n", "int4_1n 1")
        for seed in (1, 11)
    ]
    assert len(set(names)) == len(names)
    assert all(name.endswith(".trial") and "/" not in name for name in names)


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.2, 3.1, 3.25], [0.1, 0.1, 0.1, 0.4, -0.2, 7.0]], ids=str)
def test_an_interval_is_students(values):
    mean, error = sum(values) / len(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    found = interval(values)
    assert found.mean == pytest.approx(mean)
    assert (found.mean - found.half_width, found.mean + found.half_width) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_of_five_seeds_by_hand():
    """2, 4, 4, 4, 6: deviation the root of 2, and 2.776445 the quantile of four degrees of freedom."""
    found = interval([2.0, 4.0, 4.0, 4.0, 6.0])
    assert found.mean == 4
    assert found.half_width == pytest.approx(2.776445 * 2**0.5 / 5**0.5, rel=1e-6)
    assert str(found) == "+4.0000 ± 1.7560"


def test_intervals_hold_the_mean_of_normal_values_in_95_of_100_cases():
    """Of 1,000 studies of three seeds, within 4 standard errors."""
    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).tolist()
    held = sum(abs(i.mean) <= i.half_width for i in map(interval, values)) / 1000
    assert held == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 1000) ** 0.5)


def test_a_paired_interval_is_that_of_the_differences():
    """What the seeds have in common is gone: a constant difference has no width."""
    baseline = [3.0, 5.0, 4.0]
    assert paired([3.5, 5.5, 4.5], baseline).mean == pytest.approx(0.5)
    assert paired([3.5, 5.5, 4.5], baseline).half_width == pytest.approx(0, abs=1e-12)
    assert paired([3.1, 5.3, 4.0], baseline) == interval([3.1 - 3.0, 5.3 - 5.0, 0.0])
    assert interval([3.5, 5.5, 4.5]).half_width > 2
    with pytest.raises(ValueError, match=r"zip\(\)"):
        paired([1.0, 2.0], baseline)


def test_a_rate_is_chosen_by_the_mean_over_seeds_of_its_validation_loss():
    """b's rate .1 is best by one seed and by held-out, .2 by the mean: 2.5 to 2.4."""
    tried = [("a", 0.1), ("b", 0.1), ("a", 0.2), ("b", 0.2), ("b", 0.1), ("b", 0.2)]
    numbers = [
        {"validation_loss_nats": loss, "held_out_loss_nats": other}
        for loss, other in [(3.0, 9.0), (2.0, 1.0), (3.5, 1.0), (2.4, 5.0), (3.0, 1.0), (2.4, 5.0)]
    ]
    choices = choose_rates(tried, numbers)
    assert choices == {"a": Choice(losses={0.1: 3.0, 0.2: 3.5}), "b": Choice(losses={0.1: 2.5, 0.2: 2.4})}
    assert {arm: choice.rate for arm, choice in choices.items()} == {"a": 0.1, "b": 0.2}


@pytest.mark.parametrize(
    ("losses", "rate", "at_an_end"),
    [
        ({0.1: 2.0, 0.2: 1.0, 0.4: 3.0}, 0.2, False),
        ({0.4: 2.0, 0.1: 1.0, 0.2: 3.0}, 0.1, True),
        ({0.2: 2.0, 0.1: 1.5, 0.4: 1.0}, 0.4, True),
        ({0.1: 2.0}, 0.1, True),
        ({0.1: math.nan, 0.2: 1.0, 0.4: math.inf}, 0.2, False),
    ],
    ids=str,
)
def test_a_choice_is_of_the_least_loss_that_is_finite_and_says_if_it_is_at_an_end(losses, rate, at_an_end):
    choice = Choice(losses=losses)
    assert (choice.rate, choice.at_an_end) == (rate, at_an_end)


def test_nothing_is_chosen_where_no_loss_is_finite():
    with pytest.raises(ValueError, match=r"no rate of \[0.1, 0.2\] has a finite validation loss; try smaller ones"):
        _ = Choice(losses={0.1: math.nan, 0.2: math.inf}).rate


def test_a_page_says_what_was_tried_and_chosen_and_by_which_seeds():
    choices = {"a": Choice(losses={0.1: 3.0, 0.2: 2.5, 0.4: 3.0}), "b": Choice(losses={0.2: 2.0, 0.01: 2.25})}
    assert page_of_choices(choices, range(7, 9)).splitlines() == [
        "| validation loss, nats | 0.01 | 0.1 | 0.2 | 0.4 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a |  | 3.0000 | **2.5000** | 3.0000 |",
        "| b | 2.2500 |  | **2.0000** |  |",
        "",
        "Each takes its rate of least validation loss (bold), mean over seeds 7 to 8, which are not reported. "
        "The least or the largest rate tried was chosen by b (0.2): beyond it there may be a better one, so theirs is "
        "not known to be the best.",
    ]
    del choices["b"]
    assert page_of_choices(choices, [7]).endswith(
        "mean over seed 7, which is not reported. No rate chosen is the least or the largest of those tried.\n"
    )
