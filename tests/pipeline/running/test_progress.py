"""Lines in a log: now and then, with the time left; a wait and missing kernels are told at once."""

import io
import re

import pytest
from rich.console import Console

from artifacts import Recipe, Store
from pipeline.run import Progress, Run, running, say
from pipeline.running import progress as module
from pipeline.running.progress import Fit, Lines, fitted, line, print_results, say_before, say_kernels, shown
from pipeline.stage import Made
from tests.circumstance import CIRCUMSTANCE


def at(step: int, seconds: float, what: str = "train", **numbers: float) -> Progress:
    return Progress(what=what, step=step, total=100, seconds=seconds, numbers=numbers)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_the_step_the_loss_the_speed_and_the_time_left():
    text = line(at(10, 1.0), at(60, 6.0, loss_nats=2.5, tokens_per_second=11_000.0))
    assert text == "train 60/100  loss_nats 2.5  11,000 tokens/s  4.0 s left"


def test_lines_come_every_so_many_seconds(clock):
    said: list[str] = []
    lines = Lines("train-dense", said.append, every_seconds=10)
    for step in range(1, 101):
        clock[0] = step / 2
        lines(at(step, step / 2))
    assert [text.split()[3] for text in said] == ["20/100", "40/100", "60/100", "80/100", "100/100"]
    assert said[0].startswith("train-dense · train 20/100")


def test_what_has_not_begun_is_told_at_once_and_once(clock):
    said: list[str] = []
    lines = Lines("train-dense", said.append)
    for _ in range(3):
        lines(Progress(what="wait for another process", step=0, total=1, seconds=0.0))
    assert said == ["train-dense · wait for another process 0/1"]


@pytest.mark.parametrize(("device", "library", "lines"), [("cpu", None, 1), ("cpu", "built", 0), ("cuda", None, 0)])
def test_stock_ops_are_told_where_the_cpu_runs_them_for_want_of_kernels(monkeypatch, capsys, device, library, lines):
    monkeypatch.setattr(module, "cpu_library", lambda: library)
    say_kernels(device)
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.count("`make native`")) == ("", lines, lines)


def test_a_sentence_is_told_at_once_without_a_count_as_it_stands(capsys):
    said: list[str] = []
    with shown("prepare-corpus") as terminal, running(Run(report=lambda p: (terminal(p), Lines("s", said.append)(p)))):
        say("left out: '[bold]a.gz'")
    assert said == ["s · left out: '[bold]a.gz'"]
    assert capsys.readouterr().err == "prepare-corpus · left out: '[bold]a.gz'\n"


LOSSES = {"train_loss_nats": 4.87, "uniformity_loss": 2.802, "tokens_per_second": 11_192.0}


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (None, "train 60/100  train_loss_nats 4.87  uniformity_loss 2.802  11,192 tokens/s  4.0 s left"),
        (86, "train 60/100  train_loss_nats 4.87  uniformity_loss 2.802  11,192 tokens/s  4.0 s left"),
        (85, "train 60/100  train_loss_nats 4.87  11,192 tokens/s  4.0 s left"),
        (63, "train 60/100  train_loss_nats 4.87  11,192 tokens/s  4.0 s left"),
        (62, "train 60/100  train_loss_nats 4.87  4.0 s left"),
        (45, "train 60/100  4.0 s left"),
        (5, "train 60/100  4.0 s left"),
    ],
)
def test_a_line_leaves_out_numbers_that_do_not_fit_and_never_count_and_time_left(width, text):
    assert line(at(10, 1.0), at(60, 6.0, **LOSSES), width) == text


@pytest.mark.parametrize(
    ("width", "fit"),
    [
        (120, Fit(what=30, bar=24, numbers=44)),  # 120 - 19 for count and time - 1 - 30 - 25 - 1
        (80, Fit(what=30, bar=24, numbers=4)),
        (70, Fit(what=30, bar=19, numbers=0)),
        (58, Fit(what=30, bar=0, numbers=7)),
        (50, Fit(what=30, bar=0, numbers=0)),
        (40, Fit(what=20, bar=0, numbers=0)),
    ],
)
def test_numbers_go_first_then_the_bar_then_the_end_of_the_description(width, fit):
    assert fitted(width, 30, 19) == fit


