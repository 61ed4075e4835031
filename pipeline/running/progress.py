"""What a person sees while stages run, and the table at the end. Bars in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from artifacts import Store, writing_to_stdout
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


@contextmanager
def shown(stage: str) -> Iterator[Callable[[Progress], None]]:
    """Within it, what the yielded function is told of the stage's progress appears on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(stage, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[numbers]}", style="dim"),
    )
    with Bars(*columns, console=console) as bars:
        yield _Bars(stage, bars)


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
            self.tasks[progress.what] = self.bars.add_task(description, total=progress.total, numbers="")
        self.bars.update(
            self.tasks[progress.what],
            completed=progress.step,
            total=progress.total,
            numbers=_numbers(progress),
        )


class Lines:
    """A line now and then, as in a log, with the time left at the pace since the loop's first report."""

    def __init__(self, stage: str, write: Callable[[str], None], *, every_seconds: float = 10.0) -> None:
        self.stage, self.write, self.every_seconds = stage, write, every_seconds
        self.told = time.monotonic()
        self.first: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.first = first_of_loop(self.first, progress)
        now = time.monotonic()
        # A loop that has not begun may be long in coming, as where another process makes the same.
        if now - self.told >= self.every_seconds or (self.first is progress and progress.step == 0):
            self.told = now
            self.write(f"{self.stage} · {line(self.first, progress)}")


def first_of_loop(first: Progress | None, now: Progress) -> Progress:
    """The first report of the loop that reports now."""
    return now if first is None or first.what != now.what else first


def line(first: Progress, now: Progress) -> str:
    """How far a loop has come since its first report: step, losses, speed, time left."""
    if not now.total:
        return now.what
    parts = [f"{now.what} {now.step}/{now.total}", _numbers(now), _time_left(first, now)]
    return "  ".join(part for part in parts if part)


def _time_left(first: Progress, now: Progress) -> str:
    steps, seconds = now.step - first.step, now.seconds - first.seconds
    if steps <= 0 or now.step >= now.total:
        return ""
    return f"{duration((now.total - now.step) * seconds / steps)} left"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds from two minutes on."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _numbers(progress: Progress) -> str:
    """The first losses, and the speed."""
    shown = [f"{name} {value:.4g}" for name, value in progress.numbers.items() if name != "tokens_per_second"][:2]
    if "tokens_per_second" in progress.numbers:
        shown.append(f"{progress.numbers['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(shown)


def print_results(made: Sequence[Made], store: Store, seconds: float) -> None:
    """On stdout: a row for each artifact, then how many of them were reused."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("artifact", no_wrap=True)
    measured = columns(RUN)
    for title in ("made in", *(column.heading for column in measured)):
        table.add_column(title, justify="right", no_wrap=True)
    for one in made:
        manifest = store.manifest(one.id)
        figures = [column.text(manifest.metrics) for column in measured]
        table.add_row(manifest.lineage.stage, one.id, "reused" if one.reused else duration(one.seconds), *figures)
    console = Console()
    if not console.is_terminal:  # a file has no width: nothing is cut off
        console.width = 200
    closing = closing_line(made, store, seconds)
    # All of it: where stdout is not buffered, capturing writes nothing to it, which may fail. The colours are rich's.
    with writing_to_stdout(as_it_is=True):
        with console.capture() as said:  # rich by itself exits where a pipe has no reader
            console.print(table)
            console.print(on_one_line(closing), highlight=False, markup=False, soft_wrap=True)
        print(said.get(), end="")  # noqa: T201


def closing_line(made: Sequence[Made], store: Store, seconds: float) -> str:
    reused = sum(one.reused for one in made)
    count = f"all {len(made)} stages were reused, nothing was made" if reused == len(made) else (
        f"{len(made) - reused} of {len(made)} stages made, {reused} reused"
    )  # fmt: skip
    return f"{count}; {duration(seconds)} in all; the artifacts are in {store.root}"
