"""Arms of a study, compared from its report alone."""

import pytest

from artifacts import ArtifactError, Circumstance, Recipe, Store
from kernels.errors import Mistake
from pipeline.compare_arms import main
from pipeline.report import Report, ReportSpec, Row, trial_row
from tests.foreign import reseal

LOSSES = {"plain": {3: 2.0, 4: 2.5, 5: 3.0}, "better": {3: 1.9, 4: 2.4, 5: 2.8}, "once": {3: 1.0}}


@pytest.fixture
def study(tmp_path):
    """(store, id) of a report with these trials, and of a report without any."""
    store = Store(tmp_path / "store")

    def published(rows):
        report = Report(ReportSpec(rows=tuple(rows)), {"report.md": b"figures"})
        return store.publish(
            recipe=Recipe(stage="study", stage_version=1, config={}, seed=len(rows), inputs={}),
            kind=report.kind,
            spec=report.spec.model_dump(mode="json"),
            tensors={},
            metrics={},
            files=report.files,
            circumstance=Circumstance.now(device="cpu", seconds=1.0),
        )

    trials = [
        trial_row(arm, seed, {"held_out_loss_nats": loss, "seconds": 1.0})
        for arm, losses in LOSSES.items()
        for seed, loss in losses.items()
    ]
    numbers = {"held_out_loss_nats": 7.0, "seconds": 1.0}
    trials += [trial_row("plain rate 0.1", seed, numbers, kind="tuning trial") for seed in (6, 7)]
    other = Row(name="dense, seed 3", id="x", kind="dense", seconds=1.0, metrics={"held_out_loss_nats": 9.0})
    return store, published(trials), published([other])


def test_the_difference_is_paired_by_seed_whatever_the_seeds_do_to_both(study, capsys):
    """-0.1, -0.1 and -0.2: mean -0.1333, deviation 0.0577, Student's t of two degrees of freedom 4.303."""
    store, id, _ = study
    assert main([id, "better", "plain", "--store", str(store.root)]) == 0
    told = capsys.readouterr().out
    assert told == "better minus plain: -0.1333 ± 0.1434 nats a token (95 %, paired over 3 seeds)\n"
    assert main([id, "--store", str(store.root), "better", "plain"]) == 0
    assert capsys.readouterr().out == told


def test_in_a_narrow_terminal_the_sentence_goes_on_in_the_next_line(study, capsys, monkeypatch):
    store, id, _ = study
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main([id, "better", "plain", "--store", str(store.root)]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 50
    assert " ".join(told.split()) == ("better minus plain: -0.1333 ± 0.1434 nats a token (95 %, paired over 3 seeds)")


def test_without_arms_they_are_listed_with_their_means(study, capsys):
    """Trials that only chose a rate are none."""
    store, id, _ = study
    assert main([id, "--store", str(store.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "plain: 2.5000 nats a token over 3 seeds",
        "better: 2.3667 nats a token over 3 seeds",
        "once: 1.0000 nats a token over 1 seeds",
    ]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["plain", "best"], "the study has no arm 'best'; it has plain, better, once"),
        (["plain", "once"], "plain and once share 1 seeds; an interval takes two at least"),
        (["plain"], "got 1 arms, wanted the id of a study and none or two of its arms"),
    ],
)
def test_what_cannot_be_compared_is_told(study, arms, message):
    store, id, _ = study
    with pytest.raises(ValueError, match=message):
        main([id, *arms, "--store", str(store.root)])


def test_a_report_without_trials_is_told(study):
    store, _, other = study
    with pytest.raises(ValueError, match="got a report without trials"):
        main([other, "--store", str(store.root)])


def renamed(name):
    return lambda row: row.update(name=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("plain, seed x"), "trial 'plain, seed x' has a name that does not end in ', seed NUMBER'"),
        (renamed("plain, seed ٣"), "does not end in ', seed NUMBER'"),
        (renamed("plain, seed " + "9" * 5000), "does not end in ', seed NUMBER'"),
        (renamed("plain"), "does not end in ', seed NUMBER'"),
        (renamed("plain, seed 4"), "two trials of 'plain' with seed 4"),
        (lambda row: row["metrics"].pop("held_out_loss_nats"), "has no metric 'held_out_loss_nats'"),
        (lambda row: row["metrics"].update(held_out_loss_nats=1e308), "spec that this version does not read"),
        (lambda row: row.update(seconds="nan"), "spec that this version does not read"),
    ],
)
@pytest.mark.parametrize("arms", [(), ("better", "plain")])
def test_a_study_of_another_writer_that_holds_no_such_trials_is_told(study, change, message, arms):
    store, id, _ = study
    reseal(store.root / id, lambda record: change(record["spec"]["rows"][0]))
    with pytest.raises((ArtifactError, Mistake), match=message):
        main([id, *arms, "--store", str(store.root)])


def test_no_control_character_of_a_foreign_study_reaches_the_terminal(study, capsys):
    store, id, _ = study
    reseal(store.root / id, lambda record: record["spec"]["rows"][0].update(name="\x1b[31m\u202e, seed 7"))
    assert main([id, "--store", str(store.root)]) == 0
    assert capsys.readouterr().out.startswith("\\u001b[31m\\u202e: 2.0000 nats")
