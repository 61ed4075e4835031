"""Lines in a log: now and then, with the time left; a wait and missing kernels are told at once."""

import pytest

from artifacts import Store
from pipeline.run import Progress, Run, running, say
from pipeline.running import progress as module
from pipeline.running.progress import Lines, line, print_results, say_kernels, shown


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


def test_a_store_whose_name_is_markup_and_moves_cursors_is_printed_as_it_is_called(tmp_path, capsys):
    print_results([], Store(tmp_path / "[red]a[/b]\x1b[31m"), 1.0)
    assert f"the artifacts are in {tmp_path}/[red]a[/b]\\u001b[31m" in capsys.readouterr().out