@pytest.mark.parametrize(
    ("columns", "bar", "numbers"),
    [(40, False, []), (60, True, []), (80, True, []), (100, True, ["4.87"]), (160, True, ["4.87", "2.802", "11,192"])],
)
def test_a_terminal_shows_count_and_time_left_at_any_width(columns, bar, numbers, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=columns, color_system=None)
    monkeypatch.setattr(module, "Console", lambda stderr: terminal)
    with shown("train-monet") as tell:
        for step in (0, 30, 60):
            tell(at(step, step / 10, what="train monet", **LOSSES))
    last = re.sub(r"\x1b\[[?\w]*?[a-zA-Z]", "\n", screen.getvalue()).rstrip().splitlines()[-1]
    assert "train-monet" in last
    assert " 60/100 " in last
    assert ":" in last.split("60/100 ")[1].split()[0]
    assert ("━" in last) == bar
    assert [number for number in ("4.87", "2.802", "11,192") if number in last] == numbers
    assert len(last.rstrip()) <= columns


def test_a_log_has_lines_of_80_columns(clock, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with shown("train-monet") as tell:
        tell(at(0, 0.0, what="train monet"))
        clock[0] = 20.0
        tell(at(60, 20.0, what="train monet", **LOSSES))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "train-monet · train monet 60/100  train_loss_nats 4.87  13.3 s left"
    assert max(map(len, lines)) <= 80


def test_what_a_command_has_to_say_comes_before_it_starts(monkeypatch, capsys):
    monkeypatch.setattr(module, "cpu_library", lambda: "built")
    monkeypatch.setattr(module, "waiting_said", lambda: None)
    say_before("--scale 0.1: steps [1] -> 2", "cpu")
    assert capsys.readouterr().err == "--scale 0.1: steps [1] -> 2\n"
    say_before("", "cpu")
    assert capsys.readouterr().err == ""


RESULTS = ("stage", "artifact", "made in", "bits/byte", "Δ nats", "KL nats", "recovered", "bytes/expert")


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (None, ()),
        (120, ()),
        (100, ("stage",)),
        (80, ("stage", "bytes/expert", "recovered")),
        (60, ("stage", "bytes/expert", "recovered", "KL nats", "Δ nats")),
    ],
)
def test_the_table_at_the_end_fits_the_terminal_and_is_whole_in_a_file(
    columns, left_out, tmp_path, capsys, monkeypatch
):
    store = Store(tmp_path / "store")
    metrics = {
        "held_out_bits_per_byte": 2.4858, "loss_increase_nats": 0.0072, "kl_to_teacher_nats": 0.00748,
        "loss_recovered": 0.9909, "expert_bytes": 1028.0,
    }  # fmt: skip
    id = store.publish(
        recipe=Recipe(stage="distill-symbols", stage_version=1, config={}, seed=0, inputs={}), kind="symbols",
        spec={}, tensors={}, metrics=metrics, files={}, circumstance=CIRCUMSTANCE,
    )  # fmt: skip
    if columns is not None:
        monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich see a terminal
        monkeypatch.setenv("COLUMNS", str(columns))
    print_results([Made(id=id, reused=False, seconds=90.0)], store, 1.0)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]
    head, row = lines[1], lines[3]
    assert re.split(r"\s{2,}", head.strip()) == [title for title in RESULTS if title not in left_out]
    assert id in row
    assert "90.0 s" in row
    assert columns is None or max(map(len, lines[:4])) <= columns


def test_a_store_whose_name_is_markup_and_moves_cursors_is_printed_as_it_is_called(tmp_path, capsys):
    print_results([], Store(tmp_path / "[red]a[/b]\x1b[31m"), 1.0)
    assert f"the artifacts are in {tmp_path}/[red]a[/b]\\u001b[31m" in capsys.readouterr().out
