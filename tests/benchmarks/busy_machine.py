"""What waiting costs, alone and beside busy processes: python -m tests.benchmarks.busy_machine.

The dense model of the tiny preset trains. Each arm is a process with its own environment, as libgomp reads it once. All
arms take turns of half a second, round after round, so that what else the machine does meets all alike; the median
round is shown. Busy processes are trainings with one thread. It prints a table in Markdown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from rich.console import Console

CONSOLE = Console(width=200, soft_wrap=True, highlight=False)
ARMS: Mapping[str, Mapping[str, str]] = {
    "libgomp's own": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"spins {count:,}": {"GOMP_SPINCOUNT": str(count)} for count in (100, 1_000, 10_000, 100_000)},
}
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ROUND_SECONDS = 0.5


@dataclass
class Worker:
    """A process that trains when it is told to."""

    process: "subprocess.Popen[str]"
    tokens_per_second: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)

    def train(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[float, float]:
        assert self.process.stdout is not None
        tokens, gflops = self.process.stdout.readline().split()
        return float(tokens), float(gflops)


@contextmanager
def worker(environment: Mapping[str, str]) -> Iterator[Worker]:
    """Answers once when it has been built."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.busy_machine", "--worker"],
        env={**kept, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def measure(workers: Sequence[Worker], rounds: int) -> None:
    """Of workers that have answered once."""
    for _ in range(rounds):
        for one in workers:
            one.train(ROUND_SECONDS)
            tokens, gflops = one.answer()
            one.tokens_per_second.append(tokens)
            one.gflops.append(gflops)


def work() -> None:
    """Answers every number of seconds on stdin with tokens a second, and GFLOP/s of the MLP's matrix product."""
    import torch

    from pipeline.models.language_model import LanguageModel, ModelSpec
    from pipeline.models.transformer import TransformerSpec
    from stages.train_dense import TrainDenseConfig

    config, vocab_size = TrainDenseConfig(), 1024
    transformer = TransformerSpec(**config.transformer.model_dump(), vocab_size=vocab_size)
    model = LanguageModel(ModelSpec(transformer=transformer, experts=config.mlp))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    B, T = config.training.batch_size, config.training.context_length
    tokens_BT = torch.randint(vocab_size, (B, T))
    x_ND, w_DH = torch.randn(B * T, config.transformer.d_model), torch.randn(config.transformer.d_model, 512)

    def step() -> int:
        loss = torch.nn.functional.cross_entropy(model(tokens_BT).flatten(0, 1), tokens_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return B * T

    def product() -> int:
        x_ND @ w_DH
        return 2 * B * T * w_DH.numel()

    CONSOLE.print("0 0")
    for line in sys.stdin:
        step(), product()  # not timed: all threads are there
        found = []
        for what, share in ((step, 0.8), (product, 0.2)):
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < share * float(line):
                done += what()
            found.append(done / (time.perf_counter() - start))
        CONSOLE.print(f"{found[0]} {found[1] / 1e9}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.busy_machine")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=9, help="of half a second an arm (default: 9)")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes (default: 0 1 2)")
    values = parser.parse_args(arguments)
    if values.worker:
        work()
        return 0
    columns: dict[str, list[str]] = {arm: [] for arm in ARMS}
    for number in values.busy:
        with ExitStack() as stack:
            workers = {arm: stack.enter_context(worker(environment)) for arm, environment in ARMS.items()}
            others = [stack.enter_context(worker({"OMP_NUM_THREADS": "1"})) for _ in range(number)]
            for one in (*workers.values(), *others):
                one.answer()
            for one in others:
                one.train(1e9)
            measure(list(workers.values()), values.rounds)
            for arm, one in workers.items():
                tokens, gflops = statistics.median(one.tokens_per_second), statistics.median(one.gflops)
                columns[arm] += [f"{tokens:,.0f}", f"{gflops:.0f}"]
    CONSOLE.print("| | " + " | ".join(f"{n} busy, tokens/s | GFLOP/s" for n in values.busy) + " |")
    CONSOLE.print("| --- |" + " ---: |" * (2 * len(values.busy)))
    for arm, cells in columns.items():
        CONSOLE.print(f"| {arm} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
