"""What a person sees while stages run, and the table at the end. Bars in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from artifacts import Store, writing_to_stdout
from artifacts.cards import duration
from artifacts.columns import RUN, columns
from artifacts.terminal import on_one_line
from kernels.backends import cpu_library
from pipeline.run import Progress
from pipeline.stage import Device, Made
from pipeline.threads import waiting_said


def say_kernels(device: Device) -> None:
    """On stderr, once a command: where CPU tensors go through stock torch ops, that faster kernels can be built;
    and where threads wait as on a busy machine, that they do.
    """
    if device == "cpu" and cpu_library() is None:
        sentence = "stock torch ops run: the C++ kernels have not been built; `make native` builds them in 20 seconds"
        Console(stderr=True).print(sentence, highlight=False, soft_wrap=True)
    if device == "cpu" and (sentence := waiting_said()):
        Console(stderr=True).print(sentence, highlight=False, soft_wrap=True)


def say_before(sentence: str, device: Device) -> None:
    """On stderr, once a command: the sentence, if there is one, and what `say_kernels` says."""
    if sentence:
        Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
    say_kernels(device)


@contextmanager
def shown(stage: str) -> Iterator[Callable[[Progress], None]]:
    """Within it, what the yielded function is told of the stage's progress appears on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(
            stage, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True), width=console.width
        )
        return
    with _FittedBars(console=console) as bars:
        yield _Bars(stage, bars)


class _FittedBars(Bars):
    """As much of a line as the terminal is wide: numbers go first, then the bar; never the count and the time left."""

    def __init__(self, console: Console) -> None:
        self._terminal = console  # rich asks for the table before it has one itself
        self._count, self._time_left = MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True)
        super().__init__(console=console)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        shown = [task for task in tasks if task.visible]
        counts = max((len(self._count.render(task).plain) for task in shown), default=0)
        fit = fitted(
            self._terminal.width, max((len(task.description) for task in shown), default=0), counts + 1 + _TIME_WIDTH
        )
        self.columns = (
            _Text(lambda task: _cut(task.description, fit.what)),
            *([BarColumn(bar_width=fit.bar)] if fit.bar else []),
            self._count,
            self._time_left,
            *([_Text(lambda task: _joined(task.fields["numbers"], fit.numbers), "dim")] if fit.numbers else []),
        )
        return super().make_tasks_table(shown)


class _Text(ProgressColumn):
    """What a function says of the task."""

    def __init__(self, say: Callable[[Task], str], style: str = "") -> None:
        self._say, self._style = say, style
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(self._say(task), self._style)


MOST_BAR, LEAST_BAR = 24, 8
_TIME_WIDTH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Characters for each part of a line; 0 where it is left out."""

    what: int
    bar: int
    numbers: int


def fitted(width: int, what: int, always: int) -> Fit:
    """What fits beside the description of so many characters, and count and time left with theirs."""
    shown = max(1, min(what, width - always - 1))
    left = width - always - 1 - shown
    bar = min(MOST_BAR, left - 1) if left > LEAST_BAR else 0
    left -= bar + 1 if bar else 0
    return Fit(what=shown, bar=bar, numbers=max(0, left - 1))


class _Bars:
    """One bar for each loop of the stage."""

    def __init__(self, stage: str, bars: Bars) -> None:
        self.stage, self.bars = stage, bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        if not progress.total:
            self.bars.console.print(f"{self.stage} · {progress.what}", highlight=False, markup=False, soft_wrap=True)
            return
        if progress.what not in self.tasks:
            description = f"{self.stage} · {progress.what}"
            self.tasks[progress.what] = self.bars.add_task(description, total=progress.total, numbers=[])
        self.bars.update(
            self.tasks[progress.what],
            completed=progress.step,
            total=progress.total,
            numbers=said_numbers(progress),
        )


class Lines:
    """A line now and then, as in a log, with the time left at the pace since the loop's first report.

    Numbers for which a line of that width has no room are left out.
    """

    def __init__(
        self, stage: str, write: Callable[[str], None], *, every_seconds: float = 10.0, width: int | None = None
    ) -> None:
        self.stage, self.write, self.every_seconds, self.width = stage, write, every_seconds, width
        self.told = time.monotonic()
        self.first: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.first = first_of_loop(self.first, progress)
        now = time.monotonic()
        # A loop that has not begun may be long in coming, as where another process makes the same.
        if now - self.told >= self.every_seconds or (self.first is progress and progress.step == 0):
            self.told = now
            before = f"{self.stage} · "
            room = None if self.width is None else self.width - len(before)
            self.write(before + line(self.first, progress, room))


def first_of_loop(first: Progress | None, now: Progress) -> Progress:
    """The first report of the loop that reports now."""
    return now if first is None or first.what != now.what else first


def line(first: Progress, now: Progress, width: int | None = None) -> str:
    """How far a loop has come since its first report: step, losses, speed, time left; numbers as far as they fit."""
    if not now.total:
        return now.what
    always = [part for part in (f"{now.what} {now.step}/{now.total}", time_left(first, now)) if part]
    room = None if width is None else width - len("  ".join(always)) - 2
    numbers = _joined(said_numbers(now), room)
    return "  ".join([always[0], *([numbers] if numbers else []), *always[1:]])


def time_left(first: Progress, now: Progress) -> str:
    """At the pace since the loop's first report; nothing before it has one, and at its end."""
    steps, seconds = now.step - first.step, now.seconds - first.seconds
    if steps <= 0 or now.step >= now.total:
        return ""
    return f"{duration((now.total - now.step) * seconds / steps)} left"


