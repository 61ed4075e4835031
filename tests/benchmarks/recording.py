"""What recording costs over a forward pass with its losses: python -m tests.benchmarks.recording STORE ID..."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from artifacts import Artifact, Store
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.measuring.loss import token_losses
from pipeline.models import LanguageModel
from pipeline.records.recording import Recording, record_activations
from pipeline.run import Run, running

ROUNDS = 3  # in turn, since others use the machine; the median of each is shown
RECORDING = Recording(
    split="held_out", tokens=16_384, context_length=128, batch_size=16, most=32, contributions="float16"
)


def main(store: Store, names: Sequence[str]) -> None:
    table = Table(
        "artifact",
        "tokens",
        "forward, CPU s",
        "recorded, CPU s",
        "times",
        "bytes a token and block",
        box=box.SIMPLE_HEAD,
    )
    for name in names:
        table.add_row(*_row(store.open(name), store))
    Console().print(table)


def _row(artifact: Artifact, store: Store) -> tuple[str, ...]:
    model = codec.load_as(LanguageModel, artifact).eval()
    corpus = codec.load_as(Corpus, _corpus_of(artifact, store))
    inputs_WT, targets_WT = held_out_windows(corpus.held_out, num_tokens=RECORDING.tokens, length=128)
    recording = replace(RECORDING, tokens=inputs_WT.numel())
    plain, kept, size = list[float](), list[float](), 0
    for number in range(-1, ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            seconds = (
                _seconds(partial(_forward, model, inputs_WT, targets_WT)),
                _seconds(partial(_record, model, corpus, recording, Path(folder))),
            )
            size = sum(path.stat().st_size for path in Path(folder).glob("layers.*"))
        if number >= 0:  # the first warms up
            plain.append(seconds[0])
            kept.append(seconds[1])
    without, with_it = statistics.median(plain), statistics.median(kept)
    bytes_each = size / inputs_WT.numel() / len(model.blocks())
    times = f"{without:.3f}", f"{with_it:.3f}", f"{with_it / without:.2f}"
    return artifact.id, f"{inputs_WT.numel():,}", *times, f"{bytes_each:.0f}"


def _corpus_of(artifact: Artifact, store: Store) -> Artifact:
    return store.open(next(m.id for m in store.ancestry(artifact.id) if m.kind == "corpus"))


def _seconds(do: Callable[[], None]) -> float:
    start = time.process_time()
    do()
    return time.process_time() - start


@torch.no_grad()
def _forward(model: LanguageModel, inputs_WT: torch.Tensor, targets_WT: torch.Tensor) -> None:
    for inputs_BT, targets_BT in zip(inputs_WT.split(16), targets_WT.split(16), strict=True):
        token_losses(model(inputs_BT), targets_BT)


def _record(model: LanguageModel, corpus: Corpus, recording: Recording, folder: Path) -> None:
    with running(Run(checkpoints=folder)):
        record_activations(model, corpus, recording)


if __name__ == "__main__":
    main(Store(Path(sys.argv[1])), sys.argv[2:])