def said_numbers(progress: Progress) -> list[str]:
    """The first losses, and the speed."""
    shown = [f"{name} {value:.4g}" for name, value in progress.numbers.items() if name != "tokens_per_second"][:2]
    if "tokens_per_second" in progress.numbers:
        shown.append(f"{progress.numbers['tokens_per_second']:,.0f} tokens/s")
    return shown


def _joined(numbers: Sequence[str], width: int | None) -> str:
    """As many as fit: the first loss stays longest, of three the second goes first."""
    kept = list(numbers)
    while kept and width is not None and len("  ".join(kept)) > width:
        del kept[1 if len(kept) > 2 else -1]
    return "  ".join(kept)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def print_results(made: Sequence[Made], store: Store, seconds: float) -> None:
    """On stdout: a row for each artifact, then how many of them were reused."""
    console = Console()
    if not console.is_terminal:  # a file has no width: nothing is cut off
        console.width = 200
    measured = [column.heading for column in columns(RUN)]
    table = _results(made, store, ("stage", "artifact", "made in", *measured))
    # An id says its stage; of the metrics the first say most.
    for left_out in ("stage", *reversed(measured)):
        if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
            break
        kept = [column.header for column in table.columns if column.header != left_out]
        table = _results(made, store, kept)
    closing = closing_line(made, store, seconds)
    # All of it: where stdout is not buffered, capturing writes nothing to it, which may fail. The colours are rich's.
    with writing_to_stdout(as_it_is=True):
        with console.capture() as said:  # rich by itself exits where a pipe has no reader
            console.print(table)
            console.print(on_one_line(closing), highlight=False, markup=False, soft_wrap=True)
        print(said.get(), end="")  # noqa: T201


def _results(made: Sequence[Made], store: Store, wanted: Collection[Any]) -> Table:
    """A row for each artifact, with the wanted of its columns."""
    measured = {column.heading: column for column in columns(RUN)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("stage", "artifact", "made in", *measured):
        if title in wanted:
            table.add_column(title, justify="left" if title in ("stage", "artifact") else "right", no_wrap=True)
    for one in made:
        manifest = store.manifest(one.id)
        cells = {
            "stage": manifest.lineage.stage,
            "artifact": one.id,
            "made in": "reused" if one.reused else duration(one.seconds),
            **{title: column.text(manifest.metrics) for title, column in measured.items()},
        }
        table.add_row(*(text for title, text in cells.items() if title in wanted))
    return table


def closing_line(made: Sequence[Made], store: Store, seconds: float) -> str:
    reused = sum(one.reused for one in made)
    count = f"all {len(made)} stages were reused, nothing was made" if reused == len(made) else (
        f"{len(made) - reused} of {len(made)} stages made, {reused} reused"
    )  # fmt: skip
    return f"{count}; {duration(seconds)} in all; the artifacts are in {store.root}"
